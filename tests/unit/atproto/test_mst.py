from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from cbrrr import CID, encode_dag_cbor
from hypothesis import example, given
from hypothesis import strategies as st

from relay.atproto import mst, mst_columns
from relay.atproto.errors import AtprotoError, InvalidMst, LimitExceeded, MissingBlock
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.mst import Page, Range, Tally, key_depth
from relay.atproto.nsid_filter import NsidFilter
from tests.support.repos import Block, build_tree, cid_of, layer_of, node_block

COLLECTIONS = [
    "app.bsky.feed.like",
    "app.bsky.feed.post",
    "app.bsky.feed-x.post",
    "app.bsky.feed.postgate",
    "com.example.a",
]
FILTERS = [
    ["app.bsky."],
    ["app.bsky.feed."],
    ["app.bsky.feed.post"],
    ["com.example.a", "app.bsky.feed.like"],
    ["org."],
    [],
]
VALUE = cid_of(b"a record")

# Record keys that begin one another, of one character, of many, and as they usually are.
RKEYS = st.one_of(
    st.from_regex(r"[ab:~]{1,4}", fullmatch=True),
    st.integers(0, 10**6).map(lambda number: f"3k{number:011}"),
    st.sampled_from(["self", "selfie", "a" * 200, "x" * 23, "x" * 24, "...", "_", "-", ".a"]),
)
PATHS = st.builds(lambda collection, rkey: f"{collection}/{rkey}".encode(), st.sampled_from(COLLECTIONS), RKEYS)
TREES = st.sets(PATHS, max_size=60).map(lambda paths: {path: cid_of(path) for path in paths})


def _blocks(nodes: list[Block]) -> dict[bytes, bytes]:
    return {cid[4:]: block for cid, block in nodes}


def _plain(
    root: bytes, nodes: list[Block], *, limits: Limits = DEFAULT_LIMITS, ranges: Any = None
) -> tuple[list[tuple[str, bytes, bytes]], Tally]:
    tally = Tally()
    pages = mst.walk_pages(root, _blocks(nodes), tally, limits=limits, ranges=ranges, page_records=7)
    return _records(list(pages)), tally


def _columns(
    root: bytes, nodes: list[Block], *, limits: Limits = DEFAULT_LIMITS, ranges: Any = None
) -> tuple[list[tuple[str, bytes, bytes]], Tally]:
    tally = Tally()
    return _records(list(mst_columns.walk_columns(root, _blocks(nodes), tally, limits=limits, ranges=ranges))), tally


def _records(pages: list[Page]) -> list[tuple[str, bytes, bytes]]:
    found: list[tuple[str, bytes, bytes]] = []
    for page in pages:
        assert len(page.rkeys) == len(page.digests) == page.runs[-1].stop
        start = 0
        for collection, stop in page.runs:
            assert start < stop
            found += [
                (collection, rkey, digest)
                for rkey, digest in zip(page.rkeys[start:stop], page.digests[start:stop], strict=True)
            ]
            assert page.path(start) == f"{collection}/{page.rkeys[start].decode()}"
            start = stop
    return found


def _expected(records: dict[bytes, bytes]) -> list[tuple[str, bytes, bytes]]:
    split = [(*path.split(b"/"), cid[4:]) for path, cid in sorted(records.items())]
    return [(collection.decode(), rkey, digest) for collection, rkey, digest in split]


@functools.cache
def _keys_of(layer: int, count: int) -> list[bytes]:
    """Return sorted keys of one collection at this layer."""
    found: list[bytes] = []
    number = 0
    while len(found) < count:
        key = b"com.example.record/%07d" % number
        if layer_of(key) == layer:
            found.append(key)
        number += 1
    return found


# ---- valid trees ---------------------------------------------------------------------------------------------------


@given(TREES)
def test_the_walk_yields_every_record_in_key_order(records: dict[bytes, bytes]) -> None:
    root, nodes = build_tree(records)
    found, tally = _plain(root, nodes)
    assert found == _expected(records)
    assert (tally.entries, tally.pruned, tally.foreign) == (len(records), False, [])


@given(TREES)
def test_the_walk_by_columns_yields_the_same(records: dict[bytes, bytes]) -> None:
    root, nodes = build_tree(records)
    assert _columns(root, nodes) == _plain(root, nodes)


