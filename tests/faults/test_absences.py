"""What the relay needs is away for a while in the middle of a run: it waits, says so, goes on, and loses nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from pathlib import Path

import psycopg2
import pytest

from relay.config.schema import DatabaseSettings
from relay.runtime.signals import EXIT_INTERRUPTED
from relay.store.embedded import EmbeddedPostgres
from relay.store.pool import Database
from tests.faults.stage import Expectation, Stage, ends_within, free_port, kill, lines_with
from tests.support.processes import Program
from tests.support.waiting import wait_until

pytestmark = pytest.mark.faults

AWAY_S, LONG_AWAY_S = 4.0, 10.0


# Whoever adds a row waits for advisory lock 1. Held by a session, it ends with the server.
_STANDS_STILL = """
CREATE OR REPLACE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
CREATE OR REPLACE TRIGGER stand_still BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION stand_still();
"""


@pytest.fixture
def away_s(is_long: bool) -> float:
    return LONG_AWAY_S if is_long else AWAY_S


def _under_way(stage: Stage, program: Program) -> None:
    wait_until(lambda: stage.stored_records() > 0 or not program.is_running(), "records at the ingester")
    assert program.is_running(), str(program)


def test_postgresql_away(
    small_world: Expectation, stage: Stage, rng: random.Random, away_s: float, server: EmbeddedPostgres
) -> None:
    small_world.slow_down(0.5)
    address = stage.watched_ingester()
    program = stage.backfill(small_world, INGESTER_ADDRESSES=address, DATABASE_DSN=server.dsn)
    _under_way(stage, program)
    assert not ends_within(program, rng.uniform(0.0, 0.5)), str(program)
    server.close()
    assert not ends_within(program, away_s), str(program)
    synced_meanwhile = stage.stored_records()
    server.open()
    small_world.slow_down(0)
    stage.judge(small_world, program)
    assert synced_meanwhile < small_world.records
    assert lines_with([program], "store_away") > 0
    assert lines_with([program], "store_back") > 0


def test_postgresql_away_when_the_result_is_read(
    small_world: Expectation, stage: Stage, server: EmbeddedPostgres
) -> None:
    small_world.slow_down(0.3)
    address = stage.watched_ingester()
    program = stage.backfill(small_world, INGESTER_ADDRESSES=address, DATABASE_DSN=server.dsn)
    _under_way(stage, program)
    with contextlib.closing(psycopg2.connect(server.dsn)) as connection, connection.cursor() as cursor:
        # Only who opens or closes a batch needs this table: the run comes to its end, and stands still there.
        cursor.execute("LOCK TABLE batch")
        small_world.slow_down(0)

        def is_waited_for() -> bool:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'batch'::regclass")
            row = cursor.fetchone()
            return row is not None and row[0] > 0

        wait_until(is_waited_for, "the end of the run")
        cursor.execute("SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'batch'::regclass")
        waiting = [pid for (pid,) in cursor.fetchall()]
        # First those who wait for the lock: a server that stops in its own order may end ours before theirs, and they get it.
        postmaster = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
        for pid in (postmaster, *waiting):
            os.kill(pid, signal.SIGKILL)
        server.close()
    assert not ends_within(program, 1.0), str(program)
    server.open()
    stage.judge(small_world, program)
    assert lines_with([program], 'waiting="close the books"') > 0


@pytest.mark.parametrize("table", ["batch", "instance"])
def test_postgresql_away_before_anything_runs(
    table: str, small_world: Expectation, stage: Stage, tmp_path: Path, server: EmbeddedPostgres
) -> None:
    address = stage.watched_ingester()
    database = Database(DatabaseSettings(dsn=server.dsn), tmp_path)
    database.open()  # makes the tables
    database.close()
    where = {"INGESTER_ADDRESSES": address, "DATABASE_DSN": server.dsn}

    def stop_at_the_first_row() -> Program:
        with contextlib.closing(psycopg2.connect(server.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(_STANDS_STILL.format(table=table))
            connection.commit()
            cursor.execute("SELECT pg_advisory_lock(1)")
            program = stage.backfill(small_world, **where)

            def stands_still() -> bool:
                cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
                row = cursor.fetchone()
                return (row is not None and row[0] > 0) or not program.is_running()

            wait_until(stands_still, f"the first row of {table}")
            server.close()
        program.wait_for_line("^waiting: .*PostgreSQL")
        return program

    program = stop_at_the_first_row()
    server.open()
    stage.judge(small_world, program)
    if table == "instance":  # asked to end while it waits, it ends
        program = stop_at_the_first_row()
        program.signal(signal.SIGTERM)
        assert program.wait() == EXIT_INTERRUPTED, str(program)


def test_ingester_away(small_world: Expectation, stage: Stage, rng: random.Random, away_s: float) -> None:
    small_world.slow_down(0.5)
    port = free_port()
    ingester = stage.ingester(port)
    program = stage.backfill(small_world, INGESTER_ADDRESSES=f"127.0.0.1:{port}")
    _under_way(stage, program)
    assert not ends_within(program, rng.uniform(0.0, 0.5)), str(program)
    assert kill(ingester.pid)
    assert not ends_within(program, away_s), "it ended although nobody took what it had"
    small_world.slow_down(0)
    stage.ingester(port)
    stage.judge(small_world, program)
    assert lines_with([program], "ingester_away") > 0, str(program)


def test_ingester_that_never_acknowledges_for_a_while(
    small_world: Expectation, stage: Stage, rng: random.Random, away_s: float
) -> None:
    small_world.slow_down(0.1)
    port = free_port()
    ingester = stage.ingester(port, "never-ack=1")
    program = stage.backfill(small_world, INGESTER_ADDRESSES=f"127.0.0.1:{port}", DELIVERY_ACK_TIMEOUT_SEC="1")
    _under_way(stage, program)
    assert not ends_within(program, away_s + rng.uniform(0.0, 0.5)), "it ended and nothing was acknowledged"
    ingester.kill()
    stage.ingester(port)
    small_world.slow_down(0)
    stage.judge(small_world, program)
    assert lines_with([program], "reason=ack_timeout") > 0, str(program)


def test_ingester_absent_at_the_start(small_world: Expectation, stage: Stage) -> None:
    port = free_port()
    program = stage.backfill(small_world, INGESTER_ADDRESSES=f"127.0.0.1:{port}")
    program.wait_for_line("waiting .*no ingester answers")
    stage.ingester(port)
    stage.judge(small_world, program)
