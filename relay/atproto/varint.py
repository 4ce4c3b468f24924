"""Unsigned LEB128, as CARs and CIDs use it: minimal form only, at most 10 bytes, at most 64 bits."""

from __future__ import annotations

from relay.atproto.errors import InvalidCar

MAX_VARINT_BYTES = 10


def read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return (value, offset after it) of the varint at `at`.

    Raises InvalidCar (with the offset) when the data end inside it, when it has more than 10 bytes or 64 bits, or when a
    shorter form exists. Source: multiformats unsigned-varint; CARv1.
    """
    value = shift = 0
    end = len(data)
    place = at
    while True:
        if place >= end:
            raise InvalidCar("the data end inside a varint", at=at)
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift >= 7 * MAX_VARINT_BYTES:
            raise InvalidCar("a varint of more than 10 bytes", at=at)
    if shift and not byte:
        raise InvalidCar("a varint that is not in its shortest form", at=at)
    if value >> 64:
        raise InvalidCar("a varint of more than 64 bits", at=at)
    return value, place


def write_varint(value: int) -> bytes:
    """Return the shortest form of `value` (0 to 2**64 - 1)."""
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{value} does not fit an unsigned varint of 64 bits")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
