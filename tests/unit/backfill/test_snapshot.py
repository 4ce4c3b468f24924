from __future__ import annotations

import itertools
import json
import mmap
import tempfile
from typing import Any

import pytest
from cbrrr import CID, encode_dag_cbor
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto import verify
from relay.atproto.car import MappedBlocks
from relay.atproto.errors import AtprotoError, BadSignature, InvalidKey
from relay.atproto.jsonform import json_to_record
from relay.atproto.limits import Limits
from relay.backfill.snapshot import Snapshot, SnapshotSpec, take_snapshot
from relay.model import AccountStatus, RecordEncoding, Source
from relay.pb.encode import CreateEncoder, decode_operation, split_operations
from relay.pb.ingester_pb2 import CREATE, REPO_BEGIN, REPO_END, Operation
from tests.support.repos import DID, REV, MadeRepo, build_tree, cid_of, commit_block, make_records, make_repo, write_car

PATHS = [f"{name}/3k{number:011}".encode() for name in ("app.bsky.feed.like", "com.example.a") for number in range(40)]
REPO = make_repo(make_records([*PATHS, b"app.bsky.actor.profile/self"]))


def _spec(made: MadeRepo = REPO, **changes: Any) -> SnapshotSpec:
    fields: dict[str, Any] = {
        "did": DID,
        "key": made.key,
        "patterns": (),
        "encoding": RecordEncoding.DAG_CBOR,
        "source": Source.BACKFILL,
        "time_us": 1_700_000_000_000_000,
        "status": None,
        "handle": None,
        "pds": None,
        "touched": False,
        "chunk_bytes": 256 << 10,
        "chunk_operations": 1000,
        "max_operation_bytes": 16 << 20,
        "limits": Limits(),
    }
    return SnapshotSpec(**(fields | changes))


def _operations(snapshot: Snapshot) -> list[Operation]:
    """Return all operations, with every promise of a chunk checked."""
    found: list[Operation] = []
    for chunk in snapshot.chunks():
        joined = b"".join(chunk.parts)
        places = split_operations(joined)
        assert (len(joined), len(places)) == (chunk.size, chunk.operations)
        assert chunk.operations
        found += [decode_operation(joined[offset : offset + size]) for offset, size in places]
    return found


def _records(operations: list[Operation]) -> dict[bytes, bytes]:
    return {
        f"{operation.collection}/{operation.rkey}".encode(): json_to_record(operation.record_json)
        if operation.HasField("record_json")
        else operation.record_cbor
        for operation in operations
        if operation.type == CREATE
    }


