"""Table `repo`: a row for each DID, its state, and what must be remembered of it. Times are wall seconds since the epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

import orjson

from relay.errors import StoreError
from relay.model import Identity, RepoState
from relay.store.partitions import partition_of
from relay.store.statements import Cursor, load_statements, one
from relay.store.text import printable

Transitions = Mapping[tuple[RepoState, RepoState], int]


@dataclass(slots=True, kw_only=True)
class RepoRow:
    """One row. `data` is a raw 36-byte CID; `*_us` are microseconds; `covers` canonical comma-joined patterns ('' is everything).

    An ACCOUNT (IDENTITY) waits to be told while `tell_time_us` (`tell_identity_us`) is above the one told. `batch` and `tracked`
    are never written by `store_rows`; `seen_check_due` is the mark as it was loaded, so that a newer one is not wiped out.
    """

    did: str
    partition: int = 0
    host: str | None = None
    state: RepoState = RepoState.DISCOVERED
    reason: str | None = None
    rev: str | None = None
    data: bytes | None = None
    rev_begun: str | None = None
    rev_heard: str | None = None
    covers: str | None = None
    told_active: bool | None = None
    told_status: str | None = None
    told_time_us: int | None = None
    tell_active: bool | None = None
    tell_status: str | None = None
    tell_time_us: int | None = None
    told_identity_us: int | None = None
    tell_handle: str | None = None
    tell_pds: str | None = None
    tell_identity_us: int | None = None
    check_due: str | None = None
    attempts: int = 0
    next_attempt_at: float = 0.0
    touched: bool = False
    tracked: bool = True
    batch: int | None = None
    shard: str | None = None
    records: int = 0
    bytes: int = 0
    last_error: str | None = None
    created_at: float = 0.0
    updated_at: float = 0.0
    synced_at: float | None = None
    seen_check_due: str | None = None

    def __copy__(self) -> RepoRow:
        """Each change that is put is a copy. One assignment a field takes 0.3 us, a loop over them 2.5."""
        row = RepoRow.__new__(RepoRow)
        row.did, row.partition, row.host, row.state, row.reason = (
            self.did,
            self.partition,
            self.host,
            self.state,
            self.reason,
        )
        row.rev, row.data, row.rev_begun, row.rev_heard = self.rev, self.data, self.rev_begun, self.rev_heard
        row.covers = self.covers
        row.told_active, row.told_status, row.told_time_us = self.told_active, self.told_status, self.told_time_us
        row.tell_active, row.tell_status, row.tell_time_us = self.tell_active, self.tell_status, self.tell_time_us
        row.told_identity_us, row.tell_identity_us = self.told_identity_us, self.tell_identity_us
        row.tell_handle, row.tell_pds, row.check_due = self.tell_handle, self.tell_pds, self.check_due
        row.attempts, row.next_attempt_at, row.touched = self.attempts, self.next_attempt_at, self.touched
        row.tracked, row.batch, row.shard, row.records = self.tracked, self.batch, self.shard, self.records
        row.bytes, row.last_error, row.created_at = self.bytes, self.last_error, self.created_at
        row.updated_at, row.synced_at, row.seen_check_due = self.updated_at, self.synced_at, self.seen_check_due
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovered:
    """What a listing (or the operator) says of a DID: its rev and whether it is active, each None when it does not say.

    `host`: the origin of the PDS that lists it; None: somebody who may speak for any host (the upstream, the operator).
    """

    did: str
    rev: str | None = None
    active: bool | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsertResult:
    """What became of the entries, each DID counted once: new + requeued + unchanged + ignored.

    `to_check`: of those unchanged, how many newly wait for a getRepoStatus or getLatestCommit. `ignored`: removed repos that the
    operator did not name. `transitions` has the requeued and the new ones (whose old state is None); `covers` what the entries
    that are and stay synced cover (None among them: nothing complete yet).
    """

    new: int = 0
    requeued: int = 0
    unchanged: int = 0
    ignored: int = 0
    to_check: int = 0
    transitions: Mapping[tuple[RepoState | None, RepoState], int] = field(default_factory=dict)
    covers: frozenset[str | None] = frozenset()


_TIMES = frozenset({"next_attempt_at", "created_at", "updated_at", "synced_at"})
_FIELDS = tuple(entry.name for entry in fields(RepoRow) if entry.name != "seen_check_due")
_COLUMNS = ", ".join(
    f"extract(epoch FROM repo.{name})::float8" if name in _TIMES else f"repo.{name}" for name in _FIELDS
)
_WRITTEN = tuple(
    entry.name
    for entry in fields(RepoRow)
    if entry.name not in {"partition", "tracked", "batch", "created_at", "updated_at"}
)
_written_values = attrgetter(*_WRITTEN)
_PARTS = load_statements("repos")
_SQL = {
    name: text.replace("{columns}", _COLUMNS)
    .replace("{noted}", _PARTS["noted"])
    .replace("{fetch_again}", _PARTS["fetch_again"])
    for name, text in _PARTS.items()
}


def upsert_discovered(
    cur: Cursor,
    entries: Sequence[Discovered],
    *,
    batch: int | None,
    named: bool,
    partitions: int,
    now: float,
) -> UpsertResult:
    """Take what a listing says: new DIDs become `discovered`, known ones what their state and the listing ask for.

    Of several entries of one DID the greatest rev and the last word on `active` count. Known rows: `rev_heard` rises, `batch` is set;
    synced with a greater rev -> pending (newer_rev), without a rev -> check 'commit', not active -> check 'status'; failed and
    quarantined -> pending with no attempts used (discovered when the host is unknown); inactive and listed as active -> pending,
    listed without a status -> check 'status'. Others keep their state. A host that is not the repo's own is believed nothing of a synced
    one: a greater rev there has its own host asked (check 'commit'). All entries are of one listing. Removed rows: only when `named` tracked again, else ignored.
    """
    merged: dict[str, Discovered] = {}
    for entry in entries:
        known = merged.get(entry.did)
        if known is not None:
            revs = [rev for rev in (known.rev, entry.rev) if rev is not None]
            active = entry.active if entry.active is not None else known.active
            entry = Discovered(did=entry.did, rev=max(revs, default=None), active=active, host=entry.host)
        merged[entry.did] = entry
    if not merged:
        return UpsertResult()
    ordered = [merged[did] for did in sorted(merged)]
    rows = [{"did": e.did, "partition": partition_of(e.did, partitions), "rev": e.rev} for e in ordered]
    cur.execute(_SQL["insert_new"], {"rows": _json(rows), "batch": batch, "now": now})
    new = {row[0] for row in cur.fetchall()}
    transitions: Counter[tuple[RepoState | None, RepoState]] = Counter()
    if new:
        transitions[None, RepoState.DISCOVERED] = len(new)
    left = [{"did": e.did, "rev": e.rev, "active": e.active, "host": e.host} for e in ordered if e.did not in new]
    if not left:
        return UpsertResult(new=len(new), transitions=transitions)
    cur.execute(_SQL["update_known"], {"rows": _json(left), "batch": batch, "named": named, "now": now})
    requeued = unchanged = ignored = to_check = 0
    covers: set[str | None] = set()
    for old, state, tracked, wanted, is_newly_due, covered, count in cur.fetchall():
        if not wanted:
            ignored += count
        elif old == state and tracked:
            unchanged += count
            to_check += count if is_newly_due else 0
            if state == RepoState.SYNCED:
                covers.add(covered)
        else:
            requeued += count
            transitions[RepoState(old) if tracked else None, RepoState(state)] += count
    return UpsertResult(
        new=len(new),
        requeued=requeued,
        unchanged=unchanged,
        ignored=ignored,
        to_check=to_check,
        transitions=transitions,
        covers=frozenset(covers),
    )


def insert_streamed(cur: Cursor, rows: Sequence[RepoRow]) -> None:
    """Make rows for repos that the stream made known, each DID once, where there are none; `store_rows` writes them afterwards."""
    values = [{"did": r.did, "partition": r.partition, "next_attempt_at": r.next_attempt_at} for r in rows]
    cur.execute(_SQL["insert_streamed"], {"rows": _json(values)})


def requeue_uncovered(
    cur: Cursor, dids: Sequence[str], insufficient: Collection[str], batch: int | None, *, now: float
) -> int:
    """Make those of `dids` pending (reason filter) that are synced and cover one of `insufficient`, or nothing; return how many."""
    cur.execute(
        _SQL["requeue_uncovered"],
        {"dids": sorted(set(dids)), "insufficient": list(insufficient), "batch": batch, "now": now},
    )
    return cur.rowcount


def due_hosts(cur: Cursor, now: float, limit: int, *, after: str = "") -> list[str]:
    """Return up to `limit` hosts above `after`, in order, with a pending repo that is due. Ask with "" again at the end."""
    cur.execute(_SQL["due_hosts"], {"now": now, "after": after, "limit": limit})
    return [row[0] for row in cur.fetchall()]


def claim(cur: Cursor, wants: Sequence[tuple[str, int]], now: float) -> list[RepoRow]:
    """Make up to n due pending repos of each (host, n) `active`, the longest due first, and return them as stored."""
    if not wants:
        return []
    hosts, counts = zip(*wants, strict=True)
    cur.execute(_SQL["claim"], {"hosts": list(hosts), "counts": list(counts), "now": now})
    return _rows(cur)


def unresolved(cur: Cursor, now: float, limit: int, exclude: Collection[str] = ()) -> list[RepoRow]:
    """Return up to `limit` discovered repos that are due, the longest due first, without those of `exclude`; they stay as they are."""
    cur.execute(_SQL["unresolved"], {"now": now, "limit": limit, "exclude": list(exclude)})
    return _rows(cur)


def store_rows(cur: Cursor, rows: Sequence[RepoRow]) -> list[tuple[str, RepoState]]:
    """Write the rows (each DID once; all columns but batch and tracked); return (did, state) where another state was stored.

    rev_begun and rev_heard never fall, `touched` stays once true. A row written as synced is stored as pending instead when another
    fetch was asked for meanwhile, or (newer_rev) when a rev above both its own and the one it knew of was heard. Raises StoreError
    when a row is missing: they are never deleted, so our own state is broken.
    """
    if not rows:
        return []
    ordered = sorted(rows, key=lambda row: row.did)
    cur.execute(_SQL["store_rows"], {"rows": _json([_written(row) for row in ordered])})
    stored = cur.fetchall()
    if len(stored) != len(rows):
        missing = sorted({row.did for row in rows} - {row[0] for row in stored})
        raise StoreError(f"{len(rows) - len(stored)} of {len(rows)} repos have no row, or came twice: {missing[:3]}")
    return [(did, RepoState(state)) for did, state, asked in stored if state != asked]


def give_up_host(cur: Cursor, host: str, now: float) -> int:
    """Quarantine the pending repos of a host that are a batch's targets (reason `host_down`); return how many."""
    cur.execute(_SQL["give_up_host"], {"host": host, "now": now})
    return cur.rowcount


