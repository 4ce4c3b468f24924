"""The small HTTP server on metrics.port: /metrics, /health, /ready, /status.json and a page for a browser at / (/?did=DID finds a repo).

One thread reads and writes all connections without ever waiting for one of them; a few worker threads compute the answers. So a
client that trickles its request or never reads its answer costs one of `most_connections` places until its deadline, and no
answer of anybody else. A connection is for one GET or HEAD. The management page needs no secrets and changes nothing.
"""

from __future__ import annotations

import errno
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs

from relay.admin.history import STEP_S, History
from relay.admin.look import POLICY
from relay.admin.page import Search, render_page
from relay.atproto.syntax import is_did
from relay.errors import Blame, RelayError
from relay.observe.log import get_logger
from relay.observe.metrics import CONTENT_TYPE
from relay.observe.status import StatusSnapshot
from relay.runtime.service import ServiceThread

log = get_logger(__name__)

HealthCheck = Callable[[], tuple[int, str]]
# Everything that is known of a DID, JSON-ready; None: it is not known. Raises RelayError when nobody can tell.
Story = Callable[[str], Mapping[str, object] | None]

_MOST_HEADER_BYTES = 8192
_RECV_BYTES = 4096
_LINGER_S = 1.0
# Searches ask the database, which has other work: one at a time, and so many a second. Whoever wants many asks `repos show`.
_SEARCHES_PER_S = 5.0
_SEARCH_WAITS_S = 2.0
_PATHS = "/ /metrics /health /ready /status.json"


class CannotListen(RelayError):
    """An address of ours cannot be listened on: in use, not ours, not allowed."""

    reason, blame = "cannot_listen", Blame.OPERATOR

    def __init__(self, setting: str, host: str, port: int, exc: OSError) -> None:
        why = "the address is in use by another program" if exc.errno == errno.EADDRINUSE else exc.strerror or str(exc)
        super().__init__(f"cannot listen on {host}:{port}: {why}; set {setting} (0: any free port)")


@dataclass(slots=True, eq=False)
class _Connection:
    """One client. `deadline` is monotonic seconds: for the request, then for its answer, then for the client's close."""

    sock: socket.socket
    deadline: float
    received: bytearray
    answer: memoryview | None = None
    is_working: bool = False
    is_closing: bool = False


