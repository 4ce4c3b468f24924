"""Migrations: once each, in order, by one process at a time, and never another one than was written."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from relay.store.migrate import Migration, SchemaMismatch, load_migrations, migrate
from relay.store.pool import Database
from tests.support.postgres import database_of


def opened(dsn: str) -> Database:
    database = database_of(dsn)
    database.open(migrated=False)
    return database


def applied(database: Database) -> list[tuple[int, str]]:
    with database.transaction("look") as cur:
        cur.execute("SELECT number, name FROM schema_migration ORDER BY number")
        return [(number, name) for number, name in cur.fetchall()]


STEPS = [
    Migration(number=1, name="first", text="CREATE TABLE first (n int);"),
    Migration(number=2, name="second", text="CREATE TABLE second (n int); INSERT INTO second VALUES (1);"),
]


def test_an_empty_database_gets_everything_and_the_next_call_nothing(database_dsn: str) -> None:
    database = opened(database_dsn)
    ours = load_migrations()
    assert migrate(database.transaction) == ours
    assert migrate(database.transaction) == []
    assert applied(database) == [(migration.number, migration.name) for migration in ours]
    database.close()


def test_only_what_is_missing_is_applied(database_dsn: str) -> None:
    database = opened(database_dsn)
    assert migrate(database.transaction, STEPS[:1]) == STEPS[:1]
    assert migrate(database.transaction, STEPS) == STEPS[1:]
    database.close()


def test_a_step_that_fails_leaves_nothing_of_itself(database_dsn: str) -> None:
    database = opened(database_dsn)
    broken = [STEPS[0], replace(STEPS[1], text="CREATE TABLE second (n int); SELECT nope;")]
    with pytest.raises(Exception, match=r"migration 0002 second: .*nope"):
        migrate(database.transaction, broken)
    assert applied(database) == [(1, "first")]
    assert migrate(database.transaction, STEPS) == STEPS[1:]
    database.close()


def test_several_processes_at_once_apply_each_step_once(database_dsn: str) -> None:
    databases = [opened(database_dsn) for _ in range(4)]
    done: list[list[Migration]] = []
    threads = [
        threading.Thread(target=lambda d=database: done.append(migrate(d.transaction, STEPS))) for database in databases
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(step.number for steps in done for step in steps) == [1, 2]
    assert len(done) == 4
    for database in databases:
        database.close()


def test_a_newer_schema_is_refused_with_what_to_do(database_dsn: str) -> None:
    database = opened(database_dsn)
    migrate(database.transaction, STEPS)
    with pytest.raises(
        SchemaMismatch, match=r"has migration 0002 second, and this program knows up to 0001.*newer version"
    ):
        migrate(database.transaction, STEPS[:1])
    database.close()


def test_a_migration_that_was_edited_after_its_release_is_refused(database_dsn: str) -> None:
    database = opened(database_dsn)
    migrate(database.transaction, STEPS)
    edited = [replace(STEPS[0], text="CREATE TABLE first (n bigint);"), STEPS[1]]
    with pytest.raises(SchemaMismatch, match="migration 0001 first differs"):
        migrate(database.transaction, edited)
    database.close()


def test_a_schema_that_is_up_to_date_needs_no_right_but_to_read(migrated_dsn: str) -> None:
    database = opened(migrated_dsn)
    with database.transaction("restrict") as cur:
        cur.execute("ALTER DATABASE " + cur.connection.info.dbname + " SET default_transaction_read_only = on")
    database.close()
    database = opened(migrated_dsn)
    assert migrate(database.transaction) == []
    database.close()


def test_revs_and_dids_compare_bytewise(database: Database) -> None:
    with database.transaction("look") as cur:
        cur.execute(
            "SELECT attname FROM pg_attribute a JOIN pg_collation c ON c.oid = a.attcollation "
            "WHERE attrelid = 'repo'::regclass AND attnum > 0 AND c.collname <> 'C'"
        )
        free_text = {row[0] for row in cur.fetchall()}
    assert free_text == {"told_status", "tell_status", "tell_handle", "tell_pds", "shard", "last_error", "history"}
