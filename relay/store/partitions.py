"""Table `partition`: who works (owner, epoch, lease), and how far the firehose is done (cursor). First step: one row for everything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from relay.store.statements import Cursor, load_statements, one

_SQL = load_statements("partitions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """The row. Times are wall seconds of the server's clock; `cursor` counts in the sequence of `upstream`.

    Filters are canonical, comma-joined patterns ('' is everything). `filter`: in force at the service that holds the lease, None: it is none;
    `filter_compared`: the last one that every synced repo was compared with.
    """

    owner: str | None
    epoch: int
    lease_until: float | None
    renewed_at: float | None
    upstream: str | None
    cursor: int | None
    cursor_time_us: int | None
    filter_compared: str | None = None
    filter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who has the lease. `is_expired`: it was not renewed in time; `restarted_since`: the server was restarted after its renewal."""

    owner: str | None
    epoch: int
    is_expired: bool
    restarted_since: bool
    silent_s: float


def partition_of(did: str, partitions: int) -> int:
    """Return the partition of a DID, 0 to `partitions` - 1. Stable for ever: it is stored, and instances must agree."""
    return int.from_bytes(blake2b(did.encode(), digest_size=8).digest(), "big") % partitions


def read(cur: Cursor) -> Partition:
    """Return the row."""
    cur.execute(_SQL["read"])
    owner, epoch, lease_until, renewed_at, upstream, cursor, cursor_time_us, filter_compared, in_force = one(cur)
    return Partition(
        owner=owner,
        epoch=epoch,
        lease_until=lease_until,
        renewed_at=renewed_at,
        upstream=upstream,
        cursor=cursor,
        cursor_time_us=cursor_time_us,
        filter_compared=filter_compared,
        filter=in_force,
    )


def store_cursor(cur: Cursor, upstream: str, cursor: int, cursor_time_us: int | None) -> None:
    """Store how far everything is done; in the checkpoint's (fenced) transaction."""
    cur.execute(_SQL["store_cursor"], {"upstream": upstream, "cursor": cursor, "cursor_time_us": cursor_time_us})


def store_first_cursor(cur: Cursor, upstream: str, cursor: int, cursor_time_us: int | None) -> bool:
    """Store a cursor where there is none of this upstream; return whether it was stored."""
    cur.execute(_SQL["store_first_cursor"], {"upstream": upstream, "cursor": cursor, "cursor_time_us": cursor_time_us})
    return cur.rowcount == 1


def store_filter(cur: Cursor, in_force: str) -> None:
    """Say which filter is in force at the holder, a service; in its first (fenced) transaction."""
    cur.execute(_SQL["store_filter"], {"filter": in_force})


def store_filter_compared(cur: Cursor, compared: str | None) -> None:
    """Say that every synced repo has been compared with this filter; None: not any more."""
    cur.execute(_SQL["store_filter_compared"], {"filter": compared})


def read_shards(cur: Cursor) -> list[list[str]] | None:
    """Return the lists of ingesters with which something may have been delivered; None: none that keep shards of their own."""
    cur.execute(_SQL["read_shards"])
    shards: list[list[str]] | None = one(cur)[0]
    return shards


def store_shards(cur: Cursor, lists: Sequence[Sequence[str]]) -> None:
    """Say with which lists of ingesters something may have been delivered; in a fenced transaction."""
    cur.execute(_SQL["store_shards"], {"shards": json.dumps([list(each) for each in lists])})


def try_lock(cur: Cursor) -> bool:
    """Take the session lock that goes with the lease, if nobody has it."""
    cur.execute(_SQL["try_lock"])
    return bool(one(cur)[0])


def unlock(cur: Cursor) -> None:
    """Give the session lock back."""
    cur.execute(_SQL["unlock"])


def limit_waiting(cur: Cursor, patience_ms: int) -> None:
    """Let locks be waited for no longer than this, in this transaction."""
    cur.execute(_SQL["limit_waiting"], {"limit": f"{patience_ms}ms"})


def take(cur: Cursor, owner: str, seconds: float) -> int:
    """Take the lease with a new epoch, with the session lock in hand; return the epoch. Waits for fenced transactions of the old one."""
    cur.execute(_SQL["take"], {"owner": owner, "seconds": seconds})
    epoch: int = one(cur)[0]
    return epoch


def renew(cur: Cursor, epoch: int, seconds: float) -> bool:
    """Prolong the lease; False: another instance has taken over."""
    cur.execute(_SQL["renew"], {"epoch": epoch, "seconds": seconds})
    return cur.rowcount == 1


def give_up(cur: Cursor, epoch: int) -> None:
    """Say that nobody has the lease any more, if it is still ours."""
    cur.execute(_SQL["give_up"], {"epoch": epoch})


def holder(cur: Cursor) -> Holder:
    """Return who has the lease, and whether it can be relied on."""
    cur.execute(_SQL["holder"])
    owner, epoch, is_expired, restarted_since, silent_s = one(cur)
    return Holder(owner=owner, epoch=epoch, is_expired=is_expired, restarted_since=restarted_since, silent_s=silent_s)


def end_holder(cur: Cursor, pid: int | None = None) -> int:
    """End the session that has the lock (only if it is the server process `pid`); return how many were ended."""
    cur.execute(_SQL["end_holder"], {"pid": pid})
    count: int = one(cur)[0]
    return count


def end_fenced_transactions(cur: Cursor) -> int:
    """End the sessions that are inside a fenced transaction; return how many."""
    cur.execute(_SQL["end_fenced_transactions"])
    count: int = one(cur)[0]
    return count
