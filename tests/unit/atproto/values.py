"""Strategies for the data model, shared by the tests of this folder."""

from __future__ import annotations

import cbor2
from hypothesis import strategies as st

from relay.atproto.cbor import Link, Value
from relay.atproto.cid import DAG_CBOR_PREFIX, RAW_PREFIX

CIDS = st.builds(bytes.__add__, st.sampled_from([DAG_CBOR_PREFIX, RAW_PREFIX]), st.binary(min_size=32, max_size=32))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
EDGES = [edge + step for edge in (0, 23, 2**8, 2**16, 2**32, 2**53, 2**63 - 2) for step in (-1, 0, 1)]
INTEGERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from(EDGES), st.sampled_from([-1 - edge for edge in EDGES])
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    INTEGERS,
    TEXTS,
    st.binary(max_size=30),
    CIDS.map(Link),
    st.binary(min_size=23, max_size=26),
)
# `$link` and `$bytes` as ordinary keys are what JSON cannot carry.
KEYS = st.one_of(TEXTS, st.sampled_from(["$link", "$bytes", "$type", "a", "b", "aa", "é"]))
VALUES: st.SearchStrategy[Value] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=15,
)


def cbor2_encode(value: Value) -> bytes:
    """Encode with another implementation: cbor2, canonical."""
    return cbor2.dumps(for_cbor2(value), canonical=True)


def for_cbor2(value: Value) -> object:
    """Return the value with links as cbor2 has them."""
    if isinstance(value, Link):
        return cbor2.CBORTag(42, b"\0" + value.cid)
    if isinstance(value, list):
        return [for_cbor2(item) for item in value]
    if isinstance(value, dict):
        return {key: for_cbor2(item) for key, item in value.items()}
    return value


@st.composite
def damaged(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> bytes:
    """Draw bytes of `source` with a few bytes changed, cut out, or put in."""
    data = bytearray(draw(source))
    for _ in range(draw(st.integers(0, 3))):
        if data:
            at = draw(st.integers(0, len(data) - 1))
            kind = draw(st.sampled_from(["set", "cut", "insert"]))
            if kind == "set":
                data[at] = draw(st.integers(0, 255))
            elif kind == "cut":
                del data[at]
            else:
                data.insert(at, draw(st.integers(0, 255)))
    return bytes(data)
