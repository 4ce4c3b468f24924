"""The server's half of subscribeRepos: websocket frames by hand, one subscriber a connection, replay from the event log."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay.simnet.answers import Request, Response
from relay.simnet.events import Event, EventLog, error_frame, frame
from relay.simnet.faults import STREAM_FAULTS, SUBSCRIPTION_FAULTS, Fault, FaultKind, FaultPlan, Place
from relay.simnet.pds import xrpc_error

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_FIN = 0x80
_POLICY, _GOING_AWAY = 1008, 1001  # close codes
_REPEATED_EVENTS = 16
_ENDPOINT = "subscribeRepos"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What subscribers read: the log, the plan in force, and how many events a live one may be behind (`outbox_events`).

    `on_lost` hears of events that a subscriber got too late to take them; `host` is the server's number in a fault plan.
    """

    log: EventLog
    plan: Callable[[], FaultPlan]
    outbox_events: int
    host: int
    on_lost: Callable[[Sequence[Event]], None] = lambda _events: None


def subscribe(request: Request, source: Source) -> Response:
    """Return the upgraded connection, or the refusal: 426 without an upgrade, 400 for a bad cursor."""
    key = request.header("sec-websocket-key")
    if "websocket" not in request.header("upgrade").lower() or not key:
        return xrpc_error(426, "UpgradeRequired", "subscribeRepos is a websocket")
    text = request.param("cursor")
    if text is not None and not text.isdigit():
        return xrpc_error(400, "InvalidRequest", "cursor must be an integer")
    return Response(status=101, feed=Subscriber(source, key, None if text is None else int(text)))