def requeue_due(cur: Cursor, now: float, limit: int) -> Transitions:
    """Make failed and desynced repos that are due pending (discovered without a host); return the transitions."""
    cur.execute(_SQL["requeue_due"], {"now": now, "limit": limit})
    return _transitions(cur)


def reset_active(cur: Cursor) -> int:
    """Make every active repo pending (discovered without a host): called by the new holder of the lease. Return how many."""
    cur.execute(_SQL["reset_active"])
    count = cur.rowcount
    cur.execute(_SQL["reset_homeless"])
    return count + cur.rowcount


def list_active(cur: Cursor, limit: int, *, after: str = "") -> list[str]:
    """Return active repos above `after` in DID order."""
    cur.execute(_SQL["list_active"], {"limit": limit, "after": after})
    return [row[0] for row in cur.fetchall()]


def release_active(cur: Cursor, dids: Sequence[str]) -> Transitions:
    """Make those of `dids` that are active pending (discovered without a host), because nobody works on them."""
    cur.execute(_SQL["release_active"], {"dids": sorted(dids)})
    return _transitions(cur)


def checks_due(cur: Cursor, limit: int, *, after: str = "") -> list[RepoRow]:
    """Return repos above `after` in DID order that wait for a getRepoStatus or getLatestCommit (`check_due`)."""
    cur.execute(_SQL["checks_due"], {"limit": limit, "after": after})
    return _rows(cur)


