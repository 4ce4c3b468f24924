"""The server's half of subscribeRepos: websocket frames by hand, one subscriber a connection, replay from the event log."""

from __future__ import annotations

import base64
import hashlib

from relay.simnet.answers import Request, Response
from relay.simnet.events import EventLog, error_frame, frame
from relay.simnet.pds import xrpc_error

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10


def subscribe(request: Request, log: EventLog) -> Response:
    """Return the upgraded connection, or the refusal: 426 without an upgrade, 400 for a bad cursor."""
    key = request.header("sec-websocket-key")
    if "websocket" not in request.header("upgrade").lower() or not key:
        return xrpc_error(426, "UpgradeRequired", "subscribeRepos is a websocket")
    text = request.param("cursor")
    if text is not None and not text.isdigit():
        return xrpc_error(400, "InvalidRequest", "cursor must be an integer")
    return Response(status=101, feed=Subscriber(log, key, None if text is None else int(text)))


class Subscriber:
    """One consumer: where it stands in the log, and the websocket's rules. Pulls, so nothing is queued for a slow one."""

    def __init__(self, log: EventLog, key: str, cursor: int | None) -> None:
        accept = base64.b64encode(hashlib.sha1(key.encode() + _MAGIC).digest()).decode()
        self.handshake: tuple[tuple[str, str], ...] = (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept),
        )
        self.finished = False
        self._log = log
        self._in = b""
        self._first = b""
        newest, oldest = log.newest_seq, log.oldest_seq
        self._seq = newest if cursor is None else cursor
        if cursor is not None and cursor > newest:
            self._first = _message(error_frame("FutureCursor", "Cursor in the future."))
            self._first += _control(_CLOSE, (1008).to_bytes(2, "big") + b"FutureCursor")
            self.finished = True
        elif cursor is not None and oldest is not None and cursor < oldest - 1:
            text = "Requested cursor exceeded limit. Possibly missing events"
            self._first = _message(frame("info", {"name": "OutdatedCursor", "message": text}))

    def pull(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        if self.finished:
            return b""
        events = self._log.after(self._seq)
        if not events:
            return b""
        self._seq = events[-1].seq
        return b"".join([_message(event.frame) for event in events])

    def received(self, data: bytes) -> bytes:
        """Answer pings and closes; what else a client says is ignored, as real relays do."""
        self._in += data
        answer = b""
        while (item := _client_frame(self._in)) is not None:
            opcode, payload, size = item
            self._in = self._in[size:]
            if opcode == _PING:
                answer += _control(_PONG, payload)
            elif opcode == _CLOSE:
                answer += _control(_CLOSE, payload[:2])
                self.finished = True
        return answer

    def closed(self) -> None:
        self.finished = True


def _message(data: bytes) -> bytes:
    size = len(data)
    if size < 126:
        return bytes((0x80 | _BINARY, size)) + data
    if size < 65536:
        return bytes((0x80 | _BINARY, 126)) + size.to_bytes(2, "big") + data
    return bytes((0x80 | _BINARY, 127)) + size.to_bytes(8, "big") + data


def _control(opcode: int, data: bytes) -> bytes:
    return bytes((0x80 | opcode, len(data[:125]))) + data[:125]


def _client_frame(data: bytes) -> tuple[int, bytes, int] | None:
    """Return (opcode, unmasked payload, size in all) of a client's frame; None while it is not complete."""
    if len(data) < 2:
        return None
    size, at = data[1] & 127, 2
    if size == 126:
        size, at = int.from_bytes(data[2:4], "big"), 4
    elif size == 127:
        size, at = int.from_bytes(data[2:10], "big"), 10
    masked = data[1] & 128
    end = at + (4 if masked else 0) + size
    if len(data) < end:
        return None
    payload = data[end - size : end]
    if masked:
        mask = data[at : at + 4]
        payload = bytes(byte ^ mask[place & 3] for place, byte in enumerate(payload))
    return data[0] & 15, payload, end