@given(TREES, st.sampled_from(FILTERS))
def test_with_a_filter_both_walks_yield_the_wanted_records(records: dict[bytes, bytes], patterns: list[str]) -> None:
    wanted = NsidFilter.parse(patterns)
    root, nodes = build_tree(records)
    found, tally = _plain(root, nodes, ranges=wanted.ranges())
    assert found == [record for record in _expected(records) if wanted.wants(record[0])]
    assert tally.pruned or tally.entries == len(records)
    assert _columns(root, nodes, ranges=wanted.ranges()) == (found, tally)


@given(TREES, st.sampled_from(FILTERS))
def test_a_filtered_walk_reads_no_node_without_a_wanted_key_around(
    records: dict[bytes, bytes], patterns: list[str]
) -> None:
    ranges = NsidFilter.parse(patterns).ranges()
    root, nodes = build_tree(records)
    read: list[set[bytes]] = [set(), set()]

    class Watched(dict[bytes, bytes]):
        def __getitem__(self, digest: bytes) -> bytes:
            read[place].add(digest)
            return super().__getitem__(digest)

    for place, walk in enumerate((mst.walk_pages, mst_columns.walk_columns)):  # noqa: B007
        list(walk(root, Watched(_blocks(nodes)), Tally(), ranges=ranges))
    assert read[0] == read[1]
    if not any(mst.is_wanted(key, ranges) for key in records):
        # On the way to where a wanted key could stand lies one node a layer at most for each end of each range.
        assert len(read[0]) <= 1 + 2 * len(ranges) * (max(map(layer_of, records), default=0) + 1)


def test_large_trees_come_in_pages_that_join_without_seam() -> None:
    records = {
        f"{COLLECTIONS[number % 3]}/3k{number:011}".encode(): cid_of(b"%d" % number)
        for number in range(3 * mst_columns.PAGE_RECORDS)
    }
    root, nodes = build_tree(records)
    assert _columns(root, nodes) == _plain(root, nodes)
    ranges = NsidFilter.parse(["app.bsky.feed.post"]).ranges()
    assert _columns(root, nodes, ranges=ranges) == _plain(root, nodes, ranges=ranges)


@pytest.mark.parametrize("count", [23, 24, 25, 100, 255, 256, 300])
@pytest.mark.parametrize("layer", [0, 1])
def test_wide_nodes_are_read(count: int, layer: int) -> None:
    records = {key: cid_of(key) for key in _keys_of(layer, 300)[:count]}
    root, nodes = build_tree(records)
    assert len(nodes) == 1
    assert _plain(root, nodes)[0] == _columns(root, nodes)[0] == _expected(records)


def test_a_layer_without_keys_is_kept_by_a_node_without_entries() -> None:
    high, low = _keys_of(2, 1)[0], _keys_of(0, 1)[0]
    root, nodes = build_tree({high: VALUE, low: VALUE})
    assert len(nodes) == 3
    assert _columns(root, nodes) == _plain(root, nodes)


def test_a_record_cid_of_another_kind_is_told_apart_and_breaks_nothing() -> None:
    odd = b"\x01\x55\x12\x20" + bytes(32)
    long = b"\x01\x71\x13\x40" + bytes(64)
    first, second, third = _keys_of(0, 3)
    root, nodes = build_tree({first: odd, second: VALUE, third: long})
    found, tally = _plain(root, nodes)
    assert found == [("com.example.record", second.split(b"/")[1], VALUE[4:])]
    assert tally.foreign == [(first, odd), (third, long)]
    with pytest.raises(mst_columns.Unusual):
        _columns(root, nodes)


def test_a_key_of_hundreds_of_characters_is_left_to_the_plain_walk() -> None:
    records = {b"com.example.record/" + b"a" * 512: VALUE, A0: VALUE}
    root, nodes = build_tree(records)
    assert _plain(root, nodes)[0] == _expected(records)
    with pytest.raises(mst_columns.Unusual):
        _columns(root, nodes)


def test_the_empty_tree_is_one_node() -> None:
    root, nodes = build_tree({})
    assert nodes[0][1] == mst.EMPTY_NODE
    assert _plain(root, nodes) == _columns(root, nodes) == ([], Tally())


