"""The tree that changes in place, against the one that is built anew."""

from __future__ import annotations

import hashlib

import libipld
import pytest
from hypothesis import given
from hypothesis.strategies import dictionaries, from_regex, integers, lists, none, tuples

from relay.simnet.block import cid_of, encode
from relay.simnet.live_tree import LiveTree
from relay.simnet.tree import build_tree

_keys = from_regex(r"[ab]\.[ab]\.[ab]/[a-d0-3]{1,5}", fullmatch=True).map(str.encode)
_cids = integers(0, 20).map(lambda number: cid_of(encode(number)))
_entries = dictionaries(_keys, _cids, max_size=40)
_changes = lists(tuples(_keys, _cids | none()), max_size=8)


def _apply(tree: LiveTree, entries: dict[bytes, bytes], changes: list[tuple[bytes, bytes | None]]) -> None:
    for key, value in changes:
        if value is not None:
            entries[key] = value
            tree.put(key, value)
        elif key in entries:
            del entries[key]
            tree.remove(key)


@given(_entries, lists(_changes, max_size=5))
def test_any_history_gives_the_tree_that_is_built_anew(
    entries: dict[bytes, bytes], commits: list[list[tuple[bytes, bytes | None]]]
) -> None:
    tree = LiveTree(entries)
    assert (tree.root, tree.nodes) == (build_tree(entries).root, build_tree(entries).nodes)
    for changes in commits:
        before = dict(tree.nodes)
        _apply(tree, entries, changes)
        fresh, gone = tree.seal()
        plain = build_tree(entries)
        assert (tree.root, tree.nodes, tree.keys) == (plain.root, plain.nodes, sorted(entries))
        assert fresh.keys() == plain.nodes.keys() - before.keys()
        assert set(gone) == before.keys() - plain.nodes.keys()


def test_a_deep_key_that_comes_and_goes_leaves_nothing_behind() -> None:
    # Of 20,000 keys one stands six layers above an average one: pointer nodes fill the layers between.
    numbers = sorted(range(20_000), key=lambda number: hashlib.sha256(b"a.b.c/%d" % number).digest())
    high, low = b"a.b.c/%d" % numbers[0], b"a.b.c/%d" % numbers[-1]
    tree = LiveTree({low: cid_of(b"")})
    only_low = dict(tree.nodes)
    tree.put(high, cid_of(b""))
    tree.seal()
    assert len(tree.nodes) > 5
    tree.remove(high)
    tree.seal()
    assert tree.nodes == only_low
    tree.remove(low)
    tree.seal()
    assert tree.nodes == build_tree({}).nodes


def test_what_is_not_there_cannot_be_removed() -> None:
    tree = LiveTree({b"a.b.c/%d" % number: cid_of(b"") for number in range(30)})
    before = tree.root
    for key in (b"a.b.c/30", b"a.b.c/", b"z.z.z/z"):
        with pytest.raises(KeyError):
            tree.remove(key)
    tree.seal()
    assert tree.root == before


@given(_entries, _keys)
def test_the_way_to_a_key_is_what_a_search_enters(entries: dict[bytes, bytes], key: bytes) -> None:
    tree = LiveTree(entries)
    visited: list[bytes] = []

    def search(cid: bytes) -> None:
        visited.append(cid)
        node = libipld.decode_dag_cbor(tree.nodes[cid])
        following, previous = node["l"], b""
        for entry in node["e"]:
            previous = previous[: entry["p"]] + entry["k"]
            if key == previous:
                return
            if key < previous:
                break
            following = entry["t"]
        if following is not None:
            search(following)

    search(tree.root)
    assert tree.path_to(key) == visited


@given(_entries, _keys)
def test_a_proof_holds_the_ways_to_the_key_and_to_both_neighbours(entries: dict[bytes, bytes], key: bytes) -> None:
    tree = LiveTree(entries)
    near = [key, *[k for k in sorted(entries) if k < key][-1:], *[k for k in sorted(entries) if k > key][:1]]
    assert tree.proof_of(key) == {cid for way in near for cid in tree.path_to(way)}
