"""The Merkle search tree of a repo: nodes, and the walk in key order with every validity rule. The plain version.

A tree is valid only if (PROTOCOL 2.3)
1. keys strictly increase over the whole tree, and each subtree lies between the keys that bound it;
2. every key's depth is its node's layer, each child lies exactly one layer lower, and nothing below layer 0;
3. no node is without entries but a pointer that keeps the place of a layer, never at the top, and the one of the empty tree;
4. a key's prefix is the longest one that it shares with the key before it in the node;
5. node links are CIDv1, dag-cbor, SHA-256, and every node is there;
6. a node is exactly {l, e: [{p, k, v, t}]} in canonical DAG-CBOR, within the limits;
7. every key is `collection/rkey` with the grammars of NSID and record key.

This walk is the one to read, and the one that says what is wrong and where. `mst_columns` does the same faster, knows only that
something is wrong, and is tested against this one. Links of records are read whatever their format; whether a record is there
is the caller's to check.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NamedTuple

from relay.atproto.car import Blocks, digest_text
from relay.atproto.cid import DAG_CBOR_PREFIX, cid_text, is_dag_cbor_cid
from relay.atproto.errors import InvalidMst, LimitExceeded, MissingBlock
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.syntax import is_nsid, is_rkey

EMPTY_NODE: Final = b"\xa2ae\x80al\xf6"
Range = tuple[bytes, bytes]
_LINK: Final = b"\xd8\x2a\x58"
_MAX_CID_BYTES: Final = 100


class Entry(NamedTuple):
    """One entry of a node: its whole key, the CID of its record (any format), the CID of the subtree behind it."""

    key: bytes
    value: bytes
    tree: bytes | None


class Node(NamedTuple):
    """A parsed node: the CID of the subtree left of its first key, and its entries in key order."""

    left: bytes | None
    entries: list[Entry]


class Run(NamedTuple):
    """Where the records of one collection end in a page's columns; they begin where the run before ends."""

    collection: str
    stop: int


class Page(NamedTuple):
    """Some records in key order, by columns: record key, and SHA-256 (32 bytes) of the dag-cbor CID."""

    runs: list[Run]
    rkeys: list[bytes]
    digests: list[bytes]

    def path(self, place: int) -> str:
        """Return the path of the record at this place, `collection/rkey`."""
        run = next(run for run in self.runs if place < run.stop)
        return f"{run.collection}/{self.rkeys[place].decode()}"


@dataclass(slots=True)
class Tally:
    """What a walk saw beside the records that it yields. Filled by the walk, complete when it has ended."""

    entries: int = 0  # of all nodes visited, wanted or not
    pruned: bool = False  # a subtree without a wanted key was left out: `entries` is not the whole repo
    foreign: list[tuple[bytes, bytes]] = field(
        default_factory=list
    )  # wanted (key, CID) that is not dag-cbor and SHA-256


def key_depth(key: bytes) -> int:
    """Return the tree layer of an MST key, 0 to 128: leading zero bits of its SHA-256, two bits a layer.

    `key` is a whole path (`collection/rkey`), at most 1024 bytes; the caller has checked it. Raises nothing.
    Source: atproto repository spec, "MST structure"; vectors: mst/key_heights.json.
    """
    return (256 - int.from_bytes(sha256(key).digest(), "big").bit_length()) // 2


def cid_name(cid: bytes) -> str:
    """Return a CID of any format as text: as base32 multibase, which for AT Protocol's own is the usual form."""
    return cid_text(cid)


def common_prefix(left: bytes, right: bytes) -> int:
    """Return how many leading bytes two keys share. Vectors: mst/common_prefix.json."""
    count = 0
    for mine, other in zip(left, right, strict=False):
        if mine != other:
            break
        count += 1
    return count


def is_wanted(key: bytes, ranges: Sequence[Range]) -> bool:
    """Say whether a key lies in one of these sorted, disjoint, half-open ranges."""
    place = bisect_right(ranges, key, key=_low)
    return place > 0 and key < ranges[place - 1][1]


def overlaps(low: bytes, high: bytes, ranges: Sequence[Range]) -> bool:
    """Say whether a key strictly between `low` and `high` can lie in one of the ranges."""
    place = bisect_right(ranges, low, key=_high)  # the first range that ends above `low`
    return place < len(ranges) and ranges[place][0] < high


