"""A small HTTP/1.1 server: one thread, many loopback ports, and answers that can be slow, cut, endless or absent.

Not `http.server`, because a benchmark runs beside it: an answer from memory costs 80 to 130 us here. All apps run in the loop's
thread, one request at a time. Bounds: 4,096 connections; of each, 64 KiB of request head and 1 MiB of request body.
"""

from __future__ import annotations

import heapq
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate

from relay.observe.log import get_logger
from relay.runtime.service import ServiceThread
from relay.simnet.answers import App
from relay.simnet.connection import Connection

log = get_logger(__name__)

MAX_CONNECTIONS = 4096
_SEND_BUFFER_BYTES = 1024 * 1024  # most CARs leave in one call


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
        self._connections: set[Connection] = set()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._feeds_called = False
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

    def cut(self, port: int) -> None:
        """Close the connections of a port; it goes on to listen."""
        self.call(lambda: self._close_connections(port))

    def call(self, action: Callable[[], None]) -> None:
        """Run something in the loop's thread."""
        self._calls.append(action)
        self.wake()

    def wake_feeds(self) -> None:
        """Let every feed look for something new to send."""
        if not self._feeds_called:
            self._feeds_called = True
            self.call(self._pump_feeds)

    def wake(self) -> None:
        try:
            self._waker.send(b"w")
        except BlockingIOError:
            pass  # a full pipe wakes as well
        except OSError as exc:
            log.debug("wake_after_end", error=str(exc))

    # The loop's thread

    def discard(self) -> None:
        """Close everything of a server that has ended, or was never started."""
        while self._calls:
            self._calls.popleft()()
        self._close_all()

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self._run_once()
        finally:
            self.discard()  # stopped at once, it has not even taken its listeners over

    def _close_all(self) -> None:
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
        self._close_connections(port)

    def _close_connections(self, port: int) -> None:
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
        self._connections.add(Connection(self, sock, port, app))

    def _pump_feeds(self) -> None:
        self._feeds_called = False  # before the feeds look: what is added now calls again
        for connection in tuple(self._connections):
            connection.pump_feed()

    # For connections

    def register(self, connection: Connection) -> None:
        self._selector.register(connection.sock, selectors.EVENT_READ, connection.on_event)

    def want_write(self, connection: Connection, wanted: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
        self._selector.modify(connection.sock, events, connection.on_event)

    def forget(self, connection: Connection) -> None:
        self._selector.unregister(connection.sock)
        self._connections.discard(connection)


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
