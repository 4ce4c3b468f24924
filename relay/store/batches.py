"""Table `batch`: the runs of `backfill`. One that was interrupted is resumed by the same command line; beside a service it is handed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from relay.store.statements import Cursor, load_statements, one
from relay.store.text import printable

_SQL = load_statements("batches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One run; `spec` says what was asked for, in one canonical form. Times are wall seconds.

    Handed over: the service that holds the lease lists `sources` (JSON; None: the targets have their rows already), and finishes
    the batch. `failed_listings`: (host, why) of each listing without a complete answer.
    """

    id: int
    spec: str
    started_at: float
    finished_at: float | None
    note: str | None
    handed_over_at: float | None = None
    sources: str | None = None
    enumerated_at: float | None = None
    failed_listings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What of a batch's targets was synced since a moment."""

    repos: int
    records: int
    bytes_fetched: int


def open_batch(cur: Cursor, spec: str, now: float) -> tuple[int, bool]:
    """Return (id, resumed): the unfinished batch of the same `spec`, or a new one. For the holder of the lease, or who hands over to it."""
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


def hand_over(cur: Cursor, batch: int, sources: str | None, now: float) -> None:
    """Let the holder of the lease enumerate and finish an unfinished batch; `sources` None: every target has its row already."""
    cur.execute(_SQL["hand_over"], {"id": batch, "sources": sources, "now": now})


def take_back(cur: Cursor, batch: int) -> None:
    """Let nobody finish an unfinished batch meanwhile: its targets are being put in."""
    cur.execute(_SQL["take_back"], {"id": batch})


def enumerated(cur: Cursor, batch: int, failed_listings: Sequence[tuple[str, str]], now: float) -> None:
    """Every target has its row; `failed_listings` says which may be missing."""
    text = orjson.dumps([[host, printable(why)] for host, why in failed_listings]).decode()
    cur.execute(_SQL["enumerated"], {"id": batch, "failed_listings": text, "now": now})


def list_handed_over(cur: Cursor) -> list[Batch]:
    """Return the unfinished batches that were handed over, oldest first."""
    cur.execute(_SQL["list_handed_over"])
    return [_batch(row) for row in cur.fetchall()]


def delivered_since(cur: Cursor, batch: int, since: float) -> Delivered:
    """Return what of a batch's targets was synced since `since` (wall seconds)."""
    cur.execute(_SQL["delivered_since"], {"id": batch, "since": since})
    repos, records, size = one(cur)
    return Delivered(repos=repos, records=records, bytes_fetched=size)


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
    identifier, spec, started_at, finished_at, note, handed_over_at, sources, enumerated_at, failed = row
    return Batch(
        id=identifier,
        spec=spec,
        started_at=started_at,
        finished_at=finished_at,
        note=note,
        handed_over_at=handed_over_at,
        sources=sources,
        enumerated_at=enumerated_at,
        failed_listings=tuple((host, why) for host, why in orjson.loads(failed)) if failed else (),
    )