def _low(bounds: Range) -> bytes:
    return bounds[0]


def _high(bounds: Range) -> bytes:
    return bounds[1]


def parse_node(block: bytes, *, at: str, limits: Limits = DEFAULT_LIMITS) -> Node:
    """Return the node that `block` is; rules 4, 6 and 7, and the order of the keys inside it, hold then.

    `at` names the node in errors (its CID as text). Raises InvalidMst, or LimitExceeded for too many entries or too long a key.
    """
    return _NodeReader(block, at, limits).node()


class _NodeReader:
    """Reads the one canonical form of a node, byte by byte."""

    def __init__(self, block: bytes, name: str, limits: Limits) -> None:
        self._block, self._name, self._limits = block, name, limits
        self._at = 0

    def node(self) -> Node:
        self._expect(b"\xa2ae", "a map of e and l")
        count = self._head(4, "the array of entries")
        if count > self._limits.node_entries:
            raise LimitExceeded(
                f"a tree node of {count:,} entries: the limit is {self._limits.node_entries:,}", at=self._name
            )
        entries: list[Entry] = []
        key = b""
        for _ in range(count):
            entries.append(self._entry(key, is_first=not entries))
            key = entries[-1].key
        self._expect(b"al", "the key l")
        left = self._tree_link()
        if self._at != len(self._block):
            raise self._invalid("bytes behind the node")
        return Node(left, entries)

    def _entry(self, before: bytes, *, is_first: bool) -> Entry:
        self._expect(b"\xa4ak", "an entry of k, p, t and v")
        size = self._head(2, "the byte string k")
        suffix = self._take(size)
        self._expect(b"ap", "the key p")
        prefix = self._head(0, "the integer p")
        if prefix > len(before):
            raise self._invalid(f"a prefix of {prefix:,} bytes after a key of {len(before):,}")
        key = before[:prefix] + suffix
        if len(key) > self._limits.key_bytes:
            raise LimitExceeded(f"a key of {len(key):,} bytes: the limit is {self._limits.key_bytes:,}", at=self._name)
        if not is_first:
            if common_prefix(before, key) != prefix:
                raise self._invalid("a prefix that is not the longest one shared with the key before")
            if key <= before:
                raise self._invalid("keys that do not rise")
        _check_key(key, self._name)
        self._expect(b"at", "the key t")
        tree = self._tree_link()
        self._expect(b"av", "the key v")
        return Entry(key, self._link(), tree)

    def _tree_link(self) -> bytes | None:
        if self._block[self._at : self._at + 1] == b"\xf6":
            self._at += 1
            return None
        cid = self._link()
        if not is_dag_cbor_cid(cid):
            raise self._invalid("a link to a node that is not CIDv1, dag-cbor, SHA-256")
        return cid

    def _link(self) -> bytes:
        self._expect(b"\xd8\x2a", "a link")
        size = self._head(2, "the byte string of a link")
        raw = self._take(size)
        if not 2 < size <= _MAX_CID_BYTES + 1 or raw[0] != 0:
            raise self._invalid("a link that holds no CID")
        return raw[1:]

    def _expect(self, literal: bytes, what: str) -> None:
        if not self._block.startswith(literal, self._at):
            raise self._invalid(f"{what} should stand here")
        self._at += len(literal)

    def _head(self, major: int, what: str) -> int:
        """Return the argument of a CBOR head of this major type, in its shortest form."""
        head = self._take(1)[0]
        argument = head & 0x1F
        if head >> 5 != major or argument > 27:
            raise self._invalid(f"{what} should stand here")
        if argument < 24:
            return argument
        width = 1 << argument - 24
        argument = int.from_bytes(self._take(width), "big")
        if argument < (24 if width == 1 else 1 << 4 * width):
            raise self._invalid(f"{what} has a length that is not in its shortest form")
        return argument

    def _take(self, size: int) -> bytes:
        taken = self._block[self._at : self._at + size]
        if len(taken) != size:
            raise self._invalid("the node ends too early")
        self._at += size
        return taken

    def _invalid(self, problem: str) -> InvalidMst:
        return InvalidMst(f"invalid tree node: {problem}, byte {self._at:,} of {len(self._block):,}", at=self._name)


