"""A repo's row as others see it: `repos list --json`, `repos show --json`, the management API."""

from __future__ import annotations

from relay.atproto.cid import cid_text
from relay.observe.status import rfc3339
from relay.store.repos import RepoRow


def list_entry(row: RepoRow) -> dict[str, object]:
    """Return the object of `repos list --json`: a contract."""
    return {
        "did": row.did,
        "state": row.state.value,
        "reason": row.reason,
        "rev": row.rev,
        "host": row.host,
        "attempts": row.attempts,
        "records": row.records,
    }


def show_entry(row: RepoRow) -> dict[str, object]:
    """Return everything about a repo, times in RFC 3339: `repos show --json`."""
    told_status = {"active": row.told_active, "status": row.told_status or "", "time_us": row.told_time_us}
    waiting_status = {"active": row.tell_active, "status": row.tell_status or "", "time_us": row.tell_time_us}
    return {
        **list_entry(row),
        "last_error": row.last_error,
        "next_attempt_at": _time(row.next_attempt_at),
        "rev_begun": row.rev_begun,
        "rev_heard": row.rev_heard,
        "data": None if row.data is None else cid_text(row.data),
        "covers": None if row.covers is None else [each for each in row.covers.split(",") if each],
        "bytes": row.bytes,
        "check_due": row.check_due,
        "status_told": None if row.told_time_us is None else told_status,
        "status_to_tell": waiting_status if (row.tell_time_us or 0) > (row.told_time_us or 0) else None,
        "anything_delivered": row.touched,
        "tracked": row.tracked,
        "batch": row.batch,
        "ingester": row.shard,
        "partition": row.partition,
        "created_at": _time(row.created_at),
        "updated_at": _time(row.updated_at),
        "synced_at": _time(row.synced_at),
    }


def _time(at: float | None) -> str | None:
    return rfc3339(at) if at else None
