"""The firehose's websocket: raw messages until it is closed; and one question, which event is the newest?

websocket-client does the handshake (over a connection that the guard allowed); the frames are read by `wsframes`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from typing import Any, Final, TypeAlias, cast
from urllib.parse import parse_qsl, urlsplit

import websocket

from relay.atproto.errors import AtprotoError, InvalidMessage
from relay.atproto.frames import ErrorFrame, InfoMessage, parse_frame
from relay.config.addresses import ws_form
from relay.errors import Blame, StreamError
from relay.net.address import InvalidAddress, Target, join_target, parse_target
from relay.net.answers import error_from_answer
from relay.net.errors import BadResponse, DeadlineExceeded, HostDown, NetError, Stopped, TooLarge
from relay.net.facts import parse_facts
from relay.net.guard import Guard
from relay.net.wire import Connection, Connector, Pool, default_tls, plain_error
from relay.net.wsframes import Close, MessageReader, OversizeMessage, Ping, Pong, TextMessage, WebsocketBroken
from relay.observe.log import get_logger

log = get_logger(__name__)

SUBSCRIBE_REPOS = "/xrpc/com.atproto.sync.subscribeRepos"
# A frame has at most 5 MB (PROTOCOL 1.2); a few may come before the first one with a seq.
_RECEIVED_BYTES = 16 * 1024 * 1024
_CONNECT_S = 10.0

# The protocol's limit is 5,000,000 (PROTOCOL 1.5); a little above it, so that a frame just over the limit is told apart by its reader.
MAX_MESSAGE_BYTES: Final = 5 * 1024 * 1024
PING_EVERY_S: Final = 30.0
MAX_REDIRECTS: Final = 3
_HEAD_BYTES = 64 * 1024
_SEND_S = 5.0
_NORMAL_CLOSURE = (1000).to_bytes(2, "big")

# A binary message is its bytes.
Received: TypeAlias = bytes | TextMessage | OversizeMessage


class StreamSilent(StreamError):
    """Nothing came for `firehose.idle_timeout_sec`, not even a pong."""

    reason, blame = "silent", Blame.HOST


class StreamClosed(StreamError):
    """The connection ended: `code` and the text are the server's, `code` None when it said nothing."""

    reason, blame = "closed", Blame.HOST

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class StreamBroken(StreamError):
    """The server breaks the rules of websockets."""

    reason, blame = "broken", Blame.HOST


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


