"""Somebody who writes without end: one action after the other, drawn from a seed. A pure machine; `writers` gives it a thread."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from relay.simnet.drawing import Changes, draw_create, draw_delete, draw_many, draw_same, draw_update
from relay.simnet.keys import Curve
from relay.simnet.world import Account, World

_AWAY = ("deactivated", "takendown", "suspended", "deleted")
_TRIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How often an author does what: weights, of which only the proportions count.

    The first six are commits of an active account; the others change what an account is. With these weights 500 actions a
    second are about 495 commits and 5 changes of accounts, and repos grow slowly.
    """

    create: float = 450.0
    update: float = 200.0
    delete: float = 250.0
    same: float = 10.0  # an update whose CID does not change
    empty: float = 20.0  # a commit without ops
    many: float = 60.0  # a commit of several ops
    status: float = 4.0  # an account goes away (also deleted) or comes back
    rotate: float = 1.5
    migrate: float = 1.5
    handle: float = 1.0
    newcomer: float = 1.0
    imported: float = 1.0  # the repo changes, and only #sync says so
    many_ops: int = 12  # of one commit, at most
    away_share: float = 0.05  # of the accounts, at most: then one comes back
    newcomers: int = 200  # in all
    repo_records: int = 5_000  # a repo above this shrinks

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Mix:
        """Raise ValueError for an unknown key."""
        unknown = set(value) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"a mix has no {', '.join(sorted(unknown))}")
        return cls(**value)

    def to_json(self) -> dict[str, float]:
        return asdict(self)


COMMITS = ("create", "update", "delete", "same", "empty", "many")
CHANGES = ("status", "rotate", "migrate", "handle", "newcomer", "imported")


class Author:
    """Writes to its own accounts and nobody else's, so several authors can write at once.

    `done` counts what was done, by the names of `Mix`. An action that is not possible becomes a create.
    """

    def __init__(self, world: World, accounts: Sequence[Account], *, seed: str, mix: Mix) -> None:
        """Raise ValueError when there is no account to write to."""
        if not accounts:
            raise ValueError("an author needs accounts")
        self.done: Counter[str] = Counter(dict.fromkeys((*COMMITS, *CHANGES), 0))
        self._world = world
        self._accounts = list(accounts)
        self._rng = random.Random(f"{world.spec.seed}/author/{seed}")
        self._mix = mix
        self._names = (*COMMITS, *CHANGES)
        self._weights = [getattr(mix, name) for name in self._names]
        self._away = [account for account in accounts if not account.is_active and not account.tombstoned]
        self._newcomers = 0

    def act(self) -> str:
        """Do one thing and return its name. About 0.4 ms; the world's lock is held meanwhile."""
        name: str = self._rng.choices(self._names, self._weights)[0]
        with self._world.lock:
            account = self._any_active()
            if account is None or name == "status":
                name = self._change_status(account)
            elif name in CHANGES:
                name = self._change(name, account)
            else:
                name = self._write(name, account)
        self.done[name] += 1
        return name

    def _write(self, name: str, account: Account) -> str:
        if name == "create" and len(account.repo.paths()) >= self._mix.repo_records:
            name = "delete"
        self._world.write(account.did, self._draw(name, account))
        return name

    def _draw(self, name: str, account: Account) -> Changes:
        records = self._world.new_records(self._rng)
        match name:
            case "empty":
                return {}
            case "many":
                return draw_many(self._rng, account.repo, records, most=self._mix.many_ops)
            case "update":
                return draw_update(self._rng, account.repo, records)
            case "delete":
                return draw_delete(self._rng, account.repo, records)
            case "same":
                return draw_same(self._rng, account.repo, records)
            case _:
                return draw_create(self._rng, account.repo, records)

    def _change(self, name: str, account: Account) -> str:
        world, did, rng = self._world, account.did, self._rng
        match name:
            case "rotate":
                world.rotate_key(did, rng.choice(tuple(Curve)))
            case "migrate" if world.spec.hosts > 1:
                world.migrate(did, (account.host + rng.randrange(1, world.spec.hosts)) % world.spec.hosts)
            case "handle":
                world.set_handle(did, f"user{account.index}x{rng.randrange(10**6)}.test")
            case "imported":
                world.import_records(did, self._draw("many", account))
            case "newcomer" if self._newcomers < self._mix.newcomers:
                self._newcomers += 1
                changes = self._draw("create", account) if rng.random() < 0.5 else {}
                newcomer = world.create_account(host=rng.randrange(world.spec.hosts), changes=changes)
                self._accounts.append(world.account(newcomer))
            case _:
                return self._write("create", account)
        return name

    def _change_status(self, account: Account | None) -> str:
        """Let somebody come back, or `account` go away."""
        most = max(1, int(len(self._accounts) * self._mix.away_share))
        if self._away and (account is None or len(self._away) >= most or self._rng.random() < 0.5):
            back = self._away.pop(self._rng.randrange(len(self._away)))
            self._world.set_status(back.did, "")
        elif account is not None:
            self._world.set_status(account.did, self._rng.choice(_AWAY))
            self._away.append(account)
        return "status"

    def _any_active(self) -> Account | None:
        """Return any account that can be written to; None when there is hardly one."""
        for _ in range(_TRIES):
            account = self._rng.choice(self._accounts)
            if account.is_active:
                return account
        return None
