"""The firehose's websocket, for one question so far: which event is the newest?"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any, cast

import websocket

from relay.atproto.errors import AtprotoError, InvalidMessage
from relay.atproto.frames import ErrorFrame, InfoMessage, parse_frame
from relay.config.addresses import ws_form
from relay.net.address import InvalidAddress, parse_target
from relay.net.errors import DeadlineExceeded, NetError, TooLarge
from relay.net.guard import Guard
from relay.net.wire import Connector, Pool, default_tls
from relay.observe.log import get_logger

log = get_logger(__name__)

SUBSCRIBE_REPOS = "/xrpc/com.atproto.sync.subscribeRepos"
# A frame has at most 5 MB (PROTOCOL 1.2); a few may come before the first one with a seq.
_RECEIVED_BYTES = 16 * 1024 * 1024
_CONNECT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestEvent:
    """The first event of a stream that was opened without a cursor. `time_us`: its own time; None where it has none."""

    seq: int
    time_us: int | None


class _BoundedSocket:
    """A socket for websocket-client that obeys one deadline (monotonic seconds) and one limit of received bytes.

    The library has neither: its timeout is one of each read, and it believes the length in a frame's header.
    """

    def __init__(self, sock: socket.socket, host: str, deadline: float, max_bytes: int) -> None:
        self._sock = sock
        self._host = host
        self._deadline = deadline
        self._left = max_bytes

    def recv(self, size: int) -> bytes:
        self._prepare()
        data = self._sock.recv(size)
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge(f"{self._host}: more bytes than a firehose's first event can have", host=self._host)
        return data

    def send(self, data: bytes) -> int:
        self._prepare()
        return self._sock.send(data)

    def _prepare(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise DeadlineExceeded(f"{self._host}: no event in time", host=self._host)
        self._sock.settimeout(remaining)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def fetch_newest_event(
    address: str, *, guard: Guard, user_agent: str, timeout_s: float, tls: ssl.SSLContext | None = None
) -> NewestEvent | None:
    """Subscribe to `address` (any form of an origin) without a cursor and return the first event that has a seq.

    Best effort, for a cursor to begin at: None, with a line in the log, when no event came within `timeout_s` seconds (a quiet
    PDS), or the stream cannot be had. Raises nothing but InvalidAddress.
    """
    try:
        url = ws_form(address) + SUBSCRIBE_REPOS
    except ValueError as exc:
        raise InvalidAddress(f"{address[:200]!r}: {exc}") from None
    origin = parse_target("http" + url.removeprefix("ws")).origin
    host = str(origin)
    deadline = time.monotonic() + timeout_s
    connector = Connector(guard, tls or default_tls(), Pool(max_idle=1, idle_per_origin=1))
    try:
        connection = connector.connect(origin, connect_timeout_s=min(_CONNECT_S, timeout_s), deadline=deadline)
        try:
            bounded = _BoundedSocket(connection.sock, host, deadline, _RECEIVED_BYTES)
            stream = websocket.WebSocket()
            stream.connect(  # type: ignore[no-untyped-call]
                url,
                socket=cast(socket.socket, bounded),
                redirect_limit=0,  # a redirect would be followed past the guard
                suppress_origin=True,
                header=[f"User-Agent: {user_agent}"],
            )
            while True:
                frame = stream.recv()
                if not isinstance(frame, bytes):
                    log.info("newest_seq_unknown", host=host, error="closed, or not a firehose")
                    return None
                try:
                    message = parse_frame(frame)
                except InvalidMessage as exc:
                    # One account's bad message has a seq like any other.
                    if exc.seq is not None:
                        return NewestEvent(seq=exc.seq, time_us=None)
                    continue
                match message:
                    case ErrorFrame():
                        log.info("newest_seq_unknown", host=host, error=f"{message.error}: {message.message}")
                        return None
                    case InfoMessage():
                        continue
                if message.seq is not None:
                    return NewestEvent(seq=message.seq, time_us=getattr(message, "time_us", None))
        finally:
            connection.close()
    except (NetError, OSError, websocket.WebSocketException, AtprotoError) as exc:
        log.info("newest_seq_unknown", host=host, error=f"{type(exc).__name__}: {exc}")
        return None
