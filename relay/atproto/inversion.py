"""Undo a commit's operations on the part of its tree that came with it: the root must become the one before the commit.

What it proves: every record of the tree is either named by an operation, with the value that it claims, or was there before,
unchanged; nothing else came or went. A subtree that no operation reaches keeps its CID, so its bytes are not needed. Where an
operation reaches a node that did not come along, the proof is incomplete (PartialTree).

Nodes are read when an operation comes to them: canonical form, limits, order, bounds, links; layers of the operations' keys. The
grammar and layer of all other keys are not looked at again, because they stand in the tree before, too, which the caller compares
with the one that it knows. Each node with keys is read at most once, as its keys lie between the bounds of one place only: time
and memory are in proportion to the blocks, on hostile input too. Recursion is bounded by the layers (`tree_depth`).

A node stays in pieces of bytes that can be joined again: all but the few entries beside a change keep their encoding.
Source: PROTOCOL 5.3; sync specification, "operation inversion"; vectors: firehose/commit-proof-fixtures.json.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeAlias

import libipld

from relay.atproto.car import digest_text
from relay.atproto.cid import CID_BYTES, DAG_CBOR_PREFIX, cid_of, cid_text
from relay.atproto.errors import InvalidMst, InvalidProof, LimitExceeded, PartialTree
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.mst import EMPTY_NODE, key_depth, parse_node

EMPTY_TREE_CID: Final = cid_of(EMPTY_NODE)

_NULL: Final = b"\xf6"
_LINK_HEAD: Final = b"\xd8\x2aX%\x00"  # in front of a CID of 36 bytes
_NODE_LINK_HEAD: Final = _LINK_HEAD + DAG_CBOR_PREFIX  # in front of 32 bytes of SHA-256
_FAST_BYTES: Final = 4096  # of a node that is looked into by the fast decoder, which knows no limits
_LINK: Final = rb"\xd8\*X%\x00\x01q\x12 .{32}"
_LINK_BYTES: Final = len(_LINK_HEAD) + CID_BYTES
_TAIL: Final = b"al"
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
_NODE_HEADS: Final = tuple(b"\xa2ae" + head for head in _SMALL_HEADS[4])
_KEY_HEADS: Final = _SMALL_HEADS[2]
_PREFIXES: Final = {head: n for n, head in enumerate(_SMALL_HEADS[0])}
_ABOVE_ALL_KEYS: Final = b"\xff"


class Change(NamedTuple):
    """What a commit did to one key (`collection/rkey`): no `prev`: created; no `cid`: deleted; both: updated. CIDs: 36 bytes."""

    key: bytes
    cid: bytes | None
    prev: bytes | None


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


def invert(
    root: bytes, blocks: Mapping[bytes, bytes], changes: Iterable[Change], *, limits: Limits = DEFAULT_LIMITS
) -> bytes:
    """Return the CID of the tree as it was before `changes`, of which the tree under `root` (a CID) is the result.

    `blocks`: DAG-CBOR by its SHA-256, hashed by the caller. About 40 us for one change in a repo of some thousand records.
    Raises PartialTree when a needed node is not among the blocks; InvalidProof when the tree does not bear a change out, or two
    changes have one key; InvalidMst and LimitExceeded for a node that is none, or a key in too high a layer.
    """
    ordered = list(changes)
    if len(ordered) == 1:
        before = _undo_one(root, blocks, ordered[0], limits)
        if before is not None:
            return before
    else:
        if len({change.key for change in ordered}) != len(ordered):
            raise InvalidProof("two operations on one path")
        # Deletes first, as other implementations do it: an incomplete proof then is incomplete for all of them.
        ordered.sort(key=lambda change: (change.cid is not None, change.key))
    tree = ProofTree(root, blocks, limits=limits)
    for change in ordered:
        key, cid, prev = change
        if prev is None and cid is None:
            raise InvalidProof("an operation with neither a value nor one before", at=_shown(key))
        _check_found(change, tree.remove(key) if prev is None else tree.put(key, prev))
    return tree.root()


def _check_found(change: Change, found: bytes | None) -> None:
    """Raise InvalidProof unless what undoing a change replaced (None: nothing) is what the change had put there."""
    key, claimed, _ = change
    if found == claimed:
        return
    if claimed is None:
        raise InvalidProof("a deleted record is in the tree", at=_shown(key))
    if found is None:
        raise InvalidProof("a written record is not in the tree", at=_shown(key))
    raise InvalidProof(f"the tree has another record than {cid_text(claimed)}", at=_shown(key))


def _undo_one(root: bytes, blocks: Mapping[bytes, bytes], change: Change, limits: Limits) -> bytes | None:
    """Undo a single change as `ProofTree` does it, in half the time; None: an unusual case, or an error that has to be named.

    Of the nodes on the way down nothing changes but one link, which is replaced where it stands: their bytes are those of nodes
    of the tree before, so that nothing has to be checked that is not needed to find the way.
    """
    key, claimed, prev = change
    if claimed is None and prev is None:
        return None
    layer = key_depth(key)
    low, high = b"", _ABOVE_ALL_KEYS
    above: list[
        tuple[bytes, bytes]
    ] = []  # nodes on the way: what they have before and behind the link that was followed
    cid = root
    at_layer = -1
    try:
        while at_layer != layer:
            block = blocks[cid[4:]]
            if len(block) > _FAST_BYTES or not block.startswith(b"\xa2ae"):
                return None
            node = libipld.decode_dag_cbor(block)
            entries = node["e"]
            if at_layer < 0:
                at_layer = key_depth(entries[0]["k"])
                if at_layer == layer:
                    break
                if not layer < at_layer < limits.tree_depth:
                    return None
            cid, here = node["l"], b""
            for entry in entries:
                here = here[: entry["p"]] + entry["k"]
                if here > key:
                    high = here
                    break
                low, cid = here, entry["t"]
            before, behind = block.split(_NODE_LINK_HEAD + cid[4:])
            above.append((before, behind))
            at_layer -= 1
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        return None  # among others: no such subtree, no such node, two links to it
    link = b""
    if layer == 0 and above and prev is None:
        link = _without_entry(blocks.get(cid[4:], b""), change)
    if not link:
        proof = ProofTree(EMPTY_TREE_CID, blocks, limits=limits)
        node = proof._load(_LINK_HEAD + cid, layer if above else None, low, high)
        _check_found(
            change, proof._take(node, key, low, high) if prev is None else proof._place(node, key, prev, low, high)
        )
        if not node.keys and not above:
            return None
        link = _NULL if not node.keys and node.trees[0] == _NULL else _sealed(node)
    for before, behind in reversed(above):
        if link != _NULL or before[3] != 0x80:  # else it was only there to lead to a node that is empty now
            link = _NODE_LINK_HEAD + sha256(before + link + behind).digest()
    return link[len(_LINK_HEAD) :]


def _shown(key: bytes) -> str:
    return key[:1024].decode("utf-8", "replace")


def _without_entry(block: bytes, change: Change) -> bytes:
    """Return the link to a node of layer 0 without the entry that `change` created, or null when nothing is left; empty: unusual.

    Three quarters of all writes end here. The entry, and the head of the next one, stand in the block as they must be written, once.
    """
    count = block[3] - 0x80 if block.startswith(b"\xa2ae") and 6 < len(block) <= _FAST_BYTES else 0
    if not 0 < count < 24 or change.cid is None:
        return b""
    entry: dict[str, Any] = {}
    following: dict[str, Any] | None = None
    before, here, key = b"", b"", change.key
    try:
        for following in libipld.decode_dag_cbor(block)["e"]:
            if here == key:
                break
            entry, following = following, None
            before, here = here, here[: entry["p"]] + entry["k"]
        if here != key:
            return b""
        own = b"%b\xf6av%b%b" % (_head_of(entry["p"], entry["k"]), _LINK_HEAD, change.cid)
        if not _follows(before, entry) or (following is not None and not _follows(key, following)):
            return b""
        if following is None:
            front, rest = block.split(own + _TAIL)
            rest = _TAIL + rest
        else:
            prefix, suffix = following["p"], following["k"]
            front, rest = block.split(own + _head_of(prefix, suffix))
            # What the neighbours share, all that lies between them shares.
            shared = min(entry["p"], prefix)
            rest = _head_of(shared, key[shared:prefix] + suffix) + rest
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        return b""
    if count == 1:
        return _NULL if rest == b"al\xf6" else b""
    return _NODE_LINK_HEAD + sha256(_NODE_HEADS[count - 1] + front[4:] + rest).digest()


def _follows(before: bytes, entry: dict[str, Any]) -> bool:
    """Say whether an entry's key is above the one before it, and its prefix the longest one that they share."""
    prefix: int = entry["p"]
    suffix: bytes = entry["k"]
    return 0 <= prefix <= len(before) and before[prefix : prefix + 1] < suffix[:1]