def tells_due(cur: Cursor, limit: int, *, after: str = "") -> list[RepoRow]:
    """Return repos above `after` in DID order with a status or identity that was stored and not yet acknowledged."""
    cur.execute(_SQL["tells_due"], {"limit": limit, "after": after})
    return _rows(cur)


def count_by_state(cur: Cursor, batch: int | None = None) -> dict[RepoState, int]:
    """Return the number of tracked repos in each state (0 where none), of one batch or of all. All: a scan, 0.3 s a million."""
    if batch is None:
        cur.execute(_SQL["count_by_state"])
    else:
        cur.execute(_SQL["count_batch_by_state"], {"batch": batch})
    found = dict(cur.fetchall())
    return {state: found.get(state.value, 0) for state in RepoState}


def totals(cur: Cursor, batch: int | None = None) -> tuple[int, int]:
    """Return the sums of records and bytes of the tracked repos, of one batch or of all."""
    cur.execute(_SQL["totals"], {"batch": batch})
    records, size = one(cur)
    return records, size


def unfinished_of_batch(cur: Cursor, batch: int) -> int:
    """Return how many of a batch's repos are neither synced, inactive nor quarantined, or have yet to be compared (`check_due`)."""
    cur.execute(_SQL["unfinished_of_batch"], {"batch": batch})
    count: int = one(cur)[0]
    return count


def reasons_of_batch(cur: Cursor, batch: int) -> list[tuple[RepoState, str | None, int]]:
    """Return (state, reason, count) of a batch's repos that are not synced, the most frequent first."""
    cur.execute(_SQL["reasons_of_batch"], {"batch": batch})
    return [(RepoState(state), reason, count) for state, reason, count in cur.fetchall()]


