from __future__ import annotations

import base64
import hashlib
from typing import Any

import cbrrr
import libipld
from hypothesis import given
from hypothesis.strategies import binary, dictionaries, integers, lists, none, recursive, text

from relay.simnet import block

_MAX = 2**53 - 1
_values = recursive(
    none() | integers(-_MAX, _MAX) | text(max_size=30) | binary(max_size=30),
    lambda inner: lists(inner, max_size=4) | dictionaries(text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(_values)
def test_encoding_equals_that_of_a_strict_dag_cbor_library(value: Any) -> None:
    assert block.encode(value) == cbrrr.encode_dag_cbor(value)


@given(binary(min_size=36, max_size=36))
def test_cid_text_is_lower_case_base32_without_padding(cid: bytes) -> None:
    assert block.cid_text(cid) == "b" + base64.b32encode(cid).decode().lower().rstrip("=")


def test_link_decodes_to_the_cid() -> None:
    cid = block.cid_of(b"\xa0")
    assert cid == block.DAG_CBOR + hashlib.sha256(b"\xa0").digest()
    decoded: Any = cbrrr.decode_dag_cbor(block.encode({"a": block.link(cid)}))
    assert decoded["a"].cid_bytes == cid
    assert block.encode(block.link(cid)) == block.link_bytes(cid)
    assert block.encode(None) == block.link_bytes(None)


def test_tid_vectors() -> None:
    assert block.tid(1_688_137_381_887_007, 6) == "3jzfcijpj2z2a"
    assert block.tid(1_700_000_000_000_000, 5) == "3ke6kg3wk2227"
    assert block.tid(0, 0) == "2222222222222"
    assert block.tid_time_us("3jzfcijpj2z2a") == 1_688_137_381_887_007


@given(integers(0, 2**53 - 1), integers(0, 1023), integers(0, 2**53 - 1), integers(0, 1023))
def test_tids_sort_as_their_times(time_a: int, clock_a: int, time_b: int, clock_b: int) -> None:
    a, b = block.tid(time_a, clock_a), block.tid(time_b, clock_b)
    assert len(a) == 13
    assert (a < b) == ((time_a, clock_a) < (time_b, clock_b))
    assert block.tid_time_us(a) == time_a


@given(lists(binary(min_size=1, max_size=300), min_size=1, max_size=8, unique=True))
def test_another_library_reads_the_car(items: list[bytes]) -> None:
    blocks = [(block.cid_of(data), data) for data in (block.encode(item) for item in items)]
    decoded: Any
    header, decoded = libipld.decode_car(block.write_car(blocks[0][0], blocks))
    assert header == {"version": 1, "roots": [blocks[0][0]]}
    assert decoded == dict(zip([cid for cid, _ in blocks], items, strict=True))
    assert block.write_car(blocks[0][0], blocks) == block.car_head(blocks[0][0]) + b"".join(
        block.section(cid, data) for cid, data in blocks
    )
