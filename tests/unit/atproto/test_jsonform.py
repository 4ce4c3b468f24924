from __future__ import annotations

import base64
import json
import tracemalloc

import cbrrr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto import cbor
from relay.atproto.cbor import FAST_BYTES, Link, Value
from relay.atproto.cid import DAG_CBOR_PREFIX, cid_text
from relay.atproto.errors import NotJson
from relay.atproto.jsonform import JSON_DEPTH, check_record_json, json_to_record, record_to_json
from relay.atproto.limits import Limits
from tests.unit.atproto.test_cbor import REFUSED
from tests.unit.atproto.values import VALUES, damaged

CID = DAG_CBOR_PREFIX + bytes(range(32))
REF = '{"$link":"' + cid_text(CID) + '"}'
SAFE = 2**53 - 1


def _plain(value: Value) -> object:
    """The JSON form, written as the specification says it."""
    if isinstance(value, Link):
        return {"$link": cid_text(value.cid)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode().rstrip("=")}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _json_can_carry(value: Value) -> bool:
    if isinstance(value, dict):
        return not value.keys() & {"$link", "$bytes"} and all(map(_json_can_carry, value.values()))
    if isinstance(value, list):
        return all(map(_json_can_carry, value))
    return not isinstance(value, int) or -SAFE <= value <= SAFE


@given(VALUES)
def test_json_is_exact_or_refused(value: Value) -> None:
    block = cbor.encode(value)
    if not _json_can_carry(value):
        with pytest.raises(NotJson):
            record_to_json(block)
        return
    text = record_to_json(block)
    assert json.loads(text) == _plain(value)
    assert json_to_record(text) == block
    assert json_to_record(text.decode()) == block


@given(st.one_of(st.binary(max_size=60), damaged(VALUES.map(cbor.encode))))
def test_any_bytes_come_back_from_their_json_or_are_refused(block: bytes) -> None:
    try:
        text = record_to_json(block)
    except NotJson:
        return
    assert json_to_record(text) == block


@given(VALUES)
def test_a_large_block_is_treated_as_a_small_one(value: Value) -> None:
    block = cbor.encode([value, "x" * FAST_BYTES])
    if _json_can_carry(value):
        assert json_to_record(record_to_json(block)) == block
    else:
        with pytest.raises(NotJson):
            record_to_json(block)


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_canonical_is_refused(data: bytes) -> None:
    with pytest.raises(NotJson):
        record_to_json(data)
    with pytest.raises(NotJson):
        record_to_json(b"\xa1\x61k" + data)


def test_a_refusal_says_why_and_where() -> None:
    with pytest.raises(NotJson, match="float") as caught:
        record_to_json(b"\xa1\x61k\xfb\x3f\xf0\x00\x00\x00\x00\x00\x00")
    assert caught.value.at == 3
    with pytest.raises(NotJson, match=r"\$link"):
        record_to_json(cbor.encode({"$link": "a"}))


@pytest.mark.parametrize(
    "cid",
    [
        b"",
        b"\x12\x20" + bytes(32),
        b"\x01\x70\x12\x20" + bytes(32),
        CID + b"\0",
        CID[:-1],
        b"\x01\x71\x13\x20" + bytes(32),
    ],
)
def test_a_foreign_link_is_refused(cid: bytes) -> None:
    with pytest.raises(NotJson, match="link"):
        record_to_json(cbrrr.encode_dag_cbor({"ref": cbrrr.CID(cid)}))


def test_bytes_that_look_like_a_foreign_link_are_not_one() -> None:
    value: Value = {"a": b"\xd8\x2a", "b": Link(DAG_CBOR_PREFIX + b"\xd8\x2a" * 16), "c": "ت"}
    block = cbor.encode(value)
    assert json_to_record(record_to_json(block)) == block


@pytest.mark.parametrize("container", [b"\x81", b"\xa1\x60"], ids=["arrays", "maps"])
@pytest.mark.parametrize("padding", [0, FAST_BYTES])
def test_nesting_ends_at_the_same_depth_for_small_and_large_blocks(padding: int, container: bytes) -> None:
    def nested(depth: int) -> bytes:
        inner = cbor.encode("x" * padding)
        return container * depth + inner

    block = nested(JSON_DEPTH)
    assert json_to_record(record_to_json(block)) == block
    with pytest.raises(NotJson):
        record_to_json(nested(JSON_DEPTH + 1))


def test_items_of_a_large_block_end_at_the_limit() -> None:
    block = cbor.encode([0] * 5000)
    assert record_to_json(block)
    with pytest.raises(NotJson, match="items"):
        record_to_json(block, limits=Limits(cbor_items=4999))


