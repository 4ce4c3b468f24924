"""Table `incident`: what an operator should know of; open until what it asks for is done."""

from __future__ import annotations

from typing import Any

from relay.model import Incident
from relay.store.statements import Cursor, load_statements, one
from relay.store.text import printable

_SQL = load_statements("incidents")
SHOWN_FOR_S = 86_400.0


def open_incident(cur: Cursor, kind: str, text: str, at: float) -> int:
    """Return the id of the open incident of this kind; a new one if there is none. For the holder of the lease only.

    One that is open already has happened again: only a reconcile that begins after this closes it.
    """
    cur.execute(_SQL["seen_again"], {"kind": kind})
    row = cur.fetchone()
    if row is not None:
        return int(row[0])
    cur.execute(_SQL["open_new"], {"kind": kind, "text": printable(text), "at": at})
    return int(one(cur)[0])


def close_incident(cur: Cursor, incident: int, at: float) -> bool:
    """Close one; False: it was closed already (or is unknown)."""
    cur.execute(_SQL["close"], {"id": incident, "at": at})
    return cur.rowcount == 1


def close_answered(cur: Cursor, began_at: float, at: float, note: str = "") -> list[int]:
    """Close those that a reconcile has answered which began at `began_at` (the server's clock); return their ids.

    `note` is added to their text.
    """
    cur.execute(_SQL["close_answered"], {"began_at": began_at, "at": at, "note": printable(note)})
    return sorted(row[0] for row in cur.fetchall())


def list_open(cur: Cursor, kind: str | None = None) -> list[Incident]:
    """Return the open ones (of one kind), oldest first."""
    cur.execute(_SQL["list_open"], {"kind": kind})
    return [_incident(row) for row in cur.fetchall()]


def list_recent(cur: Cursor, now: float, limit: int = 100) -> list[Incident]:
    """Return the open ones and those closed in the last 24 hours: open ones first, newest first."""
    cur.execute(_SQL["list_recent"], {"since": now - SHOWN_FOR_S, "limit": limit})
    return [_incident(row) for row in cur.fetchall()]


def _incident(row: tuple[Any, ...]) -> Incident:
    identifier, kind, text, at, closed_at = row
    return Incident(id=identifier, kind=kind, text=text, at=at, closed_at=closed_at)
