"""One client of the server: takes a request, lets the app answer, and sends the answer as well or as badly as it says."""

from __future__ import annotations

import selectors
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from relay.observe.log import get_logger
from relay.simnet.answers import NEVER, App, Feed, Request, Response

log = get_logger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 1024 * 1024
_RECEIVE_BYTES = 64 * 1024
_SLICE_S = 0.05  # a slow answer is sent in slices of this length
_KEEPALIVE_S = 30.0  # between the pings of a stream

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


class Loop(Protocol):
    """What a connection needs of the loop that it lives in."""

    failures: list[str]

    def register(self, connection: Connection) -> None: ...
    def forget(self, connection: Connection) -> None: ...
    def want_write(self, connection: Connection, wanted: bool) -> None: ...
    def after(self, delay_s: float, action: Callable[[], None]) -> None: ...
    def date(self) -> str: ...


class Connection:
    """One client. Answers one request at a time; what the client sends meanwhile waits."""

    __slots__ = (
        "_app",
        "_body_left",
        "_chunked",
        "_close_after",
        "_feed",
        "_in",
        "_loop",
        "_out",
        "_paced",
        "_source",
        "_waiting",
        "_writing",
        "busy",
        "closed",
        "port",
        "sock",
    )

    def __init__(self, loop: Loop, sock: socket.socket, port: int, app: App) -> None:
        self.sock = sock
        self.port = port
        self.busy = False
        self.closed = False
        self._loop = loop
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
        loop.register(self)

    def on_event(self, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            self._receive()
        if mask & selectors.EVENT_WRITE and not self.closed:
            self._send()

    def close(self, *, reset: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.forget(self)
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
            self._loop.failures.append(f"{method} {target}: {type(exc).__name__}: {exc}")
            log.error("app_failed", path=target, error=f"{type(exc).__name__}: {exc}", exc_info=True)
            response = Response(status=500, body=b'{"error":"InternalServerError"}')
        self._answer(response)

    def _answer(self, response: Response) -> None:
        if response.reset:
            self.close(reset=True)
        elif response.delay_s == NEVER:
            return  # until the client gives up
        elif response.delay_s > 0:
            self._loop.after(response.delay_s, lambda: self._begin(response))
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
            f"Date: {self._loop.date()}",
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
            self._loop.after(_KEEPALIVE_S, self._keep_alive)
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
            self._loop.after(_SLICE_S, self._waited)
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
                self.close(reset=self._feed.reset)
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

    def _keep_alive(self) -> None:
        if self._feed is not None and not self.closed:
            if not self._writing:
                self._reply(self._feed.keepalive())
            self._loop.after(_KEEPALIVE_S, self._keep_alive)

    def _reply(self, data: bytes) -> None:
        if data:
            self._out.append(memoryview(data))
        if not self._writing:
            self._send()

    def _set_writing(self, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            self._loop.want_write(self, wanted)


def _sliced(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), size):
            yield piece[start : start + size]
