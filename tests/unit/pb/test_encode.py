from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.atproto.cid import cid_of, cid_text
from relay.model import OpType, Source
from relay.pb import encode, ingester_pb2

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
SOURCES = st.sampled_from(Source)
TIMES = st.integers(-(2**63), 2**63 - 1)
# Sizes of records, some around those where a length takes one byte more.
SIZES = st.one_of(st.integers(0, 300), st.sampled_from([127, 128, 13_000, 16_000, 16_383, 16_384]))
LARGE = [2**21 - 1, 2**21, 5]


def _record(size: int) -> bytes:
    """Return bytes that tell of their size."""
    return (b"%d." % size * (size // 2 + 1))[:size]


def _field(operation: ingester_pb2.Operation) -> bytes:
    """Return the operation as protobuf writes it in a batch."""
    return ingester_pb2.OperationRequest(operations=[operation]).SerializeToString(deterministic=True)


@given(
    TEXTS,
    TEXTS,
    SOURCES,
    TIMES,
    st.lists(TEXTS, max_size=3),
    st.booleans(),
    TEXTS,
    st.none() | TEXTS,
    st.none() | TEXTS,
)
def test_repo_begin_is_what_protobuf_writes(
    did: str,
    rev: str,
    source: Source,
    time_us: int,
    patterns: list[str],
    active: bool,
    status: str,
    handle: str | None,
    pds: str | None,
) -> None:
    expected = ingester_pb2.Operation(
        type=ingester_pb2.REPO_BEGIN,
        did=did,
        rev=rev,
        source=source.name,
        time_us=time_us,
        nsid_filter=patterns,
        account=ingester_pb2.AccountStatus(active=active, status=status),
        identity=ingester_pb2.Identity(handle=handle or "", pds=pds or ""),
    )
    made = encode.encode_repo_begin(
        did=did,
        rev=rev,
        source=source,
        time_us=time_us,
        nsid_filter=patterns,
        account=encode.account_message(active=active, status=status),
        identity=encode.identity_message(handle=handle, pds=pds),
    )
    assert made == _field(expected)


def test_repo_begin_leaves_out_what_is_not_known() -> None:
    made = encode.encode_repo_begin(did="did:a:b", rev="r", source=Source.BACKFILL, time_us=1, nsid_filter=())
    operation = encode.decode_operation(made)
    assert not operation.HasField("account")
    assert not operation.HasField("identity")


@given(TEXTS, TEXTS, SOURCES, TIMES, st.lists(TEXTS, max_size=3), st.integers(0, 2**64 - 1))
def test_repo_end_is_what_protobuf_writes(
    did: str, rev: str, source: Source, time_us: int, patterns: list[str], count: int
) -> None:
    expected = ingester_pb2.Operation(
        type=ingester_pb2.REPO_END,
        did=did,
        rev=rev,
        source=source.name,
        time_us=time_us,
        nsid_filter=patterns,
        record_count=count,
    )
    made = encode.encode_repo_end(
        did=did, rev=rev, source=source, time_us=time_us, nsid_filter=patterns, record_count=count
    )
    assert made == _field(expected)


@given(TEXTS, st.booleans(), TEXTS, SOURCES, TIMES, st.integers(0, 2**63 - 1))
def test_account_is_what_protobuf_writes(
    did: str, active: bool, status: str, source: Source, time_us: int, seq: int
) -> None:
    expected = ingester_pb2.Operation(
        type=ingester_pb2.ACCOUNT,
        did=did,
        seq=seq,
        source=source.name,
        time_us=time_us,
        account=ingester_pb2.AccountStatus(active=active, status=status),
    )
    made = encode.encode_account(did=did, active=active, status=status, time_us=time_us, source=source, seq=seq)
    assert made == _field(expected)


@given(TEXTS, st.none() | TEXTS, st.none() | TEXTS, SOURCES, TIMES, st.integers(0, 2**63 - 1))
def test_identity_is_what_protobuf_writes(
    did: str, handle: str | None, pds: str | None, source: Source, time_us: int, seq: int
) -> None:
    expected = ingester_pb2.Operation(
        type=ingester_pb2.IDENTITY,
        did=did,
        seq=seq,
        source=source.name,
        time_us=time_us,
        identity=ingester_pb2.Identity(handle=handle or "", pds=pds or ""),
    )
    made = encode.encode_identity(did=did, handle=handle, pds=pds, time_us=time_us, source=source, seq=seq)
    assert made == _field(expected)


@given(
    st.sampled_from([OpType.CREATE, OpType.UPDATE]),
    st.fixed_dictionaries(dict.fromkeys(("did", "collection", "rkey", "cid", "rev"), TEXTS)),
    st.integers(0, 2**63 - 1),
    TIMES,
    st.booleans(),
    SIZES,
)
def test_a_live_write_is_what_protobuf_writes(
    op_type: OpType, texts: dict[str, Any], seq: int, time_us: int, as_json: bool, size: int
) -> None:
    record = _record(size)
    form: Any = {"record_json": record.decode()} if as_json else {"record_cbor": record}
    expected = ingester_pb2.Operation(
        type=op_type.name, **texts, seq=seq, source=ingester_pb2.FIREHOSE, time_us=time_us, **form
    )
    made = encode.encode_write(
        op_type,
        **texts,
        seq=seq,
        time_us=time_us,
        record_json=record if as_json else None,
        record_cbor=None if as_json else record,
    )
    assert made == _field(expected)


@given(st.fixed_dictionaries(dict.fromkeys(("did", "collection", "rkey", "rev"), TEXTS)), TIMES)
def test_a_live_delete_is_what_protobuf_writes(texts: dict[str, Any], time_us: int) -> None:
    expected = ingester_pb2.Operation(
        type=ingester_pb2.DELETE, **texts, seq=7, source=ingester_pb2.FIREHOSE, time_us=time_us
    )
    assert encode.encode_delete(**texts, seq=7, time_us=time_us) == _field(expected)


@given(
    st.lists(st.tuples(st.from_regex(r"[a-zA-Z0-9_~.:-]{1,150}", fullmatch=True), SIZES), min_size=1, max_size=140),
    st.sampled_from(["cbor", "json", "mixed"]),
    st.booleans(),
    SOURCES,
    TIMES,
)
@example([("a", size) for size in LARGE], "mixed", True, Source.BACKFILL, 1)
def test_columns_of_creates_are_what_protobuf_writes_one_by_one(
    made: list[tuple[str, int]], form: str, same_length: bool, source: Source, time_us: int
) -> None:
    rkeys = ["3k" + f"{count:011}" if same_length else rkey for count, (rkey, _) in enumerate(made)]
    as_cbor = [form == "cbor" or (form == "mixed" and count % 3 == 0) for count in range(len(made))]
    records = [_record(size) for _, size in made]
    digests = [hashlib.sha256(record).digest() for record in records]
    encoder = encode.CreateEncoder(did="did:plc:abc", rev="3kabcdefghi2k", source=source, time_us=time_us)
    pieces, sizes = encoder.encode(
        [("app.bsky.feed.like", len(made) // 2), ("com.example.a", len(made))]
        if len(made) > 1
        else [("com.example.a", 1)],
        [rkey.encode() for rkey in rkeys],
        digests,
        records,
        as_cbor=as_cbor if form == "mixed" else form == "cbor",
    )
    assert len(pieces) == encoder.PIECES * len(records)
    for place, (rkey, record) in enumerate(zip(rkeys, records, strict=True)):
        shape: Any = {"record_cbor": record} if as_cbor[place] else {"record_json": record.decode()}
        expected = ingester_pb2.Operation(
            type=ingester_pb2.CREATE,
            did="did:plc:abc",
            collection="app.bsky.feed.like" if place < len(made) // 2 else "com.example.a",
            rkey=rkey,
            cid=cid_text(cid_of(record)),
            rev="3kabcdefghi2k",
            source=source.name,
            time_us=time_us,
            **shape,
        )
        operation = b"".join(pieces[place * encoder.PIECES : (place + 1) * encoder.PIECES])
        assert operation == _field(expected)
        assert sizes[place] == len(operation) <= len(record) + encoder.overhead


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=300))
def test_cids_of_a_column_are_those_of_each(digests: list[bytes]) -> None:
    expected = [cid_text(b"\x01\x71\x12\x20" + digest).encode() for digest in digests]
    assert encode.cid_texts(digests) == expected


@given(st.integers(1, 2**64 - 1))
def test_a_batch_is_its_id_and_then_the_operations(batch_id: int) -> None:
    operations = [
        encode.encode_account(did="did:a:b", active=True, status="", time_us=1),
        encode.encode_identity(did="did:a:b", handle="a.example", pds=None, time_us=2),
    ]
    batch = ingester_pb2.OperationRequest.FromString(encode.batch_id_field(batch_id) + b"".join(operations))
    assert batch.batch_id == batch_id
    assert [operation.time_us for operation in batch.operations] == [1, 2]


@given(st.lists(SIZES, max_size=20))
@example(LARGE)
def test_joined_operations_are_found_again(sizes: list[int]) -> None:
    records = [_record(size) for size in sizes]
    made = [
        encode.encode_operation(OpType.CREATE, "did:a:b", source=Source.RESYNC, time_us=1, record_cbor=record)
        for record in records
    ]
    joined = b"".join(made)
    places = encode.split_operations(memoryview(joined))
    assert [joined[offset : offset + length] for offset, length in places] == made
    assert [encode.decode_operation(field).record_cbor for field in made] == records


@given(st.lists(st.tuples(st.sampled_from([OpType.CREATE, OpType.UPDATE, OpType.DELETE]), SIZES), max_size=8))
def test_records_are_creates_and_updates(operations: list[tuple[OpType, int]]) -> None:
    fields = [
        encode.encode_operation(
            kind,
            "did:a:b",
            source=Source.FIREHOSE,
            time_us=1,
            record_cbor=None if kind is OpType.DELETE else _record(size),
        )
        for kind, size in operations
    ]
    account = encode.encode_account(did="did:a:b", active=False, status="deleted", time_us=1)
    expected = sum(kind is not OpType.DELETE for kind, _ in operations)
    assert encode.count_records(memoryview(b"".join([*fields, account]))) == expected


def test_a_bare_message_is_decoded_like_a_field() -> None:
    field = encode.encode_account(did="did:a:b", active=False, status="deleted", time_us=1)
    assert encode.decode_operation(field) == encode.decode_operation(field[2:])


@pytest.mark.parametrize("data", [b"\x0a\x00", b"\x12", b"\x12\x05abc", b"\x12\x80", b"\x12" + b"\xff" * 10 + b"\x01"])
def test_bytes_that_are_no_operations_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        encode.split_operations(data)


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x12\x03\x08", b"\x12\x02\x08\x01\x12\x02\x08\x01"])
def test_bytes_that_are_no_single_operation_are_not_decoded(data: bytes) -> None:
    with pytest.raises(ValueError):
        encode.decode_operation(data)


def test_a_record_has_one_form() -> None:
    with pytest.raises(ValueError, match="one form"):
        encode.encode_operation(
            OpType.CREATE, "did:a:b", source=Source.FIREHOSE, time_us=1, record_json=b"{}", record_cbor=b"\xa0"
        )
    with pytest.raises(ValueError, match="one form"):
        encode.encode_write(
            OpType.CREATE, did="did:a:b", collection="a.b.c", rkey="d", cid="", rev="", seq=1, time_us=1
        )


@pytest.mark.parametrize("value", [-(2**63) - 1, 2**64])
def test_numbers_beyond_64_bits_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        encode.varint(value)
