"""Strict DAG-CBOR as AT Protocol allows it, over any buffer.

One item, or two in a row for frames; shortest integers and lengths; definite lengths only; map keys are text, unique and
sorted by length, then bytes; tag 42 only, around a CID; no floats, no undefined; nothing behind the end. So a value has
exactly one encoding, and `encode(decode(data)) == data` for everything that is accepted.

    CBOR            Python
    integer         int, -2**63 to 2**63 - 1
    text, bytes     str, bytes
    array, map      list, dict with str keys
    tag 42          Link: a type of its own, never to be mistaken for bytes
    false true null False True None

The reader here is plain Python and knows the place of every fault. cbrrr (C) is ten times faster and refuses whatever is not
canonical, but has no limits: nested arrays that each claim the rest of a 200 kB input made it allocate 2.9 GB in 10 s. It
also takes floats, 64-bit unsigned integers and any bytes as a CID. So it reads only what is small (`FAST_BYTES`) and whose
shape the caller checks type by type (commits, frames, records to JSON); everything else comes here.
Source: PROTOCOL 3.1, 3.2; DRISL; IPLD DAG-CBOR.
"""

from __future__ import annotations

import struct
from typing import Any, Final, TypeAlias

from cbrrr import _cbrrr

from relay.atproto.cid import CID_BYTES, DAG_CBOR_PREFIX, RAW_PREFIX, cid_text
from relay.atproto.errors import InvalidCbor, LimitExceeded
from relay.atproto.limits import DEFAULT_LIMITS, Limits

# Up to this size the fast reader cannot be made to allocate more than about 25 MB, for some milliseconds.
FAST_BYTES: Final = 4096

_ENCODE_DEPTH: Final = 256
INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 63) - 1


class Link:
    """A CID that stands as a link (tag 42): 36 raw bytes. Equal to another Link only, never to bytes."""

    __slots__ = ("cid",)

    def __init__(self, cid: bytes) -> None:
        self.cid = cid

    def __bytes__(self) -> bytes:
        return self.cid

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Link) and self.cid == other.cid

    def __hash__(self) -> int:
        return hash((Link, self.cid))

    def __repr__(self) -> str:
        return f"Link({cid_text(self.cid)})"


Value: TypeAlias = "bool | int | str | bytes | Link | list[Value] | dict[str, Value] | None"

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_SIMPLE_VALUES: Final[dict[int, Value]] = {0xF4: False, 0xF5: True, 0xF6: None}
# Additional information 24 to 27: bytes of the argument that follow, how to read them, the least value that needs them.
_ARGUMENTS: Final = {
    24: (1, struct.Struct(">B").unpack_from, 24),
    25: (2, struct.Struct(">H").unpack_from, 1 << 8),
    26: (4, struct.Struct(">I").unpack_from, 1 << 16),
    27: (8, struct.Struct(">Q").unpack_from, 1 << 32),
}
_LINK_HEAD: Final = b"\x58\x25\x00"  # byte string of 37, the first of them the multibase prefix 0x00


class _Reader:
    """Reads one item after another from a buffer. `pending` is the number of items promised but not yet read."""

    __slots__ = ("at", "data", "depth_limit", "end", "limits", "pending")

    def __init__(self, data: bytes, limits: Limits, depth_limit: int) -> None:
        self.data = data
        self.end = len(data)
        self.at = 0
        self.limits = limits
        self.depth_limit = depth_limit
        self.pending = 0

    def item(self, depth: int) -> Value:
        data, start = self.data, self.at
        if start >= self.end:
            raise InvalidCbor("the data end where an item should begin", at=start)
        head = data[start]
        major = head >> 5
        if major == _SIMPLE:
            if head not in _SIMPLE_VALUES:
                raise InvalidCbor(_why_not_simple(head), at=start)
            self.at = start + 1
            return _SIMPLE_VALUES[head]
        argument = head & 0x1F
        at = start + 1
        if argument > 23:
            if argument > 27:
                raise InvalidCbor("an indefinite length" if argument == 31 else "a reserved head byte", at=start)
            size, unpack, least = _ARGUMENTS[argument]
            if at + size > self.end:
                raise InvalidCbor("the data end inside a head", at=start)
            (argument,) = unpack(data, at)
            at += size
            if argument < least:
                raise InvalidCbor("an integer or length that is not in its shortest form", at=start)
        if major in (_TEXT, _BYTES):
            stop = at + argument
            if stop > self.end:
                raise InvalidCbor("a string longer than the data", at=start)
            self.at = stop
            if major == _BYTES:
                return data[at:stop]
            try:
                return data[at:stop].decode()
            except UnicodeDecodeError as exc:
                raise InvalidCbor("text that is not UTF-8", at=at + exc.start) from exc
        if major in (_UNSIGNED, _NEGATIVE):
            if argument > INT_MAX:
                raise InvalidCbor("an integer of more than 64 bits with sign", at=start)
            self.at = at
            return argument if major == _UNSIGNED else -1 - argument
        self.at = at
        if major == _TAG:
            return self._link(argument, start)
        return self._container(major, argument, start, depth)

    def _link(self, tag: int, start: int) -> Link:
        if tag != 42:
            raise InvalidCbor(f"tag {tag}: only links (tag 42) are allowed", at=start)
        at = self.at
        cid = self.data[at + 3 : at + 3 + CID_BYTES]
        if (
            self.data[at : at + 3] != _LINK_HEAD
            or len(cid) != CID_BYTES
            or cid[:4] not in (DAG_CBOR_PREFIX, RAW_PREFIX)
        ):
            raise InvalidCbor("a link that is no CID of version 1, dag-cbor or raw, sha2-256", at=start)
        self.at = at + 3 + CID_BYTES
        return Link(cid)

    def _container(self, major: int, count: int, start: int, depth: int) -> Value:
        if depth >= self.depth_limit:
            raise LimitExceeded(f"CBOR nested deeper than {self.depth_limit} levels", at=start)
        if count > self.limits.cbor_items:
            raise LimitExceeded(
                f"a CBOR container of {count:,} items: the limit is {self.limits.cbor_items:,}", at=start
            )
        # Every promised item takes a byte at least, and so do all that outer containers still wait for.
        self.pending += count * (2 if major == _MAP else 1)
        if self.pending > self.end - self.at:
            raise InvalidCbor("a container that promises more items than there are bytes left", at=start)
        if major == _ARRAY:
            items: list[Value] = []
            for _ in range(count):
                self.pending -= 1
                items.append(self.item(depth + 1))
            return items
        return self._map(count, depth)

    def _map(self, count: int, depth: int) -> Value:
        entries: dict[str, Value] = {}
        last_key, last_size = "", -1
        for _ in range(count):
            at = self.at
            self.pending -= 2
            key = self.item(depth + 1) if at < self.end and self.data[at] >> 5 == _TEXT else None
            if type(key) is not str:
                raise InvalidCbor("a map key that is not text", at=at)
            size = len(key) if key.isascii() else len(key.encode())
            if size > self.limits.cbor_key_bytes:
                raise LimitExceeded(f"a map key of {size:,} bytes: the limit is {self.limits.cbor_key_bytes:,}", at=at)
            # Code points of UTF-8 text sort as its bytes do.
            if size < last_size or (size == last_size and key <= last_key):
                raise InvalidCbor("map keys that are not sorted, or not unique", at=at)
            last_key, last_size = key, size
            entries[key] = self.item(depth + 1)
        return entries