@pytest.mark.parametrize("encoding", RecordEncoding)
@pytest.mark.parametrize("mapped", [False, True])
def test_a_snapshot_is_begin_every_record_in_key_order_and_end(
    encoding: RecordEncoding, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mapped:
        monkeypatch.setattr(verify, "COPY_BYTES", 0)
    snapshot = take_snapshot(REPO.car, _spec(encoding=encoding, source=Source.RESYNC))
    begin, *creates, end = _operations(snapshot)
    assert (begin.type, end.type, end.record_count) == (REPO_BEGIN, REPO_END, 81)
    assert {operation.type for operation in creates} == {CREATE}
    assert _records(creates) == REPO.records
    assert list(_records(creates)) == sorted(REPO.records)
    for operation in (begin, *creates, end):
        assert (operation.did, operation.rev, operation.seq) == (DID, REV, 0)
        assert (operation.source, operation.time_us) == (Source.RESYNC.value, 1_700_000_000_000_000)
    for operation in creates:
        path = f"{operation.collection}/{operation.rkey}".encode()
        assert operation.cid == CID(cid_of(REPO.records[path])).encode()
        assert operation.HasField("record_json") == (encoding is RecordEncoding.JSON)
    assert (snapshot.rev, snapshot.data, snapshot.commit_cid, snapshot.records) == (REV, REPO.data, REPO.commit[0], 81)
    assert snapshot.refused == []


def test_begin_tells_what_is_known_of_the_account_and_both_ends_tell_the_filter() -> None:
    status = AccountStatus(active=False, status="deactivated", time_us=5)
    spec = _spec(
        patterns=("com.example.*", "com.example.a"), status=status, handle="a.example", pds="https://pds.example"
    )
    begin, *_, end = _operations(take_snapshot(REPO.car, spec))
    assert (begin.account.active, begin.account.status) == (False, "deactivated")
    assert (begin.identity.handle, begin.identity.pds) == ("a.example", "https://pds.example")
    assert list(begin.nsid_filter) == list(end.nsid_filter) == ["com.example."]
    begin, *_ = _operations(take_snapshot(REPO.car, _spec()))
    assert not begin.HasField("account")
    assert not begin.HasField("identity")
    assert not begin.nsid_filter


def test_a_filter_keeps_records_of_wanted_collections() -> None:
    snapshot = take_snapshot(REPO.car, _spec(patterns=("com.example.a",)))
    operations = _operations(snapshot)
    assert _records(operations) == {path: block for path, block in REPO.records.items() if path.startswith(b"com.")}
    assert operations[-1].record_count == snapshot.records == 40


def test_a_repo_without_wanted_records_tells_nothing_unless_something_was_told_before() -> None:
    spec = _spec(patterns=("org.example.",))
    snapshot = take_snapshot(REPO.car, spec)
    assert (snapshot.records, list(snapshot.chunks())) == (0, [])
    touched = _operations(take_snapshot(REPO.car, _spec(patterns=("org.example.",), touched=True)))
    assert [operation.type for operation in touched] == [REPO_BEGIN, REPO_END]
    assert touched[1].record_count == 0


@given(st.integers(1, 3000), st.integers(1, 30))
def test_chunks_hold_to_their_bounds_and_join_to_the_same_operations(chunk_bytes: int, chunk_operations: int) -> None:
    whole = _operations(take_snapshot(REPO.car, _spec()))
    snapshot = take_snapshot(REPO.car, _spec(chunk_bytes=chunk_bytes, chunk_operations=chunk_operations))
    chunks = list(snapshot.chunks())
    for chunk in chunks:
        assert chunk.operations <= chunk_operations
        assert chunk.size <= chunk_bytes or chunk.operations == 1
    for chunk, following in itertools.pairwise(chunks):
        # No chunk is left emptier than it has to be.
        first = b"".join(following.parts)[: split_operations(b"".join(following.parts))[0][1]]
        assert chunk.operations == chunk_operations or chunk.size + len(first) > chunk_bytes
    assert _operations(snapshot) == whole


def test_a_record_that_json_cannot_carry_travels_as_it_is() -> None:
    odd = {
        b"com.example.a/float": encode_dag_cbor({"$type": "com.example.a", "x": 0.5}),
        b"com.example.a/link": encode_dag_cbor({"$type": "com.example.a", "x": {"$link": "not a link"}}),
        b"com.example.a/plain": encode_dag_cbor({"$type": "com.example.a", "x": 1}),
        b"com.example.a/zero": b"\xff\xff",
    }
    made = make_repo(odd)
    operations = _operations(take_snapshot(made.car, _spec(made, encoding=RecordEncoding.JSON)))
    assert _records(operations) == odd
    kinds = {operation.rkey: operation.WhichOneof("record") for operation in operations if operation.type == CREATE}
    assert kinds == {
        "float": "record_cbor",
        "link": "record_cbor",
        "plain": "record_json",
        "zero": "record_cbor",
    }


def test_json_is_the_same_with_other_limits() -> None:
    snapshots = [
        take_snapshot(REPO.car, _spec(encoding=RecordEncoding.JSON, limits=limits))
        for limits in (Limits(), Limits(cbor_items=9))
    ]
    assert _operations(snapshots[0]) == _operations(snapshots[1])
    first = _operations(snapshots[0])[1]
    assert json.loads(first.record_json)["$type"] == first.collection


# ---- what is left out ------------------------------------------------------------------------------------------------


def _text(size: int) -> bytes:
    """Return a record of about `size` bytes."""
    return encode_dag_cbor({"$type": "com.example.a", "text": "\n" * size})


@pytest.mark.parametrize("encoding", RecordEncoding)
@pytest.mark.parametrize("mapped", [False, True])
def test_a_record_over_the_limit_is_left_out_and_listed(
    encoding: RecordEncoding, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mapped:
        monkeypatch.setattr(verify, "COPY_BYTES", 0)
    large = _text(1 << 20)
    fits = encode_dag_cbor({"t": "x" * ((1 << 20) - 8)})
    assert len(fits) == 1 << 20
    made = make_repo({b"com.example.a/fits": fits, b"com.example.a/large": large, b"com.example.a/small": b"\xa0"})
    snapshot = take_snapshot(made.car, _spec(made, encoding=encoding))
    assert snapshot.refused == [("com.example.a", "large", CID(cid_of(large)).encode(), "record_too_large", len(large))]
    operations = _operations(snapshot)
    assert set(_records(operations)) == {b"com.example.a/fits", b"com.example.a/small"}
    assert operations[-1].record_count == snapshot.records == 2


@pytest.mark.parametrize(("encoding", "goes"), [(RecordEncoding.DAG_CBOR, 5000), (RecordEncoding.JSON, 2500)])
def test_an_operation_over_the_limit_is_left_out_and_listed(encoding: RecordEncoding, goes: int) -> None:
    """Line feeds take two bytes in JSON."""
    sizes = [10, goes - 1000, goes + 1000, 9_000]
    made = make_repo({f"com.example.a/{size}".encode(): _text(size) for size in sizes})
    overhead = CreateEncoder(did=DID, rev=REV, source=Source.BACKFILL, time_us=1_700_000_000_000_000).overhead
    spec = _spec(made, encoding=encoding, max_operation_bytes=5100 + overhead)
    snapshot = take_snapshot(made.car, spec)
    assert sorted((record.rkey, record.reason) for record in snapshot.refused) == [
        (str(goes + 1000), "operation_too_large"),
        ("9000", "operation_too_large"),
    ]
    operations = _operations(snapshot)
    assert all(operation.ByteSize() <= spec.max_operation_bytes for operation in operations)
    assert {operation.rkey for operation in operations if operation.type == CREATE} == {"10", str(goes - 1000)}


def test_a_record_that_its_cid_does_not_prove_is_left_out_and_listed() -> None:
    odd = b"\x01\x71\x13\x40" + bytes(64)
    data, nodes = build_tree({b"com.example.a/odd": odd, b"com.example.a/x": cid_of(b"\xa0")})
    block = commit_block(data)
    car = write_car(cid_of(block), [(cid_of(block), block), *nodes, (odd, b"?"), (cid_of(b"\xa0"), b"\xa0")])
    snapshot = take_snapshot(car, _spec())
    assert snapshot.refused == [("com.example.a", "odd", CID(odd).encode(), "unprovable_cid", 0)]
    assert set(_records(_operations(snapshot))) == {b"com.example.a/x"}


def test_a_repo_of_which_everything_is_left_out_tells_nothing() -> None:
    made = make_repo({b"com.example.a/large": bytes((1 << 20) + 1)})
    snapshot = take_snapshot(made.car, _spec(made))
    assert (len(snapshot.refused), snapshot.records, list(snapshot.chunks())) == (1, 0, [])


def test_nothing_comes_out_of_a_car_that_is_not_proved() -> None:
    with pytest.raises(BadSignature):
        take_snapshot(REPO.car, _spec(key="zQ3shqwJEJyMBsBXCWyCBpUBMqxcon9oHB7mCvx4sSpMdLJwc"))
    with pytest.raises(InvalidKey):
        take_snapshot(REPO.car, _spec(key="z123"))
    with pytest.raises(AtprotoError):
        take_snapshot(REPO.car[:-1], _spec())


def test_a_mapped_file_is_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "COPY_BYTES", 0)
    monkeypatch.setattr(MappedBlocks, "FORGET_BYTES", 100)
    monkeypatch.setattr(MappedBlocks, "WINDOW_BYTES", 300)
    with tempfile.TemporaryFile() as file:
        file.write(REPO.car)
        file.flush()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
            assert _records(_operations(take_snapshot(view, _spec()))) == REPO.records