# ---- trees that break a rule ---------------------------------------------------------------------------------------

A0, B0, C0 = _keys_of(0, 3)
A1, B1, C1 = _keys_of(1, 3)
A2 = _keys_of(2, 1)[0]


def _one(block: bytes) -> tuple[bytes, list[Block]]:
    return cid_of(block), [(cid_of(block), block)]


def _under(child: bytes, **changes: Any) -> tuple[bytes, list[Block]]:
    """Return a tree whose top has one key of layer 1 and `child` right of it."""
    entry: Any = {"p": 0, "k": A1, "v": CID(VALUE), "t": CID(cid_of(child))} | changes
    top = encode_dag_cbor({"l": None, "e": [entry]})
    return cid_of(top), [(cid_of(top), top), (cid_of(child), child)]


def _entry(key: bytes = A0, **changes: Any) -> Any:
    return {"p": 0, "k": key, "v": CID(VALUE), "t": None} | changes


def _raw(*entries: dict[str, Any], **changes: Any) -> tuple[bytes, list[Block]]:
    node: Any = {"l": None, "e": list(entries)} | changes
    return _one(encode_dag_cbor(node))


def _shared(left: bytes, right: bytes) -> int:
    return mst.common_prefix(left, right)


def _after(before: bytes, key: bytes, **changes: Any) -> Any:
    prefix = _shared(before, key)
    return _entry(key[prefix:], p=prefix) | changes


_EVERY_CHAR = _entry(A0[:-1] + b"*")
_HIGH_CHILD = node_block(None, [(0, B1, VALUE, None)])
_LOW_CHILD = node_block(None, [(0, C0, VALUE, None)]) if C0 > A1 else node_block(None, [(0, A0, VALUE, None)])
_ABOVE_A1 = next(key for key in _keys_of(0, 300) if key > A1)
_BELOW_A1 = A0
assert A0 < A1


def _same_child_twice() -> tuple[bytes, list[Block]]:
    child = node_block(None, [(0, _ABOVE_A1, VALUE, None)])
    link = CID(cid_of(child))
    prefix = _shared(A1, B1)
    top = encode_dag_cbor({"l": None, "e": [_entry(A1, t=link), _entry(B1[prefix:], p=prefix, t=link)]})
    return cid_of(top), [(cid_of(top), top), (cid_of(child), child)]


