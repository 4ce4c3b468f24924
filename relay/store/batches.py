"""Table `batch`: the runs of `backfill`. One that was interrupted is resumed by the same command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from relay.store.statements import Cursor, load_statements, one
from relay.store.text import printable

_SQL = load_statements("batches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One run; `spec` says what was asked for, in one canonical form. Times are wall seconds."""

    id: int
    spec: str
    started_at: float
    finished_at: float | None
    note: str | None


def open_batch(cur: Cursor, spec: str, now: float) -> tuple[int, bool]:
    """Return (id, resumed): the unfinished batch of the same `spec`, or a new one. For the holder of the lease only."""
    cur.execute(_SQL["find_unfinished"], {"spec": spec})
    row = cur.fetchone()
    if row is not None:
        return row[0], True
    cur.execute(_SQL["open_new"], {"spec": spec, "now": now})
    return one(cur)[0], False


def finish_batch(cur: Cursor, batch: int, now: float, note: str = "") -> bool:
    """Mark a batch finished; False: it was already (or is unknown)."""
    cur.execute(_SQL["finish"], {"id": batch, "now": now, "note": printable(note)})
    return cur.rowcount == 1


def get(cur: Cursor, batch: int) -> Batch | None:
    """Return a batch by its id."""
    cur.execute(_SQL["get"], {"id": batch})
    row = cur.fetchone()
    return None if row is None else _batch(row)


def list_unfinished(cur: Cursor) -> list[Batch]:
    """Return the batches that are not finished, oldest first."""
    cur.execute(_SQL["list_unfinished"])
    return [_batch(row) for row in cur.fetchall()]


def _batch(row: tuple[Any, ...]) -> Batch:
    identifier, spec, started_at, finished_at, note = row
    return Batch(id=identifier, spec=spec, started_at=started_at, finished_at=finished_at, note=note)
