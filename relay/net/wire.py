"""One HTTP/1.1 connection: guarded connect, TLS, and a reader in which all limits of time and raw size live.

`response.Response` parses heads and framing. It reads through `TimedReader`, so a server that trickles a head, sends `100 Continue`
for ever, or stalls in the middle of a body meets the same three limits: the deadline, the minimum speed, the raw byte cap.
"""

from __future__ import annotations

import contextlib
import functools
import io
import select
import socket
import ssl
import threading
import time
from collections import OrderedDict, deque
from typing import Any

from relay.net.address import Origin, Target
from relay.net.errors import DeadlineExceeded, HostDown, NetError, Stopped, TooLarge, TooSlow, Truncated
from relay.net.guard import Guard
from relay.net.response import Response
from relay.net.speed import SpeedGate

# How often a silent connection is looked at; a settimeout is a system call, so it is set once and not for each read.
_TICK_S = 0.5
_READ_BUFFER_BYTES = 16 * 1024
# Servers close idle connections (Node after 5 s); one that was idle for longer is not worth a failed request.
IDLE_S = 30.0


class Allowance:
    """What one exchange may still cost: absolute deadlines (monotonic seconds) and a cap on raw bytes, head included."""

    def __init__(self, *, origin: Origin, deadline: float, head_deadline: float, raw_bytes: int) -> None:
        self.origin = origin
        self.deadline = deadline
        self.head_deadline = head_deadline
        self.raw_bytes = raw_bytes
        self.received = 0
        self.speed: SpeedGate | None = None

    def begin_body(self, speed: SpeedGate, raw_bytes: int, deadline: float) -> None:
        """The head is complete: from here the speed counts, and `raw_bytes` more may come until `deadline`."""
        self.deadline = min(self.deadline, deadline)
        self.head_deadline = self.deadline
        self.speed = speed
        self.raw_bytes = self.received + raw_bytes

    def check(self, now: float) -> None:
        """Raise DeadlineExceeded, HostDown (no head in time) or TooSlow when a limit is passed at `now`."""
        if now >= self.deadline:
            host = str(self.origin)
            raise DeadlineExceeded(f"{host}: not complete in time, after {self.received:,} bytes", host=host)
        if now >= self.head_deadline:
            host = str(self.origin)
            raise HostDown(f"{host}: accepted the connection and did not answer in time", host=host)
        if self.speed is not None and self.speed.is_too_slow(now):
            host = str(self.origin)
            raise TooSlow(
                f"{host}: {self.speed.speed(now):,.0f} bytes/s over {self.speed.window_s:g} s, below"
                f" {self.speed.min_bytes_per_s:,.0f} (backfiller.min_bytes_per_sec)",
                host=host,
            )


class TimedReader(io.RawIOBase):
    """The socket as a raw stream whose every read obeys the allowance. Closing it leaves the socket open."""

    def __init__(self, connection: Connection, allowance: Allowance) -> None:
        super().__init__()
        self._connection = connection
        self._allowance = allowance

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        allowance = self._allowance
        connection = self._connection
        while True:
            if connection.is_aborted:
                raise Stopped(f"{allowance.origin}: stopping", host=str(allowance.origin))
            now = time.monotonic()
            allowance.check(now)
            connection.set_timeout(min(_TICK_S, allowance.deadline - now, allowance.head_deadline - now))
            try:
                count = connection.sock.recv_into(target)
                break
            except TimeoutError:
                continue
            except OSError as exc:
                if connection.is_aborted or allowance.speed is None:
                    raise  # within the head it may be an idle connection that the server closed: `http.Fetcher` knows
                raise Truncated(
                    f"{allowance.origin}: the connection failed within the body ({plain_error(exc)})",
                    host=str(allowance.origin),
                ) from exc
        if connection.is_aborted:
            raise Stopped(f"{allowance.origin}: stopping", host=str(allowance.origin))
        allowance.received += count
        if allowance.received > allowance.raw_bytes:
            raise TooLarge(
                f"{allowance.origin}: sent more than {allowance.raw_bytes:,} raw bytes", host=str(allowance.origin)
            )
        if allowance.speed is not None:
            allowance.speed.note(now, count)
        return count


class Connection:
    """One open connection to an origin; used by one thread at a time. `abort` may come from any thread."""

    def __init__(self, origin: Origin, sock: socket.socket) -> None:
        self.origin = origin
        self.sock = sock
        self.is_reused = False
        self.is_aborted = False
        self.idle_since = 0.0
        self._timeout_s: float | None = None

    def set_timeout(self, seconds: float) -> None:
        seconds = max(seconds, 0.001)
        if seconds != self._timeout_s:
            self.sock.settimeout(seconds)
            self._timeout_s = seconds

    def exchange(self, head: bytes, allowance: Allowance) -> Response:
        """Send a request and return its response, head parsed. Raises OSError, http.client.HTTPException, NetError."""
        now = time.monotonic()
        allowance.check(now)
        self.set_timeout(max(0.001, allowance.head_deadline - now))
        self.sock.sendall(head)
        reader = io.BufferedReader(TimedReader(self, allowance), _READ_BUFFER_BYTES)
        response = Response(reader)
        response.begin()
        return response

    @property
    def is_quiet(self) -> bool:
        """Say whether an idle connection is still usable: a readable one was closed, or talks out of turn."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """Wake the thread that waits on this connection. The plain shutdown: SSLSocket's would pull its state away."""
        self.is_aborted = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()


