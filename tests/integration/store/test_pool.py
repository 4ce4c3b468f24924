"""Connections: bounds, names, broken ones, fencing, and errors in our own words."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from relay.config.schema import DatabaseSettings
from relay.errors import ConfigError, StoreAway, StoreError, StoreFenced
from relay.store import partitions, pool
from relay.store.pool import Database, TooOldServer
from relay.store.translate import StoreUnusable
from tests.support.postgres import Server, database_of
from tests.support.waiting import wait_until


def backend(database: Database) -> int:
    with database.transaction("who") as cur:
        cur.execute("SELECT pg_backend_pid()")
        row = cur.fetchone()
        assert row is not None
        return int(row[0])


def end_session(database: Database, pid: int) -> None:
    session = database.session("other")
    with session.transaction("end") as cur:
        cur.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    session.close()


def count(database: Database, table: str) -> int:
    with database.transaction("count") as cur:
        cur.execute(f"SELECT count(*) FROM {table}")
        row = cur.fetchone()
        assert row is not None
        return int(row[0])


def count_for_ever(database: Database) -> None:
    while True:
        count(database, "note")


@pytest.fixture
def noted(database: Database) -> Database:
    with database.transaction("make") as cur:
        cur.execute("CREATE TABLE note (n int)")
    return database


def test_a_transaction_that_ends_well_is_kept(noted: Database) -> None:
    with noted.transaction("add") as cur:
        cur.execute("INSERT INTO note VALUES (1)")
    assert count(noted, "note") == 1


def test_an_exception_of_any_kind_rolls_back_and_passes(noted: Database) -> None:
    def fail() -> None:
        with noted.transaction("add") as cur:
            cur.execute("INSERT INTO note VALUES (1)")
            raise KeyError("ours")

    with pytest.raises(KeyError):
        fail()
    assert count(noted, "note") == 0


def test_a_wrong_statement_is_a_store_error_and_the_connection_stays(noted: Database) -> None:
    before = backend(noted)
    with (
        pytest.raises(StoreError, match=r"add: PostgreSQL at .*: 42P01: relation .nope. does not exist"),
        noted.transaction("add") as cur,
    ):
        cur.execute("INSERT INTO nope VALUES (1)")
    assert backend(noted) == before


def test_a_broken_connection_is_away_once_and_the_next_use_connects_again(noted: Database) -> None:
    def break_off() -> None:
        with noted.transaction("add") as cur:
            cur.execute("INSERT INTO note VALUES (1)")
            end_session(noted, cur.connection.info.backend_pid)
            cur.execute("INSERT INTO note VALUES (2)")

    with pytest.raises(StoreAway):
        break_off()
    assert count(noted, "note") == 0


def test_after_a_broken_connection_no_idle_one_is_trusted(database: Database) -> None:
    thread = threading.Thread(target=backend, args=(database,), name="other-thread")
    thread.start()
    thread.join()
    assert database.counts() == (2, 2)  # opened in open(), and by the thread

    def break_off() -> None:
        with database.transaction("x") as cur:
            end_session(database, cur.connection.info.backend_pid)
            cur.execute("SELECT 1")

    with pytest.raises(StoreAway):
        break_off()
    assert database.counts() == (0, 0)


def test_a_thread_gets_its_own_connection_again_under_its_own_name(database: Database) -> None:
    found: list[tuple[int, str]] = []

    def look() -> None:
        for _ in range(2):
            with database.transaction("who") as cur:
                cur.execute("SELECT pg_backend_pid(), current_setting('application_name')")
                row = cur.fetchone()
                assert row is not None
                found.append((row[0], row[1]))
            ready.wait()

    ready = threading.Barrier(2)
    threads = [threading.Thread(target=look, name=f"thread-{number}") for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 2
    assert {name for _, name in found} == {"tradr-relay thread-0", "tradr-relay thread-1"}


def test_no_more_than_max_open_conns_are_open_and_the_next_waits_for_one(migrated_dsn: str) -> None:
    database = database_of(migrated_dsn, max_open_conns=4)
    database.open()
    inside, leave = threading.Barrier(5), threading.Event()

    def hold() -> None:
        with database.transaction("hold"):
            inside.wait(10)
            leave.wait(10)

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    assert database.counts() == (4, 0)
    waiting = threading.Thread(target=backend, args=(database,))
    waiting.start()
    leave.set()
    for thread in [*threads, waiting]:
        thread.join(10)
        assert not thread.is_alive()
    assert database.counts()[0] <= 4
    database.close()


def test_waiting_for_a_connection_ends_with_the_setting_that_would_help(
    migrated_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "CHECKOUT_TIMEOUT_S", 0.05)
    database = database_of(migrated_dsn, max_open_conns=1)
    database.open()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with database.transaction("hold"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    try:
        with pytest.raises(StoreAway, match=r"all 1 connections .*max_open_conns"):
            backend(database)
    finally:
        leave.set()
        thread.join(10)
        database.close()


def test_no_more_than_max_idle_conns_stay_open(migrated_dsn: str) -> None:
    database = database_of(migrated_dsn, max_open_conns=4, max_idle_conns=1)
    database.open()
    inside = threading.Barrier(3)

    def hold() -> None:
        with database.transaction("hold"):
            inside.wait(10)

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert database.counts() == (1, 1)
    database.close()


def test_a_transaction_inside_another_is_refused(database: Database) -> None:
    with (
        database.transaction("outer"),
        pytest.raises(StoreError, match="'inner' inside transaction 'outer'"),
        database.transaction("inner"),
    ):
        pass
    backend(database)


def test_every_connection_has_its_limits(database: Database) -> None:
    with database.transaction("look") as cur:
        for key in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            cur.execute(f"SHOW {key}")
            row = cur.fetchone()
            assert row is not None
            assert row[0] not in ("0", "")


def test_a_transaction_with_the_right_epoch_passes_and_with_another_is_fenced(database: Database) -> None:
    with database.transaction("take") as cur:
        epoch = partitions.take(cur, "me", 10)
    with database.transaction("write", epoch=epoch) as cur:
        cur.execute("CREATE TABLE note (n int)")
    with database.transaction("take") as cur:
        partitions.take(cur, "another", 10)
    with pytest.raises(StoreFenced, match=f"ours was {epoch}"), database.transaction("write", epoch=epoch) as cur:
        raise AssertionError("the body must not run")


def test_a_take_over_waits_for_a_fenced_transaction_that_runs(database: Database) -> None:
    with database.transaction("take") as cur:
        epoch = partitions.take(cur, "me", 10)
    taken: list[int] = []

    def take_over() -> None:
        with database.transaction("take") as cur:
            taken.append(partitions.take(cur, "another", 10))

    with database.transaction("write", epoch=epoch) as cur:
        thread = threading.Thread(target=take_over)
        thread.start()
        while True:  # until the take-over waits for our row
            cur.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            row = cur.fetchone()
            if row and row[0]:
                break
        assert taken == []
    thread.join(10)
    assert taken == [epoch + 1]


def test_a_closed_database_is_away(migrated_dsn: str) -> None:
    database = database_of(migrated_dsn)
    database.open()
    database.close()
    with pytest.raises(StoreAway, match="closed here"):
        backend(database)
    assert database.counts() == (0, 0)


def test_a_dsn_that_does_not_answer_says_where_and_not_the_password() -> None:
    database = database_of("postgresql://relay:hunter2@127.0.0.1:1/relay")
    with pytest.raises(
        StoreAway, match=r"PostgreSQL at 127.0.0.1:1/relay does not answer: .*Connection refused"
    ) as caught:
        database.open()
    assert "hunter2" not in str(caught.value)


def test_a_database_that_is_not_there_is_for_the_operator(postgres_server: Server) -> None:
    with pytest.raises(StoreUnusable, match='database "nope" does not exist'):
        database_of(postgres_server.dsn("nope")).open()


def test_a_string_that_is_no_dsn_is_refused_without_being_quoted() -> None:
    with pytest.raises(ConfigError, match=r"database\.dsn: not a connection string") as caught:
        database_of("hunter2 is my password")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_database_in_another_encoding_is_refused_with_what_to_do(postgres_server: Server) -> None:
    postgres_server.run("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    try:
        with pytest.raises(TooOldServer, match="encoding is LATIN1, and UTF8 is needed"):
            database_of(postgres_server.dsn("latin")).open()
    finally:
        postgres_server.drop("latin")


def test_a_server_that_is_too_old_is_refused_with_its_version(
    migrated_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MINIMUM_VERSION", 990000)
    with pytest.raises(TooOldServer, match=r"is version \d+: 15 or later is needed"):
        database_of(migrated_dsn).open()


def test_without_a_dsn_the_private_server_is_used_and_started_again_when_it_dies(short_folder: Path) -> None:
    database = Database(DatabaseSettings(), short_folder)
    database.open()
    try:
        with database.transaction("make") as cur:
            cur.execute("CREATE TABLE note AS SELECT 42 AS n")
        pid = int((short_folder / "pg" / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(StoreAway):  # one use notices (at first the session's own server process may still answer)
            count_for_ever(database)
        assert count(database, "note") == 1  # the next one starts it again
        assert int((short_folder / "pg" / "data" / "postmaster.pid").read_text().splitlines()[0]) != pid
    finally:
        database.close()
    assert not (short_folder / "pg" / "data" / "postmaster.pid").exists()


def test_database_path_is_where_the_private_server_lives(short_folder: Path) -> None:
    database = Database(DatabaseSettings(path=str(short_folder / "here")), Path("/nonexistent"))
    database.open()
    database.close()
    assert (short_folder / "here" / "data" / "PG_VERSION").exists()


def test_nothing_that_was_committed_is_lost_when_postgres_is_killed_again_and_again(short_folder: Path) -> None:
    database = Database(DatabaseSettings(), short_folder)
    database.open()
    kept: list[int] = []
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                with database.transaction("write") as cur:
                    cur.execute("INSERT INTO incident (kind, text, at) VALUES ('n', %s, now())", (str(number),))
            except StoreAway:
                continue
            kept.append(number)

    def killed() -> bool:
        try:
            os.kill(int((short_folder / "pg" / "data" / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
        except (FileNotFoundError, IndexError, ProcessLookupError):
            return False
        return True

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            enough = len(kept) + 50
            while len(kept) < enough:
                stop.wait(0.01)
            # The last connections of a killed server may still have written while it is started again: then there is no file.
            wait_until(killed, "a server runs")
        enough = len(kept) + 50
        while len(kept) < enough:
            stop.wait(0.01)
        stop.set()
        thread.join(60)
        with database.transaction("look") as cur:
            cur.execute("SELECT text::int FROM incident")
            found = {row[0] for row in cur.fetchall()}
    finally:
        stop.set()
        thread.join(60)
        database.close()
    assert set(kept) <= found


def test_threads_that_have_ended_do_not_keep_the_idle_places(migrated_dsn: str, tmp_path: Path) -> None:
    database = Database(DatabaseSettings(dsn=migrated_dsn, max_idle_conns=2), tmp_path)
    database.open(migrated=False)
    try:
        for number in range(4):
            thread = threading.Thread(target=backend, args=(database,), name=f"gone-{number}")
            thread.start()
            thread.join()
        first = backend(database)
        assert [backend(database) for _ in range(3)] == [first] * 3
    finally:
        database.close()


def test_reading_is_not_a_transaction(noted: Database) -> None:
    with noted.reading("look") as cur:
        cur.execute("SELECT count(*) FROM note")
        before = cur.fetchone()
        session = noted.session("other")
        with session.transaction("add") as other:
            other.execute("INSERT INTO note VALUES (1)")
        session.close()
        cur.execute("SELECT count(*) FROM note")
        after = cur.fetchone()
    assert (before, after) == ((0,), (1,))


def test_a_connection_that_was_read_from_has_transactions_again(noted: Database) -> None:
    with noted.reading("look") as cur:
        cur.execute("SELECT 1")
    with noted.transaction("add") as cur:
        cur.execute("INSERT INTO note VALUES (1)")
        session = noted.session("other")
        with session.transaction("look") as other:
            other.execute("SELECT count(*) FROM note")
            assert other.fetchone() == (0,)
        session.close()
    assert count(noted, "note") == 1


def test_reading_from_a_session_that_was_ended_says_that_the_store_is_away(database: Database) -> None:
    pid = backend(database)
    end_session(database, pid)
    with pytest.raises(StoreAway), database.reading("look") as cur:
        cur.execute("SELECT 1")
    assert backend(database) != pid


def test_an_error_while_reading_leaves_the_connection_as_it_was(database: Database) -> None:
    pid = backend(database)
    with pytest.raises(StoreError), database.reading("look") as cur:
        cur.execute("SELECT nonsense")
    assert backend(database) == pid
