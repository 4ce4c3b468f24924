"""`bin/relay ingester` as its user runs it: exit codes, signals, and kill -9 in the middle of a load."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import psycopg2
import pytest

from tests.integration.ingester.client import Delivery, stub_of
from tests.integration.ingester.tables import jsonl_tables, postgresql_tables, sqlite_tables
from tests.integration.ingester.test_server import as_url, create
from tests.support.processes import Program, RunRelay
from tests.support.waiting import wait_until
from tests.unit.ingester.naive import Rows

KILLS = 4


def address_of(program: Program) -> str:
    return program.wait_for_line(r"^listening on (\S+)$")[1]


def deliver_until(program: Program, delivery: Delivery, enough: Callable[[], bool]) -> None:
    """Deliver in a thread until `enough`, then kill the ingester."""
    with grpc.insecure_channel(address_of(program)) as channel:
        thread = threading.Thread(target=delivery.attempt, args=(stub_of(channel),))
        thread.start()
        wait_until(lambda: enough() or not thread.is_alive(), "enough acknowledged")
        program.kill()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("kind", ["sqlite", "jsonl", "postgresql"])
def test_nothing_that_was_acknowledged_is_missing_after_kill_9(
    kind: str, tmp_path: Path, run_relay: RunRelay, request: pytest.FixtureRequest
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    dsn = request.getfixturevalue("database_dsn") if kind == "postgresql" else ""
    readers: dict[str, tuple[str, Callable[[], Rows]]] = {
        "sqlite": (f"sqlite://{tmp_path}/x.db", lambda: sqlite_tables(tmp_path / "x.db")[0]),
        "jsonl": (f"jsonl:{tmp_path}/log", lambda: jsonl_tables(tmp_path / "log")[0]),
        "postgresql": (as_url(dsn) if dsn else "", lambda: postgresql_tables(dsn)[0]),
    }
    sink, read = readers[kind]
    delivery = Delivery([[create(10 * n + k) for k in range(10)] for n in range(4000)])
    killed_in_the_middle = 0
    for _ in range(KILLS):
        program = run_relay("ingester", "--listen", "127.0.0.1:0", "--sink", sink)
        goal = delivery.acknowledged + rng.randrange(1, 600)
        deliver_until(program, delivery, lambda goal=goal: delivery.acknowledged >= goal)  # type: ignore[misc]
        killed_in_the_middle += delivery.acknowledged < len(delivery.batches)
        assert_stored(read(), delivery.acknowledged)
    assert killed_in_the_middle > 0, "every kill came too late"
    program = run_relay("ingester", "--listen", "127.0.0.1:0", "--sink", sink)
    with grpc.insecure_channel(address_of(program)) as channel:
        delivery.run(stub_of(channel))
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    rows = read()
    assert_stored(rows, len(delivery.batches))
    assert len(rows) == 10 * len(delivery.batches)


def assert_stored(rows: Rows, acknowledged: int) -> None:
    stored = {key[2] for key in rows}
    missing = [number for number in range(10 * acknowledged) if f"r{number:06}" not in stored]
    assert not missing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0(run_relay: RunRelay, number: signal.Signals) -> None:
    program = run_relay("ingester", "--listen", "127.0.0.1:0", "--sink", "null:")
    address_of(program)
    program.signal(number)
    assert program.wait() == 0
    assert len(program.out) == 1


def test_a_second_signal_ends_it_at_once(run_relay: RunRelay, database_dsn: str) -> None:
    program = run_relay("ingester", "--listen", "127.0.0.1:0", "--sink", as_url(database_dsn))
    address = address_of(program)
    # Somebody holds a lock, so the batch that was received cannot be stored, and stopping waits for it.
    with contextlib.closing(psycopg2.connect(database_dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE account")
        with grpc.insecure_channel(address) as channel:
            stub = stub_of(channel)
            delivery = Delivery([[create(1)]])
            thread = threading.Thread(target=delivery.attempt, args=(stub,))
            thread.start()

            def is_waiting() -> bool:
                cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
                row = cursor.fetchone()
                return row is not None and row[0] > 0

            wait_until(is_waiting, "the ingester waits for the lock")
            program.signal(signal.SIGTERM)
            program.wait_for_line("stopping")
            program.signal(signal.SIGTERM)
            assert program.wait() == -signal.SIGTERM
            thread.join(30)
            assert delivery.acknowledged == 0


def test_it_ends_when_standard_input_ends(run_relay: RunRelay) -> None:
    # The tests' programs have no standard input: it ends at once.
    program = run_relay("ingester", "--listen", "127.0.0.1:0", "--sink", "null:", "--stop-with-stdin")
    assert program.wait() == 0


def test_a_port_in_use_ends_with_1_and_says_so(run_relay: RunRelay) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        program = run_relay("ingester", "--listen", f"127.0.0.1:{port}", "--sink", "null:")
        assert program.wait() == 1
        assert f"ingester: cannot listen on 127.0.0.1:{port}: the address is in use" in "\n".join(program.err)


def test_a_database_that_does_not_answer_ends_with_1_and_says_so(run_relay: RunRelay) -> None:
    program = run_relay(
        "ingester", "--listen", "127.0.0.1:0", env={"INGESTER_SINK": "postgresql://me:hunter2@127.0.0.1:1/x"}
    )
    assert program.wait() == 1
    text = "\n".join(program.err)
    assert "ingester: PostgreSQL does not answer" in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no sink: give --sink URL or set INGESTER_SINK"),
        (["--sink", "mysql://x"], "no sink 'mysql'"),
        (["--sink", "null:", "--fault", "explode=1"], "no fault 'explode'"),
    ],
)
def test_a_mistake_on_the_command_line_ends_with_2(run_relay: RunRelay, arguments: list[str], message: str) -> None:
    program = run_relay("ingester", "--listen", "127.0.0.1:0", *arguments)
    assert program.wait() == 2
    assert message in "\n".join(program.err)


def test_a_broken_order_ends_with_1_and_names_the_first_case(run_relay: RunRelay) -> None:
    program = run_relay("ingester", "--listen", "127.0.0.1:0", "--sink", "null:", "--check-order")
    with grpc.insecure_channel(address_of(program)) as channel:
        Delivery([[create(1, rev="3kb"), create(2, rev="3ka")]]).run(stub_of(channel))
    program.signal(signal.SIGTERM)
    assert program.wait() == 1
    assert "the order was broken 1 times; first: CREATE of did:plc:aaa: rev 3ka after 3kb" in "\n".join(program.err)
