"""What is refused, and that nothing else suffers from it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.ingester.errors import BadBatch
from relay.ingester.operations import Prepared, Refusal, parse_batch, prepare_changes, split_batch
from relay.pb import ingester_pb2 as pb

GOOD: dict[str, Any] = {
    "type": pb.CREATE,
    "did": "did:plc:aaa",
    "collection": "app.bsky.feed.post",
    "rkey": "3kabcdefghi2k",
    "cid": "bafyreiabc",
    "rev": "3kabcdefghi2k",
    "record_json": '{"text":"hi"}',
}


def refusals_of(*operations: pb.Operation | None) -> dict[int, str]:
    _, refusals = prepare_changes(operations, lambda *row: row)
    return {refusal.index: refusal.message for refusal in refusals}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"did": ""}, "no did"),
        ({"did": "plc:aaa"}, "is no DID"),
        ({"did": "did:plc:a\x00"}, "is no DID"),
        ({"did": "did:plc:" + "a" * 1024}, "at most 1,024"),
        ({"type": 0}, "unknown operation type 0"),
        ({"type": 99}, "unknown operation type 99"),
        ({"rev": ""}, "no rev"),
        ({"rev": "3k\n"}, "is no rev"),
        ({"collection": ""}, "no collection"),
        ({"collection": "post"}, "is no NSID"),
        ({"collection": "a.b/c"}, "is no NSID"),
        ({"collection": "a." + "b" * 316}, "is no NSID"),
        ({"rkey": ""}, "no rkey"),
        ({"rkey": "a/b"}, "is no record key"),
        ({"rkey": ".."}, "is no record key"),
        ({"rkey": "é"}, "is no record key"),
        ({"rkey": "x" * 513}, "is no record key"),
        ({"cid": ""}, "is empty or no CID"),
        ({"cid": "bafy\x00"}, "is empty or no CID"),
        ({"record_json": None}, "has no record"),
        ({"record_json": '{"text":'}, "is no JSON"),
        ({"record_json": "[]"}, "is no JSON object"),
        ({"record_json": '{"text":"\x00"}'}, "is no JSON"),
        ({"type": pb.ACCOUNT}, "without an account status"),
        ({"type": pb.IDENTITY}, "without an identity"),
        ({"type": pb.IDENTITY, "identity": pb.Identity(handle="a\x00b")}, "NUL"),
        ({"type": pb.ACCOUNT, "account": pb.AccountStatus(status="\x00")}, "NUL"),
        ({"type": pb.REPO_END, "nsid_filter": ["app.bsky.*", "app.*.x"]}, "neither an NSID nor a prefix"),
        ({"type": pb.REPO_END, "nsid_filter": [""]}, "neither an NSID nor a prefix"),
        ({"type": pb.REPO_BEGIN, "rev": ""}, "no rev"),
    ],
)
def test_a_malformed_operation_is_refused_and_its_neighbours_are_not(change: dict[str, Any], message: str) -> None:
    good, bad = pb.Operation(**GOOD), pb.Operation(**{**GOOD, **change})
    for place in range(3):
        run = [good, good]
        run.insert(place, bad)
        refused = refusals_of(*run)
        assert list(refused) == [place]
        assert message in refused[place]


@pytest.mark.parametrize(
    "change",
    [
        {"rkey": "self"},
        {"rkey": "a.b_c:d~e-1"},
        {"rkey": "x" * 512},
        {"did": "did:web:example.com%3A8080"},
        {"record_json": None, "record_cbor": b"\xa0"},
        {"record_json": "{}"},
        {"type": pb.REPO_END, "nsid_filter": ["app.bsky.", "app.bsky.*", "app.bsky.feed.post"]},
        {"type": pb.REPO_BEGIN, "identity": pb.Identity(handle="", pds="")},
        {"type": pb.DELETE, "cid": "", "record_json": None},
    ],
)
def test_a_good_operation_is_taken(change: dict[str, Any]) -> None:
    assert refusals_of(pb.Operation(**{**GOOD, **change})) == {}


def test_broken_bytes_of_one_operation_do_not_spoil_the_batch() -> None:
    good = pb.OperationRequest(batch_id=7, operations=[pb.Operation(**GOOD)]).SerializeToString()
    broken = b"\x12\x04\x12\x02\xff\xfe"  # a did that is not UTF-8
    batch_id, operations, count = parse_batch(good + broken + good[2:])
    assert (batch_id, count) == (7, 3)
    assert refusals_of(*operations) == {1: "these bytes are no ingester.v1.Operation"}


@pytest.mark.parametrize("raw", [b"\x12\x05ab", b"\xff", b"\x12\xff\xff\xff\xff\xff\xff"])
def test_bytes_that_are_no_batch_are_told_apart(raw: bytes) -> None:
    with pytest.raises(BadBatch, match=r"no ingester\.v1\.OperationRequest"):
        parse_batch(raw)
    with pytest.raises(BadBatch):
        split_batch(raw)


@given(raw=st.binary(max_size=60))
def test_any_bytes_give_a_batch_or_a_bad_batch(raw: bytes) -> None:
    try:
        _, operations, count = parse_batch(raw)
    except BadBatch:
        return
    changes, refusals = prepare_changes(operations, lambda *row: row)
    assert len(changes) + len(refusals) == count


def test_splitting_counts_what_reading_counts() -> None:
    request = pb.OperationRequest(batch_id=3, operations=[pb.Operation(**GOOD)] * 5)
    batch_id, parts = split_batch(request.SerializeToString())
    assert (batch_id, len(parts)) == (3, 5)
    assert pb.Operation.FromString(parts[4]) == request.operations[4]


def test_refusing_an_item_later_names_its_place_in_the_batch() -> None:
    prepared = Prepared(operations=6, items=["b", "c", "e", "f"])
    prepared.refusals = [Refusal(index=0, message="x"), Refusal(index=3, message="x")]
    prepared.refuse_item(2, "later")
    prepared.refuse_item(0, "later still")
    assert prepared.items == ["c", "f"]
    assert [refusal.index for refusal in prepared.refusals] == [0, 1, 3, 4]
