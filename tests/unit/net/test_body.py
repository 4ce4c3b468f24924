"""Unpacking a body that nobody trusts."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.net.body import BytesSink, CorruptBody, Gunzip


def unpack(pieces: list[bytes], limit: int) -> tuple[bytes, bool]:
    stream = Gunzip()
    out = b""
    for piece in pieces:
        stream.feed(piece)
        while part := stream.take(limit):
            assert len(part) <= limit
            out += part
    return out, stream.is_complete


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=4), st.integers(1, 500), st.integers(1, 2000))
def test_any_cut_of_any_members_gives_the_body(members: list[bytes], cut: int, limit: int) -> None:
    packed = b"".join(gzip.compress(member, mtime=0) for member in members)
    pieces = [packed[at : at + cut] for at in range(0, len(packed), cut)]
    assert unpack(pieces, limit) == (b"".join(members), True)


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_a_cut_stream_is_never_complete(body: bytes, data: st.DataObject) -> None:
    packed = gzip.compress(body, mtime=0)
    cut = data.draw(st.integers(1, len(packed) - 1))
    out, complete = unpack([packed[:cut]], 1000)
    assert body.startswith(out)
    assert not complete


@given(st.binary(min_size=20, max_size=200))
def test_garbage_is_corrupt_or_incomplete_and_never_a_body(junk: bytes) -> None:
    try:
        _, complete = unpack([junk], 1000)
    except CorruptBody:
        return
    assert not complete or zlib.decompress(junk, wbits=31) is not None


def test_a_bomb_comes_out_in_pieces_of_the_callers_size() -> None:
    stream = Gunzip()
    stream.feed(gzip.compress(bytes(50_000_000)))
    assert len(stream.take(1000)) == 1000
    assert len(stream.take(1)) == 1


def test_no_room_is_a_mistake_and_not_no_limit() -> None:
    stream = Gunzip()
    stream.feed(gzip.compress(b"x"))
    with pytest.raises(ValueError, match="no room"):
        stream.take(0)


@given(st.lists(st.binary(min_size=1, max_size=50_000), max_size=5))
def test_the_bytes_sink_gives_back_what_was_written(parts: list[bytes]) -> None:
    sink = BytesSink(first_bytes=16)
    for part in parts:
        rest = part
        while rest:
            view = sink.buffer()
            count = min(len(view), len(rest))
            view[:count] = rest[:count]
            sink.wrote(count)
            rest = rest[count:]
    assert sink.body() == b"".join(parts)
