from __future__ import annotations

import base64
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto.cid import (
    DAG_CBOR_PREFIX,
    RAW_PREFIX,
    cid_of,
    cid_text,
    is_cid,
    is_dag_cbor_cid,
    parse_cid_text,
)
from relay.atproto.errors import InvalidSyntax

CIDS = st.builds(bytes.__add__, st.sampled_from([DAG_CBOR_PREFIX, RAW_PREFIX]), st.binary(min_size=32, max_size=32))


@given(CIDS)
def test_text_form_is_base32_and_comes_back(cid: bytes) -> None:
    text = cid_text(cid)
    assert text == "b" + base64.b32encode(cid).decode().lower().rstrip("=")
    assert parse_cid_text(text) == cid


@given(st.binary(max_size=100))
def test_cid_of_a_block_hashes_it(block: bytes) -> None:
    cid = cid_of(block)
    assert cid == bytes.fromhex("01711220") + sha256(block).digest()
    assert cid_of(memoryview(block)) == cid
    assert is_dag_cbor_cid(cid)


def test_the_empty_tree_has_the_cid_of_the_specification() -> None:
    assert (
        cid_text(cid_of(bytes.fromhex("a2616580616cf6")))
        == "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"
    )


def test_which_bytes_are_cids() -> None:
    digest = bytes(32)
    assert is_cid(RAW_PREFIX + digest)
    assert not is_dag_cbor_cid(RAW_PREFIX + digest)
    for junk in (b"", digest, b"\x12\x20" + digest, b"\x01\x70\x12\x20" + digest, DAG_CBOR_PREFIX + digest + b"\0"):
        assert not is_cid(junk)
        assert not is_dag_cbor_cid(junk)


GOOD = "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        GOOD[:-1],
        GOOD + "a",
        GOOD.upper(),
        "B" + GOOD[1:].upper(),
        GOOD[:-1] + "n",  # bits behind the last byte
        GOOD[:-1] + "1",
        GOOD[:-1] + "é",
        "z" + GOOD[1:],
        "QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR",
        "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",  # dag-pb
        " " + GOOD[1:],
    ],
)
def test_other_spellings_and_kinds_are_refused(text: str) -> None:
    with pytest.raises(InvalidSyntax):
        parse_cid_text(text)


@given(st.text(max_size=70))
def test_any_text_is_accepted_or_refused_with_the_typed_error(text: str) -> None:
    try:
        cid = parse_cid_text(text)
    except InvalidSyntax:
        return
    assert cid_text(cid) == text