class Connector:
    """Opens connections: guard, then TCP to exactly a checked address, then TLS with the name."""

    def __init__(self, guard: Guard, tls: ssl.SSLContext, pool: Pool) -> None:
        self.guard = guard
        self._tls = tls
        self._pool = pool

    def connect(self, origin: Origin, *, connect_timeout_s: float, deadline: float) -> Connection:
        """Return a new connection. One attempt an address takes at most `connect_timeout_s`, TLS included twice that.

        Raises PrivateAddress, HostDown, DeadlineExceeded (monotonic `deadline`), Stopped.
        """
        failure: OSError | None = None
        for family, kind, protocol, _, address in self.guard.resolve(origin):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise DeadlineExceeded(f"{origin}: no connection in time", host=str(origin))
            sock = socket.socket(family, kind, protocol)
            connection = Connection(origin, sock)
            try:
                self._pool.opened(connection)
                connection.set_timeout(min(connect_timeout_s, remaining))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if origin.scheme == "https":
                    tls = self._tls.wrap_socket(sock, server_hostname=origin.host, do_handshake_on_connect=False)
                    connection.sock = tls
                    tls.do_handshake()  # one deadline for the whole handshake
                return connection
            except OSError as exc:
                self._pool.drop(connection)
                failure = exc
                if connection.is_aborted:
                    raise Stopped(f"{origin}: stopping", host=str(origin)) from exc
            except BaseException:
                self._pool.drop(connection)
                raise
        raise HostDown(f"{origin}: no connection ({plain_error(failure)})", host=str(origin)) from failure


class Pool:
    """Idle connections, and those in use for `abort_all`. Bounded: `max_idle` in all, `idle_per_origin`, and `IDLE_S` old.

    The lock guards `_idle`, `_order`, `_busy` and `_is_stopped`; sockets are closed outside of it.
    """

    def __init__(self, *, max_idle: int, idle_per_origin: int) -> None:
        self.max_idle = max_idle
        self.idle_per_origin = idle_per_origin
        self._lock = threading.Lock()
        self._idle: dict[Origin, deque[Connection]] = {}
        self._order: OrderedDict[int, Connection] = OrderedDict()  # idle ones, the longest idle first
        self._busy: set[Connection] = set()
        self._is_stopped = False

    def take(self, origin: Origin) -> Connection | None:
        """Return an idle connection that still looks usable, the most recently used first."""
        now = time.monotonic()
        while True:
            with self._lock:
                waiting = self._idle.get(origin)
                if not waiting:
                    return None
                connection = waiting.pop()
                self._forget(connection)
                self._busy.add(connection)
            if now - connection.idle_since < IDLE_S and connection.is_quiet:
                connection.is_reused = True
                return connection
            self.drop(connection)

    def opened(self, connection: Connection) -> None:
        """A connection is about to be made. Raises Stopped after `abort_all`."""
        with self._lock:
            if not self._is_stopped:
                self._busy.add(connection)
                return
        raise Stopped(f"{connection.origin}: stopping", host=str(connection.origin))

    def give_back(self, connection: Connection) -> None:
        """The exchange is complete, and the connection can carry another one."""
        now = time.monotonic()
        connection.idle_since = now
        surplus: list[Connection] = []
        with self._lock:
            self._busy.discard(connection)
            waiting = self._idle.setdefault(connection.origin, deque())
            if self._is_stopped or len(waiting) >= self.idle_per_origin:
                surplus.append(connection)
                if not waiting:
                    del self._idle[connection.origin]
            else:
                waiting.append(connection)
                self._order[id(connection)] = connection
            while self._order:
                oldest = next(iter(self._order.values()))
                if len(self._order) <= self.max_idle and now - oldest.idle_since < IDLE_S:
                    break
                self._idle[oldest.origin].remove(oldest)
                self._forget(oldest)
                surplus.append(oldest)
        for each in surplus:
            each.close()

    def drop(self, connection: Connection) -> None:
        """The connection is of no more use."""
        with self._lock:
            self._busy.discard(connection)
        connection.close()

    def abort_all(self) -> None:
        """End every exchange in all threads, and refuse new ones: they raise Stopped."""
        with self._lock:
            self._is_stopped = True
            busy = list(self._busy)
            idle = list(self._order.values())
            self._order.clear()
            self._idle.clear()
        for connection in busy:
            connection.abort()
        for connection in idle:
            connection.close()

    @property
    def idle_count(self) -> int:
        with self._lock:
            return len(self._order)

    def _forget(self, connection: Connection) -> None:
        """Remove an idle connection from the books; the caller holds the lock and has taken it out of its deque."""
        self._order.pop(id(connection), None)
        if not self._idle.get(connection.origin, True):
            del self._idle[connection.origin]


def request_head(target: Target, *, user_agent: str, accept: str, accept_encoding: str) -> bytes:
    """Return the bytes of a GET. No cookies, no proxies, nothing from the environment."""
    return (
        f"GET {target.path} HTTP/1.1\r\nHost: {target.origin.netloc}\r\nUser-Agent: {user_agent}\r\n"
        f"Accept: {accept}\r\nAccept-Encoding: {accept_encoding}\r\nConnection: keep-alive\r\n\r\n"
    ).encode("ascii")


@functools.cache  # parsing the authorities takes 30 ms; a context is safe to share
def default_tls() -> ssl.SSLContext:
    """Return a client context that trusts the system's authorities and certifi's (a slim container has none of its own)."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(cafile=certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context


def as_net_error(exc: OSError, origin: Origin) -> NetError:
    """Translate a socket's error in the middle of an exchange."""
    return HostDown(f"{origin}: the connection failed ({plain_error(exc)})", host=str(origin))


def plain_error(exc: OSError | None) -> str:
    if exc is None:
        return "no address"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate: {exc.verify_message}"
    if isinstance(exc, TimeoutError):
        return "timed out"
    return exc.strerror or str(exc) or type(exc).__name__
