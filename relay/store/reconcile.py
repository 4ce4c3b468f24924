"""Tables `reconcile`, `reconcile_candidate`, `reconcile_seen`: how far a pass came, what differs so far, what hosts have listed.

They are the pass's own notes, guarded by one session lock; `mark` and `insert_found` write the state of repos, in fenced transactions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from relay.model import RepoState
from relay.store.partitions import partition_of
from relay.store.statements import Cursor, load_statements, one
from relay.store.text import printable

_SQL = load_statements("reconcile")
_HOSTS_AT_A_TIME = 1000
# A heartbeat older than this is that of a process that is gone.
_SILENT_S = 30.0

BASELINE = "baseline"
"""The note of a pass that never ran: where the first interval begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One reconcile. Times are wall seconds of the server's clock; `finished_at` None: it is open, and goes on where it was."""

    id: int
    scope: str
    began_at: float
    finished_at: float | None = None
    hosts_total: int = 0
    hosts_failed: int = 0
    compared: int = 0
    differed: int = 0
    queued: int = 0
    found: int = 0
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a page, or a second look, adds to its pass."""

    compared: int = 0
    differed: int = 0
    queued: int = 0
    found: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRepo:
    """A row as far as a listing can differ from it. `active`, `status`: what was told last, or waits to be told."""

    did: str
    host: str | None
    state: RepoState
    reason: str | None = None
    rev: str | None = None
    rev_heard: str | None = None
    active: bool | None = None
    status: str = ""
    check_due: str | None = None
    tracked: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What `host` says of a repo, where that differs from its row. `missing`: it is not in the host's complete listing."""

    did: str
    host: str
    rev: str | None = None
    active: bool | None = None
    status: str | None = None
    missing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Where the followed stream is: `cursor_time_us` of the stored cursor's event, `is_followed`: a `run` or `tail` is alive."""

    now: float
    cursor_time_us: int | None
    is_followed: bool


# --- the pass ---------------------------------------------------------------------------------------------------------------


def try_lock(cur: Cursor) -> bool:
    """Take the right to reconcile, which ends with the session; False: another process does it."""
    cur.execute(_SQL["try_lock"])
    return bool(one(cur)[0])


def hold_epoch(cur: Cursor) -> int:
    """Return the epoch of the lease, and keep it until the transaction's end: for who writes beside a holder, or without one."""
    cur.execute(_SQL["hold_epoch"])
    return int(one(cur)[0])


def find_open(cur: Cursor) -> Pass | None:
    """Return the pass that is not finished."""
    cur.execute(_SQL["find_open"])
    row = cur.fetchone()
    return None if row is None else _pass(row)


def find_last(cur: Cursor) -> Pass | None:
    """Return the pass that was finished last (the baseline, where none ever was)."""
    cur.execute(_SQL["find_last"])
    row = cur.fetchone()
    return None if row is None else _pass(row)


def open_new(cur: Cursor, scope: str) -> Pass:
    """Begin a pass. There must be none that is open."""
    cur.execute(_SQL["open_new"], {"scope": scope})
    return _pass(one(cur))


def set_baseline(cur: Cursor) -> None:
    """Where no pass has ever run: let the first interval begin now."""
    cur.execute(_SQL["set_baseline"])


def add_counts(cur: Cursor, number: int, counts: Counts) -> None:
    """Count what a page or a second look found."""
    cur.execute(
        _SQL["add_counts"],
        {
            "id": number,
            "compared": counts.compared,
            "differed": counts.differed,
            "queued": counts.queued,
            "found": counts.found,
        },
    )


def finish(cur: Cursor, number: int, *, hosts_total: int, hosts_failed: int, note: str | None) -> None:
    """End a pass."""
    values = {"id": number, "hosts_total": hosts_total, "hosts_failed": hosts_failed}
    cur.execute(_SQL["finish"], {**values, "note": None if note is None else printable(note)})


# --- what is compared -------------------------------------------------------------------------------------------------------


def tracked_hosts(cur: Cursor, *, after: str = "", enough: int = 1) -> list[tuple[str, int]]:
    """Return up to 1,000 hosts above `after` that repos live on, in order, and how many do (counted up to `enough`)."""
    cur.execute(_SQL["tracked_hosts"], {"after": after, "limit": _HOSTS_AT_A_TIME, "enough": enough})
    return [(host, count) for host, count in cur.fetchall()]


def load(cur: Cursor, dids: Sequence[str]) -> dict[str, StoredRepo]:
    """Return the rows of `dids` that exist, removed ones too."""
    cur.execute(_SQL["load"], {"dids": list(dids)})
    return {row[0]: _stored(row) for row in cur.fetchall()}


def lock(cur: Cursor, dids: Sequence[str]) -> tuple[dict[str, StoredRepo], set[str]]:
    """Return the rows of `dids`, locked, and the DIDs whose rows somebody else has locked."""
    cur.execute(_SQL["lock"], {"dids": list(dids)})
    locked = {row[0]: _stored(row) for row in cur.fetchall()}
    left = [did for did in dids if did not in locked]
    if not left:
        return locked, set()
    cur.execute(_SQL["existing"], {"dids": left})
    return locked, {row[0] for row in cur.fetchall()}