def _why_not_simple(head: int) -> str:
    if head in (0xF9, 0xFA, 0xFB):
        return "a float: AT Protocol has none"
    return "undefined" if head == 0xF7 else "a simple value that is not false, true or null"


def _next_item(reader: _Reader) -> Value:
    try:
        return reader.item(0)
    except RecursionError:
        raise LimitExceeded("CBOR nested deeper than this thread's stack", at=reader.at) from None


def decode(data: bytes | memoryview, *, limits: Limits = DEFAULT_LIMITS, depth: int | None = None) -> Value:
    """Return the one item that `data` are. `depth`: containers inside one another, else `limits.cbor_depth`.

    Time and memory are in proportion to the input. Raises InvalidCbor or LimitExceeded, with the byte offset.
    """
    reader = _Reader(bytes(data), limits, limits.cbor_depth if depth is None else depth)
    value = _next_item(reader)
    if reader.at != reader.end:
        raise InvalidCbor(f"{reader.end - reader.at:,} bytes behind the item", at=reader.at)
    return value


def decode_two(data: bytes | memoryview, *, limits: Limits = DEFAULT_LIMITS) -> tuple[Value, Value]:
    """Return the two items that `data` are: header and payload of a frame. Raises as `decode` does."""
    reader = _Reader(bytes(data), limits, limits.cbor_depth)
    first, second = _next_item(reader), _next_item(reader)
    if reader.at != reader.end:
        raise InvalidCbor(f"{reader.end - reader.at:,} bytes behind the second item", at=reader.at)
    return first, second


def decode_fast(data: bytes) -> tuple[Any, int]:
    """Return (the first item of `data`, its size in bytes), at most `FAST_BYTES` of it, read by cbrrr.

    Canonical form, keys, tag and UTF-8 are checked, links too. **Not** checked: floats, the range of integers, depth. The
    caller checks every value's exact type, or uses `decode`. Raises InvalidCbor without a place: for one, call `decode`.
    """
    if len(data) > FAST_BYTES:
        raise LimitExceeded(f"{len(data):,} bytes for the fast CBOR reader: at most {FAST_BYTES:,}")
    try:
        return _cbrrr.decode_dag_cbor(data, _checked_link, False)
    except (ValueError, MemoryError) as exc:  # CbrrrDecodeError and UnicodeDecodeError are ValueErrors
        raise InvalidCbor(str(exc)) from exc


def _checked_link(cid: bytes) -> Link:
    if len(cid) != CID_BYTES or cid[:4] not in (DAG_CBOR_PREFIX, RAW_PREFIX):
        raise InvalidCbor("a link that is no CID of version 1, dag-cbor or raw, sha2-256")
    return Link(cid)


def encode(value: Value) -> bytes:
    """Return the one canonical encoding of `value`, whose types are those of the table above; no tuples, no subclasses.

    Raises InvalidCbor for anything that `decode` would not return (a float, an integer of more than 64 bits, a surrogate).
    """
    try:
        data: bytes = _cbrrr.encode_dag_cbor(value, Link, False)
    except (TypeError, ValueError) as exc:
        raise InvalidCbor(f"cannot be encoded: {exc}") from exc
    # cbrrr writes floats and unsigned 64-bit integers too; each shows by a head byte that other data rarely have.
    if 0xFB in data or 0x1B in data or 0x3B in data:
        decode(data, depth=_ENCODE_DEPTH)
    return data
