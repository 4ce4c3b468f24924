"""A small HTTP/1.1 server: one thread, many loopback ports, and answers that can be slow, cut, endless or absent.

Not `http.server`, because a benchmark runs beside it: an answer from memory costs about 50 us here and 400 there. All apps run
in the loop's thread, one request at a time. Bounds: 4,096 connections, 64 KiB of request head, 1 MiB of request body.
"""

from __future__ import annotations

import heapq
import json
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Protocol
from urllib.parse import parse_qs

from relay.observe.log import get_logger
from relay.runtime.service import ServiceThread

log = get_logger(__name__)

MAX_CONNECTIONS = 4096
MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 1024 * 1024
_RECEIVE_BYTES = 64 * 1024
_SEND_BUFFER_BYTES = 1024 * 1024  # most CARs leave in one call
_SLICE_S = 0.05  # a slow answer is sent in slices of this length
NEVER = float("inf")

_REASONS = {
    101: "Switching Protocols",
    200: "OK",
    302: "Found",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    410: "Gone",
    429: "Too Many Requests",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request; `head` is everything before the body, for the few who need a header."""

    method: str
    path: str
    query: str
    head: bytes
    body: bytes

    def param(self, name: str) -> str | None:
        """Return a query parameter, the first if it is repeated; None when absent."""
        values = parse_qs(self.query, keep_blank_values=True).get(name)
        return values[0] if values else None

    def header(self, name: str) -> str:
        """Return a header's value, empty when absent."""
        wanted = name.lower().encode() + b":"
        for line in self.head.split(b"\r\n")[1:]:
            if line.lower().startswith(wanted):
                return line[len(wanted) :].strip().decode("latin-1")
        return ""


class Feed(Protocol):
    """The server's half of an upgraded connection (a websocket). All calls come from the loop's thread."""

    handshake: tuple[tuple[str, str], ...]
    finished: bool  # after sending what is left: close

    def received(self, data: bytes) -> bytes:
        """Take bytes of the client; return what to answer at once."""

    def pull(self) -> bytes:
        """Return the next bytes to send, empty when there are none now. Called again after each `HttpServer.wake_feeds`."""

    def closed(self) -> None:
        """The connection is gone."""


@dataclass(slots=True, kw_only=True)
class Response:
    """An answer, and how badly it is given. `body` may be an iterator: then it is sent chunked, as it comes."""

    status: int = 200
    body: bytes | Iterator[bytes] = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    chunked: bool = False  # also for bytes
    delay_s: float = 0.0  # before the first byte; NEVER: no answer at all
    bytes_per_s: float | None = None  # of the body
    cut_at: int | None = None  # close after so many bytes of the body, whatever the header promised
    reset: bool = False  # close without an answer, with a TCP reset
    feed: Feed | None = None


App = Callable[[Request], Response]


def json_response(value: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return Response(status=status, body=json.dumps(value, ensure_ascii=False).encode(), headers=headers)


class HttpServer(ServiceThread):
    """The loop. `listen` and `silence` may be called from any thread, before and after `start`."""

    def __init__(self, name: str = "simnet-http") -> None:
        super().__init__(name)
        self._selector = selectors.DefaultSelector()
        self._calls: deque[Callable[[], None]] = deque()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain_waker)
        self._listeners: dict[int, list[socket.socket]] = {}
        self._connections: set[_Connection] = set()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self.failures: list[str] = []  # exceptions of apps: a bug of ours, which tests look for
        self._date = ("", 0.0)

    # From any thread

    def listen(self, app: App, port: int = 0) -> int:
        """Serve `app` on a loopback port (0: any free one), IPv6 as well where that works; return the port."""
        sockets = [_listening(socket.AF_INET, "127.0.0.1", port)]
        port = sockets[0].getsockname()[1]
        try:
            # A client that resolves `localhost` may try ::1 first.
            sockets.append(_listening(socket.AF_INET6, "::1", port))
        except OSError as exc:
            log.debug("no_ipv6_loopback", port=port, error=str(exc))
        self.call(lambda: self._add_listeners(port, sockets, app))
        return port

    def silence(self, port: int) -> None:
        """Close a port and its connections: connecting is refused from now on."""
        self.call(lambda: self._remove_listeners(port))

    def call(self, action: Callable[[], None]) -> None:
        """Run something in the loop's thread."""
        self._calls.append(action)
        self.wake()

    def wake_feeds(self) -> None:
        """Let every feed look for something new to send."""
        self.call(self._pump_feeds)

    def wake(self) -> None:
        try:
            self._waker.send(b"w")
        except BlockingIOError:
            pass  # a full pipe wakes as well
        except OSError as exc:
            log.debug("wake_after_end", error=str(exc))

    # The loop's thread

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self._run_once()
        finally:
            for connection in tuple(self._connections):
                connection.close()
            for port in tuple(self._listeners):
                self._remove_listeners(port)
            self._selector.close()
            self._waker.close()
            self._woken.close()

    def _run_once(self) -> None:
        while self._calls:
            self._calls.popleft()()
        timeout = None
        if self._timers:
            timeout = max(0.0, self._timers[0][0] - time.monotonic())
        for key, mask in self._selector.select(timeout):
            key.data(mask)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run something in the loop later."""
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._timer_count, action))

    def date(self) -> str:
        """Return the Date header's value, made once a second."""
        now = time.monotonic()
        if now >= self._date[1]:
            self._date = (formatdate(usegmt=True), now + 1)
        return self._date[0]

    def _drain_waker(self, _mask: int) -> None:
        try:
            self._woken.recv(4096)
        except BlockingIOError:
            pass

    def _add_listeners(self, port: int, sockets: list[socket.socket], app: App) -> None:
        self._listeners[port] = sockets
        for listener in sockets:
            self._selector.register(
                listener, selectors.EVENT_READ, lambda _mask, listener=listener: self._accept(listener, port, app)
            )

    def _remove_listeners(self, port: int) -> None:
        for listener in self._listeners.pop(port, ()):
            self._selector.unregister(listener)
            listener.close()
        for connection in tuple(self._connections):
            if connection.port == port:
                connection.close()

    def _accept(self, listener: socket.socket, port: int, app: App) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as exc:
            log.debug("accept_failed", error=str(exc))
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(_Connection(self, sock, port, app))

    def _pump_feeds(self) -> None:
        for connection in tuple(self._connections):
            connection.pump_feed()

    # For connections

    def register(self, connection: _Connection) -> None:
        self._selector.register(connection.sock, selectors.EVENT_READ, connection.on_event)

    def want_write(self, connection: _Connection, wanted: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
        self._selector.modify(connection.sock, events, connection.on_event)

    def forget(self, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        self._connections.discard(connection)


class _Connection:
    """One client. Answers one request at a time; what the client sends meanwhile waits."""

    __slots__ = (
        "_app",
        "_body_left",
        "_chunked",
        "_close_after",
        "_feed",
        "_in",
        "_out",
        "_paced",
        "_server",
        "_source",
        "_waiting",
        "_writing",
        "busy",
        "closed",
        "port",
        "sock",
    )

    def __init__(self, server: HttpServer, sock: socket.socket, port: int, app: App) -> None:
        self.sock = sock
        self.port = port
        self.busy = False
        self.closed = False
        self._server = server
        self._app = app
        self._in = b""
        self._out: deque[memoryview] = deque()
        self._source: Iterator[bytes] | None = None
        self._chunked = False
        self._body_left: int | None = None  # bytes of the body until the cut
        self._paced: float | None = None
        self._close_after = False
        self._feed: Feed | None = None
        self._waiting = False  # for the next slice of a slow answer
        self._writing = False
        server.register(self)

    def on_event(self, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            self._receive()
        if mask & selectors.EVENT_WRITE and not self.closed:
            self._send()

    def close(self, *, reset: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        self._server.forget(self)
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self._out.clear()
        self._source = None
        if self._feed is not None:
            self._feed.closed()

    def _receive(self) -> None:
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        if self._feed is not None:
            self._reply(self._feed.received(data))
            return
        self._in += data
        if len(self._in) > MAX_HEAD_BYTES + MAX_BODY_BYTES:
            self.close(reset=True)
        elif not self.busy:
            self._take_request()

    def _take_request(self) -> None:
        end = self._in.find(b"\r\n\r\n")
        if end < 0:
            if len(self._in) > MAX_HEAD_BYTES:
                self.close(reset=True)
            return
        head = self._in[:end]
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3:
            self.close(reset=True)
            return
        method, target, version = words
        path, _, query = target.partition("?")
        request = Request(method, path, query, head, b"")
        body_bytes = 0
        if method == "POST":
            length = request.header("content-length")
            body_bytes = int(length) if length.isdigit() else 0
            if body_bytes > MAX_BODY_BYTES:
                self.close(reset=True)
                return
        start = end + 4
        if len(self._in) < start + body_bytes:
            return
        if body_bytes:
            request = Request(method, path, query, head, self._in[start : start + body_bytes])
        self._in = self._in[start + body_bytes :]
        self.busy = True
        # Looking for the token in the whole head is cheaper than parsing headers; only a client that means it sends it.
        self._close_after = version == "HTTP/1.0" or b"onnection: close" in head
        try:
            response = self._app(request)
        except Exception as exc:
            self._server.failures.append(f"{method} {target}: {type(exc).__name__}: {exc}")
            log.error("app_failed", path=target, error=f"{type(exc).__name__}: {exc}", exc_info=True)
            response = Response(status=500, body=b'{"error":"InternalServerError"}')
        self._answer(response)

    def _answer(self, response: Response) -> None:
        if response.reset:
            self.close(reset=True)
        elif response.delay_s == NEVER:
            return  # until the client gives up
        elif response.delay_s > 0:
            self._server.after(response.delay_s, lambda: self._begin(response))
        else:
            self._begin(response)

    def _begin(self, response: Response) -> None:
        if self.closed:
            return
        body = response.body
        feed = response.feed
        chunked = feed is None and (response.chunked or not isinstance(body, bytes))
        lines = [
            f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Status')}",
            f"Date: {self._server.date()}",
        ]
        if feed is not None:
            lines += [f"{name}: {value}" for name, value in feed.handshake]
        else:
            lines.append(f"Content-Type: {response.content_type}")
            lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")  # type: ignore[arg-type]
            if self._close_after:
                lines.append("Connection: close")
        lines += [f"{name}: {value}" for name, value in response.headers]
        self._out.append(memoryview("\r\n".join([*lines, "", ""]).encode("latin-1")))
        if feed is not None:
            self._feed = feed
            if self._in:
                rest, self._in = self._in, b""
                self._out.append(memoryview(feed.received(rest)))
            self._send()
            return
        self._body_left = response.cut_at
        self._paced = response.bytes_per_s
        self._chunked = chunked
        if isinstance(body, bytes) and not chunked and self._paced is None:
            self._queue_body(body)
        else:
            self._source = iter((body,)) if isinstance(body, bytes) else body
            if self._paced is not None:
                self._source = _sliced(self._source, max(1, int(self._paced * _SLICE_S)))
        self._send()

    def _queue_body(self, data: bytes) -> None:
        if self._body_left is not None:
            data = data[: self._body_left]
            self._body_left -= len(data)
            if self._body_left == 0:
                self._close_after = True
                self._source = None
        if not data:
            return
        if self._chunked:
            self._out.append(memoryview(b"%x\r\n" % len(data)))
            self._out.append(memoryview(data))
            self._out.append(memoryview(b"\r\n"))
        else:
            self._out.append(memoryview(data))

    def _queue_next(self) -> bool:
        """Queue the next piece of what is to be sent; False when there is none now."""
        if self._feed is not None:
            data = self._feed.pull()
            if data:
                self._out.append(memoryview(data))
            return bool(data)
        if self._source is None or self._waiting:
            return False
        piece = next(self._source, None)
        if piece is None:
            self._source = None
            if self._chunked:
                self._out.append(memoryview(b"0\r\n\r\n"))
            return self._chunked
        self._queue_body(piece)
        if self._paced is not None:
            self._waiting = True
            self._server.after(_SLICE_S, self._waited)
        return True

    def _waited(self) -> None:
        self._waiting = False
        if not self.closed and not self._writing:
            self._send()

    def _send(self) -> None:
        try:
            while self._out or self._queue_next():
                while self._out:
                    sent = self.sock.sendmsg(list(self._out)[:16])
                    while self._out and sent >= len(self._out[0]):
                        sent -= len(self._out.popleft())
                    if sent:
                        self._out[0] = self._out[0][sent:]
        except BlockingIOError:
            self._set_writing(True)
            return
        except OSError:
            self.close()
            return
        self._set_writing(False)
        if not self._waiting:
            self._finish()

    def _finish(self) -> None:
        """Everything queued has been sent."""
        if self._feed is not None:
            if self._feed.finished:
                self.close()
            return
        if self._close_after:
            self.close()
            return
        self.busy = False
        if self._in:
            self._take_request()

    def pump_feed(self) -> None:
        if self._feed is not None and not self._writing and not self.closed:
            self._send()

    def _reply(self, data: bytes) -> None:
        if data:
            self._out.append(memoryview(data))
        if not self._writing:
            self._send()

    def _set_writing(self, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            self._server.want_write(self, wanted)


def _sliced(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), size):
            yield piece[start : start + size]


def _listening(family: int, address: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.setblocking(False)
        listener.bind((address, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener
