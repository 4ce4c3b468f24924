"""What a run of changes does to the tables: the rules that every ingester must follow (pure).

For each DID the highest `rev` applied is kept. A record change or the end of a snapshot with a lower one is a late copy, from a
stream that was thought dead, and changes nothing: it would bring deleted records back. REPO_END deletes the rows, in the
collections that it covers, whose rev is lower than its own. While the last ACCOUNT says `deleted`, record operations change
nothing; an ACCOUNT with a lower time than the last one applied changes nothing either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

from relay.ingester.operations import AccountChange, Change, IdentityChange, RecordChange, RepoBegin, RepoEnd

DELETED = "deleted"


@dataclass(slots=True, kw_only=True)
class Account:
    """The row of one DID. `status_time_us` and `identity_time_us` are None until the first ACCOUNT, IDENTITY."""

    did: str
    rev: str = ""
    active: bool = True
    status: str = ""
    status_time_us: int | None = None
    handle: str = ""
    pds: str = ""
    identity_time_us: int | None = None

    @property
    def is_deleted(self) -> bool:
        return not self.active and self.status == DELETED


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Delete the rows of a DID whose rev is lower than `rev`, in the collections that `patterns` covers."""

    rev: str
    patterns: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class RepoChanges:
    """What becomes of one DID. A sink applies: wipe, else the sweeps; then `rows`; then the account.

    `rows` maps a path to (rev, row), row None meaning delete, in the order in which the paths were last touched first.
    `has_deletes` is False only when no row in it is None.
    """

    account: Account
    wipe: bool = False
    sweeps: list[Sweep] = field(default_factory=list)
    rows: dict[str, tuple[str, object | None]] = field(default_factory=dict)
    has_deletes: bool = False
    gated: bool = False  # the account is deleted: record operations change nothing
    lowest_rev: str = ""  # of what is in `rows`: revs only rise, so it is that of the first

    def sweep(self, end: RepoEnd) -> None:
        self.sweeps.append(Sweep(rev=end.rev, patterns=end.patterns))
        if self.rows and self.lowest_rev < end.rev:
            # What the tables have under these paths is older still, and the sweep deletes it there.
            self.rows = {
                path: held
                for path, held in self.rows.items()
                if held[0] >= end.rev or not covers(end.patterns, path.partition("/")[0])
            }
            self.lowest_rev = min((rev for rev, _ in self.rows.values()), default="")


class Changes:
    """The fold of a run of changes, in order, over the accounts as they are stored.

    `accounts` must hold the stored row of every DID that has one; it is changed in place. Nothing is kept between runs.
    """

    def __init__(self, accounts: Mapping[str, Account]) -> None:
        self._accounts = accounts
        self.repos: dict[str, RepoChanges] = {}
        self.late = 0

    def apply(self, changes: Iterable[Change]) -> None:
        """Fold them in. About 0.5 us a record."""
        repo: RepoChanges | None = None
        for change in changes:
            if repo is None or repo.account.did != change.did:
                repo = self._repo(change.did)
            # type() and not match: this line runs for every record.
            if type(change) is RecordChange:
                _, rev, path, row = change
                account = repo.account
                if rev != account.rev:
                    if rev < account.rev:
                        self.late += 1
                        continue
                    account.rev = rev
                if repo.gated:
                    continue
                rows = repo.rows
                if not rows:
                    repo.lowest_rev = rev
                if row is None:
                    repo.has_deletes = True
                rows[path] = (rev, row)
            else:
                self._apply_other(repo, change)

    def _repo(self, did: str) -> RepoChanges:
        repo = self.repos.get(did)
        if repo is None:
            account = self._accounts.get(did) or Account(did=did)
            repo = self.repos[did] = RepoChanges(account=account, gated=account.is_deleted)
        return repo

    def _apply_other(self, repo: RepoChanges, change: Change) -> None:
        account = repo.account
        match change:
            case RepoBegin():
                if change.rev < account.rev:
                    self.late += 1
                    return
                account.rev = change.rev
                if change.identity is not None and account.identity_time_us is None:
                    account.handle, account.pds = change.identity
            case RepoEnd():
                if change.rev < account.rev:
                    self.late += 1
                    return
                account.rev = change.rev
                repo.sweep(change)
            case AccountChange():
                if account.status_time_us is not None and change.time_us < account.status_time_us:
                    self.late += 1
                    return
                account.active, account.status, account.status_time_us = change.active, change.status, change.time_us
                repo.gated = account.is_deleted
                if repo.gated:
                    repo.wipe = True
                    repo.rows.clear()
                    repo.sweeps.clear()
            case IdentityChange():
                if account.identity_time_us is not None and change.time_us < account.identity_time_us:
                    self.late += 1
                    return
                account.handle, account.pds, account.identity_time_us = change.handle, change.pds, change.time_us
            case RecordChange():
                raise AssertionError("records are folded by apply")
            case _:
                assert_never(change)


def covers(patterns: tuple[str, ...], collection: str) -> bool:
    """Tell whether a filter covers a collection: an exact NSID, or a prefix that ends in `.` or `.*`; none: all."""
    if not patterns:
        return True
    exact, prefixes = split_patterns(patterns)
    return collection in exact or collection.startswith(prefixes)


def split_patterns(patterns: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (exact NSIDs, prefixes with their dot)."""
    exact = tuple(pattern for pattern in patterns if not pattern.endswith((".", ".*")))
    prefixes = tuple(pattern.removesuffix("*") for pattern in patterns if pattern.endswith((".", ".*")))
    return exact, prefixes