class Subscription:
    """One connection to `subscribeRepos`. `open`, then `receive` again and again, from one thread; `close` from any.

    `cursor` None: live events only. Control frames are answered here; what comes back is what the server sends as messages.
    Memory: see `MessageReader`. Not to be opened twice.
    """

    def __init__(
        self,
        address: str,
        *,
        cursor: int | None,
        guard: Guard,
        user_agent: str,
        idle_timeout_s: float,
        ping_every_s: float = PING_EVERY_S,
        connect_timeout_s: float = _CONNECT_S,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`address`: any form of an origin. Raises InvalidAddress."""
        try:
            url = ws_form(address) + SUBSCRIBE_REPOS
        except ValueError as exc:
            raise InvalidAddress(f"{address[:200]!r}: {exc}") from None
        self._cursor = cursor
        self._target = parse_target(_as_http(url if cursor is None else f"{url}?cursor={cursor}"))
        self.host = str(self._target.origin)
        self._user_agent = user_agent
        self._idle_timeout_s = idle_timeout_s
        self._ping_every_s = min(ping_every_s, idle_timeout_s / 2)
        self._connect_timeout_s = connect_timeout_s
        self._pool = Pool(
            max_idle=1, idle_per_origin=1
        )  # knows the sockets, so that close() reaches them at any moment
        self._connector = Connector(guard, tls or default_tls(), self._pool)
        self._reader = MessageReader(max_message_bytes=max_message_bytes)
        self._connection: Connection | None = None
        self._poll = select.poll()
        self._closing = threading.Event()
        self._silent_s = 0.0  # how long we have waited in vain; what passes outside of receive() is our own slowness
        self._next_ping = 0.0  # monotonic
        self._ended: StreamError | None = None  # to be raised when what came before it is taken
        self.received_bytes = 0

    def open(self) -> None:
        """Connect and shake hands; redirects are followed, each through the guard.

        Raises NetError: RateLimited (429, Retry-After), HostDown (5xx too), BadResponse (another refusal, or no websocket),
        PrivateAddress, DeadlineExceeded, Stopped after `close`. Takes at most some `3 * connect_timeout_s` a redirect.
        """
        target = self._target
        for _ in range(MAX_REDIRECTS + 1):
            location = self._open_at(target)
            if location is None:
                return
            try:
                target = self._redirected(target, location)
            except InvalidAddress as exc:
                raise BadResponse(f"{target.origin}: a redirect to nowhere ({exc})", host=str(target.origin)) from exc
            log.info("firehose_redirected", host=self.host, to=str(target.origin))
        raise BadResponse(f"{self.host}: more than {MAX_REDIRECTS} redirects", host=self.host)

    def receive(self, wait_s: float) -> list[Received]:
        """Return the messages that are here, or came within `wait_s` seconds; none: nothing came. 0 only looks.

        Raises StreamClosed, StreamSilent, StreamBroken, after everything that came before was returned; Stopped after `close`.
        """
        if self._ended is not None:
            raise self._ended
        connection = self._connection
        if connection is None or self._closing.is_set():
            raise Stopped(f"{self.host}: stopping", host=self.host)
        deadline = time.monotonic() + wait_s
        while True:
            now = time.monotonic()
            if now >= self._next_ping:
                self._next_ping = now + self._ping_every_s
                self._send(connection, websocket.ABNF.OPCODE_PING, b"")
            left_s = max(0.0, min(deadline, self._next_ping) - now)
            left_s = min(left_s, self._idle_timeout_s - self._silent_s)
            count = self._read(connection, max(0.0, left_s))
            if count:
                self._silent_s = 0.0
                messages = self._take(connection, count)
                if messages:
                    return messages
            else:
                self._silent_s += time.monotonic() - now
                if self._silent_s >= self._idle_timeout_s:
                    raise StreamSilent(
                        f"{self.host}: silent for {self._idle_timeout_s:g} s (firehose.idle_timeout_sec)"
                    )
            if self._ended is not None:
                raise self._ended
            if time.monotonic() >= deadline:
                return []

    def close(self) -> None:
        """End the connection, from any thread and any number of times: `open` and `receive` then raise Stopped at once."""
        self._closing.set()
        self._pool.abort_all()

    def release(self) -> None:
        """Say goodbye if it can be done at once, and free the socket. By the thread that receives, when it is through."""
        connection = self._connection
        if connection is not None:
            self._connection = None
            if not self._closing.is_set():
                with contextlib.suppress(OSError, StreamError, Stopped):
                    connection.sock.send(_client_frame(websocket.ABNF.OPCODE_CLOSE, _NORMAL_CLOSURE))
            self._pool.drop(connection)

    def _open_at(self, target: Target) -> str | None:
        """Connect; return None when the websocket is open, the Location when the server sends us elsewhere."""
        origin, host = target.origin, str(target.origin)
        deadline = time.monotonic() + 3 * self._connect_timeout_s
        connection = self._connector.connect(origin, connect_timeout_s=self._connect_timeout_s, deadline=deadline)
        stream = websocket.WebSocket()
        kept = False
        try:
            bounded = _BoundedSocket(connection.sock, host, deadline, _HEAD_BYTES)
            stream.connect(  # type: ignore[no-untyped-call]
                _as_ws(str(target)),
                socket=cast(socket.socket, bounded),
                redirect_limit=0,  # a redirect would be followed past the guard
                suppress_origin=True,
                header=[f"User-Agent: {self._user_agent}"],
            )
            connection.sock.setblocking(False)
            self._connection = connection
            self._poll.register(connection.sock, select.POLLIN)
            self._next_ping = time.monotonic() + self._ping_every_s
            kept = True
            return None
        except websocket.WebSocketBadStatusException as exc:
            headers = Message()  # compares names without case
            for name, value in (exc.resp_headers or {}).items():
                headers[str(name)] = str(value)
            facts = parse_facts(headers, now=time.time())
            body = exc.resp_body if isinstance(exc.resp_body, bytes) else b""
            raise error_from_answer(host=host, status=exc.status_code, body=body, facts=facts) from exc
        except websocket.WebSocketException as exc:
            self._check_open(exc)
            answer = stream.handshake_response
            if answer is not None and answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
                location = answer.headers.get("location")
                if location:
                    return str(location)
            if isinstance(exc, websocket.WebSocketConnectionClosedException | websocket.WebSocketTimeoutException):
                raise HostDown(f"{host}: no answer to the websocket's handshake ({exc})", host=host) from exc
            raise BadResponse(f"{host}: not a websocket ({exc})", host=host) from exc
        except OSError as exc:
            self._check_open(exc)
            raise HostDown(f"{host}: the handshake failed ({plain_error(exc)})", host=host) from exc
        except (ValueError, KeyError, IndexError) as exc:
            # What websocket-client makes of a status line or a header that it cannot read.
            raise BadResponse(f"{host}: not a websocket ({type(exc).__name__}: {exc})", host=host) from exc
        finally:
            if not kept:
                self._pool.drop(connection)

    def _check_open(self, cause: BaseException) -> None:
        if self._closing.is_set():
            raise Stopped(f"{self.host}: stopping", host=self.host) from cause

    def _redirected(self, target: Target, location: str) -> Target:
        """Return where to go on. A Location that forgot the cursor must not make a hole of what we missed."""
        new = join_target(target, _as_http(location))
        names = {name for name, _ in parse_qsl(urlsplit(new.path).query)}
        if self._cursor is None or "cursor" in names:
            return new
        return parse_target(f"{new}{'&' if '?' in new.path else '?'}cursor={self._cursor}")

    def _read(self, connection: Connection, wait_s: float) -> int:
        """Read once into the reader's room; 0: nothing came within `wait_s` seconds, or the connection has ended."""
        sock = connection.sock
        has_more = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        if not has_more and not self._poll.poll(wait_s * 1000):
            return 0
        try:
            with self._reader.room() as room:
                count = sock.recv_into(room)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0  # TLS had something to say, but no data for us
        except OSError as exc:
            self._check_open(exc)
            self._ended = StreamClosed(f"{self.host}: the connection failed ({plain_error(exc)})")
            return 0
        if not count:
            if self._closing.is_set():
                raise Stopped(f"{self.host}: stopping", host=self.host)
            self._ended = StreamClosed(f"{self.host}: the connection ended without a word")
        self.received_bytes += count
        return count

    def _take(self, connection: Connection, count: int) -> list[Received]:
        messages: list[Received] = []
        try:
            items = self._reader.wrote(count)
        except WebsocketBroken as exc:
            items = exc.args[1]
            self._ended = StreamBroken(f"{self.host}: {exc.args[0]}")
        for item in items:
            if isinstance(item, bytes):
                messages.append(item)
            elif isinstance(item, Ping):
                self._send(connection, websocket.ABNF.OPCODE_PONG, item.data)
            elif isinstance(item, Close):
                with contextlib.suppress(StreamError, OSError):
                    self._send(connection, websocket.ABNF.OPCODE_CLOSE, _NORMAL_CLOSURE)
                code = "without a code" if item.code is None else f"with code {item.code}"
                text = f"{self.host}: closed {code}" + (f" ({item.reason[:200]})" if item.reason else "")
                self._ended = StreamClosed(text, item.code)
            elif not isinstance(item, Pong):
                messages.append(item)
        return messages

    def _send(self, connection: Connection, opcode: int, data: bytes) -> None:
        """Send one control frame, whole. A server that does not take it within some seconds is lost."""
        frame = _client_frame(opcode, data)
        deadline = time.monotonic() + _SEND_S
        writable = select.poll()
        writable.register(connection.sock, select.POLLOUT)
        while frame:
            try:
                frame = frame[connection.sock.send(frame) :]
                continue
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            except OSError as exc:
                self._check_open(exc)
                # What it sent before may still be there to read; the read then finds the end.
                log.debug("firehose_send_failed", host=self.host, error=plain_error(exc))
                return
            if time.monotonic() >= deadline:
                self._ended = StreamClosed(f"{self.host}: takes nothing, not even a ping")
                return
            writable.poll(100)
            self._check_open(TimeoutError())


def _client_frame(opcode: int, data: bytes) -> bytes:
    return bytes(websocket.ABNF.create_frame(data, opcode).format())


def _as_http(url: str) -> str:
    """`ws://` and `wss://` as the guard and the connector know them; anything else as it is."""
    return "http" + url[2:] if url[:5].lower() in ("ws://", "wss:/") else url


def _as_ws(url: str) -> str:
    return "ws" + url.removeprefix("http")