def quarantined_of_batch(cur: Cursor, batch: int, limit: int, *, after: str = "") -> list[RepoRow]:
    """Return a batch's quarantined repos above `after` in DID order."""
    cur.execute(_SQL["quarantined_of_batch"], {"batch": batch, "limit": limit, "after": after})
    return _rows(cur)


def list_repos(
    cur: Cursor,
    *,
    states: Collection[RepoState] = (),
    host: str | None = None,
    collectionless: bool | None = None,
    after: str = "",
    limit: int = 1000,
) -> list[RepoRow]:
    """Return tracked repos above `after` in DID order: of `states` (empty: all), of `host`, without (True) or with wanted records."""
    filters = ["true"]
    if states:
        filters.append("state = ANY(%(states)s)" if len(states) > 1 else "state = %(state)s")
    if host is not None:
        filters.append("host = %(host)s")
    if collectionless is not None:
        filters.append("records = 0" if collectionless else "records > 0")
    chosen = [state.value for state in states]
    cur.execute(
        _SQL["list_repos"].replace("{filters}", " AND ".join(filters)),
        {"states": chosen, "state": chosen[0] if chosen else None, "host": host, "after": after, "limit": limit},
    )
    return _rows(cur)


def load(cur: Cursor, dids: Sequence[str]) -> dict[str, RepoRow]:
    """Return the rows of `dids` that exist, removed ones too."""
    cur.execute(_SQL["load"], {"dids": list(dids)})
    return {row.did: row for row in _rows(cur)}


def load_with_identities(cur: Cursor, dids: Sequence[str]) -> dict[str, tuple[RepoRow, Identity | None]]:
    """Return the rows of `dids` that exist, removed ones too, and what was resolved last of each; in one statement."""
    cur.execute(_SQL["load_with_identities"], {"dids": list(dids)})
    found: dict[str, tuple[RepoRow, Identity | None]] = {}
    for values in cur.fetchall():
        row = _row(values[: len(_FIELDS)])
        key, pds, handle, resolved_at = values[len(_FIELDS) :]
        identity = None
        if resolved_at is not None:
            identity = Identity(did=row.did, signing_key=key, pds=pds, handle=handle, resolved_at=resolved_at)
        found[row.did] = row, identity
    return found


def remove(cur: Cursor, dids: Sequence[str]) -> int:
    """Stop tracking; the rows stay, marked. Return how many were tracked."""
    cur.execute(_SQL["remove"], {"dids": list(dids)})
    return cur.rowcount


def selected(
    cur: Cursor, *, host: str | None = None, changed_since: float | None = None, after: str = "", limit: int
) -> tuple[list[str], str | None]:
    """Return those of the next `limit` tracked repos above `after`, in DID order, that are of `host` and changed since, and where
    the next page begins (None: this was the last one)."""
    cur.execute(
        _SQL["selected"].replace("{selection}", "true" if host is None else "host = %(host)s"),
        {"host": host, "changed_since": changed_since, "after": after, "limit": limit},
    )
    page = cur.fetchall()
    return [did for did, is_chosen in page if is_chosen], page[-1][0] if len(page) == limit else None


def resync(
    cur: Cursor,
    *,
    now: float,
    dids: Sequence[str] | None = None,
    host: str | None = None,
    changed_since: float | None = None,
) -> Transitions:
    """Have tracked repos delivered again (all of them without a selection); return the transitions, unchanged states included.

    Their last status is told again first, of inactive ones too. Active ones are marked for another fetch after the running one.
    """
    selection = ["true"]
    if dids is not None:
        selection.append("did = ANY(%(dids)s)")
    if host is not None:
        selection.append("host = %(host)s")
    if changed_since is not None:
        selection.append("updated_at >= to_timestamp(%(changed_since)s)")
    cur.execute(
        _SQL["resync"].replace("{selection}", " AND ".join(selection)),
        {"dids": list(dids or ()), "host": host, "changed_since": changed_since, "now": now},
    )
    return _transitions(cur)


def _rows(cur: Cursor) -> list[RepoRow]:
    return [_row(values) for values in cur.fetchall()]


def _row(values: Iterable[Any]) -> RepoRow:
    row = RepoRow(**dict(zip(_FIELDS, values, strict=True)))
    row.state = RepoState(row.state)
    row.data = bytes(row.data) if row.data is not None else None
    row.seen_check_due = row.check_due
    return row


def _written(row: RepoRow) -> dict[str, Any]:
    values = dict(zip(_WRITTEN, _written_values(row), strict=True))
    if row.data is not None:
        values["data"] = row.data.hex()
    if row.last_error is not None:
        values["last_error"] = printable(row.last_error)
    return values


def _transitions(cur: Cursor) -> Transitions:
    return Counter((RepoState(old), RepoState(new)) for old, new in cur.fetchall())


def _json(rows: list[dict[str, Any]]) -> str:
    return orjson.dumps(rows).decode()
