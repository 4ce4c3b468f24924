"""Websocket frames from a server: bytes in, whole messages out (pure). RFC 6455, the client's half of reading.

websocket-client reads each frame with two or more system calls, believes any length, and joins fragments without a limit. This
reads whatever the socket has in one call, refuses before it stores, and keeps at most one message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

# Room for one read of the socket; most messages are much smaller.
READ_BYTES: Final = 256 * 1024
_SMALLEST_ROOM: Final = 64 * 1024
_CONTROL_BYTES: Final = 125
# A message over the limit is read past, so that the next one can be had; one this large never ends.
SKIPPED_BYTES: Final = 1 << 30
# What is kept of a message that is over the limit, to show.
KEPT_BYTES: Final = 64 * 1024
_FAST_HEAD: Final = 0x80 | BINARY


class WebsocketBroken(Exception):
    """The bytes break the rules of a websocket: nothing behind this place can be read."""


@dataclass(frozen=True, slots=True)
class TextMessage:
    """A text message, whole: no event stream has one."""

    data: bytes


@dataclass(frozen=True, slots=True)
class OversizeMessage:
    """A message of more bytes than the limit; only its beginning is kept. Told as soon as that is here, then read past."""

    size: int  # as far as it is known when it is told
    head: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The server closes. `code` is None when it gave none."""

    code: int | None
    reason: str


# A binary message is its bytes.
Item: TypeAlias = bytes | TextMessage | OversizeMessage | Ping | Pong | Close


class MessageReader:
    """Feed it by writing into `room()` and telling `wrote(count)` how much; that returns what is complete.

    Memory: `READ_BYTES`, or a message of `max_message_bytes` and as much again, plus the fragments of one message.
    """

    def __init__(self, *, max_message_bytes: int) -> None:
        self.max_message_bytes = max_message_bytes
        self._data = bytearray(READ_BYTES)
        self._start = 0  # of what is not read yet
        self._end = 0
        self._needed = 0  # bytes of the frame that begins at _start, as far as its head is known
        self._skip = 0  # bytes of a frame's payload to read past
        self._opcode = 0  # of the message whose fragments are in _parts
        self._parts = bytearray()  # one buffer, so that a million fragments of one byte cost a million bytes
        self._parts_size = 0
        self._is_oversize = False  # ... and it was told already

    def room(self) -> memoryview:
        """Return where the next bytes go: at least 64 KiB. Release it before the next call of anything here."""
        rest = self._end - self._start
        wanted = max(rest + _SMALLEST_ROOM, self._needed)
        if wanted > len(self._data) or (not rest and len(self._data) > READ_BYTES):
            data = bytearray(max(READ_BYTES, wanted))
            data[:rest] = self._data[self._start : self._end]
            self._data, self._start, self._end = data, 0, rest
        elif self._start and len(self._data) - self._end < max(_SMALLEST_ROOM, self._needed - rest):
            self._data[:rest] = self._data[self._start : self._end]
            self._start, self._end = 0, rest
        elif not rest:
            self._start = self._end = 0
        return memoryview(self._data)[self._end :]

    def wrote(self, count: int) -> list[Item]:
        """`count` bytes stand in the room. Return the items that are complete now, in order.

        Raises WebsocketBroken; items before the broken place are in its `args[1]`.
        """
        self._end += count
        items: list[Item] = []
        try:
            self._read(items)
        except WebsocketBroken as exc:
            raise WebsocketBroken(exc.args[0], items) from None
        return items

    def _read(self, items: list[Item]) -> None:
        data, at, end = memoryview(self._data), self._start, self._end
        limit = self.max_message_bytes
        while True:
            if self._skip:
                skipped = min(self._skip, end - at)
                self._skip -= skipped
                at += skipped
                self._start = at
                if self._skip:
                    break
            if end - at < 2:
                self._needed = 2
                break
            first, second = data[at], data[at + 1]
            body = at + 2
            size = second
            if second == 126:
                body = at + 4
                size = int.from_bytes(data[at + 2 : body], "big")
            elif second == 127:
                body = at + 10
                size = int.from_bytes(data[at + 2 : body], "big")
            elif second > 127:
                raise WebsocketBroken("the server sent a masked frame")
            if end < body:
                self._needed = body - at
                break
            if first == _FAST_HEAD and not self._opcode and size <= limit:
                if end < body + size:
                    self._needed = body + size - at
                    break
                at = body + size
                self._start = at
                items.append(bytes(data[body:at]))
                continue
            if first & 0x70:
                raise WebsocketBroken(f"reserved bits in a frame's head ({first:#04x}): no extension was agreed on")
            opcode = first & 0x0F
            if opcode >= CLOSE:
                if opcode > PONG or size > _CONTROL_BYTES or not first & 0x80:
                    raise WebsocketBroken(f"not a control frame: opcode {opcode}, {size} bytes")
                kept = size
            else:
                if opcode > BINARY:
                    raise WebsocketBroken(f"unknown opcode {opcode}")
                if (opcode == CONTINUATION) != bool(self._opcode):
                    raise WebsocketBroken("a fragment out of its place")
                if size >= SKIPPED_BYTES:
                    raise WebsocketBroken(f"a message of {size:,} bytes")
                # Of what is over the limit only the beginning is looked at.
                kept = min(size, KEPT_BYTES) if self._is_oversize or self._parts_size + size > limit else size
            if end < body + kept:
                self._needed = body + kept - at
                break
            payload = bytes(data[body : body + kept])
            at = body + kept
            self._start, self._skip = at, size - kept
            if opcode >= CLOSE:
                items.append(_control(opcode, payload))
                if opcode == CLOSE:
                    self._start = at = end  # nothing after it has a meaning
            else:
                self._add_fragment(opcode, payload, size, bool(first & 0x80), items)

    def _add_fragment(self, opcode: int, payload: bytes, size: int, is_last: bool, items: list[Item]) -> None:
        if opcode != CONTINUATION:
            self._opcode = opcode
        self._parts_size += size
        if self._parts_size > self.max_message_bytes:
            if self._parts_size >= SKIPPED_BYTES:
                raise WebsocketBroken(f"a message of {self._parts_size:,} bytes")
            if not self._is_oversize:
                self._is_oversize = True
                head = bytes(self._parts[:KEPT_BYTES] + payload)[:KEPT_BYTES]
                items.append(OversizeMessage(self._parts_size, head))
                self._parts = bytearray()
        else:
            self._parts += payload
        if not is_last:
            return
        if not self._is_oversize:
            whole = bytes(self._parts)
            items.append(whole if self._opcode == BINARY else TextMessage(whole))
        self._parts = bytearray()
        self._opcode = self._parts_size = 0
        self._is_oversize = False


def _control(opcode: int, payload: bytes) -> Item:
    match opcode:
        case 0x9:
            return Ping(payload)
        case 0xA:
            return Pong(payload)
    if len(payload) < 2:
        return Close(None, "")
    return Close(int.from_bytes(payload[:2], "big"), payload[2:].decode("utf-8", "replace"))