def _check_key(key: bytes, name: str) -> None:
    collection, slash, rkey = key.partition(b"/")
    if not (slash and key.isascii() and is_nsid(collection.decode()) and is_rkey(rkey.decode())):
        raise InvalidMst(f"a key that is not collection/rkey: {key[:100]!r}", at=name)


def walk_tree(
    root: bytes, blocks: Blocks, *, limits: Limits = DEFAULT_LIMITS, ranges: Sequence[Range] | None = None
) -> Iterator[Entry | None]:
    """Yield the entries of the tree under `root` (a CID) in key order; None in place of each subtree left out.

    With `ranges` (sorted, disjoint, half-open) subtrees without a key in one of them are left out, unread; entries of nodes
    that were read are all yielded. Raises InvalidMst, LimitExceeded, and MissingBlock for a node that is not there.
    """
    node = _load(root, blocks, limits)
    if not node.entries:
        if node.left is not None:
            raise InvalidMst("the top node has no entries", at=cid_text(root))
        return
    layer = key_depth(node.entries[0].key)
    if layer >= limits.tree_depth:
        raise LimitExceeded(f"a tree of {layer + 1} layers: the limit is {limits.tree_depth}", at=cid_text(root))
    yield from _walk(node, cid_text(root), layer, b"", b"\xff", blocks, limits, ranges)


def _walk(
    node: Node,
    name: str,
    layer: int,
    low: bytes,
    high: bytes,
    blocks: Blocks,
    limits: Limits,
    ranges: Sequence[Range] | None,
) -> Iterator[Entry | None]:
    """Walk a node whose keys must lie strictly between `low` and `high`. Recursion is bounded by the layer."""
    entries = node.entries
    if entries and not (low < entries[0].key and entries[-1].key < high):
        raise InvalidMst("keys outside the bounds of their subtree", at=name)
    for entry in entries:
        if key_depth(entry.key) != layer:
            raise InvalidMst(
                f"a key of layer {key_depth(entry.key)} in a node of layer {layer}: {entry.key!r}", at=name
            )
    bounds = [low, *(entry.key for entry in entries), high]
    for place, tree in enumerate([node.left, *(entry.tree for entry in entries)]):
        if place:
            yield entries[place - 1]
        if tree is None:
            continue
        if layer == 0:
            raise InvalidMst("a node below layer 0", at=name)
        if ranges is not None and not overlaps(bounds[place], bounds[place + 1], ranges):
            yield None
            continue
        child = _load(tree, blocks, limits)
        child_name = cid_text(tree)
        if not child.entries and child.left is None:
            raise InvalidMst("an empty node below the top", at=child_name)
        yield from _walk(child, child_name, layer - 1, bounds[place], bounds[place + 1], blocks, limits, ranges)


def _load(cid: bytes, blocks: Blocks, limits: Limits) -> Node:
    try:
        block = blocks[cid[4:]]
    except KeyError:
        raise MissingBlock("a node of the tree is not in the CAR", at=digest_text(cid[4:])) from None
    return parse_node(block, at=cid_text(cid), limits=limits)


def walk_pages(
    root: bytes,
    blocks: Blocks,
    tally: Tally,
    *,
    limits: Limits = DEFAULT_LIMITS,
    ranges: Sequence[Range] | None = None,
    page_records: int = 4096,
) -> Iterator[Page]:
    """Yield the wanted records in key order, at most `page_records` a page. Raises what `walk_tree` raises."""
    page = Page([], [], [])
    for entry in walk_tree(root, blocks, limits=limits, ranges=ranges):
        if entry is None:
            tally.pruned = True
            continue
        tally.entries += 1
        key, value, _ = entry
        if ranges is not None and not is_wanted(key, ranges):
            continue
        if not is_dag_cbor_cid(value):
            tally.foreign.append((key, value))
            continue
        if len(page.rkeys) >= page_records:
            yield page
            page = Page([], [], [])
        collection, _, rkey = key.partition(b"/")
        page.rkeys.append(rkey)
        page.digests.append(value[len(DAG_CBOR_PREFIX) :])
        name = collection.decode()
        if page.runs and page.runs[-1].collection == name:
            page.runs.pop()
        page.runs.append(Run(name, len(page.rkeys)))
    if page.rkeys:
        yield page
