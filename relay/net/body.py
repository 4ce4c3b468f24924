"""Where a body goes, and how a compressed one is unpacked without trusting it."""

from __future__ import annotations

import zlib
from typing import Protocol


class BodySink(Protocol):
    """Takes a body in place: the socket reads into `buffer()`, then `wrote` tells how much.

    A sink that is full moves what it has elsewhere (a spool file) or raises an error of its own, which ends the download.
    """

    def buffer(self) -> memoryview:
        """Return free space, at least one byte. Valid until `wrote`."""

    def wrote(self, count: int) -> None:
        """The first `count` bytes of the last `buffer()` are part of the body now."""


class BytesSink:
    """A body in memory, for documents: grows in steps; the size limit is the fetcher's."""

    def __init__(self, first_bytes: int = 16 * 1024) -> None:
        self._data = bytearray(first_bytes)
        self._size = 0

    def buffer(self) -> memoryview:
        if self._size == len(self._data):
            # Not in place: an earlier view may still be alive, and a bytearray with views cannot grow.
            self._data = self._data + bytes(len(self._data))
        return memoryview(self._data)[self._size :]

    def wrote(self, count: int) -> None:
        self._size += count

    def body(self) -> bytes:
        return bytes(memoryview(self._data)[: self._size])


class CorruptBody(Exception):
    """The compressed stream is not valid."""


class Gunzip:
    """A gzip stream unpacked piece by piece, never more than asked for at a time: a bomb meets the caller's size limit.

    Several members in a row are one body (RFC 1952). Feed with `feed`, then `take` until it returns nothing.
    """

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self._input = b""
        self._is_fresh = True

    def feed(self, data: bytes) -> None:
        self._input = self._input + data if self._input else data

    def take(self, limit: int) -> bytes:
        """Return the next 1 to `limit` bytes of the body; empty: feed more. Raises CorruptBody."""
        if limit < 1:
            raise ValueError("no room: zlib would take 0 for no limit")
        while self._input:
            try:
                out = self._inflate.decompress(self._input, limit)
            except zlib.error as exc:
                raise CorruptBody(str(exc)) from exc
            self._is_fresh = False
            if self._inflate.eof:
                self._input = self._inflate.unused_data
                self._inflate = zlib.decompressobj(wbits=31)
                self._is_fresh = True
            else:
                self._input = self._inflate.unconsumed_tail
            if out:
                return out
        return b""

    @property
    def is_complete(self) -> bool:
        """Say whether the stream stands between two members, as at its end."""
        return self._is_fresh and not self._input
