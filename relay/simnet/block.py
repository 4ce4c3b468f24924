"""Blocks as a PDS writes them: DAG-CBOR through cbor2, CIDs, TIDs, and the sections of a CARv1 file. Nothing here reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import cbor2

DAG_CBOR = b"\x01\x71\x12\x20"  # CIDv1, dag-cbor, sha2-256, 32 bytes
RAW = b"\x01\x55\x12\x20"
_LINK_HEAD = b"\xd8\x2a\x58\x25\x00"  # tag 42 over 37 bytes, of which the first is 0

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_BASE32_PAIRS = tuple(a + b for a in _BASE32 for b in _BASE32)
_TID_DIGITS = "234567abcdefghijklmnopqrstuvwxyz"
_TID_PAIRS = tuple(a + b for a in _TID_DIGITS for b in _TID_DIGITS)


def encode(value: Any) -> bytes:
    """Return `value` as DAG-CBOR. Links are made by `link`; floats are the caller's mistake. Canonical: shortest key first."""
    return cbor2.dumps(value, canonical=True)


def link(cid: bytes) -> cbor2.CBORTag:
    """Return the CBOR form of a link to `cid` (36 bytes)."""
    return cbor2.CBORTag(42, b"\x00" + cid)


def link_bytes(cid: bytes | None) -> bytes:
    """Return a link, or null for None, as it stands in a block."""
    return b"\xf6" if cid is None else _LINK_HEAD + cid


def cid_of(block: bytes) -> bytes:
    """Return the CID (36 bytes) of a DAG-CBOR block."""
    return DAG_CBOR + hashlib.sha256(block).digest()


def cid_text(cid: bytes) -> str:
    """Return the text form of a 36-byte CID: `b` and 58 characters of base32.

    A table of pairs, because `base64.b32encode` costs 11 us and this 2.5, for every record of a world.
    """
    bits = int.from_bytes(cid, "big") << 2  # 288 bits and 2 of padding are 29 pairs
    return "b" + "".join([_BASE32_PAIRS[bits >> shift & 1023] for shift in range(280, -1, -10)])


def tid(time_us: int, clock_id: int) -> str:
    """Return the TID of a time (microseconds since the epoch, below 2**53) and a clock identifier (0 to 1023)."""
    bits = time_us << 10 | clock_id
    return _TID_DIGITS[bits >> 60] + "".join([_TID_PAIRS[bits >> shift & 1023] for shift in range(50, -1, -10)])


def tid_time_us(text: str) -> int:
    """Return the time of a TID, microseconds since the epoch."""
    bits = 0
    for char in text:
        bits = bits << 5 | _TID_DIGITS.index(char)
    return bits >> 10


def varint(number: int) -> bytes:
    """Return an unsigned LEB128 number."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def section(cid: bytes, block: bytes) -> bytes:
    """Return one section of a CAR."""
    return varint(len(cid) + len(block)) + cid + block


def car_head(root: bytes) -> bytes:
    """Return the header of a CARv1 file with one root."""
    header = encode({"roots": [link(root)], "version": 1})
    return varint(len(header)) + header


def write_car(root: bytes, blocks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a CARv1 file of these (CID, block) pairs, in this order."""
    parts = [car_head(root)]
    for cid, block in blocks:
        size = len(cid) + len(block)
        parts.append(bytes((size,)) if size < 128 else varint(size))
        parts.append(cid)
        parts.append(block)
    return b"".join(parts)