@pytest.mark.parametrize("size", [FAST_BYTES, 200_000])
@pytest.mark.parametrize("head", [b"\x81", b"\x99\x05\x00", b"\x99\x1f\xff", b"\x9a\x00\x01\xff\xff"])
def test_a_bomb_is_refused_in_bounded_memory(size: int, head: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(NotJson):
            record_to_json(head * (size // len(head)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000


def test_the_bytes_in_json_have_no_padding_and_are_read_with_and_without() -> None:
    block = cbor.encode({"b": b"abcd"})
    assert record_to_json(block) == b'{"b":{"$bytes":"YWJjZA"}}'
    assert json_to_record(b'{"b":{"$bytes":"YWJjZA"}}') == block
    assert json_to_record(b'{"b":{"$bytes":"YWJjZA=="}}') == block


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nan",
        '{"a":NaN}',
        '{"a":1.5}',
        '{"a":1e300}',
        '{"a":9007199254740992}',
        '{"a":-9007199254740992}',
        '{"a":18446744073709551615}',
        '{"a":99999999999999999999999}',
        '{"a":"\\ud800"}',
        '{"a":{"$link":1}}',
        '{"a":{"$link":"."}}',
        '{"a":{"$link":"b"}}',
        '{"a":{"$link":"QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR"}}',
        '{"a":{"$link":"bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm","x":1}}',
        '{"a":{"$link":"BAFYREIE5737GDXLW5I64VZICHCALBA3Z2V5N6ICIFVX5XYTVSKE7MR3HPM"}}',
        '{"a":{"$bytes":[1]}}',
        '{"a":{"$bytes":"YWJjZB"}}',
        '{"a":{"$bytes":"YWJjZA="}}',
        '{"a":{"$bytes":"Y"}}',
        '{"a":{"$bytes":"YW-_"}}',
        '{"a":{"$bytes":"YW Jj"}}',
        '{"a":{"$bytes":"YWJj","x":1}}',
    ],
)
def test_json_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(NotJson):
        json_to_record(text)
    with pytest.raises(NotJson):
        json_to_record(text.encode())


def test_a_link_in_upper_case_is_refused_though_the_fast_encoder_takes_it() -> None:
    good = cid_text(CID)
    assert json_to_record(json.dumps({"$link": good})) == cbor.encode(Link(CID))
    with pytest.raises(NotJson):
        json_to_record(json.dumps({"$link": "b" + good[1:].upper()}))


def test_a_number_without_fraction_is_an_integer() -> None:
    assert json_to_record('{"a":123.0,"b":-0.0,"c":9007199254740991}') == cbor.encode({"a": 123, "b": 0, "c": SAFE})


def test_the_last_of_two_equal_keys_counts() -> None:
    assert json_to_record('{"a":1,"a":2}') == cbor.encode({"a": 2})


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '"blah"',
        '{"$type":""}',
        '{"$type":null}',
        '{"a":[{"$type":5}]}',
        '{"a":{"$type":"blob","mimeType":"image/png","size":5}}',
        '{"a":{"$type":"blob","ref":REF,"mimeType":"","size":5}}',
        '{"a":{"$type":"blob","ref":REF,"mimeType":"a/b","size":0}}',
        '{"a":{"$type":"blob","ref":REF,"mimeType":"a/b","size":true}}',
    ],
)
def test_a_record_of_unknown_origin_must_follow_the_data_model(text: str) -> None:
    with pytest.raises(NotJson):
        check_record_json(text.replace("REF", REF))


def test_a_record_of_unknown_origin_that_follows_the_data_model_is_taken() -> None:
    text = '{"$type":"a.b.c","x":[{"$type":"blob","ref":REF,"mimeType":"a/b","size":1}]}'.replace("REF", REF)
    assert check_record_json(text) == json_to_record(text)


def test_escapes_do_not_hide_a_link_or_bytes() -> None:
    upper = "b" + cid_text(CID)[1:].upper()
    for text in ('{"\\u0024link":"%s"}', '{"$\\u006cink":"%s"}', '{"$li\\u006ek":"%s"}'):
        with pytest.raises(NotJson):
            json_to_record(text.replace("%s", upper))
        assert json_to_record(text.replace("%s", cid_text(CID))) == cbor.encode(Link(CID))
    with pytest.raises(NotJson):
        json_to_record('{"$\\u0062ytes":"YWJjZB"}')


@pytest.mark.parametrize("depth", [255, 900, 1100, 100_000])
@pytest.mark.parametrize("inner", ["1", "1.0", '{"$bytes":"YWJj"}'])
def test_deep_json_is_refused(depth: int, inner: str) -> None:
    for text in ("[" * depth + inner + "]" * depth, '{"a":' * depth + inner + "}" * depth):
        for read in (json_to_record, check_record_json):
            with pytest.raises(NotJson):
                read(text)
