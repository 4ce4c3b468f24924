"""What `status`, `repos` and `deadletter` share: a database that exists already is opened, for reading or for a change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relay.config.schema import Settings
from relay.store.pool import Database
from relay.store.translate import StoreUnusable


@contextmanager
def reading(settings: Settings) -> Iterator[Database]:
    """Yield the open database; nothing is created or migrated. Raises StoreError when there is no state to read."""
    with _opened(settings, migrated=False, creates=False) as database:
        yield database


@contextmanager
def changing(settings: Settings, *, creates: bool = False) -> Iterator[Database]:
    """Yield the open database with the schema that we write. Raises StoreError when there is none, unless it may be created."""
    with _opened(settings, migrated=True, creates=creates) as database:
        yield database


@contextmanager
def _opened(settings: Settings, *, migrated: bool, creates: bool) -> Iterator[Database]:
    database = Database(settings.database, Path(settings.relay.data_dir))
    if not creates and database.embedded is not None and not (database.embedded.data / "PG_VERSION").exists():
        raise StoreUnusable(
            f"no state yet: there is no database in {database.embedded.folder}, and database.dsn is not set"
        )
    database.open(migrated=migrated)
    try:
        yield database
    finally:
        database.close()