BROKEN: dict[str, Callable[[], tuple[bytes, list[Block]]]] = {
    "keys that fall": lambda: _raw(_entry(B0), _after(B0, A0)),
    "a key twice": lambda: _raw(_entry(A0), _entry(b"", p=len(A0))),
    "a prefix that is too short": lambda: _raw(_entry(A0), _entry(B0[_shared(A0, B0) - 1 :], p=_shared(A0, B0) - 1)),
    "no prefix where there is one": lambda: _raw(_entry(A0), _entry(B0)),
    "a prefix that reaches beyond the key before": lambda: _raw(_entry(A0), _entry(b"x", p=len(A0) + 1)),
    "a first entry with a prefix": lambda: _raw(_entry(A0, p=1)),
    "a negative prefix": lambda: _raw(_entry(A0), _entry(B0, p=-1)),
    "a prefix that is a boolean": lambda: _raw(_entry(A0, p=False)),
    "a prefix that is a float": lambda: _raw(_entry(A0, p=0.0)),
    "a key of another layer": lambda: _raw(_entry(A0), _after(A0, B1)) if A0 < B1 else _raw(_entry(B1), _after(B1, A0)),
    "a child of the same layer": lambda: _under(_HIGH_CHILD),
    "a child two layers down": lambda: (
        _under(node_block(None, [(0, _ABOVE_A1, VALUE, None)]), k=A2)
        if _ABOVE_A1 > A2
        else _raw(_entry(A2, t=None), l=CID(_one(node_block(None, [(0, A0, VALUE, None)]))[0]))
    ),
    "a child left of its bound": lambda: _under(node_block(None, [(0, _BELOW_A1, VALUE, None)])),
    "a child below layer 0": lambda: _raw(_entry(A0, t=CID(cid_of(mst.EMPTY_NODE)))),
    "a left child below layer 0": lambda: _raw(_entry(B0), l=CID(cid_of(node_block(None, [(0, A0, VALUE, None)])))),
    "one subtree in two places": _same_child_twice,
    "an empty node below the top": lambda: _under(mst.EMPTY_NODE),
    "a top that only points": lambda: _one(node_block(cid_of(_LOW_CHILD), [])),
    "a key without slash": lambda: _raw(_entry(b"com.example.record")),
    "a key with two slashes": lambda: _raw(_entry(b"com.example.record/a/b")),
    "a key without collection": lambda: _raw(_entry(b"/abc")),
    "a key without record key": lambda: _raw(_entry(b"com.example.record/")),
    "a collection that is no NSID": lambda: _raw(_entry(b"com.example/abc")),
    "a collection that ends in a digit segment": lambda: _raw(_entry(b"com.example.1a/abc")),
    "a record key of one dot": lambda: _raw(_entry(b"com.example.record/.")),
    "a record key of two dots": lambda: _raw(_entry(b"com.example.record/..")),
    "a record key of 513": lambda: _raw(_entry(b"com.example.record/" + b"a" * 513)),
    "a character that no key has": lambda: _raw(_entry(b"com.example.record/a*b")),
    "a byte that is no ASCII": lambda: _raw(_entry("com.example.record/é".encode())),
    "an empty key": lambda: _raw(_entry(b"")),
    "a key of text": lambda: _raw(_entry(A0) | {"k": A0.decode()}),
    "a key that is a link": lambda: _raw(_entry(A0) | {"k": CID(VALUE)}),
    "a record that is bytes": lambda: _raw(_entry(A0, v=VALUE)),
    "a record that is null": lambda: _raw(_entry(A0, v=None)),
    "a subtree that is bytes": lambda: _raw(_entry(A1, t=VALUE)),
    "a subtree that is false": lambda: _raw(_entry(A0, t=False)),
    "a subtree that is 0": lambda: _raw(_entry(A0, t=0)),
    "a subtree that is raw": lambda: _raw(_entry(A1, t=CID(b"\x01\x55\x12\x20" + bytes(32)))),
    "a left subtree that is raw": lambda: _raw(_entry(A1), l=CID(b"\x01\x55\x12\x20" + bytes(32))),
    "a left subtree that is false": lambda: _raw(_entry(A0), l=False),
    "an entry with one more key": lambda: _raw(_entry(A0, x=1)),
    "an entry with one key less": lambda: _raw({name: value for name, value in _entry(A0).items() if name != "t"}),
    "a node with one more key": lambda: _raw(_entry(A0), x=1),
    "a node without l": lambda: _one(encode_dag_cbor({"e": [_entry(A0)]})),
    "a node that is a list": lambda: _one(encode_dag_cbor([_entry(A0)])),
    "a node that is empty bytes": lambda: _one(b""),
    "bytes behind the node": lambda: _one(node_block(None, [(0, A0, VALUE, None)]) + b"\xf6"),
    "entries that are null": lambda: _raw(l=None, e=None),
    "an array of indefinite length": lambda: _one(
        node_block(None, [(0, A0, VALUE, None)]).replace(b"e\x81", b"e\x9f").replace(b"al\xf6", b"\xffal\xf6")
    ),
    "an array with a long length": lambda: _one(
        node_block(None, [(0, A0, VALUE, None)]).replace(b"ae\x81", b"ae\x98\x01")
    ),
    "a key with a long length": lambda: _one(
        node_block(None, [(0, A0, VALUE, None)]).replace(b"akX\x1a", b"akY\x00\x1a")
    ),
    "a prefix with a long form": lambda: _one(
        node_block(None, [(0, A0, VALUE, None)]).replace(b"ap\x00", b"ap\x18\x00")
    ),
    "a length that lies": lambda: _one(node_block(None, [(0, A0, VALUE, None)]).replace(b"akX\x1a", b"akX\x1b")),
    "a count that lies": lambda: _one(node_block(None, [(0, A0, VALUE, None)]).replace(b"ae\x81", b"ae\x82")),
    "map keys in another order": lambda: _one(cbor2.dumps({"l": None, "e": []})),
    "junk between entries": lambda: _one(
        b"ab".join(node_block(None, [(0, A0, VALUE, None), (25, B0[25:], VALUE, None)]).rsplit(b"\xa4ak", 1))
    ),
    "a link without its zero byte": lambda: _one(
        node_block(None, [(0, A0, VALUE, None)]).replace(b"X\x25\x00\x01\x71", b"X\x25\x01\x01\x71")
    ),
    "another tag": lambda: _one(node_block(None, [(0, A0, VALUE, None)]).replace(b"\xd8\x2aX", b"\xd8\x2bX")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_tree_is_refused_that_has(name: str) -> None:
    root, nodes = BROKEN[name]()
    with pytest.raises(InvalidMst):
        _plain(root, nodes)
    with pytest.raises(mst_columns.Unusual):
        _columns(root, nodes)
    ranges = NsidFilter.parse(["com."]).ranges()
    with pytest.raises(InvalidMst):
        _plain(root, nodes, ranges=ranges)
    with pytest.raises(mst_columns.Unusual):
        _columns(root, nodes, ranges=ranges)


def test_a_missing_node_is_named() -> None:
    records = {key: cid_of(key) for key in [*_keys_of(0, 20), A1]}
    root, nodes = build_tree(records)
    for cid, _ in nodes:
        left = [node for node in nodes if node[0] != cid]
        with pytest.raises(MissingBlock) as caught:
            _plain(root, left)
        assert caught.value.at == CID(cid).encode()
        with pytest.raises(mst_columns.Unusual):
            _columns(root, left)


def test_nodes_and_depth_and_keys_have_limits() -> None:
    wide = build_tree(dict.fromkeys(_keys_of(0, 5), VALUE))
    deep = build_tree(dict.fromkeys((_keys_of(3, 1)[0], *_keys_of(0, 3)), VALUE))
    for limits, (root, nodes), fits in (
        (Limits(node_entries=4), wide, Limits(node_entries=5)),
        (Limits(tree_depth=3), deep, Limits(tree_depth=4)),
        (Limits(key_bytes=25), wide, Limits(key_bytes=26)),
    ):
        assert _plain(root, nodes, limits=fits) == _columns(root, nodes, limits=fits)
        with pytest.raises(LimitExceeded):
            _plain(root, nodes, limits=limits)
        with pytest.raises(mst_columns.Unusual):
            _columns(root, nodes, limits=limits)


def test_a_node_that_contains_itself_cannot_be_made_but_its_like_ends() -> None:
    """With honest hashes no cycle exists; if an index gave one all the same, the layers still end the walk."""
    top = node_block(VALUE, [(0, A2, VALUE, None)])
    with pytest.raises(InvalidMst):
        list(mst.walk_pages(cid_of(top), {cid_of(top)[4:]: top, VALUE[4:]: top}, Tally()))
    with pytest.raises(mst_columns.Unusual):
        list(mst_columns.walk_columns(cid_of(top), {cid_of(top)[4:]: top, VALUE[4:]: top}, Tally()))
    pointer = node_block(VALUE, [])
    blocks = {cid_of(top)[4:]: top, VALUE[4:]: pointer}
    with pytest.raises(InvalidMst):
        list(mst.walk_pages(cid_of(top), blocks, Tally()))
    with pytest.raises(mst_columns.Unusual):
        list(mst_columns.walk_columns(cid_of(top), blocks, Tally()))


# ---- the fast walk against the plain one, on broken trees ----------------------------------------------------------


def _rehash(root: bytes, nodes: list[Block], target: int, block: bytes) -> tuple[bytes, list[Block]]:
    """Replace one node's bytes and mend every hash above it."""
    replaced = {nodes[target][0]: cid_of(block)}
    changed = dict(nodes)
    del changed[nodes[target][0]]
    changed[cid_of(block)] = block
    # Children stand before their parents in the list that build_tree makes.
    for cid, data in nodes[target + 1 :]:
        mended = data
        for old, new in replaced.items():
            mended = mended.replace(old, new)
        if mended != data:
            replaced[cid] = cid_of(mended)
            del changed[cid]
            changed[cid_of(mended)] = mended
    return replaced.get(root, root), list(changed.items())


@st.composite
def _damaged_trees(draw: st.DrawFn) -> tuple[bytes, list[Block]]:
    records = draw(st.sets(PATHS, min_size=1, max_size=40).map(lambda paths: {path: cid_of(path) for path in paths}))
    root, nodes = build_tree(records)
    target = draw(st.integers(0, len(nodes) - 1))
    block = bytearray(nodes[target][1])
    place = draw(st.integers(0, len(block) - 1))
    match draw(st.sampled_from(["flip", "cut", "insert", "swap"])):
        case "flip":
            block[place] ^= 1 << draw(st.integers(0, 7))
        case "cut":
            del block[place : place + draw(st.integers(1, 3))]
        case "insert":
            block[place:place] = draw(st.sampled_from([b"\x00", b"a", b"\xf6", b"\x18", b"X", b"\xa4ak", b"al\xf6"]))
        case "swap":
            block[place] = draw(
                st.sampled_from(b"\x00\x17\x18\x19@WXY\x58\x80\x81\x98\xa2\xa4\xd8\xf4\xf5\xf6\xf7abekltvp./-")
            )
    return _rehash(root, nodes, target, bytes(block))


@given(_damaged_trees(), st.sampled_from(FILTERS))
def test_what_the_fast_walk_accepts_the_plain_walk_gives_too(
    tree: tuple[bytes, list[Block]], patterns: list[str]
) -> None:
    root, nodes = tree
    ranges: Any
    for ranges in (None, NsidFilter.parse(patterns).ranges()):
        try:
            fast = _columns(root, nodes, ranges=ranges)
        except mst_columns.Unusual:
            try:
                _plain(root, nodes, ranges=ranges)
            except AtprotoError:
                continue
            continue
        assert fast == _plain(root, nodes, ranges=ranges)


def test_the_generated_damage_reaches_both_verdicts() -> None:
    """The property above is worth something only if damage is sometimes accepted, as a changed record CID is."""
    records = {key: cid_of(key) for key in _keys_of(0, 4)}
    root, nodes = build_tree(records)
    changed = nodes[0][1].replace(cid_of(_keys_of(0, 1)[0]), VALUE)
    assert _columns(*_rehash(root, nodes, 0, changed)) == _plain(*_rehash(root, nodes, 0, changed))


# ---- small things --------------------------------------------------------------------------------------------------


@given(st.binary(max_size=40))
@example(b"")
def test_the_depth_of_a_key_counts_pairs_of_zero_bits(key: bytes) -> None:
    assert key_depth(key) == layer_of(key)


@given(st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=20))
def test_the_common_prefix_is_the_longest(shared: bytes, left: bytes, right: bytes) -> None:
    left, right = shared + left, shared + right
    count = mst.common_prefix(left, right)
    assert left[:count] == right[:count]
    assert left[count : count + 1] != right[count : count + 1] or count in (len(left), len(right))


@given(st.sets(st.binary(max_size=3), max_size=12), st.binary(max_size=3), st.binary(max_size=3))
def test_ranges_are_searched_right(bounds: set[bytes], low: bytes, high: bytes) -> None:
    edges = sorted(bounds)
    ranges: list[Range] = list(zip(edges[0::2], edges[1::2], strict=False))
    assert mst.is_wanted(low, ranges) == any(start <= low < stop for start, stop in ranges)
    # A key strictly between `low` and `high` can be in [start, stop) when stop > low and start < high.
    assert mst.overlaps(low, high, ranges) == any(stop > low and start < high for start, stop in ranges)


def test_the_walk_keeps_no_more_collections_in_mind_than_it_may() -> None:
    names = [f"com.example.c{number}" for number in range(50)]
    root, nodes = build_tree({f"{name}/a".encode(): VALUE for name in names})
    before = mst_columns._MAX_NAMES
    assert len(_columns(root, nodes)[0]) == 50
    assert len(mst_columns._COLLECTION_NAMES) <= before


def test_shuffled_blocks_make_no_difference() -> None:
    records = {key: cid_of(key) for layer in range(3) for key in _keys_of(layer, 30)}
    root, nodes = build_tree(records)
    random.Random(1).shuffle(nodes)
    assert _columns(root, nodes)[0] == _expected(records)