class AdminHttp(ServiceThread):
    """Binds when it is made (so that `address` is known and errors come early), serves from `start()` on.

    `health` and `ready` return an HTTP status and a line of text; they, `snapshot` and `metrics` are called in worker threads,
    must be thread-safe, and should not wait. `story` may: it is asked by one thread at a time. Raises CannotListen.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        health: HealthCheck,
        ready: HealthCheck,
        snapshot: Callable[[], StatusSnapshot],
        metrics: Callable[[], bytes],
        story: Story | None = None,
        workers: int = 3,
        most_connections: int = 64,
        request_timeout_s: float = 5.0,
        answer_timeout_s: float = 15.0,
        on_death: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        super().__init__("admin-http", on_death)
        self._health, self._ready, self._snapshot, self._metrics = health, ready, snapshot, metrics
        self._story = story
        self._searching = threading.Lock()  # guards: _next_search_at; held while the database answers
        self._next_search_at = 0.0  # monotonic
        self._history = History()
        self._sample_at = 0.0  # monotonic
        self._is_sampling = False
        self._most_connections = most_connections
        self._request_timeout_s, self._answer_timeout_s = request_timeout_s, answer_timeout_s
        self._connections: dict[socket.socket, _Connection] = {}  # in the order of their arrival
        # Bounded by the connections: each has at most one entry in one of the two. One more, without a connection, is for the charts.
        self._requests: queue.SimpleQueue[tuple[_Connection | None, bytes] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[_Connection, bytes]] = queue.SimpleQueue()
        self._listener = _listen(host, port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        # One more, for the charts: they take nobody's place.
        self._workers = [
            threading.Thread(target=self._work, name=f"admin-http-{number}", daemon=True)
            for number in range(workers + 1)
        ]

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def start(self) -> None:
        for worker in self._workers:
            worker.start()
        super().start()

    def join(self, deadline: float) -> bool:
        """Wait until `deadline`; a server that was never started only gives its port back."""
        if not self._thread.ident:
            self._close_all()
            return True
        ended = super().join(deadline)
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        return ended and not any(worker.is_alive() for worker in self._workers)

    def wake(self) -> None:
        try:
            self._wake_write.send(b"x")
        except (BlockingIOError, OSError):
            pass  # Full: it is being woken already. Closed: it has ended.

    def run(self) -> None:
        """Serve until `stopping` is set. The only code that touches sockets and connections."""
        try:
            with selectors.DefaultSelector() as self._selector:
                self._selector.register(self._listener, selectors.EVENT_READ)
                self._selector.register(self._wake_read, selectors.EVENT_READ)
                while not self.stopping.is_set():
                    for key, _ in self._selector.select(self._next_deadline_in()):
                        if key.fileobj is self._listener:
                            self._accept()
                        elif key.fileobj is self._wake_read:
                            self._take_answers()
                        elif key.fileobj in self._connections:
                            self._advance(self._connections[key.fileobj])
                    self._drop_late()
                    self._sample_if_due()
        finally:
            self._close_all()
            for _ in self._workers:
                self._requests.put(None)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as exc:
            # No file descriptor left, or the client is gone again: the listener stays readable, so do not spin on it.
            log.warning("accept_failed", error=str(exc))
            self.stopping.wait(0.05)
            return
        if len(self._connections) >= self._most_connections:
            oldest = next((each for each in self._connections.values() if not each.is_working), None)
            if oldest is None:
                sock.close()
                return
            self._close(oldest)
        sock.setblocking(False)
        self._connections[sock] = _Connection(sock, time.monotonic() + self._request_timeout_s, bytearray())
        self._selector.register(sock, selectors.EVENT_READ)

    def _advance(self, connection: _Connection) -> None:
        """Read or write what is possible now."""
        try:
            if connection.answer is not None and not connection.is_closing:
                self._write(connection)
            else:
                self._read(connection)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)

    def _read(self, connection: _Connection) -> None:
        data = connection.sock.recv(_RECV_BYTES)
        if not data:
            self._close(connection)
            return
        if connection.is_closing:
            return  # What comes behind the request is read and forgotten: closing over it would reset the answer away.
        connection.received += data
        end = connection.received.find(b"\r\n\r\n")
        if end >= 0:
            self._selector.unregister(connection.sock)
            connection.is_working = True
            self._requests.put((connection, bytes(connection.received[:end])))
        elif len(connection.received) > _MOST_HEADER_BYTES:
            self._send(connection, _response(431, "the request is too large\n"))

    def _write(self, connection: _Connection) -> None:
        assert connection.answer is not None
        connection.answer = connection.answer[connection.sock.send(connection.answer) :]
        if not connection.answer:
            connection.sock.shutdown(socket.SHUT_WR)
            connection.is_closing = True
            connection.deadline = time.monotonic() + _LINGER_S
            self._selector.modify(connection.sock, selectors.EVENT_READ)

    def _take_answers(self) -> None:
        try:
            self._wake_read.recv(_RECV_BYTES)
        except BlockingIOError:
            pass
        while True:
            try:
                connection, answer = self._answers.get_nowait()
            except queue.Empty:
                return
            connection.is_working = False
            self._selector.register(connection.sock, selectors.EVENT_WRITE)
            self._send(connection, answer)

    def _send(self, connection: _Connection, answer: bytes) -> None:
        connection.answer = memoryview(answer)
        connection.deadline = time.monotonic() + self._answer_timeout_s
        self._selector.modify(connection.sock, selectors.EVENT_WRITE)
        self._advance(connection)

    def _next_deadline_in(self) -> float:
        waiting = [each.deadline for each in self._connections.values() if not each.is_working]
        return max(0.0, min([*waiting, self._sample_at]) - time.monotonic())

    def _sample_if_due(self) -> None:
        """Have a worker look at the status for the charts, now and then; while none is free nothing is added."""
        if time.monotonic() < self._sample_at:
            return
        self._sample_at = time.monotonic() + STEP_S
        if not self._is_sampling:
            self._is_sampling = True
            self._requests.put((None, b""))

    def _drop_late(self) -> None:
        now = time.monotonic()
        for connection in [each for each in self._connections.values() if not each.is_working and each.deadline <= now]:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        del self._connections[connection.sock]
        connection.sock.close()

    def _close_all(self) -> None:
        for sock in (self._listener, self._wake_read, self._wake_write, *self._connections):
            sock.close()
        self._connections.clear()

    def _work(self) -> None:
        """Compute answers until a None comes: one worker thread."""
        while (entry := self._requests.get()) is not None:
            connection, request = entry
            if connection is None:
                self._sample()
                continue
            try:
                answer = self._answer(request)
            except Exception as exc:  # whatever a callable does wrong is told, and costs one answer
                log.error("admin_answer_failed", error=f"{type(exc).__name__}: {exc}", exc_info=True)
                answer = _response(500, "cannot answer; the log says why\n")
            self._answers.put((connection, answer))
            self.wake()

    def _sample(self) -> None:
        try:
            self._history.add(time.time(), self._snapshot())
        except Exception as exc:  # costs one point of the charts
            log.error("status_not_sampled", error=f"{type(exc).__name__}: {exc}", exc_info=True)
        finally:
            self._is_sampling = False

    def _answer(self, request: bytes) -> bytes:
        words = request.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(400, "expected an HTTP/1.1 request\n")
        method, (path, _, query) = words[0], words[1].partition(b"?")
        if method not in (b"GET", b"HEAD"):
            return _response(405, "only GET and HEAD\n", extra="Allow: GET, HEAD\r\n")
        answer = self._answer_path(path, query)
        return answer[: answer.index(b"\r\n\r\n") + 4] if method == b"HEAD" else answer

    def _answer_path(self, path: bytes, query: bytes) -> bytes:
        if path == b"/metrics":
            return _response(200, self._metrics(), CONTENT_TYPE)
        if path in (b"/health", b"/ready"):
            code, text = self._health() if path == b"/health" else self._ready()
            return _response(code, text.rstrip("\n") + "\n")
        if path == b"/status.json":
            return _response(200, self._snapshot().to_json() + b"\n", "application/json")
        if path == b"/":
            search = self._search(query)
            recent, day = self._history.recent(), self._history.day()
            page = render_page(self._snapshot(), recent=recent, day=day, search=search)
            return _response(200, page, "text/html; charset=utf-8")
        return _response(404, f"no such page; there are {_PATHS}\n")

    def _search(self, query: bytes) -> Search | None:
        """Return what is known of the DID that `?did=` names; None: nobody asked."""
        fields = parse_qs(query.decode("utf-8", "replace"), max_num_fields=8) if query.count(b"&") < 8 else {}
        did = fields.get("did", [""])[0].strip()
        if not did:
            return None
        if not is_did(did):
            return Search(did=did[:256], problem="This is not a DID. One looks like did:plc:ewvi7nxzyoun6zhxrhs64oiz.")
        if self._story is None:
            return Search(did=did, problem="Repos cannot be looked up here.")
        if not self._searching.acquire(timeout=_SEARCH_WAITS_S):
            return Search(did=did, problem="Other searches are waiting for the database: try again in a moment.")
        try:
            if (wait_s := self._next_search_at - time.monotonic()) > 0:
                self.stopping.wait(wait_s)
            self._next_search_at = time.monotonic() + 1 / _SEARCHES_PER_S
            story = self._story(did)
        except RelayError as exc:
            return Search(did=did, problem=f"Cannot be told now: {exc}")
        finally:
            self._searching.release()
        return Search(did=did, story=story, problem="" if story else "This DID is not known here.")


def _listen(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
        listener.setblocking(False)
    except OSError as exc:
        if listener is not None:
            listener.close()
        raise CannotListen("metrics.host and metrics.port", host, port, exc) from exc
    return listener


def _response(code: int, body: bytes | str, content_type: str = "text/plain; charset=utf-8", extra: str = "") -> bytes:
    content = body.encode() if isinstance(body, str) else body
    head = (
        f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\n"
        "Connection: close\r\n"
        "Cache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        "Referrer-Policy: no-referrer\r\n"
        f"Content-Security-Policy: {POLICY}\r\n"
        f"{extra}\r\n"
    )
    return head.encode() + content
