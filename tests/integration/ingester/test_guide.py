"""docs/ingester-guide.md: the program in it does what the guide says."""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.pb import ingester_pb2 as pb
from tests.integration.ingester.client import Delivery, numbered, stub_of
from tests.support.processes import ROOT, Program
from tests.unit.ingester.naive import NaiveIngester, histories

GUIDE = ROOT / "docs" / "ingester-guide.md"


@pytest.fixture
def example(tmp_path: Path) -> Iterator[tuple[Program, Path]]:
    found = re.search(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None
    (tmp_path / "example.py").write_text(found[1], encoding="utf-8")
    command = [sys.executable, "-W", "error", str(tmp_path / "example.py"), "127.0.0.1:0", str(tmp_path / "x.db")]
    program = Program(command, env={"PYTHONPATH": str(ROOT)})
    yield program, tmp_path / "x.db"
    program.stop()


def test_the_example_ends_where_one_operation_after_the_other_ends(example: tuple[Program, Path]) -> None:
    program, path = example
    port = program.wait_for_line(r"^listening on port (\d+)$")[1]

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(history=histories(), again=st.integers(0, 60))
    def check(history: list[pb.Operation], again: int) -> None:
        run = history + history[again:]
        with sqlite3.connect(path, timeout=30) as connection:
            connection.executescript("DELETE FROM account; DELETE FROM record;")
        connection.close()
        naive = NaiveIngester()
        for op in run:
            naive.apply(op)
        delivery = Delivery([run[place : place + 5] for place in range(0, len(run), 5)])
        delivery.run(stub)
        connection = sqlite3.connect(path)
        stored = connection.execute(
            "SELECT did, collection, rkey, cid, rev, record, record_cbor FROM record"
        ).fetchall()
        accounts = connection.execute("SELECT did, rev, status FROM account").fetchall()
        connection.close()
        assert {row[:3]: row[3:] for row in stored} == {
            key: (cid, rev, record_json, record_cbor)
            for key, (cid, rev, _, record_json, record_cbor) in naive.rows.items()
        }
        assert {did: (rev, status) for did, rev, status in accounts} == {
            did: (account[0], account[2]) for did, account in naive.accounts().items()
        }
        refused = {(n // 5, n % 5) for n, op in enumerate(run) if NaiveIngester.is_malformed(op)}
        assert delivery.rejected == refused

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = stub_of(channel)
        check()
        assert stub.HealthCheck(pb.HealthCheckRequest(), timeout=10).status == pb.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            list(stub.StreamOperations(iter(numbered([[], []])[1:]), timeout=10))


def test_the_example_answers_retry_while_the_database_is_locked(example: tuple[Program, Path]) -> None:
    program, path = example
    port = program.wait_for_line(r"^listening on port (\d+)$")[1]
    op = pb.Operation(type=pb.DELETE, did="did:plc:aaa", collection="a.b.c", rkey="k", rev="3ka")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        delivery = Delivery([[op]])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        delivery.attempt(stub_of(channel))
        assert (delivery.acknowledged, delivery.retries) == (0, 1)
        other.execute("ROLLBACK")
        other.close()
        delivery.run(stub_of(channel))


def test_the_guide_names_every_fault() -> None:
    from relay.ingester.faults import _READERS

    guide = GUIDE.read_text(encoding="utf-8")
    assert [name for name in _READERS if f"`{name}=" not in guide] == []
