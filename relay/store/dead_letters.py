"""Table `dead_letter`: operations that were refused or could not be made, with why, until an operator decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg2.extras import execute_values

from relay.store.statements import Cursor, load_statements
from relay.store.text import printable

_SQL = load_statements("dead_letters")
_AT = "(to_timestamp(%s), %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
_NEWEST = 2**63 - 1


FRAME: Final = "FRAME"  # `type` of a letter that holds a frame of the firehose, and not an operation


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One refused operation. `operation` is its encoded form (None: it was never made); `size` bytes; `at` wall seconds."""

    at: float
    did: str
    collection: str | None
    rkey: str | None
    cid: str | None
    rev: str | None
    type: str | None
    source: str | None
    reason: str
    message: str | None
    ingester: str | None
    attempts: int
    size: int
    operation: bytes | None
    id: int | None = None


def add_many(cur: Cursor, letters: Sequence[DeadLetter]) -> None:
    """Store them, in order. One that was refused before for the same reason is the same letter, with a newer time and rev."""
    newest = {(each.did, each.collection, each.rkey, each.cid, each.type, each.reason): each for each in letters}
    rows = [
        (
            letter.at,
            letter.did,
            letter.collection,
            letter.rkey,
            letter.cid,
            letter.rev,
            letter.type,
            letter.source,
            letter.reason,
            None if letter.message is None else printable(letter.message),
            letter.ingester,
            letter.attempts,
            letter.size,
            letter.operation,
        )
        for letter in newest.values()
    ]
    if rows:
        execute_values(cur, _SQL["add_many"], rows, template=_AT, page_size=500)


def list_page(
    cur: Cursor, *, did: str | None = None, reason: str | None = None, before: int | None = None, limit: int = 100
) -> list[DeadLetter]:
    """Return up to `limit` letters older than the id `before`, newest first, without their operations."""
    name = "list_page" if did is None else "list_page_of_did"
    cur.execute(_SQL[name], {"did": did, "reason": reason, "before": before or _NEWEST, "limit": limit})
    return [_letter((*row, None)) for row in cur.fetchall()]


def get(cur: Cursor, ids: Sequence[int]) -> list[DeadLetter]:
    """Return the letters with these ids that exist, oldest first, with their operations."""
    cur.execute(_SQL["get"], {"ids": list(ids)})
    return [_letter(row) for row in cur.fetchall()]


def requeue(cur: Cursor, ids: Sequence[int], now: float | None) -> None:
    """Have the operations of these letters sent again by whoever holds the lease. `now` None: not any more."""
    if ids:
        cur.execute(_SQL["requeue"], {"ids": list(ids), "now": now})


def requeued(cur: Cursor, limit: int, *, exclude: Sequence[int] = ()) -> list[DeadLetter]:
    """Return letters whose operations are to be sent again, oldest first, but for those of `exclude`."""
    cur.execute(_SQL["requeued"], {"limit": limit, "exclude": list(exclude)})
    return [_letter(row) for row in cur.fetchall()]


def delete(cur: Cursor, ids: Sequence[int]) -> int:
    """Drop the letters with these ids; return how many there were."""
    cur.execute(_SQL["delete"], {"ids": list(ids)})
    return cur.rowcount


def count_by_reason(cur: Cursor) -> dict[str, int]:
    """Return how many there are of each reason."""
    cur.execute(_SQL["count"])
    return dict(cur.fetchall())


def _letter(row: tuple[Any, ...]) -> DeadLetter:
    (
        identifier,
        at,
        did,
        collection,
        rkey,
        cid,
        rev,
        kind,
        source,
        reason,
        message,
        ingester,
        attempts,
        size,
        operation,
    ) = row
    return DeadLetter(
        id=identifier,
        at=at,
        did=did,
        collection=collection,
        rkey=rkey,
        cid=cid,
        rev=rev,
        type=kind,
        source=source,
        reason=reason,
        message=message,
        ingester=ingester,
        attempts=attempts,
        size=size,
        operation=None if operation is None else bytes(operation),
    )
