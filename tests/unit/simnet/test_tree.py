"""The tree's writer against the vectors of the protocol's authors, real repositories, and the listing of the specification."""

from __future__ import annotations

import hashlib
from typing import Any

import libipld
import pytest
from hypothesis import given
from hypothesis.strategies import dictionaries, from_regex, integers, lists, sampled_from

from relay.simnet.block import cid_of, cid_text, encode, link
from relay.simnet.tree import build_tree, key_height, neighbourhood, shared_prefix
from tests.support.data import data_bytes, data_json, data_lines, expected, expected_names, needs_data

_VALUE = "bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454"
_VECTORS = "bluesky-social/atproto-interop-tests/mst/"
_keys = from_regex(r"[a-c]{1,2}\.[a-c]{1,2}\.[a-c]{1,2}/[a-d0-3]{1,5}", fullmatch=True).map(str.encode)
_cids = integers(0, 10**6).map(lambda number: cid_of(encode(number)))
_entries = dictionaries(_keys, _cids, max_size=40)


def _plain_tree(entries: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The same tree by the book: nodes as values, encoded by cbor2, level by level. The top node comes first."""
    blocks: dict[bytes, bytes] = {}

    def node(keys: list[bytes], layer: int) -> bytes | None:
        if not keys:
            return None
        value: dict[str, Any] = {"l": None, "e": []}
        below: list[bytes] = []
        previous = b""

        def hang() -> None:
            cid = node(below, layer - 1)
            if value["e"]:
                value["e"][-1]["t"] = cid and link(cid)
            else:
                value["l"] = cid and link(cid)
            below.clear()

        for key in keys:
            if key_height(key) < layer:
                below.append(key)
                continue
            hang()
            prefix = next(
                (n for n, (a, b) in enumerate(zip(previous, key, strict=False)) if a != b), min(len(previous), len(key))
            )
            value["e"].append({"p": prefix, "k": key[prefix:], "v": link(entries[key]), "t": None})
            previous = key
        hang()
        block = encode(value)
        blocks[cid_of(block)] = block
        return cid_of(block)

    if not entries:
        empty = encode({"l": None, "e": []})
        return {cid_of(empty): empty}
    top = node(sorted(entries), max(map(key_height, entries)))
    assert top is not None
    return {top: blocks.pop(top), **blocks}


@given(_entries)
def test_tree_equals_the_plain_one(entries: dict[bytes, bytes]) -> None:
    tree, plain = build_tree(entries), _plain_tree(entries)
    assert tree.root == next(iter(plain))
    assert tree.nodes == plain


@given(_entries)
def test_parents_come_before_their_children(entries: dict[bytes, bytes]) -> None:
    places = {cid: place for place, cid in enumerate(build_tree(entries).nodes)}
    for cid, block in build_tree(entries).nodes.items():
        node = libipld.decode_dag_cbor(block)
        children = [node["l"], *(entry["t"] for entry in node["e"])]
        assert all(places[child] > places[cid] for child in children if child is not None)


@given(_entries)
def test_order_walks_depth_first_with_each_record_in_its_place(entries: dict[bytes, bytes]) -> None:
    tree = build_tree(entries, ordered=True)
    walked: list[bytes] = []

    def walk(cid: bytes) -> None:
        walked.append(cid)
        node = libipld.decode_dag_cbor(tree.nodes[cid])
        if node["l"] is not None:
            walk(node["l"])
        for entry in node["e"]:
            walked.append(entry["v"])
            if entry["t"] is not None:
                walk(entry["t"])

    walk(tree.root)
    assert list(tree.order) == walked


@given(_keys, _keys)
def test_shared_prefix_counts_equal_bytes(left: bytes, right: bytes) -> None:
    size = shared_prefix(left, right)
    assert left[:size] == right[:size]
    assert left[size : size + 1] != right[size : size + 1] or size == min(len(left), len(right))


@given(lists(_keys, unique=True, max_size=12), _keys)
def test_neighbourhood_is_the_key_and_those_beside_it(keys: list[bytes], key: bytes) -> None:
    keys.sort()
    near = neighbourhood(keys, key)
    below, above = [k for k in keys if k < key], [k for k in keys if k > key]
    assert near == [*below[-1:], key, *above[:1]]


def test_empty_tree() -> None:
    tree = build_tree({})
    assert cid_text(tree.root) == "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"
    assert tree.nodes == {tree.root: bytes.fromhex("a2616580616cf6")}


@pytest.mark.parametrize(
    ("key", "root"),
    [
        ("com.example.record/3jqfcqzm3fo2j", "bafyreibj4lsc3aqnrvphp5xmrnfoorvru4wynt6lwidqbm2623a6tatzdu"),
        ("com.example.record/3jqfcqzm3fx2j", "bafyreih7wfei65pxzhauoibu3ls7jgmkju4bspy4t2ha2qdjnzqvoy33ai"),
    ],
)
def test_known_roots(key: str, root: str) -> None:
    value = libipld.decode_multibase(_VALUE)[1]
    assert cid_text(build_tree({key.encode(): value}).root) == root


def test_long_keys_and_nodes_have_the_right_heads() -> None:
    keys = [f"com.example.record/{'x' * 400}{number:04}".encode() for number in range(1200)]
    layer_0 = [key for key in keys if key_height(key) == 0]
    assert len(layer_0) > 256
    entries = {key: cid_of(key) for key in layer_0}
    assert build_tree(entries).nodes == _plain_tree(entries)


@needs_data
def test_key_heights() -> None:
    for vector in data_json(_VECTORS + "key_heights.json"):
        assert key_height(vector["key"].encode()) == vector["height"]


@needs_data
def test_common_prefixes() -> None:
    for vector in data_json(_VECTORS + "common_prefix.json"):
        assert shared_prefix(vector["left"].encode(), vector["right"].encode()) == vector["len"]


@needs_data
def test_example_keys_stand_in_the_layer_that_their_names_tell() -> None:
    for line in data_lines(_VECTORS + "example_keys.txt"):
        assert key_height(line.encode()) == int(line.partition("/")[0][-1])


_FULL = [name for name in expected_names("cars") if not expected()["cars"][name]["mst_nodes_missing"]]


@needs_data
@pytest.mark.parametrize("name", _FULL)
def test_the_trees_of_real_repositories_come_out_the_same(name: str) -> None:
    facts = expected()["cars"][name]
    car = data_bytes(name)
    root, blocks = libipld.decode_car(car)
    entries: dict[bytes, bytes] = {}

    def walk(cid: bytes) -> None:
        node, key = blocks[cid], b""
        if node["l"] is not None:
            walk(node["l"])
        for entry in node["e"]:
            key = key[: entry["p"]] + entry["k"]
            entries[key] = entry["v"]
            if entry["t"] is not None:
                walk(entry["t"])

    walk(blocks[root["roots"][0]]["data"])
    tree = build_tree(entries)
    assert len(entries) == facts["records"]
    assert cid_text(tree.root) == facts["data_cid"]
    assert len(tree.nodes) == facts["mst_nodes"]
    assert all(hashlib.sha256(block).digest() == cid[4:] for cid, block in tree.nodes.items())


@given(sampled_from(range(1, 60)))
def test_tree_is_a_function_of_the_map_alone(count: int) -> None:
    pairs = [(f"a.b.c/{number}".encode(), cid_of(b"%d" % number)) for number in range(count)]
    assert build_tree(dict(pairs)) == build_tree(dict(reversed(pairs)))
