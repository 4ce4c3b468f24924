"""Operation inversion by the listing of the specification, of hashlib and cbrrr alone: the judge of what a firehose tells."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cbrrr

from tests.support.data import plain_sections

Blocks = Mapping[bytes, bytes]
Value = bytes | None


class Invalid(Exception):
    """The message contradicts itself."""


class Partial(Invalid):
    """A node that is needed is not among the blocks."""


class Key(NamedTuple):
    key: bytes
    value: bytes


class Node:
    """A node: its height, its keys and children in order, or None for a stub; and its CID while nothing has changed."""

    def __init__(self, height: int, entries: list[Key | Node] | None, cid: bytes | None = None) -> None:
        self.height, self.known, self.cid = height, entries, cid

    def entries(self) -> list[Key | Node]:
        if self.known is None:
            raise Partial(self.cid)
        return self.known


def height_of(key: bytes) -> int:
    zeros = 0
    for byte in hashlib.sha256(key).digest():
        if byte:
            return (zeros + 8 - byte.bit_length()) // 2
        zeros += 8
    return zeros // 2


def shared(a: bytes, b: bytes) -> int:
    size = 0
    while size < min(len(a), len(b)) and a[size] == b[size]:
        size += 1
    return size


def cid_of(block: bytes) -> bytes:
    return b"\x01\x71\x12\x20" + hashlib.sha256(block).digest()


def load(blocks: Blocks, cid: bytes, height: int | None = None, low: bytes = b"", high: bytes | None = None) -> Node:
    raw = blocks.get(cid)
    if raw is None:
        if height is None:
            raise Invalid("node absent")
        return Node(height, None, cid)
    value: Any = cbrrr.decode_dag_cbor(raw)
    if set(value) != {"l", "e"}:
        raise Invalid("node fields")
    previous, keys = b"", []
    for entry in value["e"]:
        if set(entry) != {"p", "k", "v", "t"} or not 0 <= entry["p"] <= len(previous):
            raise Invalid("entry")
        key = previous[: entry["p"]] + entry["k"]
        if shared(previous, key) != entry["p"] or not previous < key or len(key) > 1024:
            raise Invalid("key")
        keys.append(key)
        previous = key
    if keys:
        if not low < keys[0] or (high is not None and not keys[-1] < high):
            raise Invalid("range")
        if len({height_of(key) for key in keys}) != 1 or height not in (None, height_of(keys[0])):
            raise Invalid("height")
        height = height_of(keys[0])
    elif height is None:
        if value["l"] is not None:
            raise Invalid("top is a bare pointer")
        return Node(0, [], cid)
    elif value["l"] is None:
        raise Invalid("empty non-top node")
    links = [value["l"]] + [entry["t"] for entry in value["e"]]
    fence = [low, *keys, high]
    out: list[Key | Node] = []
    for number, link in enumerate(links):
        if number:
            out.append(Key(keys[number - 1], value["e"][number - 1]["v"].cid_bytes))
        if link is not None:
            if height == 0:
                raise Invalid("child below height 0")
            out.append(load(blocks, link.cid_bytes, height - 1, fence[number] or b"", fence[number + 1]))
    return Node(height, out, cid)


def root_cid(node: Node) -> bytes:
    if node.cid is None:
        value: dict[str, Any] = {"l": None, "e": []}
        previous = b""
        for entry in node.entries():
            if isinstance(entry, Key):
                prefix = shared(previous, entry.key)
                told = {"p": prefix, "k": entry.key[prefix:], "v": cbrrr.CID(entry.value), "t": None}
                value["e"].append(told)
                previous = entry.key
            elif value["e"]:
                value["e"][-1]["t"] = cbrrr.CID(root_cid(entry))
            else:
                value["l"] = cbrrr.CID(root_cid(entry))
        node.cid = cid_of(cbrrr.encode_dag_cbor(value))
    return node.cid


def place(entries: list[Key | Node], key: bytes) -> int:
    return next((n for n, entry in enumerate(entries) if isinstance(entry, Key) and entry.key >= key), len(entries))


def child(node: Node | None) -> list[Key | Node]:
    return [node] if node else []


def lift(node: Node | None, height: int) -> Node | None:
    while node and node.height < height:
        node = Node(node.height + 1, [node])
    return node


def split(node: Node, key: bytes) -> tuple[Node | None, Node | None]:
    entries = node.entries()
    at = place(entries, key)
    left, right = entries[:at], entries[at:]
    if left and isinstance(left[-1], Node):
        a, b = split(left[-1], key)
        left, right = left[:-1] + child(a), child(b) + right
    return (Node(node.height, left) if left else None), (Node(node.height, right) if right else None)


def insert(node: Node, key: bytes, value: bytes) -> tuple[Node, Value]:
    height = height_of(key)
    if node.known == []:
        return Node(height, [Key(key, value)]), None
    if height > node.height:
        a, b = split(node, key)
        return Node(height, [*child(lift(a, height - 1)), Key(key, value), *child(lift(b, height - 1))]), None
    entries = list(node.entries())
    at = place(entries, key)
    before = entries[at - 1] if at else None
    if height == node.height:
        here = entries[at] if at < len(entries) else None
        if isinstance(here, Key) and here.key == key:
            entries[at] = Key(key, value)
            return Node(height, entries), here.value
        if isinstance(before, Node):
            a, b = split(before, key)
            entries[at - 1 : at] = [*child(a), Key(key, value), *child(b)]
        else:
            entries.insert(at, Key(key, value))
        return Node(height, entries), None
    if isinstance(before, Node):
        entries[at - 1], old = insert(before, key, value)
        return Node(node.height, entries), old
    lifted = lift(Node(height, [Key(key, value)]), node.height - 1)
    return Node(node.height, entries[:at] + child(lifted) + entries[at:]), None


def merge(a: Node, b: Node) -> Node:
    x, y = a.entries(), b.entries()
    last, first = x[-1], y[0]
    if isinstance(last, Node) and isinstance(first, Node):
        return Node(a.height, [*x[:-1], merge(last, first), *y[1:]])
    return Node(a.height, x + y)


def cut(node: Node, key: bytes, height: int) -> tuple[Node, Value]:
    entries = list(node.entries())
    at = place(entries, key)
    before = entries[at - 1] if at else None
    if height == node.height:
        here = entries[at] if at < len(entries) else None
        if not isinstance(here, Key) or here.key != key:
            return node, None
        after = entries[at + 1] if at + 1 < len(entries) else None
        if isinstance(before, Node) and isinstance(after, Node):
            entries[at - 1 : at + 2] = [merge(before, after)]
        else:
            del entries[at]
        return Node(height, entries), here.value
    if height > node.height or not isinstance(before, Node):
        return node, None
    below, old = cut(before, key, height)
    entries[at - 1 : at] = child(below) if below.known != [] else []
    return (Node(node.height, entries), old) if old else (node, None)


def remove(node: Node, key: bytes) -> tuple[Node, Value]:
    node, old = cut(node, key, height_of(key))
    while node.known and len(node.known) == 1 and isinstance(node.known[0], Node):
        node = node.known[0]
    return (Node(0, []) if node.known == [] else node), old


class Op(NamedTuple):
    action: str
    path: bytes
    cid: Value
    prev: Value


def invert(tree: Node, ops: Sequence[Op]) -> bytes:
    """Return the root's CID before the commit."""
    if len({op.path for op in ops}) != len(ops):
        raise Invalid("duplicate path")
    for op in sorted(ops, key=lambda op: (op.action != "delete", op.path)):
        if op.action == "create":
            tree, seen = remove(tree, op.path)
            is_right = op.prev is None and op.cid is not None and seen == op.cid
        elif op.prev is None:
            raise Invalid(f"{op.action} without prev")
        else:
            tree, seen = insert(tree, op.path, op.prev)
            is_right = seen == op.cid and (op.cid is None) == (op.action == "delete")
        if not is_right:
            raise Invalid(f"{op.action} {op.path!r}")
    return root_cid(tree)


