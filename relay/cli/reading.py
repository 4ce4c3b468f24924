"""What `status` and `repos` share: a database that exists already is opened for reading."""

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
    database = Database(settings.database, Path(settings.relay.data_dir))
    if database.embedded is not None and not (database.embedded.data / "PG_VERSION").exists():
        raise StoreUnusable(
            f"no state yet: there is no database in {database.embedded.folder}, and database.dsn is not set"
        )
    database.open(migrated=False)
    try:
        yield database
    finally:
        database.close()
