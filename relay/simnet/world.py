"""The truth: seeded accounts with keys, handles, statuses and repos, and the writers that change them.

Everything is drawn from the seed, account by account, so a repo is the same whether it is built first or last. Repos are built
when they are first needed (`build_all` for all at once: 500 repos of 200 records take about three seconds).
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from relay.simnet.block import cid_of, cid_text, encode, tid, tid_time_us
from relay.simnet.drawing import draw_create, draw_delete, draw_update
from relay.simnet.events import EventLog, account_payload, identity_payload, sync_payload
from relay.simnet.keys import Curve, SigningKey, make_key
from relay.simnet.records import RecordStream, Surroundings, padded_record, random_plc_did
from relay.simnet.repo import Commit, Record, Repo
from relay.simnet.telling import Teller
from relay.simnet.views import Document

MAX_RECORD_BYTES = 1024 * 1024
_GENESIS_US = 1_700_000_000_000_000  # November 2023: revs of the first commits lie within months after it
_INACTIVE = ("deactivated", "takendown", "suspended", "deactivated", "deleted")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSpec:
    """How large a world is. Record counts are log-normal, as real ones are; `sizes` fixes those of the first accounts."""

    seed: int = 1
    accounts: int = 300
    hosts: int = 5
    median_records: int = 80
    sigma: float = 1.2
    max_records: int = 5_000
    sizes: tuple[int, ...] = ()
    web_accounts: int = 0  # did:web, each with a port of its own: the last accounts
    p256_share: float = 0.1
    inactive_share: float = 0.03
    replay_window: int = 20_000  # events
    purge_deleted: bool = True  # a deleted account's earlier events leave the replay window


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountTruth:
    """What an ingester should hold of an account in the end. `records` maps `collection/rkey` to the CID's text.

    `refused`: paths of records that are over the protocol's size, which a relay must leave out.
    """

    did: str
    handle: str
    pds: str
    status: str  # empty: active
    rev: str
    records: dict[str, str]
    refused: frozenset[str] = frozenset()


@dataclass(slots=True)
class Account:
    """One account. The world's lock guards it."""

    index: int
    did: str
    handle: str
    host: int
    key: SigningKey
    status: str
    records: int  # of the first commit
    build: Callable[[Account], Repo]
    tombstoned: bool = False
    pds_override: str | None = None  # what the DID document names instead of the host's address
    past_documents: list[Document] = field(default_factory=list)  # oldest first
    _repo: Repo | None = None

    @property
    def multikey(self) -> str:
        return self.key.multikey

    @property
    def repo(self) -> Repo:
        """The account's repo, built now if this is the first time."""
        if self._repo is None:
            self._repo = self.build(self)
        return self._repo

    def found(self, repo: Repo) -> None:
        """Take this as the account's repo, instead of the one that would be built."""
        self._repo = repo

    @property
    def is_active(self) -> bool:
        return not self.status and not self.tombstoned

    @property
    def rev(self) -> str:
        return self.repo.rev

    @property
    def head(self) -> str:
        return cid_text(self.repo.commit_cid)

    def collections(self) -> frozenset[str]:
        return self.repo.collections()

    def car(self) -> bytes:
        return self.repo.car()


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What `World.write_some` did."""

    creates: int = 0
    updates: int = 0
    deletes: int = 0


class World:
    """All accounts of a network and everything that they ever wrote.

    `lock` guards all of it: the servers' thread reads and builds, tests and writers change. `now_us` gives the time of writes.
    """

    def __init__(
        self,
        spec: WorldSpec,
        *,
        web_dids: Sequence[str] = (),
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        if len(web_dids) != spec.web_accounts:
            raise ValueError(f"{spec.web_accounts} did:web accounts need as many DIDs, got {len(web_dids)}")
        self.spec = spec
        self.lock = threading.RLock()
        self.host_urls: list[str] = [f"http://localhost:{1 + host}" for host in range(spec.hosts)]
        self.log = EventLog(first_seq=1000 + spec.seed % 1000, window=spec.replay_window)
        self.teller = Teller(self.log)
        self._now_us = now_us
        self._writer = random.Random(f"{spec.seed}/writer")
        rng = random.Random(f"{spec.seed}/accounts")
        dids = [random_plc_did(rng) for _ in range(spec.accounts - spec.web_accounts)] + list(web_dids)
        host_weights = list(accumulate(1 / (host + 1) for host in range(spec.hosts)))
        self.accounts: list[Account] = [
            self._draw_account(rng, index, did, host_weights) for index, did in enumerate(dids)
        ]
        self._by_did = {account.did: account for account in self.accounts}
        self._around = Surroundings.drawn(rng, tuple(dids))

    # Reading

    def find(self, did: str) -> Account | None:
        return self._by_did.get(did)

    def account(self, did: str) -> Account:
        """Raise KeyError for a DID that this world never had."""
        return self._by_did[did]

    def dids(self) -> list[str]:
        return [account.did for account in self.accounts]

    def on_host(self, host: int) -> list[Account]:
        """Return the accounts that a PDS lists, in the order of their making."""
        return [a for a in self.accounts if a.host == host and a.status != "deleted" and not a.tombstoned]

    def everyone(self) -> list[Account]:
        """Return all accounts, in the order of their making."""
        return self.accounts

    def build_all(self, *, compact: bool = False) -> int:
        """Build every repo and return how many records there are. `compact`: keep CARs only, nothing can be written later."""
        total = 0
        for account in self.accounts:
            with self.lock:
                repo = account.repo
                total += len(repo.records)
                if compact:
                    repo.make_compact()
        return total

    def truth(self) -> Iterator[AccountTruth]:
        """Yield every account's truth; each is a moment's copy."""
        for account in tuple(self.accounts):
            yield self.account_truth(account)

    def account_truth(self, account: Account) -> AccountTruth:
        with self.lock:
            repo = account.repo
            gone = account.status == "deleted" or account.tombstoned
            records = {} if gone else {path.decode(): cid_text(record.cid) for path, record in repo.records.items()}
            refused = {p.decode() for p, record in repo.records.items() if len(record.block) > MAX_RECORD_BYTES}
            return AccountTruth(
                did=account.did,
                handle=account.handle,
                pds=self.pds_of(account),
                status="deleted" if gone else account.status,
                rev=repo.rev,
                records=records,
                refused=frozenset(refused),
            )

    def pds_of(self, account: Account) -> str:
        """Return the origin that the account's DID document names."""
        return account.pds_override or self.host_urls[account.host]

    # Writing

    def write(self, did: str, changes: Mapping[str, Any]) -> Commit:
        """Commit changes of one repo (`collection/rkey` -> record, raw block, or None to delete) and tell the firehose.

        No changes at all: an empty commit. Raise KeyError for a delete of what is not there.
        """
        with self.lock:
            account = self._by_did[did]
            commit = self._commit(account, changes)
            self.teller.commit(account.repo, commit, account.host, self._now_us())
            return commit

    def import_records(self, did: str, changes: Mapping[str, Any]) -> Commit:
        """Change a repo as an import or a repair does: a `#sync` tells that its data is another, and no `#commit` tells how."""
        with self.lock:
            account = self._by_did[did]
            commit = self._commit(account, changes)
            self.teller.sync(account.repo, account.host, self._now_us())
            return commit

    def write_some(self, commits: int, dids: Sequence[str] | None = None) -> Written:
        """Make so many commits of active accounts, each a create, update or delete, drawn from the world's seed."""
        done = {"create": 0, "update": 0, "delete": 0}
        with self.lock:
            pool = [self._by_did[did] for did in dids] if dids is not None else self.accounts
            active = [account for account in pool if account.is_active]
            for _ in range(commits):
                account = self._writer.choice(active)
                for op in self.write(account.did, self._draw_change(account)).ops:
                    done[op.action] += 1
        return Written(creates=done["create"], updates=done["update"], deletes=done["delete"])

    def add_large_record(self, did: str, block_bytes: int, rkey: str = "large") -> str:
        """Write a record whose block has exactly so many bytes; return its path."""
        path = f"com.example.large/{rkey}"
        self.write(did, {path: padded_record(block_bytes)})
        return path

    def create_account(self, *, host: int = 0, changes: Mapping[str, Any] | None = None) -> str:
        """Make a brand-new account and tell of it as a PDS does: `#identity`, `#account`, first `#commit`, `#sync`.

        `changes`: the records that the first commit creates; a reference PDS has none in it. Return the DID.
        """
        with self.lock:
            rng = self._writer
            did = random_plc_did(rng)
            index = len(self.accounts)
            account = Account(
                index=index,
                did=did,
                handle=f"user{index}.test",
                host=host,
                key=make_key(rng, Curve.P256 if rng.random() < self.spec.p256_share else Curve.K256),
                status="",
                records=len(changes or ()),
                build=self._build,
            )
            records: dict[bytes, Record] = {}
            for path, value in (changes or {}).items():
                block = value if isinstance(value, bytes) else encode(value)
                records[path.encode()] = Record(cid_of(block), block)
            account.found(Repo(did, account.key, records, tid(self._now_us(), index & 1023)))
            self.accounts.append(account)
            self._by_did[did] = account
            self.teller.identity(did, account.handle, host, self._now_us())
            self.teller.account(did, "", host, self._now_us())
            self.teller.commit(account.repo, account.repo.first_commit(), host, self._now_us())
            self.teller.sync(account.repo, host, self._now_us())
            return did

    def set_status(self, did: str, status: str) -> None:
        """Deactivate, take down, suspend, delete, or (empty) activate an account.

        An activation tells `#account`, `#identity`, `#sync`, as a reference PDS; a deletion takes the account's earlier events
        out of the log (`WorldSpec.purge_deleted`). An account that comes back has the records that it had.
        """
        with self.lock:
            account = self._by_did[did]
            is_return = bool(account.status) and not status
            account.status = status
            if status == "deleted" and self.spec.purge_deleted:
                self.log.purge(did)
            self.teller.account(did, status, account.host, self._now_us())
            if is_return:
                self.teller.identity(did, account.handle, account.host, self._now_us())
                self.teller.sync(account.repo, account.host, self._now_us())

    def tombstone(self, did: str) -> None:
        """End a DID: its PLC document goes, and its PDS knows it no more."""
        with self.lock:
            account = self._by_did[did]
            account.tombstoned = True
            self.teller.account(did, "deleted", account.host, self._now_us())

    def set_handle(self, did: str, handle: str) -> None:
        with self.lock:
            account = self._by_did[did]
            account.handle = handle
            self.teller.identity(did, handle, account.host, self._now_us())

    def rotate_key(self, did: str, curve: Curve = Curve.K256) -> None:
        """Give an account another signing key: `#identity`, then `#sync` with the same tree under a new commit."""
        with self.lock:
            account = self._by_did[did]
            self._change_key(account, curve)
            self.teller.identity(did, account.handle, account.host, self._now_us())
            self.teller.sync(account.repo, account.host, self._now_us())

    def migrate(self, did: str, host: int) -> None:
        """Move an account to another PDS, with another signing key; the old one answers RepoNotFound from then on.

        Tells `#identity`, `#account`, `#sync`. As at a reference PDS the rev outside of that last commit is not the one in it,
        and the next commit follows upon the inner one.
        """
        with self.lock:
            account = self._by_did[did]
            self._change_key(account, account.key.curve)
            account.host = host
            self.teller.identity(did, account.handle, host, self._now_us())
            self.teller.account(did, account.status, host, self._now_us())
            outer_rev = tid(tid_time_us(account.rev) + 1, 0)
            self.teller.sync(account.repo, host, self._now_us(), outer_rev=outer_rev)

    def name_pds(self, did: str, origin: str | None) -> None:
        """Let the DID document name any origin: a host without DNS, a private address. None: the true one again."""
        with self.lock:
            account = self._by_did[did]
            self._remember_document(account)
            account.pds_override = origin

    def murmur(self) -> int:
        """Tell one harmless `#identity`, as a real network does all the time, and return its seq. No fault strikes it.

        A new subscriber learns the newest seq from it, and one that waits for everything knows by it that there is no more.
        """
        with self.lock:
            account = self._writer.choice(self.accounts)
            payload = identity_payload(account.did, account.handle)
            return self.teller.honestly("identity", account.did, payload, self._now_us()).seq

    def settle(self) -> int:
        """Tell again, and truly, what was dropped or told wrong last of an account; return of how many accounts.

        Without it only a comparison of all revs and statuses finds these: no later event shows that something is missing.
        """
        with self.lock:
            unheard = self.teller.unheard()
            for did, aspects in unheard.items():
                account, now_us = self._by_did[did], self._now_us()
                repo = account.repo
                if "identity" in aspects:
                    self.teller.honestly("identity", did, identity_payload(did, account.handle), now_us)
                if "status" in aspects:
                    status = "deleted" if account.tombstoned else account.status
                    self.teller.honestly("account", did, account_payload(did, status), now_us)
                if "repo" in aspects:
                    payload = sync_payload(did, repo.commit_cid, repo.commit_block, repo.rev)
                    self.teller.honestly("sync", did, payload, now_us)
            return len(unheard)

    def _commit(self, account: Account, changes: Mapping[str, Any]) -> Commit:
        blocks = {path.encode(): _as_block(value) for path, value in changes.items()}
        return account.repo.write(blocks, self._next_rev(account.repo))

    def _change_key(self, account: Account, curve: Curve) -> None:
        """Give an account another key and sign its repo with it."""
        self._remember_document(account)
        account.key = make_key(random.Random(f"{account.did}/{len(account.past_documents)}"), curve)
        account.repo.sign_again(account.key, self._next_rev(account.repo))

    # Drawing

    def _draw_account(self, rng: random.Random, index: int, did: str, host_weights: list[float]) -> Account:
        spec = self.spec
        if index < len(spec.sizes):
            records, status = spec.sizes[index], ""
        else:
            records = min(spec.max_records, int(rng.lognormvariate(math.log(spec.median_records + 1), spec.sigma)))
            status = rng.choice(_INACTIVE) if rng.random() < spec.inactive_share else ""
        curve = Curve.P256 if rng.random() < spec.p256_share else Curve.K256
        return Account(
            index=index,
            did=did,
            handle=f"user{index}.test",
            host=rng.choices(range(spec.hosts), cum_weights=host_weights)[0],
            key=make_key(rng, curve),
            status=status,
            records=records,
            build=self._build,
        )

    def _build(self, account: Account) -> Repo:
        rng = random.Random(f"{self.spec.seed}/repo/{account.index}")
        stream = RecordStream(rng, self._around, start_us=_GENESIS_US + rng.randrange(10**12))
        records: dict[bytes, Record] = {}
        if account.records:
            _put(records, *stream.profile())
        while len(records) < account.records:
            _put(records, *stream.next())
        return Repo(account.did, account.key, records, tid(stream.time_us, account.index & 1023))

    def _draw_change(self, account: Account) -> dict[str, Any]:
        pick = self._writer.random()
        draw = draw_create if pick >= 0.3 else draw_delete if pick < 0.15 else draw_update
        return draw(self._writer, account.repo, self.new_records(self._writer))

    def new_records(self, rng: random.Random) -> RecordStream:
        """Return records of now, drawn from another source than the world's own."""
        return RecordStream(rng, self._around, start_us=self._now_us() - 10**8)

    def _next_rev(self, repo: Repo) -> str:
        return tid(max(self._now_us(), tid_time_us(repo.rev) + 1), self.spec.seed & 1023)

    @staticmethod
    def _remember_document(account: Account) -> None:
        account.past_documents.append(Document(account.multikey, account.host, account.pds_override))


def _put(records: dict[bytes, Record], collection: str, rkey: str, value: Any) -> None:
    block = encode(value)
    records[f"{collection}/{rkey}".encode()] = Record(cid_of(block), block)


def _as_block(value: Any) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else encode(value)
