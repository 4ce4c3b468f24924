"""docs/examples: the ingesters of the guide do what its rules say, one operation at a time and behind a real relay."""

from __future__ import annotations

import random
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.pb import ingester_pb2 as pb
from relay.simnet.network import SimNetwork
from relay.simnet.world import WorldSpec
from tests.faults.stage import MARK, Stage
from tests.integration.ingester.client import Delivery, numbered, stub_of
from tests.support.examples import LANGUAGES, Example, example, url_of
from tests.support.live_world import LiveWorld
from tests.support.postgres import TEMPLATE, Server
from tests.support.processes import Program
from tests.support.waiting import wait_until
from tests.unit.ingester.naive import NaiveIngester, histories

_RECORDS = "SELECT did, collection, rkey, cid, rev, record{as_text}, record_cbor FROM record"
_ACCOUNTS = "SELECT did, rev, active, status, handle, pds FROM account"


_KILLS = 3


@dataclass(slots=True, kw_only=True)
class ExampleStage(Stage):
    """A stage whose ingester is one of the examples."""

    built: Example
    records_dsn: str = ""

    @property
    def sink(self) -> str:
        return self.records_dsn if self.built.takes_dsn else f"sqlite://{self.data}/records.sqlite"

    def ingester(self, port: int, *_faults: str) -> Program:
        store = self.records_dsn if self.built.takes_dsn else str(self.data / "records.sqlite")
        program = self.built.start(f"127.0.0.1:{port}", store, env={MARK: self.mark})
        self.programs.append(program)
        return program

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for program in self.programs:
            if program.command[: len(self.built.command)] == [*self.built.command] and program.is_running():
                program.signal(signal.SIGTERM)
                code = program.wait(30.0)
                assert code == 0 or kind is not None, program
        Stage.__exit__(self, kind, *exc)


class Running:
    """One example at work, its channel, and what it has stored."""

    def __init__(self, built: Example, program: Program, store: str) -> None:
        self.built, self.program, self.store = built, program, store
        port = program.wait_for_line(r"^listening on port (\d+)$")[1]
        self.address = f"127.0.0.1:{port}"

    def connect(self) -> Any:
        return psycopg2.connect(self.store) if self.built.takes_dsn else sqlite3.connect(self.store, timeout=30)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(self.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(statement)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found

    def empty(self) -> None:
        with closing(self.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute("DELETE FROM account")
            cursor.execute("DELETE FROM record")
            connection.commit()


@pytest.fixture(params=LANGUAGES)
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    built = example(request.param)
    store = request.getfixturevalue("database_dsn") if built.takes_dsn else str(tmp_path / "x.db")
    program = built.start("127.0.0.1:0", url_of(store) if built.takes_dsn else store)
    yield Running(built, program, store)
    program.stop()


def test_an_example_ends_where_one_operation_after_the_other_ends(running: Running) -> None:
    as_text = "::text" if running.built.takes_dsn else ""

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(history=histories(), again=st.integers(0, 60))
    def check(history: list[pb.Operation], again: int) -> None:
        run = history + history[again:]
        running.empty()
        naive = NaiveIngester()
        for op in run:
            naive.apply(op)
        delivery = Delivery([run[place : place + 5] for place in range(0, len(run), 5)])
        delivery.run(stub)
        stored = running.query(_RECORDS.format(as_text=as_text))
        assert {row[:3]: (*row[3:6], None if row[6] is None else bytes(row[6])) for row in stored} == {
            key: (cid, rev, record_json, record_cbor)
            for key, (cid, rev, _, record_json, record_cbor) in naive.rows.items()
        }
        accounts = {did: (rev, bool(active), *rest) for did, rev, active, *rest in running.query(_ACCOUNTS)}
        assert accounts == {
            did: (rev, active, status, handle, pds)
            for did, (rev, active, status, _, handle, pds, _) in naive.accounts().items()
        }
        refused = {(n // 5, n % 5) for n, op in enumerate(run) if NaiveIngester.is_malformed(op)}
        assert delivery.rejected == refused

    with grpc.insecure_channel(running.address) as channel:
        stub = stub_of(channel)
        check()
        assert stub.HealthCheck(pb.HealthCheckRequest(), timeout=10).status == pb.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            list(stub.StreamOperations(iter(numbered([[], []])[1:]), timeout=10))


def test_an_example_answers_retry_while_it_cannot_store(running: Running) -> None:
    op = pb.Operation(type=pb.DELETE, did="did:plc:aaa", collection="a.b.c", rkey="k", rev="3ka")
    with grpc.insecure_channel(running.address) as channel, closing(running.connect()) as other:
        delivery = Delivery([[op]])
        cursor = other.cursor()
        _make_unwritable(running, cursor)
        delivery.attempt(stub_of(channel))
        assert (delivery.acknowledged, delivery.retries) == (0, 1)
        _make_writable(running, cursor)
        delivery.run(stub_of(channel))
    assert running.query("SELECT did, rev FROM account") == [("did:plc:aaa", "3ka")]


def _make_unwritable(running: Running, cursor: Any) -> None:
    if not running.built.takes_dsn:
        cursor.execute("BEGIN IMMEDIATE")
        return
    cursor.execute("ALTER TABLE account RENAME TO away")
    cursor.connection.commit()


def _make_writable(running: Running, cursor: Any) -> None:
    if not running.built.takes_dsn:
        cursor.execute("ROLLBACK")
        return
    cursor.execute("ALTER TABLE away RENAME TO account")
    cursor.connection.commit()


@pytest.mark.parametrize("language", LANGUAGES)
def test_behind_a_relay_an_example_that_is_killed_again_and_again_equals_the_network(
    language: str, postgres_server: Server, tmp_path: Path
) -> None:
    built = example(language)
    stage = ExampleStage(tmp_path, built=built)
    databases = [postgres_server.create(TEMPLATE), postgres_server.create()]
    stage.records_dsn = url_of(postgres_server.dsn(databases[1]))
    rng = random.Random(5)
    spec = WorldSpec(accounts=30, hosts=2, median_records=30, max_records=400, inactive_share=0.05, seed=5)
    with SimNetwork(spec) as network, stage:
        world = LiveWorld(stage, network, env={"DATABASE_DSN": postgres_server.dsn(databases[0])})
        with world:
            network.start_writers(60.0, seed=5)
            world.start()
            for _ in range(_KILLS):
                told = sum(network.written().values())
                wait_until(lambda told=told: sum(network.written().values()) > told + 40, "more commits")  # type: ignore[misc]
                world.kill("ingester", rng)
            world.come_to_rest()
            world.judge()
        assert world.kills["ingester"] == _KILLS
    for name in databases:
        postgres_server.drop(name)
