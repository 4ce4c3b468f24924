"""A small mutator, for machines without atheris: deterministic by its seed, good at the faults that parsers make."""

from __future__ import annotations

import random

# Heads and lengths that claim much, tags, ends of containers, continuation bytes, separators of texts.
_INTERESTING = (
    b"\x00",
    b"\x01",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\x81" * 40,
    b"\x9a\x00\x01\xff\xff",
    b"\x9b" + b"\xff" * 8,
    b"\xbb" + b"\x7f" * 8,
    b"\x5a\xff\xff\xff\xff",
    b"\x78\x01a",
    b"\xd8\x2a\x58\x25\x00",
    b"\xd8\x2a\x41\x00",
    b"\xf7",
    b"\xf9\x00\x00",
    b"\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"\x65$link",
    b"\x66$bytes",
    b"\x66blocks\x40",
    b'{"$link":"b"}',
    b'{"$bytes":"="}',
    b"1e400",
    b"[" * 300,
    b'{"a":' * 300,
    b"/",
    b".",
    b":",
    b"\xed\xa0\x80",
)


def mutate(seed: bytes, rng: random.Random) -> bytes:
    """Return `seed` with one to four changes: bytes set, cut, doubled, moved, put in, or the end cut off."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        size = min(rng.choice((1, 1, 2, 4, 8, 32)), len(data) - at)
        match rng.randint(0, 6):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = rng.choice(_INTERESTING)
            case 3:
                data[at : at + size] = rng.choice(_INTERESTING)
            case 4:
                data[at:at] = data[at : at + size]
            case 5:
                data[at : at + size] = rng.randbytes(size)
            case _:
                if at < len(data):
                    data[at] ^= 1 << rng.randint(0, 7)
    return bytes(data)
