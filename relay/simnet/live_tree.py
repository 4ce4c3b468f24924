"""The Merkle search tree of a repo that is written all the time: a change costs the nodes on its way, not the whole tree.

`tree.build_tree` is the plain version that this one is compared with. Nodes are mutable here; what they were before a change is
not kept. Source: atproto repository spec, "MST structure".
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Mapping

from relay.simnet.block import cid_of
from relay.simnet.tree import key_height, neighbourhood, node_block


class _Node:
    """`below[n]` hangs left of `keys[n]`, the last one right of all; `cid` is None while the node has unwritten changes."""

    __slots__ = ("below", "cid", "keys", "layer", "values")

    def __init__(self, layer: int, keys: list[bytes], values: list[bytes], below: list[_Node | None]) -> None:
        self.layer = layer
        self.keys = keys
        self.values = values
        self.below = below
        self.cid: bytes | None = None


class LiveTree:
    """A tree that changes in place: `put` and `remove`, then `seal` writes what changed.

    `keys` are all keys in order, `nodes` the block of each node by CID, `root` the top node's CID; the last two are right
    after a `seal`. Cost: about 10 us and 2 us for each entry of the nodes on the way; memory: 300 bytes a key beside the blocks.
    """

    def __init__(self, entries: Mapping[bytes, bytes]) -> None:
        """`entries` maps keys (`collection/rkey`) to record CIDs (36 bytes). About 5 us an entry."""
        self.keys = sorted(entries)
        self.nodes: dict[bytes, bytes] = {}
        self._replaced: list[bytes] = []  # CIDs of nodes that were changed since the last seal
        heights = [key_height(key) for key in self.keys]
        self._top = self._grow(entries, heights, 0, len(heights), max(heights)) if heights else _Node(0, [], [], [None])
        self.root = b""
        self.seal()

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of a key, present or not."""
        layer = key_height(key)
        top = self._top
        if not top.keys and top.below == [None]:
            self._touch(top)
            top = self._top = _Node(layer, [], [], [None])
        if layer > top.layer:
            left, right = self._split(top, key)
            self._top = _Node(layer, [key], [value], [_lifted(left, layer - 1), _lifted(right, layer - 1)])
            insort(self.keys, key)
        elif self._put_under(top, key, value, layer):
            insort(self.keys, key)

    def remove(self, key: bytes) -> None:
        """Take a key out. Raise KeyError if it is not there."""
        layer = key_height(key)
        self._remove_under(self._top, key, layer)
        del self.keys[bisect_left(self.keys, key)]
        while not self._top.keys and self._top.below[0] is not None:
            self._touch(self._top)
            self._top = self._top.below[0]
        if not self._top.keys:
            self._top.layer = 0

    def seal(self) -> tuple[dict[bytes, bytes], list[bytes]]:
        """Write the changed nodes; return those that were not in the tree before, and the CIDs of those that left it."""
        written: dict[bytes, bytes] = {}
        self.root = self._write(self._top, written)
        gone = [cid for cid in self._replaced if cid not in written]
        for cid in gone:
            del self.nodes[cid]
        fresh = {cid: block for cid, block in written.items() if cid not in self.nodes}
        self.nodes.update(fresh)
        self._replaced.clear()
        return fresh, gone

    def path_to(self, key: bytes) -> list[bytes]:
        """Return the CIDs of the nodes that a search for `key` (present or not) enters, from the top. Only after a seal."""
        path: list[bytes] = []
        node: _Node | None = self._top
        while node is not None:
            assert node.cid is not None, "the tree is not sealed"
            path.append(node.cid)
            at = bisect_left(node.keys, key)
            if at < len(node.keys) and node.keys[at] == key:
                break
            node = node.below[at]
        return path

    def proof_of(self, key: bytes) -> set[bytes]:
        """Return the CIDs of the nodes that a commit which touched `key` must carry: its way, and its neighbours' ways."""
        return {cid for near in neighbourhood(self.keys, key) for cid in self.path_to(near)}

    def _grow(self, entries: Mapping[bytes, bytes], heights: list[int], low: int, high: int, layer: int) -> _Node:
        """Return the node of `keys[low:high]` (one or more, none above `layer`) with everything below it."""
        cuts = [at for at in range(low, high) if heights[at] == layer]
        fence = [low - 1, *cuts, high]
        below: list[_Node | None] = []
        for left, right in itertools.pairwise(fence):
            is_empty = left + 1 == right
            below.append(None if is_empty else self._grow(entries, heights, left + 1, right, layer - 1))
        keys = [self.keys[at] for at in cuts]
        return _Node(layer, keys, [entries[key] for key in keys], below)

    def _touch(self, node: _Node) -> None:
        if node.cid is not None:
            self._replaced.append(node.cid)
            node.cid = None

    def _put_under(self, node: _Node, key: bytes, value: bytes, layer: int) -> bool:
        """Put the key into a node at or above its layer; whether it is new."""
        self._touch(node)
        at = bisect_left(node.keys, key)
        if node.layer == layer:
            if at < len(node.keys) and node.keys[at] == key:
                node.values[at] = value
                return False
            node.below[at : at + 1] = self._split(node.below[at], key)
            node.keys.insert(at, key)
            node.values.insert(at, value)
            return True
        child = node.below[at]
        if child is None:
            node.below[at] = _lifted(_Node(layer, [key], [value], [None, None]), node.layer - 1)
            return True
        return self._put_under(child, key, value, layer)

    def _remove_under(self, node: _Node | None, key: bytes, layer: int) -> None:
        if node is None or node.layer < layer:
            raise KeyError(key)
        at = bisect_left(node.keys, key)
        if node.layer > layer:
            child = node.below[at]
            self._remove_under(child, key, layer)
            if child is not None and not child.keys and child.below == [None]:
                node.below[at] = None
        else:
            if at == len(node.keys) or node.keys[at] != key:
                raise KeyError(key)
            node.below[at : at + 2] = [self._merge(node.below[at], node.below[at + 1])]
            del node.keys[at], node.values[at]
        self._touch(node)

    def _split(self, node: _Node | None, key: bytes) -> tuple[_Node | None, _Node | None]:
        """Cut a subtree in two where a key (that it does not hold) would stand."""
        if node is None:
            return None, None
        self._touch(node)
        at = bisect_left(node.keys, key)
        before, after = self._split(node.below[at], key)
        left = _Node(node.layer, node.keys[:at], node.values[:at], [*node.below[:at], before])
        right = _Node(node.layer, node.keys[at:], node.values[at:], [after, *node.below[at + 1 :]])
        return _if_any(left), _if_any(right)

    def _merge(self, left: _Node | None, right: _Node | None) -> _Node | None:
        """Join two subtrees of one layer, between which the key has gone."""
        if left is None or right is None:
            return left or right
        self._touch(left)
        self._touch(right)
        middle = self._merge(left.below[-1], right.below[0])
        below = [*left.below[:-1], middle, *right.below[1:]]
        return _Node(left.layer, left.keys + right.keys, left.values + right.values, below)

    def _write(self, node: _Node, written: dict[bytes, bytes]) -> bytes:
        if node.cid is None:
            below = [None if child is None else self._write(child, written) for child in node.below]
            block = node_block(node.keys, node.values, below)
            node.cid = cid_of(block)
            written[node.cid] = block
        return node.cid


def _lifted(node: _Node | None, layer: int) -> _Node | None:
    """Wrap a subtree in pointer nodes up to a layer."""
    while node is not None and node.layer < layer:
        node = _Node(node.layer + 1, [], [], [node])
    return node


def _if_any(node: _Node) -> _Node | None:
    return node if node.keys or node.below != [None] else None
