"""DAG-CBOR of IPLD and python-libipld. DAG-CBOR allows more than AT Protocol: what it allows beyond must be refused here."""

from __future__ import annotations

import re

import cbrrr
import pytest

from relay.atproto import cbor
from relay.atproto.cid import CID_BYTES, DAG_CBOR_PREFIX, RAW_PREFIX, cid_of, cid_text
from relay.atproto.errors import InvalidCbor, LimitExceeded
from tests.support.data import data_bytes, data_json, data_path, needs_data

pytestmark = needs_data

FIXTURES = "ipld/ipld/specs/codecs/dag-cbor/fixtures/cross-codec/index.md"
NEGATIVE = "ipld/codec-fixtures/negative-fixtures/dag-cbor/decode"
NESTED = "MarshalX/python-libipld/data/semi_torture_nested_lists.dagcbor"


def _fixtures() -> dict[str, tuple[bytes, str]]:
    """Return name -> (bytes, CID text) of the testmark file."""
    blocks = re.findall(
        r"\[testmark\]:# \(([^\n]*)/dag-cbor/(bytes|cid)\)\n```\n(.*?)\n```",
        data_path(FIXTURES).read_text("utf-8"),
        re.DOTALL,
    )
    hexes = {name: text for name, kind, text in blocks if kind == "bytes"}
    cids = {name: text for name, kind, text in blocks if kind == "cid"}
    return {name: (bytes.fromhex("".join(text.split())), cids[name].strip()) for name, text in hexes.items()}


def _allowed(value: object) -> bool:
    """Say whether AT Protocol allows this DAG-CBOR value, as another decoder read it."""
    if isinstance(value, dict):
        return all(map(_allowed, value.values()))
    if isinstance(value, list):
        return all(map(_allowed, value))
    if isinstance(value, cbrrr.CID):
        raw = bytes(value)
        return len(raw) == CID_BYTES and raw[:4] in (DAG_CBOR_PREFIX, RAW_PREFIX)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return not isinstance(value, float)


def test_cross_codec_fixtures() -> None:
    fixtures = _fixtures()
    assert len(fixtures) > 120
    taken = 0
    for name, (data, cid) in fixtures.items():
        assert cid_text(cid_of(data)) == cid
        if _allowed(cbrrr.decode_dag_cbor(data)):
            assert cbor.encode(cbor.decode(data)) == data, name
            taken += 1
        else:
            with pytest.raises(InvalidCbor):
                cbor.decode(data)
    assert 60 < taken < len(fixtures)


def test_negative_fixtures() -> None:
    paths = sorted(data_path(NEGATIVE).glob("*.json"))
    assert paths
    for path in paths:
        for fixture in data_json(f"{NEGATIVE}/{path.name}"):
            with pytest.raises(InvalidCbor):
                cbor.decode(bytes.fromhex(fixture["hex"]))


def test_deeply_nested_lists_are_over_the_limit_however_deep_it_is() -> None:
    data = data_bytes(NESTED)
    with pytest.raises(LimitExceeded):
        cbor.decode(data)
    with pytest.raises(LimitExceeded):
        cbor.decode(data, depth=len(data))
