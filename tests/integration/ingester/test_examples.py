"""docs/examples: the ingesters of the guide end where one operation after the other ends. Behind a relay that kills them: tests/faults."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.pb import ingester_pb2 as pb
from tests.integration.ingester.client import Delivery, numbered, stub_of
from tests.support.examples import LANGUAGES, Example, example, url_of
from tests.support.processes import Program
from tests.unit.ingester.naive import NaiveIngester, histories

_RECORDS = "SELECT did, collection, rkey, cid, rev, record{as_text}, record_cbor FROM record"
_ACCOUNTS = "SELECT did, rev, active, status, handle, pds FROM account"


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
