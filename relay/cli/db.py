"""`db migrate`: brings the schema up to date before an upgraded relay starts, which otherwise does it by itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from relay.cli.exits import Exit
from relay.config.load import Loaded
from relay.store.migrate import migrate
from relay.store.pool import Database


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser("db", help="the database's schema")
    actions = parser.add_subparsers(dest="action", required=True, metavar="migrate")
    actions.add_parser("migrate", help="apply the migrations that are missing")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run `db migrate`. Raises StoreError with the reason when the database cannot be used (exit code 1)."""
    database = Database(loaded.settings.database, Path(loaded.settings.relay.data_dir))
    database.open(migrated=False)
    try:
        applied = migrate(database.transaction)
    finally:
        database.close()
    for step in applied:
        sys.stdout.write(f"applied {step.number:04} {step.name}\n")
    if not applied:
        sys.stdout.write("the schema is up to date\n")
    return Exit.OK
