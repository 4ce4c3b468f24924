"""The part of a repo's tree that came with a commit, to be changed in place: `inversion` undoes operations on it.

Nodes are read when a change comes to them, each checked as it is read: canonical form, limits, order, bounds, links. A node stays
in pieces of bytes that can be joined again: all but the few entries beside a change keep their encoding. Recursion is bounded by
the layers (`tree_depth`). Source: PROTOCOL 2.3, 5.3.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from hashlib import sha256
from typing import Final, TypeAlias

from relay.atproto.car import digest_text
from relay.atproto.cid import CID_BYTES, DAG_CBOR_PREFIX, cid_of
from relay.atproto.errors import InvalidMst, LimitExceeded, PartialTree
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.mst import EMPTY_NODE, key_depth, parse_node

EMPTY_TREE_CID: Final = cid_of(EMPTY_NODE)

NULL: Final = b"\xf6"
LINK_HEAD: Final = b"\xd8\x2aX%\x00"  # in front of a CID of 36 bytes
NODE_LINK_HEAD: Final = LINK_HEAD + DAG_CBOR_PREFIX  # in front of 32 bytes of SHA-256
_LINK: Final = rb"\xd8\*X%\x00\x01q\x12 .{32}"
_LINK_BYTES: Final = len(LINK_HEAD) + CID_BYTES
TAIL: Final = b"al"
# (all in front of t, head of k, k, p, t, v). What it matches is the canonical form of an entry whose record has a dag-cbor CID, if
# the matches of a node touch one another, and the head of k and p say what they should.
_ENTRY: Final = re.compile(
    rb"(\xa4ak(X?.)([-.0-:A-Z_a-z~/]*)ap(\x18?.)at)(\xf6|" + _LINK + rb")av(" + _LINK + rb")", re.DOTALL
)
_SMALL: Final = 256  # entries; a node with as many or more is read the plain way
# CBOR heads with an argument below 256, by major type and argument.
_SMALL_HEADS: Final = tuple(
    tuple(bytes((major << 5 | n,)) if n < 24 else bytes((major << 5 | 24, n)) for n in range(256)) for major in range(5)
)
NODE_HEADS: Final = tuple(b"\xa2ae" + head for head in _SMALL_HEADS[4])
_KEY_HEADS: Final = _SMALL_HEADS[2]
_PREFIXES: Final = {head: n for n, head in enumerate(_SMALL_HEADS[0])}
ABOVE_ALL_KEYS: Final = b"\xff"


class _Node:
    """A node that was read or made. `trees` has one more than the others: the subtree in front of each key, and the last.

    `heads`: each entry's bytes in front of its subtree, which hold for the key before it in the node. `values`: links as bytes.
    `link`: the link to this node as bytes; empty since it was changed.
    """

    __slots__ = ("heads", "keys", "layer", "link", "trees", "values")

    def __init__(
        self, layer: int, keys: list[bytes], heads: list[bytes], values: list[bytes], trees: list[_Tree], link: bytes
    ) -> None:
        self.layer, self.keys, self.heads, self.values, self.trees, self.link = layer, keys, heads, values, trees, link


# A subtree: a node; or CBOR, either null (there is none) or the link to a node that nobody needed yet.
_Tree: TypeAlias = "_Node | bytes"


def shown(key: bytes) -> str:
    return key[:1024].decode("utf-8", "replace")


class ProofTree:
    """A tree of which only some nodes are there. Changed in place; after an exception it is of no use any more."""

    def __init__(self, root: bytes, blocks: Mapping[bytes, bytes], *, limits: Limits = DEFAULT_LIMITS) -> None:
        """`root`: the CID of the top node, which must be there. Raises what `invert` does."""
        self._blocks, self._limits = blocks, limits
        self._top: _Tree = NULL
        if root != EMPTY_TREE_CID:
            self._top = self.load(LINK_HEAD + root, None, b"", ABOVE_ALL_KEYS)

    def root(self) -> bytes:
        """Return the CID of the tree as it is now."""
        if self._top == NULL:
            return EMPTY_TREE_CID
        return sealed(self._top)[len(LINK_HEAD) :]

    def remove(self, key: bytes) -> bytes | None:
        """Take `key` out, and return the CID that it had; None: it is not there, or not in the layer where it belongs."""
        layer = self._layer_of(key)
        path: list[tuple[_Node, int]] = []
        found = self._descend(key, layer, path)
        if found is None or found[0].layer != layer:
            return None
        node, low, high = found
        old = self.take(node, key, low, high)
        if old is None:
            return None
        for parent, place in reversed(path):
            if not node.keys and node.trees[0] == NULL:
                parent.trees[place] = NULL
            parent.link = b""
            node = parent
        self._trim()
        return old

    def put(self, key: bytes, cid: bytes) -> bytes | None:
        """Give `key` the value `cid`, and return the CID that it had, or None when it was not there."""
        layer = self._layer_of(key)
        value = _link(cid)
        top = self._loaded_top()
        if top is None or top.layer < layer:
            left, right = self._split(NULL if top is None else top, key, 0, b"", ABOVE_ALL_KEYS)
            self._top = _Node(
                layer,
                [key],
                [_entry_head(b"", key)],
                [value],
                [_lifted(left, layer - 1), _lifted(right, layer - 1)],
                b"",
            )
            return None
        path: list[tuple[_Node, int]] = []
        found = self._descend(key, layer, path)
        assert found is not None
        node, low, high = found
        for parent, _ in path:
            parent.link = b""
        node.link = b""
        if node.layer > layer:  # there is no subtree where the key belongs
            leaf = _Node(layer, [key], [_entry_head(b"", key)], [value], [NULL, NULL], b"")
            node.trees[bisect_left(node.keys, key)] = _lifted(leaf, node.layer - 1)
            return None
        return self.place(node, key, cid, low, high)

    def take(self, node: _Node, key: bytes, low: bytes, high: bytes) -> bytes | None:
        """Take `key` out of the node where it belongs, whose keys lie between the bounds; return the CID that it had."""
        keys = node.keys
        at = bisect_left(keys, key)
        if at == len(keys) or keys[at] != key:
            return None
        value = node.values[at]
        below = keys[at - 1] if at else low
        above = keys[at + 1] if at + 1 < len(keys) else high
        node.trees[at : at + 2] = [self._merged(node.trees[at], node.trees[at + 1], node.layer - 1, below, key, above)]
        del keys[at], node.heads[at], node.values[at]
        if at < len(keys):
            node.heads[at] = _entry_head(keys[at - 1] if at else b"", keys[at])
        node.link = b""
        return _cid_of_link(value)

    def place(self, node: _Node, key: bytes, cid: bytes, low: bytes, high: bytes) -> bytes | None:
        """Give `key` a value in the node where it belongs, whose keys lie between the bounds; return the CID that it had."""
        keys = node.keys
        at = bisect_left(keys, key)
        node.link = b""
        if at < len(keys) and keys[at] == key:
            old = node.values[at]
            node.values[at] = _link(cid)
            return _cid_of_link(old)
        below = keys[at - 1] if at else low
        above = keys[at] if at < len(keys) else high
        node.trees[at : at + 1] = self._split(node.trees[at], key, node.layer - 1, below, above)
        node.heads.insert(at, _entry_head(keys[at - 1] if at else b"", key))
        keys.insert(at, key)
        node.values.insert(at, _link(cid))
        if at + 1 < len(keys):
            node.heads[at + 1] = _entry_head(key, keys[at + 1])
        return None

    def _layer_of(self, key: bytes) -> int:
        layer = key_depth(key)
        if layer >= self._limits.tree_depth:
            raise LimitExceeded(f"a key of layer {layer}: the limit is {self._limits.tree_depth}", at=shown(key))
        return layer

    def _loaded_top(self) -> _Node | None:
        top = self._top
        if isinstance(top, _Node):
            return top
        if top == NULL:
            return None
        raise _partial(top)

    def _descend(self, key: bytes, layer: int, path: list[tuple[_Node, int]]) -> tuple[_Node, bytes, bytes] | None:
        """Go down to the node of `layer` where `key` belongs, or to the one above where nothing is below; None: an empty tree.

        Return it with its bounds; `path` gets the nodes above it, each with the place of the subtree that was taken.
        """
        node = self._loaded_top()
        if node is None:
            return None
        low, high = b"", ABOVE_ALL_KEYS
        while node.layer > layer:
            keys = node.keys
            at = bisect_left(keys, key)
            tree = node.trees[at]
            if type(tree) is bytes:
                if tree == NULL:
                    break
                if at:
                    low = keys[at - 1]
                if at < len(keys):
                    high = keys[at]
                tree = node.trees[at] = self.load(tree, node.layer - 1, low, high)
            else:
                if at:
                    low = keys[at - 1]
                if at < len(keys):
                    high = keys[at]
            path.append((node, at))
            assert isinstance(tree, _Node)
            node = tree
        return node, low, high

    def _trim(self) -> None:
        """Take nodes without keys off the top; at the end there may be a node that did not come along, or no tree."""
        top = self._top
        while True:
            if type(top) is bytes:
                if top == NULL or top[-32:] not in self._blocks:
                    break
                assert isinstance(self._top, _Node)
                top = self.load(top, self._top.layer - 1, b"", ABOVE_ALL_KEYS)
            assert isinstance(top, _Node)
            self._top = top
            if top.keys:
                return
            top = top.trees[0]
        self._top = top

    def _merged(self, left: _Tree, right: _Tree, layer: int, low: bytes, middle: bytes, high: bytes) -> _Tree:
        """Return the union of two subtrees of `layer`, neighbours since `middle` has gone; all keys lie between `low` and `high`."""
        if left == NULL:
            return right
        if right == NULL:
            return left
        one = left if isinstance(left, _Node) else self.load(left, layer, low, middle)
        other = right if isinstance(right, _Node) else self.load(right, layer, middle, high)
        below = one.keys[-1] if one.keys else low
        above = other.keys[0] if other.keys else high
        joined = self._merged(one.trees[-1], other.trees[0], layer - 1, below, middle, above)
        heads = other.heads
        if one.keys and other.keys:
            heads = [_entry_head(below, above), *heads[1:]]
        return _Node(
            layer,
            one.keys + other.keys,
            one.heads + heads,
            one.values + other.values,
            [*one.trees[:-1], joined, *other.trees[1:]],
            b"",
        )

    def _split(self, tree: _Tree, key: bytes, layer: int, low: bytes, high: bytes) -> tuple[_Tree, _Tree]:
        """Return what `tree` has below `key`, which it does not have, and what it has above. `layer`: of a node not read yet."""
        if tree == NULL:
            return NULL, NULL
        node = tree if isinstance(tree, _Node) else self.load(tree, layer, low, high)
        keys = node.keys
        at = bisect_left(keys, key)
        below = keys[at - 1] if at else low
        above = keys[at] if at < len(keys) else high
        left, right = self._split(node.trees[at], key, node.layer - 1, below, above)
        if at == len(keys) and right == NULL:
            return node, NULL
        if at == 0 and left == NULL:
            return NULL, node
        one: _Tree = NULL
        other: _Tree = NULL
        if at or left != NULL:
            one = _Node(node.layer, keys[:at], node.heads[:at], node.values[:at], [*node.trees[:at], left], b"")
        if at < len(keys) or right != NULL:
            heads = [_entry_head(b"", keys[at]), *node.heads[at + 1 :]] if at < len(keys) else []
            other = _Node(node.layer, keys[at:], heads, node.values[at:], [right, *node.trees[at + 1 :]], b"")
        return one, other

    def load(self, link: bytes, layer: int | None, low: bytes, high: bytes) -> _Node:
        """Read a node whose keys must lie strictly between the bounds. `layer` None: the top node, whose first key tells it."""
        block = self._blocks.get(link[-32:])
        if block is None:
            raise _partial(link)
        node = _read_small(block, link) or self._read_plainly(block, link)
        keys = node.keys
        if layer is None:
            if not keys:
                raise InvalidMst("the top node has no entries", at=digest_text(link[-32:]))
            layer = self._layer_of(keys[0])
        elif not keys and node.trees[0] == NULL:
            raise InvalidMst("an empty node below the top", at=digest_text(link[-32:]))
        node.layer = layer
        if keys and not (low < keys[0] and keys[-1] < high):
            raise InvalidMst("keys outside the bounds of their subtree", at=digest_text(link[-32:]))
        if layer == 0 and node.trees.count(NULL) != len(node.trees):
            raise InvalidMst("a node below layer 0", at=digest_text(link[-32:]))
        if len(keys) > self._limits.node_entries:
            raise LimitExceeded(
                f"a tree node of {len(keys):,} entries: the limit is {self._limits.node_entries:,}",
                at=digest_text(link[-32:]),
            )
        return node

    def _read_plainly(self, block: bytes, link: bytes) -> _Node:
        """Read any node, or say what is wrong with it."""
        left, entries = parse_node(block, at=digest_text(link[-32:]), limits=self._limits)
        keys = [entry.key for entry in entries]
        return _Node(
            0,
            keys,
            [_entry_head(before, key) for before, key in zip([b"", *keys], keys, strict=False)],
            [_link(entry.value) for entry in entries],
            [NULL if tree is None else _link(tree) for tree in (left, *(entry.tree for entry in entries))],
            link,
        )


def _partial(link: bytes) -> PartialTree:
    return PartialTree("a node that the operations need is not among the blocks", at=digest_text(link[-32:]))


_Entry: TypeAlias = tuple[bytes, bytes, bytes, bytes, bytes, bytes]


def _entries_of(block: bytes) -> tuple[list[_Entry], bytes, int] | None:
    """Match a node of the usual kind: its entries, its left subtree, and how many bytes it has beside their heads and subtrees.

    The caller must check that this is all that the node has: matches that do not touch one another leave bytes over.
    """
    size = len(block)
    if size < 7:
        return None
    end = size - _LINK_BYTES
    if end > 5 and block.startswith(b"al\xd8\x2aX%\x00\x01q\x12 ", end - 2):
        left = block[end:]
        end -= 2
    elif block.endswith(b"al\xf6"):
        left = NULL
        end = size - 3
    else:
        return None
    found = _ENTRY.findall(block, 4, end)
    count = len(found)
    if count >= _SMALL or not block.startswith(NODE_HEADS[count]):
        return None
    return found, left, len(NODE_HEADS[count]) + size - end + count * (2 + _LINK_BYTES)


def _read_small(block: bytes, link: bytes) -> _Node | None:
    """Return the node (its layer still to be set) if it is one of the usual kind; None: it is unusual, or wrong."""
    usual = _entries_of(block)
    if usual is None:
        return None
    found, left, span = usual
    keys: list[bytes] = []
    key = b""
    try:
        for head, written, suffix, packed, tree, _ in found:
            prefix = _PREFIXES[packed]
            # The first byte behind the prefix is greater than the one before: so it is the longest one, and the keys rise.
            if prefix > len(key) or key[prefix : prefix + 1] >= suffix[:1] or _KEY_HEADS[len(suffix)] != written:
                return None
            span += len(head) + len(tree)
            key = key[:prefix] + suffix
            keys.append(key)
    except (KeyError, IndexError):
        return None
    if span != len(block):
        return None
    return _Node(
        0,
        keys,
        [entry[0] for entry in found],
        [entry[5] for entry in found],
        [left, *[entry[4] for entry in found]],
        link,
    )


def sealed(tree: _Tree) -> bytes:
    """Return the link to a tree as bytes, or null; its changed nodes are encoded and hashed."""
    if type(tree) is bytes:
        return tree
    assert isinstance(tree, _Node)
    if tree.link:
        return tree.link
    trees = [each if type(each) is bytes else sealed(each) for each in tree.trees]
    entries = [b"%b%bav%b" % entry for entry in zip(tree.heads, trees[1:], tree.values, strict=True)]
    count = len(entries)
    block = b"".join([b"\xa2ae", _cbor_head(4, count), *entries, TAIL, trees[0]])
    tree.link = NODE_LINK_HEAD + sha256(block).digest()
    return tree.link


def _lifted(tree: _Tree, layer: int) -> _Tree:
    """Put nodes without keys over a node until it is one of `layer`."""
    if isinstance(tree, _Node):
        while tree.layer < layer:
            tree = _Node(tree.layer + 1, [], [], [], [tree], b"")
    return tree


def _entry_head(before: bytes, key: bytes) -> bytes:
    """Return an entry's bytes in front of its subtree; `before`: the key before it in the node, else nothing."""
    if not before:
        return entry_head_of(0, key)
    size = min(len(before), len(key))
    differing = int.from_bytes(before[:size], "big") ^ int.from_bytes(key[:size], "big")
    prefix = size - (differing.bit_length() + 7) // 8
    return entry_head_of(prefix, key[prefix:])


def entry_head_of(prefix: int, suffix: bytes) -> bytes:
    return b"\xa4ak%b%bap%bat" % (_cbor_head(2, len(suffix)), suffix, _cbor_head(0, prefix))


def _cbor_head(major: int, argument: int) -> bytes:
    """Return the shortest CBOR head of an argument below 65,536."""
    if argument < 256:
        return _SMALL_HEADS[major][argument]
    return bytes((major << 5 | 25, argument >> 8, argument & 255))


def _link(cid: bytes) -> bytes:
    """Return the link to a CID of any format, as CBOR."""
    if len(cid) == CID_BYTES:
        return LINK_HEAD + cid
    return b"\xd8\x2a" + _cbor_head(2, len(cid) + 1) + b"\0" + cid


def _cid_of_link(link: bytes) -> bytes:
    return link[5:] if link[2] == 0x58 else link[4:]  # a byte string of 24 bytes or more has two bytes of head