def dids_of_host(cur: Cursor, host: str, *, after: str = "", limit: int) -> list[str]:
    """Return up to `limit` tracked repos of a host above `after` that are synced or inactive, in the order of DIDs."""
    cur.execute(_SQL["dids_of_host"], {"host": host, "after": after, "limit": limit})
    return [row[0] for row in cur.fetchall()]


# --- what differs -----------------------------------------------------------------------------------------------------------


def put_candidates(cur: Cursor, candidates: Sequence[Candidate]) -> None:
    """Note what differs, to be looked at again. Each DID once; its newest word counts."""
    if not candidates:
        return
    rows = [
        {"did": c.did, "host": c.host, "rev": c.rev, "active": c.active, "status": c.status, "missing": c.missing}
        for c in sorted(candidates, key=lambda each: each.did)
    ]
    cur.execute(_SQL["put_candidates"], {"rows": orjson.dumps(rows).decode()})


def candidates(cur: Cursor, until: float, limit: int) -> list[Candidate]:
    """Return up to `limit` candidates that were found by `until` (the server's clock), the oldest first."""
    cur.execute(_SQL["candidates"], {"until": until, "limit": limit})
    return [
        Candidate(did=did, host=host, rev=rev, active=active, status=status, missing=missing)
        for did, host, rev, active, status, missing in cur.fetchall()
    ]


def has_candidates(cur: Cursor) -> bool:
    """Whether any is left."""
    cur.execute(_SQL["has_candidates"])
    return bool(one(cur)[0])


def drop_candidates(cur: Cursor, dids: Sequence[str]) -> None:
    """Forget candidates that are decided."""
    cur.execute(_SQL["drop_candidates"], {"dids": list(dids)})


def add_seen(cur: Cursor, host: str, page: int, dids: Sequence[str]) -> None:
    """Note which DIDs a page of a host's listing has."""
    if dids:
        cur.execute(_SQL["add_seen"], {"host": host, "page": page, "dids": list(dids)})


def put_missing(cur: Cursor, host: str) -> int:
    """Make candidates of a host's repos that no page of its complete listing had; return how many."""
    cur.execute(_SQL["join_by_hash"])
    cur.execute(_SQL["put_missing"], {"host": host})
    return cur.rowcount


def forget_seen(cur: Cursor, host: str | None) -> None:
    """Forget what a host has listed (None: what any has)."""
    cur.execute(_SQL["forget_seen"], {"host": host})


# --- the state of repos -----------------------------------------------------------------------------------------------------


def mark(cur: Cursor, verdicts: Sequence[tuple[str, str, str | None]], now: float) -> Counter[str]:
    """Mark rows by (did, verdict, listed rev); return how many were changed, by verdict. See `discovery.comparison.Verdict`."""
    if not verdicts:
        return Counter()
    rows = [{"did": did, "verdict": verdict, "rev": rev} for did, verdict, rev in sorted(verdicts)]
    cur.execute(_SQL["mark"], {"rows": orjson.dumps(rows).decode(), "now": now})
    return Counter(row[0] for row in cur.fetchall())


def insert_found(cur: Cursor, found: Sequence[tuple[str, str | None]], *, partitions: int, now: float) -> int:
    """Store DIDs without a row as `discovered`, with the rev that was listed; return how many were new."""
    if not found:
        return 0
    rows = [{"did": did, "partition": partition_of(did, partitions), "rev": rev} for did, rev in sorted(found)]
    cur.execute(_SQL["insert_found"], {"rows": orjson.dumps(rows).decode(), "now": now})
    return cur.rowcount


def stream(cur: Cursor) -> Stream:
    """Return where the followed stream is."""
    cur.execute(_SQL["stream"], {"silent_s": _SILENT_S})
    now, cursor_time_us, is_followed = one(cur)
    return Stream(now=now, cursor_time_us=cursor_time_us, is_followed=is_followed)


def _pass(row: tuple[Any, ...]) -> Pass:
    number, scope, began_at, finished_at, hosts_total, hosts_failed, compared, differed, queued, found, note = row
    return Pass(
        id=number,
        scope=scope,
        began_at=began_at,
        finished_at=finished_at,
        hosts_total=hosts_total,
        hosts_failed=hosts_failed,
        compared=compared,
        differed=differed,
        queued=queued,
        found=found,
        note=note,
    )


def _stored(row: tuple[Any, ...]) -> StoredRepo:
    did, host, state, reason, rev, rev_heard, told, told_status, told_us, tell, tell_status, tell_us, due, tracked = row
    if (tell_us or 0) > (told_us or 0):
        told, told_status, told_us = tell, tell_status, tell_us
    return StoredRepo(
        did=did,
        host=host,
        state=RepoState(state),
        reason=reason,
        rev=rev,
        rev_heard=rev_heard,
        active=None if told_us is None else told,
        status="" if told_us is None else told_status or "",
        check_due=due,
        tracked=tracked,
    )
