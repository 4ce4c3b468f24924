"""A TCP proxy between two parts of the system that can cut, stall, slow down, or refuse connections.

One thread does everything. What a stalled proxy has read and not passed on is at most 64 KiB a direction.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

import pytest

_PIECE_BYTES = 64 * 1024
_SLICE_S = 0.02
_STOP_S = 5.0


class Proxy:
    """`with Proxy("127.0.0.1", 5432) as proxy: connect("127.0.0.1", proxy.port)`. Controls may be called from any thread."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = _listening(0)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.RLock()  # guards everything below, and the selector
        self._pairs: list[_Pair] = []
        self._stalled = False
        self._bytes_per_s: float | None = None
        self._cut_after: int | None = None
        self._connections = 0
        self._bytes_up = 0
        self._bytes_down = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join(_STOP_S)
        assert not self._thread.is_alive(), "the proxy's thread does not end"
        self.refuse()
        self._selector.close()

    # Counters: read under the lock, so that bytes which a client has received are counted

    @property
    def connections(self) -> int:
        with self._lock:
            return self._connections

    @property
    def bytes_up(self) -> int:
        """Bytes from the clients."""
        with self._lock:
            return self._bytes_up

    @property
    def bytes_down(self) -> int:
        with self._lock:
            return self._bytes_down

    # Controls

    def cut(self) -> None:
        """Reset every connection there is; new ones are accepted."""
        with self._lock:
            for pair in tuple(self._pairs):
                self._drop(pair)

    def cut_after(self, size_bytes: int) -> None:
        """Reset the connection that next passes so many bytes in all, both directions counted; then go on as usual."""
        with self._lock:
            self._cut_after = size_bytes

    def refuse(self) -> None:
        """Refuse new connections and reset those there are: the other side seems dead."""
        with self._lock:
            if self._listener is not None:
                self._listener.close()
                self._listener = None
            self.cut()

    def accept(self) -> None:
        """Listen again, on the same port."""
        with self._lock:
            if self._listener is None:
                self._listener = _listening(self.port)

    def stall(self) -> None:
        """Pass nothing on; connections stay open, and the kernel accepts new ones: the other side seems hung."""
        with self._lock:
            self._stalled = True

    def slow(self, bytes_per_s: float) -> None:
        """Pass at most so many bytes a second in each direction of each connection."""
        with self._lock:
            self._bytes_per_s = bytes_per_s

    def resume(self) -> None:
        """Pass everything on at full speed again."""
        with self._lock:
            self._stalled, self._bytes_per_s = False, None

    # The thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                waiting = self._watched()
                for sock, mask in waiting:
                    self._selector.register(sock, mask)
                ready: set[object] = {key.fileobj for key, _ in self._selector.select(0)}
                for sock, _ in waiting:
                    self._selector.unregister(sock)
                busy = self._step(ready)
            if not busy:
                # Short, because the controls change what is watched, and simple is more than fast here.
                self._stopping.wait(_SLICE_S / 10)

    def _watched(self) -> list[tuple[socket.socket, int]]:
        watched: list[tuple[socket.socket, int]] = []
        if self._listener is not None and not self._stalled:
            watched.append((self._listener, selectors.EVENT_READ))
        if not self._stalled:
            watched += [(sock, selectors.EVENT_READ) for pair in self._pairs for sock in pair.readable()]
        return watched

    def _step(self, ready: set[object]) -> bool:
        if self._listener in ready and self._listener is not None:
            self._connect(self._listener)
        now = time.monotonic()
        busy = bool(ready)
        for pair in tuple(self._pairs):
            try:
                up, down = (0, 0) if self._stalled else pair.pump(ready, now, self._bytes_per_s)
            except OSError:
                self._drop(pair)
                continue
            self._bytes_up += up
            self._bytes_down += down
            busy = busy or up + down > 0
            if self._cut_after is not None and up + down:
                self._cut_after -= up + down
                if self._cut_after <= 0:
                    self._cut_after = None
                    self._drop(pair)
            elif pair.ended:
                self._drop(pair, reset=False)
        return busy

    def _connect(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        try:
            server = socket.create_connection(self._target, timeout=2.0)
        except OSError:
            _reset(client)
            return
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections += 1
        self._pairs.append(_Pair(client, server))

    def _drop(self, pair: _Pair, *, reset: bool = True) -> None:
        self._pairs.remove(pair)
        for sock in (pair.client, pair.server):
            if reset:
                _reset(sock)
            else:
                sock.close()


class _Pair:
    """One proxied connection: bytes on their way in both directions."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self._pending = {client: b"", server: b""}  # read from the key, to be written to the other
        self._open = {client: True, server: True}  # has not sent its end yet
        self._credit = {client: 0.0, server: 0.0}
        self._last = time.monotonic()

    @property
    def ended(self) -> bool:
        return not any(self._open.values()) and not any(self._pending.values())

    def readable(self) -> list[socket.socket]:
        return [sock for sock in (self.client, self.server) if self._open[sock] and not self._pending[sock]]

    def pump(self, ready: set[object], now: float, bytes_per_s: float | None) -> tuple[int, int]:
        """Move what can be moved; return the bytes that went up and down. Raises OSError when a side is gone."""
        elapsed, self._last = now - self._last, now
        moved = []
        for source, target in ((self.client, self.server), (self.server, self.client)):
            if source in ready and self._open[source] and not self._pending[source]:
                data = source.recv(_PIECE_BYTES)
                self._pending[source] = data
                if not data:
                    self._open[source] = False
                    target.shutdown(socket.SHUT_WR)
            moved.append(self._write(source, target, elapsed, bytes_per_s))
        return moved[0], moved[1]

    def _write(self, source: socket.socket, target: socket.socket, elapsed: float, bytes_per_s: float | None) -> int:
        data = self._pending[source]
        if not data:
            return 0
        if bytes_per_s is not None:
            self._credit[source] = min(self._credit[source] + elapsed * bytes_per_s, max(1.0, bytes_per_s))
            data = data[: int(self._credit[source])]
            if not data:
                return 0
        try:
            sent = target.send(data)
        except BlockingIOError:
            return 0
        self._credit[source] -= sent if bytes_per_s is not None else 0
        self._pending[source] = self._pending[source][sent:]
        return sent


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _listening(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener


@pytest.fixture
def start_proxy() -> Iterator[Callable[[int], Proxy]]:
    """A function that puts a proxy in front of a loopback port; all are stopped after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda port: stack.enter_context(Proxy("127.0.0.1", port))