class ProofTree:
    """A tree of which only some nodes are there. Changed in place; after an exception it is of no use any more."""

    def __init__(self, root: bytes, blocks: Mapping[bytes, bytes], *, limits: Limits = DEFAULT_LIMITS) -> None:
        """`root`: the CID of the top node, which must be there. Raises what `invert` does."""
        self._blocks, self._limits = blocks, limits
        self._top: _Tree = _NULL
        if root != EMPTY_TREE_CID:
            self._top = self._load(_LINK_HEAD + root, None, b"", _ABOVE_ALL_KEYS)

    def root(self) -> bytes:
        """Return the CID of the tree as it is now."""
        if self._top == _NULL:
            return EMPTY_TREE_CID
        return _sealed(self._top)[len(_LINK_HEAD) :]

    def remove(self, key: bytes) -> bytes | None:
        """Take `key` out, and return the CID that it had; None: it is not there, or not in the layer where it belongs."""
        layer = self._layer_of(key)
        path: list[tuple[_Node, int]] = []
        found = self._descend(key, layer, path)
        if found is None or found[0].layer != layer:
            return None
        node, low, high = found
        old = self._take(node, key, low, high)
        if old is None:
            return None
        for parent, place in reversed(path):
            if not node.keys and node.trees[0] == _NULL:
                parent.trees[place] = _NULL
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
            left, right = self._split(_NULL if top is None else top, key, 0, b"", _ABOVE_ALL_KEYS)
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
            leaf = _Node(layer, [key], [_entry_head(b"", key)], [value], [_NULL, _NULL], b"")
            node.trees[bisect_left(node.keys, key)] = _lifted(leaf, node.layer - 1)
            return None
        return self._place(node, key, cid, low, high)

    def _take(self, node: _Node, key: bytes, low: bytes, high: bytes) -> bytes | None:
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

    def _place(self, node: _Node, key: bytes, cid: bytes, low: bytes, high: bytes) -> bytes | None:
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
            raise LimitExceeded(f"a key of layer {layer}: the limit is {self._limits.tree_depth}", at=_shown(key))
        return layer

    def _loaded_top(self) -> _Node | None:
        top = self._top
        if isinstance(top, _Node):
            return top
        if top == _NULL:
            return None
        raise _partial(top)

    def _descend(self, key: bytes, layer: int, path: list[tuple[_Node, int]]) -> tuple[_Node, bytes, bytes] | None:
        """Go down to the node of `layer` where `key` belongs, or to the one above where nothing is below; None: an empty tree.

        Return it with its bounds; `path` gets the nodes above it, each with the place of the subtree that was taken.
        """
        node = self._loaded_top()
        if node is None:
            return None
        low, high = b"", _ABOVE_ALL_KEYS
        while node.layer > layer:
            keys = node.keys
            at = bisect_left(keys, key)
            tree = node.trees[at]
            if type(tree) is bytes:
                if tree == _NULL:
                    break
                if at:
                    low = keys[at - 1]
                if at < len(keys):
                    high = keys[at]
                tree = node.trees[at] = self._load(tree, node.layer - 1, low, high)
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
                if top == _NULL or top[-32:] not in self._blocks:
                    break
                assert isinstance(self._top, _Node)
                top = self._load(top, self._top.layer - 1, b"", _ABOVE_ALL_KEYS)
            assert isinstance(top, _Node)
            self._top = top
            if top.keys:
                return
            top = top.trees[0]
        self._top = top

    def _merged(self, left: _Tree, right: _Tree, layer: int, low: bytes, middle: bytes, high: bytes) -> _Tree:
        """Return the union of two subtrees of `layer`, neighbours since `middle` has gone; all keys lie between `low` and `high`."""
        if left == _NULL:
            return right
        if right == _NULL:
            return left
        one = left if isinstance(left, _Node) else self._load(left, layer, low, middle)
        other = right if isinstance(right, _Node) else self._load(right, layer, middle, high)
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
        if tree == _NULL:
            return _NULL, _NULL
        node = tree if isinstance(tree, _Node) else self._load(tree, layer, low, high)
        keys = node.keys
        at = bisect_left(keys, key)
        below = keys[at - 1] if at else low
        above = keys[at] if at < len(keys) else high
        left, right = self._split(node.trees[at], key, node.layer - 1, below, above)
        if at == len(keys) and right == _NULL:
            return node, _NULL
        if at == 0 and left == _NULL:
            return _NULL, node
        one: _Tree = _NULL
        other: _Tree = _NULL
        if at or left != _NULL:
            one = _Node(node.layer, keys[:at], node.heads[:at], node.values[:at], [*node.trees[:at], left], b"")
        if at < len(keys) or right != _NULL:
            heads = [_entry_head(b"", keys[at]), *node.heads[at + 1 :]] if at < len(keys) else []
            other = _Node(node.layer, keys[at:], heads, node.values[at:], [right, *node.trees[at + 1 :]], b"")
        return one, other

    def _load(self, link: bytes, layer: int | None, low: bytes, high: bytes) -> _Node:
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
        elif not keys and node.trees[0] == _NULL:
            raise InvalidMst("an empty node below the top", at=digest_text(link[-32:]))
        node.layer = layer
        if keys and not (low < keys[0] and keys[-1] < high):
            raise InvalidMst("keys outside the bounds of their subtree", at=digest_text(link[-32:]))
        if layer == 0 and node.trees.count(_NULL) != len(node.trees):
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
            [_NULL if tree is None else _link(tree) for tree in (left, *(entry.tree for entry in entries))],
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
        left = _NULL
        end = size - 3
    else:
        return None
    found = _ENTRY.findall(block, 4, end)
    count = len(found)
    if count >= _SMALL or not block.startswith(_NODE_HEADS[count]):
        return None
    return found, left, len(_NODE_HEADS[count]) + size - end + count * (2 + _LINK_BYTES)


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


