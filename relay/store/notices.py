"""Table `notice`: rows that were changed beside the holder of the lease, who may have them in memory.

A table and no NOTIFY: a notice is there exactly if the change is, it waits while the holder's connection is away, and the holder needs no
connection that listens. It is read twice a second, by a scan of a table that is empty nearly always.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from relay.store.statements import Cursor, load_statements, one

_SQL = load_statements("notices")

DIDS_AT_A_TIME = 5000
"""How many repos one transaction beside a holder changes: it is short, and its notice small."""


class Kind(enum.StrEnum):
    """What was done to the rows."""

    ADDED = "added"
    REMOVED = "removed"
    RESYNC = "resync"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """These rows were changed by somebody else."""

    id: int
    kind: Kind
    dids: tuple[str, ...]


def hold(cur: Cursor) -> bool:
    """Keep the lease from changing hands until the transaction's end; return whether anybody has it, and so rows in memory."""
    cur.execute(_SQL["hold"])
    return bool(one(cur)[0])


def add(cur: Cursor, kind: Kind, dids: Sequence[str]) -> None:
    """Tell the holder, in the transaction that changes the rows."""
    if dids:
        cur.execute(_SQL["add"], {"kind": kind.value, "dids": list(dids)})


def waiting(cur: Cursor, limit: int) -> list[Notice]:
    """Return the oldest notices."""
    cur.execute(_SQL["waiting"], {"limit": limit})
    return [Notice(id=number, kind=Kind(kind), dids=tuple(dids)) for number, kind, dids in cur.fetchall()]


def delete(cur: Cursor, ids: Sequence[int]) -> None:
    """Take notices away that were taken."""
    if ids:
        cur.execute(_SQL["delete"], {"ids": list(ids)})
