from __future__ import annotations

import tracemalloc

import cbrrr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto import cbor
from relay.atproto.cbor import Link, Value
from relay.atproto.cid import DAG_CBOR_PREFIX, RAW_PREFIX
from relay.atproto.errors import InvalidCbor, LimitExceeded
from relay.atproto.limits import Limits
from tests.unit.atproto.values import VALUES, cbor2_encode, damaged

CID = DAG_CBOR_PREFIX + bytes(32)
LINK = b"\xd8\x2a\x58\x25\x00"

REFUSED = {
    "nothing": b"",
    "trailing byte": b"\x01\x01",
    "non-minimal integer": b"\x18\x17",
    "non-minimal integer of 2 bytes": b"\x19\x00\xff",
    "non-minimal integer of 4 bytes": b"\x1a\x00\x00\xff\xff",
    "non-minimal integer of 8 bytes": b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff",
    "non-minimal negative": b"\x38\x01",
    "non-minimal text length": b"\x78\x01a",
    "non-minimal bytes length": b"\x58\x01a",
    "non-minimal array length": b"\x98\x01\x00",
    "non-minimal map length": b"\xb8\x01\x61a\x00",
    "non-minimal tag": b"\xd9\x00\x2a\x58\x25\x00" + CID,
    "integer above int64": b"\x1b\x80\x00\x00\x00\x00\x00\x00\x00",
    "integer below int64": b"\x3b\x80\x00\x00\x00\x00\x00\x00\x00",
    "indefinite bytes": b"\x5f\x41a\xff",
    "indefinite text": b"\x7f\x61a\xff",
    "indefinite array": b"\x9f\x01\xff",
    "indefinite map": b"\xbf\x61a\x01\xff",
    "break alone": b"\xff",
    "reserved head": b"\x1c",
    "float16": b"\xf9\x3c\x00",
    "float32": b"\xfa\x3f\x80\x00\x00",
    "float64": b"\xfb\x3f\xf0\x00\x00\x00\x00\x00\x00",
    "NaN": b"\xfb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    "undefined": b"\xf7",
    "simple value": b"\xe0",
    "simple value in two bytes": b"\xf8\xff",
    "false in two bytes": b"\xf8\x14",
    "tag 1": b"\xc1\x01",
    "tag 43": b"\xd8\x2b\x58\x25\x00" + CID,
    "link without content": b"\xd8\x2a",
    "link of text": b"\xd8\x2a\x78\x25\x00" + bytes(36),
    "link without multibase prefix": b"\xd8\x2a\x58\x24" + CID,
    "link with another prefix": b"\xd8\x2a\x58\x25\x01" + CID,
    "link cut": LINK + CID[:-1],
    "link of version 0": b"\xd8\x2a\x58\x23\x00\x12\x20" + bytes(32),
    "link to dag-pb": LINK + b"\x01\x70\x12\x20" + bytes(32),
    "link with sha2-512": b"\xd8\x2a\x58\x45\x00\x01\x71\x13\x40" + bytes(64),
    "unsorted keys": b"\xa2\x61b\x01\x61a\x02",
    "longer key first": b"\xa2\x62aa\x01\x61b\x02",
    "duplicate key": b"\xa2\x61a\x01\x61a\x02",
    "integer key": b"\xa1\x01\x02",
    "bytes key": b"\xa1\x41a\x02",
    "key missing": b"\xa1",
    "value missing": b"\xa1\x61a",
    "text cut": b"\x62a",
    "bytes cut": b"\x42a",
    "head cut": b"\x19\x01",
    "array cut": b"\x82\x01",
    "huge text": b"\x7b\x7f\xff\xff\xff\xff\xff\xff\xff",
    "text is not UTF-8": b"\x61\xff",
    "surrogate in text": b"\x63\xed\xa0\x80",
    "overlong UTF-8": b"\x62\xc0\x80",
    "key is not UTF-8": b"\xa1\x61\xff\x00",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_canonical_is_refused_with_a_place(data: bytes) -> None:
    with pytest.raises(InvalidCbor) as caught:
        cbor.decode(data)
    assert isinstance(caught.value.at, int)
    assert 0 <= caught.value.at <= len(data)


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_it_is_refused_inside_of_containers_too(data: bytes) -> None:
    with pytest.raises((InvalidCbor, LimitExceeded)):
        cbor.decode(b"\x81" + data)
    with pytest.raises((InvalidCbor, LimitExceeded)):
        cbor.decode(b"\xa1\x61k" + data)


@given(VALUES)
def test_what_is_encoded_is_decoded(value: Value) -> None:
    data = cbor.encode(value)
    again = cbor.decode(data)
    assert again == value
    assert cbor.encode(again) == data


@given(VALUES)
def test_another_implementation_encodes_to_the_same_bytes(value: Value) -> None:
    assert cbor.encode(value) == cbor2_encode(value)


@given(st.one_of(st.binary(max_size=60), damaged(VALUES.map(cbor.encode))))
def test_whatever_is_accepted_has_this_one_encoding(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except (InvalidCbor, LimitExceeded):
        return
    assert cbor.encode(value) == data


@given(st.one_of(st.binary(max_size=60), damaged(VALUES.map(cbor.encode))))
def test_the_two_readers_differ_in_the_documented_cases_only(data: bytes) -> None:
    """Documented: cbrrr takes floats, unsigned 64-bit integers and deep nesting, `decode_fast` with it."""
    try:
        strict: Value | type[Exception] = cbor.decode(data)
    except (InvalidCbor, LimitExceeded):
        strict = InvalidCbor
    try:
        fast, size = cbor.decode_fast(data)
    except InvalidCbor:
        assert strict is InvalidCbor
        return
    if size != len(data):
        assert strict is InvalidCbor
    elif strict is InvalidCbor:
        assert _has_float_or_big_integer(fast)
    else:
        assert fast == strict


def _has_float_or_big_integer(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_float_or_big_integer, value.values()))
    if isinstance(value, list):
        return any(map(_has_float_or_big_integer, value))
    return isinstance(value, float) or (isinstance(value, int) and not cbor.INT_MIN <= value <= cbor.INT_MAX)


def test_a_link_is_never_taken_for_bytes() -> None:
    both = cbor.decode(b"\x82" + LINK + CID + b"\x58\x24" + CID)
    assert isinstance(both, list)
    assert both[0] != both[1]
    assert both == [Link(CID), CID]
    assert Link(CID) != Link(RAW_PREFIX + bytes(32))
    assert len({Link(CID), Link(CID), CID}) == 2


def test_two_items_are_a_frame_and_no_single_item() -> None:
    data = b"\xa1\x62op\x01\xa0"
    assert cbor.decode_two(data) == ({"op": 1}, {})
    with pytest.raises(InvalidCbor, match="behind"):
        cbor.decode(data)
    for bad in (data[:-1], data + b"\x00", b""):
        with pytest.raises(InvalidCbor):
            cbor.decode_two(bad)


def test_any_buffer_is_read() -> None:
    assert cbor.decode(memoryview(b"\x82\x01\x61a")) == [1, "a"]


def test_nesting_ends_at_the_limit() -> None:
    limits = Limits(cbor_depth=3)
    assert cbor.decode(b"\x81\xa1\x61a\x80", limits=limits) == [{"a": []}]
    with pytest.raises(LimitExceeded):
        cbor.decode(b"\x81\xa1\x61a\x81\x80", limits=limits)
    assert cbor.decode(b"\x81" * 32 + b"\x00", depth=32)
    with pytest.raises(LimitExceeded):
        cbor.decode(b"\x81" * 33 + b"\x00")


def test_items_of_a_container_end_at_the_limit() -> None:
    limits = Limits(cbor_items=2)
    assert cbor.decode(b"\x82\x00\x00", limits=limits) == [0, 0]
    for data in (b"\x83\x00\x00\x00", b"\xa3\x61a\x00\x61b\x00\x61c\x00"):
        with pytest.raises(LimitExceeded):
            cbor.decode(data, limits=limits)


def test_a_map_key_ends_at_the_limit() -> None:
    limits = Limits(cbor_key_bytes=3)
    assert cbor.decode(b"\xa1\x63abc\x00", limits=limits)
    with pytest.raises(LimitExceeded):
        cbor.decode(b"\xa1\x64abcd\x00", limits=limits)


@pytest.mark.parametrize(
    "head",
    [b"\x81", b"\x99\x1f\xff", b"\x9a\x00\x01\xff\xff", b"\xb9\x1f\xff\x60", b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff"],
    ids=["arrays of one", "arrays of 8191", "arrays of 131071", "maps of 8191", "arrays of 2**40"],
)
def test_a_bomb_is_refused_before_it_is_allocated(head: bytes) -> None:
    data = head * (200_000 // len(head))
    tracemalloc.start()
    try:
        with pytest.raises((InvalidCbor, LimitExceeded)):
            cbor.decode(data, depth=254)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


@pytest.mark.parametrize("head", [b"\x9a\x00\x01\x00\x00", b"\xb8\x20", b"\x98\x20"])
def test_a_container_that_promises_too_much_is_refused_at_its_head(head: bytes) -> None:
    """Not where the data end: outer containers count too, so a nest of promises fails at once."""
    with pytest.raises(InvalidCbor, match="promises") as caught:
        cbor.decode(b"\x83\x00" + head + b"\x00" * 31)
    assert caught.value.at == 2


def test_the_fast_reader_takes_small_input_only() -> None:
    with pytest.raises(LimitExceeded):
        cbor.decode_fast(bytes(cbor.FAST_BYTES + 1))


def test_the_fast_reader_checks_links() -> None:
    assert cbor.decode_fast(LINK + CID) == (Link(CID), 41)
    for cid in (b"", b"\x12\x20" + bytes(32), b"\x01\x70\x12\x20" + bytes(32)):
        data = cbrrr.encode_dag_cbor(cbrrr.CID(cid))
        with pytest.raises(InvalidCbor):
            cbor.decode_fast(data)


@pytest.mark.parametrize(
    "value",
    [1.0, {"a": [1.5]}, 2**63, -(2**63) - 1, 2**64, (1, 2), {1: 2}, "\ud800", {"\ud800": 1}, object(), b"a".__iter__],
)
def test_what_cannot_be_decoded_is_not_encoded(value: object) -> None:
    with pytest.raises(InvalidCbor):
        cbor.encode(value)  # type: ignore[arg-type]


def test_bytes_that_look_like_floats_and_big_integers_are_encoded() -> None:
    value: Value = [b"\xfb\x1b\x3b", cbor.INT_MAX, cbor.INT_MIN]
    assert cbor.decode(cbor.encode(value)) == value


def test_a_depth_that_the_stack_does_not_have_is_a_typed_error_too() -> None:
    with pytest.raises(LimitExceeded):
        cbor.decode(b"\x81" * 5000 + b"\x00", depth=10_000)
    value: Value = 1.5  # type: ignore[assignment]
    for _ in range(5000):
        value = [value]
    with pytest.raises((InvalidCbor, LimitExceeded)):
        cbor.encode(value)