def _sealed(tree: _Tree) -> bytes:
    """Return the link to a tree as bytes, or null; its changed nodes are encoded and hashed."""
    if type(tree) is bytes:
        return tree
    assert isinstance(tree, _Node)
    if tree.link:
        return tree.link
    trees = [each if type(each) is bytes else _sealed(each) for each in tree.trees]
    entries = [b"%b%bav%b" % entry for entry in zip(tree.heads, trees[1:], tree.values, strict=True)]
    count = len(entries)
    block = b"".join([b"\xa2ae", _cbor_head(4, count), *entries, _TAIL, trees[0]])
    tree.link = _NODE_LINK_HEAD + sha256(block).digest()
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
        return _head_of(0, key)
    size = min(len(before), len(key))
    differing = int.from_bytes(before[:size], "big") ^ int.from_bytes(key[:size], "big")
    prefix = size - (differing.bit_length() + 7) // 8
    return _head_of(prefix, key[prefix:])


def _head_of(prefix: int, suffix: bytes) -> bytes:
    return b"\xa4ak%b%bap%bat" % (_cbor_head(2, len(suffix)), suffix, _cbor_head(0, prefix))


def _cbor_head(major: int, argument: int) -> bytes:
    """Return the shortest CBOR head of an argument below 65,536."""
    if argument < 256:
        return _SMALL_HEADS[major][argument]
    return bytes((major << 5 | 25, argument >> 8, argument & 255))


def _link(cid: bytes) -> bytes:
    """Return the link to a CID of any format, as CBOR."""
    if len(cid) == CID_BYTES:
        return _LINK_HEAD + cid
    return b"\xd8\x2a" + _cbor_head(2, len(cid) + 1) + b"\0" + cid


def _cid_of_link(link: bytes) -> bytes:
    return link[5:] if link[2] == 0x58 else link[4:]  # a byte string of 24 bytes or more has two bytes of head