class Subscriber:
    """One consumer: where it stands in the log, and the websocket's rules. Pulls, so nothing is queued for a slow one.

    A consumer that has caught up and then falls more than `outbox_events` behind, or out of the window, gets ConsumerTooSlow.
    """

    def __init__(self, source: Source, key: str, cursor: int | None) -> None:
        accept = base64.b64encode(hashlib.sha1(key.encode() + _MAGIC).digest()).decode()
        self.handshake: tuple[tuple[str, str], ...] = (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept),
        )
        self.finished = False
        self.reset = False
        self._source = source
        self._log = source.log
        self._in = b""
        self._first = b""
        self._held: list[Event] = []  # to be sent behind the next event
        self._hold = 0  # how many more are to be held
        self._silent_until = 0.0  # monotonic seconds
        self._struck_seq = 0  # a fault has had its turn with the events up to this one
        self._is_live = False
        self._seq = self._log.newest_seq if cursor is None else self._begin(cursor)

    def pull(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        if self.finished or self._is_silent():
            return b""
        if self._is_too_slow():
            return self._end("ConsumerTooSlow", "Stream consumer too slow")
        events = self._log.after(self._seq)
        if not events:
            self._is_live = True
            return b""
        plan = self._source.plan()
        if self._held or self._hold or plan.has(STREAM_FAULTS):
            return b"".join([self._send(event, plan) for event in events if not (self.finished or self._is_silent())])
        self._seq = events[-1].seq
        return b"".join([_message(event.frame) for event in events])

    def keepalive(self) -> bytes:
        """Return a ping: what a server sends on a stream that has been still for a while."""
        return b"" if self.finished or self._is_silent() else _control(_PING, b"")

    def received(self, data: bytes) -> bytes:
        """Answer pings and closes; what else a client says is ignored, as real relays do."""
        self._in += data
        answer = b""
        while (item := _client_frame(self._in)) is not None:
            opcode, payload, size = item
            self._in = self._in[size:]
            if self._is_silent():
                continue
            if opcode == _PING:
                answer += _control(_PONG, payload)
            elif opcode == _CLOSE:
                answer += _control(_CLOSE, payload[:2])
                self.finished = True
        return answer

    def closed(self) -> None:
        self.finished = True

    def _begin(self, cursor: int) -> int:
        """Return the seq after which the stream goes on, and put what is to be told first into `_first`."""
        plan, place = self._source.plan(), Place(endpoint=_ENDPOINT, host=self._source.host)
        fault = plan.pick(SUBSCRIPTION_FAULTS, place)
        kind = None if fault is None else fault.kind
        if fault is not None and kind is FaultKind.LOSE_WINDOW:
            self._log.lose(fault.count)
        is_future = cursor > self._log.newest_seq
        is_outdated = cursor < self._log.lost_seq
        if fault is not None and kind is FaultKind.SILENT_CURSOR:
            if not is_future and not is_outdated:
                plan.take_back(fault, place)
            return cursor
        if is_future or kind is FaultKind.FUTURE_CURSOR:
            self._first = self._end("FutureCursor", "Cursor in the future.")
        elif is_outdated or kind is FaultKind.OUTDATED_CURSOR:
            text = "Requested cursor exceeded limit. Possibly missing events"
            self._first = _message(frame("info", {"name": "OutdatedCursor", "message": text}))
            return 0
        return cursor

    def _is_silent(self) -> bool:
        return time.monotonic() < self._silent_until

    def _is_too_slow(self) -> bool:
        if not self._is_live:
            return False
        return self._log.newest_seq - self._seq > self._source.outbox_events or self._seq < self._log.lost_seq

    def _end(self, error: str, message: str) -> bytes:
        """Return an error frame and the close frame behind it; nothing more will be sent."""
        self.finished = True
        return _message(error_frame(error, message)) + _close(_POLICY, error)

    def _send(self, event: Event, plan: FaultPlan) -> bytes:
        """Return what is sent in the turn of this event."""
        if self._hold:
            self._hold -= 1
            self._held.append(event)
            self._seq = event.seq
            return b""
        place = Place(endpoint=_ENDPOINT, host=self._source.host, did=event.did)
        fault = plan.pick(STREAM_FAULTS, place) if event.seq > self._struck_seq else None
        self._struck_seq = max(self._struck_seq, event.seq)
        if fault is not None and fault.kind is FaultKind.REORDER:
            if not self._held:
                self._hold = max(0, fault.count - 1)
                self._held = [event]
                self._seq = event.seq
                return b""
            plan.take_back(fault, place)
            fault = None
        data = _message(event.frame) if fault is None else self._send_badly(event, fault)
        if self.finished or self._is_silent():
            return data
        self._seq = event.seq
        if self._held:
            held, self._held = self._held, []
            self._source.on_lost(held)
            data += b"".join([_message(late.frame) for late in held])
        return data

    def _send_badly(self, event: Event, fault: Fault) -> bytes:
        message = _message(event.frame)
        match fault.kind:
            case FaultKind.STREAM_CUT:
                self.finished = True
                return message[: min(fault.bytes or len(message) // 2, len(message) - 1)]
            case FaultKind.STREAM_RESET:
                self.finished = self.reset = True
                return b""
            case FaultKind.STREAM_CLOSE:
                self.finished = True
                return _close(fault.count or _GOING_AWAY, "")
            case FaultKind.STREAM_SILENCE:
                self._silent_until = time.monotonic() + fault.seconds if fault.seconds else float("inf")
                return b""
            case FaultKind.STREAM_TOO_SLOW:
                return self._end("ConsumerTooSlow", "Stream consumer too slow")
            case FaultKind.REPEAT_RANGE:
                earlier = self._log.until(event.seq, fault.count or _REPEATED_EVENTS)
                return message + b"".join([_message(again.frame) for again in earlier])
            case FaultKind.CORRUPT_FRAME:
                return _message(b"\xff" + event.frame[1:])
            case FaultKind.TEXT_FRAME:
                return _message(b"hello", opcode=_TEXT) + message
            case _:
                return _fragmented(event.frame)


def _message(data: bytes, *, opcode: int = _BINARY, flags: int = _FIN) -> bytes:
    size = len(data)
    if size < 126:
        return bytes((flags | opcode, size)) + data
    if size < 65536:
        return bytes((flags | opcode, 126)) + size.to_bytes(2, "big") + data
    return bytes((flags | opcode, 127)) + size.to_bytes(8, "big") + data


def _fragmented(data: bytes) -> bytes:
    """Return one message in three parts, and a ping between them. Source: RFC 6455, section 5.4."""
    first, second = len(data) // 3, len(data) // 3 * 2
    return (
        _message(data[:first], flags=0)
        + _control(_PING, b"between")
        + _message(data[first:second], opcode=_CONTINUATION, flags=0)
        + _message(data[second:], opcode=_CONTINUATION)
    )


def _control(opcode: int, data: bytes) -> bytes:
    return bytes((_FIN | opcode, len(data[:125]))) + data[:125]


def _close(code: int, reason: str) -> bytes:
    return _control(_CLOSE, code.to_bytes(2, "big") + reason.encode())


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
