"""Numbered migrations: `migrations/NNNN_what.sql`, each applied once, in order, under one advisory lock, and remembered with a checksum.

A released migration is never edited: its checksum is compared, so an edited one is an error and not a silent difference.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import resources

from relay.observe.log import get_logger
from relay.store.statements import Cursor, load_statements
from relay.store.translate import StoreUnusable

log = get_logger(__name__)

Transact = Callable[[str], AbstractContextManager[Cursor]]

_SQL = load_statements("migrate")
_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step of the schema. `checksum` is the SHA-256 of its text, hexadecimal."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


class SchemaMismatch(StoreUnusable):
    """The database's schema is newer than this program, or was made by another migration than the one that we have."""


def load_migrations() -> list[Migration]:
    """Return ours in order. Numbers may be left out; raises ValueError when one is there twice."""
    found = []
    for entry in resources.files("relay.store").joinpath("migrations").iterdir():
        match = _NAME.fullmatch(entry.name)
        if match is not None:
            found.append(Migration(number=int(match[1]), name=match[2], text=entry.read_text("utf-8")))
    found.sort(key=lambda migration: migration.number)
    if len({migration.number for migration in found}) != len(found):
        raise ValueError(f"two migrations have one number: {[m.number for m in found]}")
    return found


def migrate(transact: Transact, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is missing, each migration in a transaction of its own; return what was applied.

    Several processes at once are fine: the lock lets one work, the others find nothing to do. Nothing to do needs no right but
    SELECT. Raises SchemaMismatch, StoreError.
    """
    ours = load_migrations() if migrations is None else migrations
    applied: list[Migration] = []
    while True:
        with transact("look at the schema") as cur:
            missing = _missing(cur, ours)
        if not missing:
            return applied
        with transact(f"migration {missing[0].number:04} {missing[0].name}") as cur:
            cur.execute(_SQL["lock"])
            missing = _missing(cur, ours)  # another process may have applied it while we waited
            if not missing:
                continue
            step = missing[0]
            cur.execute(_SQL["create_table"])
            cur.execute(step.text)
            cur.execute(_SQL["remember"], {"number": step.number, "name": step.name, "checksum": step.checksum})
        applied.append(step)
        log.info("schema_migrated", number=step.number, migration=step.name)


def pending(cur: Cursor) -> list[Migration]:
    """Return ours that the database does not have yet; reads only. Raises SchemaMismatch."""
    return _missing(cur, load_migrations())


def _missing(cur: Cursor, ours: Sequence[Migration]) -> list[Migration]:
    cur.execute(_SQL["table_exists"])
    row = cur.fetchone()
    if row is None or not row[0]:
        return list(ours)
    cur.execute(_SQL["applied"])
    known = {migration.number: migration for migration in ours}
    done = set()
    for number, name, checksum in cur.fetchall():
        if number not in known:
            raise SchemaMismatch(
                f"the database's schema has migration {number:04} {name}, and this program knows up to {max(known, default=0):04}: "
                "it was used by a newer version; start that, or restore a backup from before"
            )
        if known[number].checksum != checksum:
            raise SchemaMismatch(
                f"migration {number:04} {name} differs from the one that was applied to the database: this program was built "
                "from changed files"
            )
        done.add(number)
    return [migration for migration in ours if migration.number not in done]
