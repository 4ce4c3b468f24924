"""Real repositories of others: what comes out of each must be what independent implementations found in it."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest

from relay.atproto import mst_columns
from relay.atproto.car import check_section, hash_blocks, read_header, read_sections
from relay.atproto.cid import cid_of, cid_text
from relay.atproto.errors import AtprotoError, BadSignature, InvalidCar, MissingBlock, OldCommitVersion
from relay.atproto.jsonform import json_to_record
from relay.atproto.keys import parse_multikey
from relay.atproto.limits import Limits
from relay.atproto.mst import Tally, common_prefix, key_depth
from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.verify import VerifiedRepo, verify_repo
from relay.backfill.snapshot import SnapshotSpec, take_snapshot
from relay.model import RecordEncoding, Source
from relay.pb.ingester_pb2 import CREATE, OperationRequest
from tests.support.data import data_bytes, data_json, data_root, expected, needs_data

pytestmark = needs_data

CARS: dict[str, dict[str, Any]] = expected()["cars"] if data_root() else {}
OTHER_CARS: dict[str, dict[str, Any]] = expected()["other_cars"] if data_root() else {}
MUST_REFUSE = [name for name in expected()["must_refuse"] if name.endswith(".car")] if data_root() else []


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _names(wanted: bool) -> list[str]:
    """Return the CARs that a verifier must accept, or the others."""
    return [
        name
        for name, facts in CARS.items()
        if (facts["kind"] == "full" and facts["commit_version"] == 3 and facts["signature"]["low_s"]) == wanted
    ]


def _keys(facts: dict[str, Any]) -> list[str]:
    signature = facts["signature"]
    return [signature["key"]] if signature["key"] else signature["key_candidates"]


def _verify(name: str, key: str | None, patterns: tuple[str, ...] = ()) -> VerifiedRepo:
    return verify_repo(
        data_bytes(name),
        did=CARS[name]["did"],
        key=None if key is None else parse_multikey(key),
        wanted=NsidFilter.parse(patterns),
    )


def _digest(lines: list[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()


@pytest.mark.parametrize("name", _names(True), ids=_name)
def test_a_full_export_gives_the_golden_records(name: str) -> None:
    facts = CARS[name]
    for key in _keys(facts):
        found = _verify(name, key)
        lines: list[bytes] = []
        size = 0
        counts: Counter[str] = Counter()
        for batch in found.batches():
            for collection, rkey, _, block in batch.records():
                counts[collection] += 1
                lines.append(f"{collection}/{rkey.decode()} {cid_text(cid_of(block))}\n".encode())
                size += len(block)
        assert _digest(lines) == facts["records_digest"]
        assert dict(counts) == facts["collections"]
        assert (size, found.records_total, found.wanted) == (facts["record_bytes"], facts["records"], facts["records"])
        assert (found.rev, cid_text(found.data), cid_text(found.commit_cid)) == (
            facts["rev"],
            facts["data_cid"],
            facts["commit_cid"],
        )
        assert found.foreign == ()


@pytest.mark.parametrize("name", _names(True), ids=_name)
def test_the_fast_walk_takes_every_real_tree(name: str) -> None:
    """None of them needs the plain walk; were it otherwise, backfill would be four times slower than it is measured."""
    car = data_bytes(name)
    root = _verify(name, None).data
    tally = Tally()
    pages = list(mst_columns.walk_columns(root, hash_blocks(car, read_header(car).size), tally))
    assert tally.entries == sum(len(page.rkeys) for page in pages) == CARS[name]["records"]


@pytest.mark.parametrize("name", _names(True), ids=_name)
def test_each_collection_alone_gives_its_records(name: str) -> None:
    for collection, count in list(CARS[name]["collections"].items())[:12]:
        found = _verify(name, _keys(CARS[name])[0], (collection,))
        assert {run.collection for batch in found.batches() for run in batch.runs} == {collection}
        assert found.wanted == count


@pytest.mark.parametrize("encoding", RecordEncoding)
@pytest.mark.parametrize("name", _names(True), ids=_name)
def test_its_snapshot_carries_the_golden_records_and_they_hash_to_their_cids(
    name: str, encoding: RecordEncoding
) -> None:
    facts = CARS[name]
    snapshot = take_snapshot(
        data_bytes(name),
        SnapshotSpec(
            did=facts["did"],
            key=_keys(facts)[0],
            patterns=(),
            encoding=encoding,
            source=Source.BACKFILL,
            time_us=1,
            status=None,
            handle=None,
            pds=None,
            touched=True,
            chunk_bytes=64 << 10,
            chunk_operations=100,
            max_operation_bytes=4 << 20,
            limits=Limits(),
        ),
    )
    lines: list[bytes] = []
    for chunk in snapshot.chunks():
        for operation in OperationRequest.FromString(b"".join(chunk.parts)).operations:
            if operation.type != CREATE:
                continue
            is_json = operation.HasField("record_json")
            assert is_json == (encoding is RecordEncoding.JSON)
            block = json_to_record(operation.record_json) if is_json else operation.record_cbor
            assert cid_text(cid_of(block)) == operation.cid
            lines.append(f"{operation.collection}/{operation.rkey} {operation.cid}\n".encode())
    assert _digest(lines) == facts["records_digest"]
    assert (snapshot.records, snapshot.refused) == (facts["records"], [])


@pytest.mark.parametrize("name", _names(False), ids=_name)
def test_anything_else_is_refused_with_its_reason(name: str) -> None:
    facts = CARS[name]
    expected_error = MissingBlock if facts["commit_version"] == 3 else OldCommitVersion
    if facts["commit_version"] == 3 and not facts["signature"]["low_s"]:
        expected_error = BadSignature  # type: ignore[assignment]
    for key in _keys(facts):
        with pytest.raises(expected_error):
            _verify(name, key)


@pytest.mark.parametrize("name", _names(True), ids=_name)
def test_another_key_is_refused(name: str) -> None:
    with pytest.raises(BadSignature):
        _verify(name, "zQ3shqwJEJyMBsBXCWyCBpUBMqxcon9oHB7mCvx4sSpMdLJwc")


@pytest.mark.parametrize("name", [*CARS, *OTHER_CARS], ids=_name)
def test_the_plain_reader_finds_every_section(name: str) -> None:
    facts = CARS.get(name) or OTHER_CARS[name]
    car = data_bytes(name)
    if name.endswith("codec-fixtures/fixtures.car"):
        with pytest.raises(InvalidCar):  # it has sections without data, which no repo has
            list(read_sections(car))
        return
    sections = list(read_sections(car))
    assert len(sections) == facts["sections"]
    assert len({section.cid for section in sections}) == facts["blocks"]
    for section in sections:
        check_section(section)


@pytest.mark.parametrize("name", OTHER_CARS, ids=_name)
def test_a_car_that_is_no_repo_is_refused(name: str) -> None:
    with pytest.raises(AtprotoError):
        verify_repo(data_bytes(name), did="did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", key=None, wanted=NsidFilter.parse([]))


@pytest.mark.parametrize("name", MUST_REFUSE, ids=_name)
def test_another_version_of_car_is_refused(name: str) -> None:
    with pytest.raises(InvalidCar):
        read_header(data_bytes(name))


def test_key_heights() -> None:
    for vector in data_json("bluesky-social/atproto-interop-tests/mst/key_heights.json"):
        assert key_depth(vector["key"].encode()) == vector["height"], vector


def test_common_prefixes() -> None:
    for vector in data_json("bluesky-social/atproto-interop-tests/mst/common_prefix.json"):
        assert common_prefix(vector["left"].encode(), vector["right"].encode()) == vector["len"], vector


def test_example_keys_have_the_layer_that_they_are_named_for() -> None:
    lines = data_bytes("bluesky-social/atproto-interop-tests/mst/example_keys.txt").split()
    assert len(lines) > 100
    for key in lines:
        assert key_depth(key) == int(key[1:2])