class Told(NamedTuple):
    """A `#commit` as a reader takes it apart. `blocks` are those that hash to their CID."""

    did: str
    rev: str
    since: str | None
    prev_data: Value
    commit: dict[str, Any]
    ops: list[Op]
    blocks: dict[bytes, bytes]
    body: dict[str, Any]


def read_frame(frame: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and body of a frame. Raise ValueError when there are not just two items."""
    items: list[Any] = list(cbrrr.decode_multi_dag_cbor_in_violation_of_the_spec(frame))
    header, body = items
    return header, body


def read_commit(frame: bytes) -> Told:
    """Take a `#commit` apart and check that its parts are those of one commit. Raise Invalid when they are not."""
    header, body = read_frame(frame)
    if header != {"op": 1, "t": "#commit"}:
        raise Invalid(f"not a commit: {header}")
    blocks = {cid: block for cid, block in plain_sections(body["blocks"]) if cid_of(block) == cid}
    root = body["commit"].cid_bytes
    if root not in blocks:
        raise Invalid("no commit block")
    commit: Any = cbrrr.decode_dag_cbor(blocks[root])
    if set(commit) != {"did", "version", "data", "rev", "prev", "sig"} or commit["did"] != body["repo"]:
        raise Invalid("commit fields")
    if commit["rev"] != body["rev"]:
        raise Invalid("outer rev")
    ops = [Op(op["action"], op["path"].encode(), _cid(op["cid"]), _cid(op.get("prev"))) for op in body["ops"]]
    prev_data = _cid(body.get("prevData"))
    return Told(body["repo"], body["rev"], body["since"], prev_data, commit, ops, blocks, body)


def check_proof(told: Told) -> None:
    """Raise Invalid unless every op is proven and the commit inverts to its `prevData` (the empty tree without one)."""
    data = told.commit["data"].cid_bytes
    for op in told.ops:
        if op.cid is not None and op.cid not in told.blocks:
            raise Invalid("record absent")
    if not told.ops:
        before = data
    else:
        tree = load(told.blocks, data)
        before = invert(tree, told.ops)
    if before != (told.prev_data or cid_of(cbrrr.encode_dag_cbor({"e": [], "l": None}))):
        raise Invalid("inverts to something else")


def _cid(value: Any) -> Value:
    return None if value is None else bytes(value.cid_bytes)
