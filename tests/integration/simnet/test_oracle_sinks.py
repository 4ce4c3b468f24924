"""The oracle reads every sink of the reference ingester, and finds one wrong record among all of a world."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbrrr
import psycopg2.extensions
import pytest

from relay.ingester.sinks.choose import make_sink
from relay.pb import ingester_pb2 as pb
from relay.simnet.block import cid_text
from relay.simnet.delivered import read_sink
from relay.simnet.oracle import DifferenceKind, compare, report
from relay.simnet.world import Account, World, WorldSpec


@pytest.fixture
def world() -> World:
    return World(WorldSpec(accounts=15, median_records=30, sizes=(0, 1, 300), inactive_share=0.3, seed=11))


@pytest.fixture(params=["sqlite", "jsonl", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sink.db"
    if request.param == "jsonl":
        return f"jsonl:{tmp_path}/log"
    parts = psycopg2.extensions.parse_dsn(request.getfixturevalue("database_dsn"))
    options = "&".join(f"{name}={value}" for name, value in parts.items() if name != "dbname")
    return f"postgresql:///{parts['dbname']}?{options}"


def _snapshot(world: World, account: Account) -> Iterator[pb.Operation]:
    """What a relay that does everything right delivers of an account: half of the records as JSON, half as DAG-CBOR."""
    common: dict[str, Any] = {"did": account.did, "rev": account.rev, "source": pb.BACKFILL, "time_us": 1}
    truth = world.account_truth(account)
    if truth.status:
        told = pb.AccountStatus(active=False, status=truth.status)
        yield pb.Operation(type=pb.ACCOUNT, did=account.did, time_us=2, account=told)
        return
    if not truth.records:
        return
    yield pb.Operation(type=pb.REPO_BEGIN, **common)
    for number, (path, record) in enumerate(account.repo.records.items()):
        collection, rkey = path.decode().split("/")
        place = {"collection": collection, "rkey": rkey, "cid": cid_text(record.cid), **common}
        if number % 2:
            yield pb.Operation(type=pb.CREATE, record_cbor=record.block, **place)
        else:
            value: Any = cbrrr.decode_dag_cbor(record.block, atjson_mode=True)
            yield pb.Operation(type=pb.CREATE, record_json=json.dumps(value, ensure_ascii=False), **place)
    yield pb.Operation(type=pb.REPO_END, record_count=len(truth.records), **common)


def _store(url: str, operations: list[pb.Operation]) -> None:
    sink = make_sink(url)
    sink.open()
    try:
        prepared = sink.prepare(operations, len(operations), None)
        assert not prepared.refusals
        sink.store([prepared])
    finally:
        sink.close()


def test_a_right_delivery_agrees_and_one_wrong_record_is_found(world: World, url: str) -> None:
    assert read_sink(url) == {}
    _store(url, [op for account in world.accounts for op in _snapshot(world, account)])
    differences = compare(world.truth(), read_sink(url))
    assert differences == [], report(differences)
    account = next(account for account in world.accounts if account.records > 100)
    common: dict[str, Any] = {"did": account.did, "collection": "app.bsky.feed.post", "rev": account.rev, "time_us": 3}
    extra = pb.Operation(type=pb.CREATE, rkey="extra", cid=account.head, record_json="{}", **common)
    path = next(path.decode() for path in account.repo.records if path.startswith(b"app.bsky.feed.post/"))
    gone = pb.Operation(type=pb.DELETE, rkey=path.partition("/")[2], **common)
    _store(url, [extra, gone])
    found = compare(world.truth(), read_sink(url))
    assert {(difference.kind, difference.path) for difference in found} == {
        (DifferenceKind.MISSING, path),
        (DifferenceKind.EXTRA, "app.bsky.feed.post/extra"),
        (DifferenceKind.ALTERED, "app.bsky.feed.post/extra"),
    }
    assert not [d for d in compare(world.truth(), read_sink(url, contents=False)) if d.kind is DifferenceKind.ALTERED]


def test_a_write_that_was_not_delivered_is_a_difference(world: World, url: str) -> None:
    _store(url, [op for account in world.accounts for op in _snapshot(world, account)])
    account = next(account for account in world.accounts if account.records > 100)
    world.write(account.did, {"app.bsky.actor.profile/self": {"$type": "app.bsky.actor.profile"}})
    [difference] = compare(world.truth(), read_sink(url))
    assert (difference.kind, difference.path) == (DifferenceKind.WRONG_CID, "app.bsky.actor.profile/self")
