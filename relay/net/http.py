"""One streaming GET with all its limits. Everything that this program downloads goes through `Fetcher.get`.

Level: `http.client` responses over our own sockets. Measured (PERFORMANCE 9): `readinto` costs 80-140 us a 150 KB body, urllib3
200-265, requests 350-650, as much as verifying the repo.
"""

from __future__ import annotations

import http.client
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from relay import __version__
from relay.net.address import InvalidAddress, Origin, Target, join_target, parse_target, target_below
from relay.net.answers import error_from_answer
from relay.net.body import BodySink, BytesSink, CorruptBody, Gunzip
from relay.net.errors import BadResponse, NetError, PrivateAddress, Stopped, TooLarge, Truncated
from relay.net.facts import HostFacts, parse_facts
from relay.net.guard import Guard
from relay.net.response import Response
from relay.net.speed import SpeedGate
from relay.net.wire import Allowance, Connection, Connector, Pool, as_net_error, default_tls, request_head
from relay.runtime.clock import Clock, SystemClock

KIB = 1024
MIB = 1024 * KIB
ERROR_BODY_BYTES = 64 * KIB
# A whole head: http.client itself would read 100 lines of 64 KiB, and any number of `100 Continue`.
HEAD_BYTES = 256 * KIB
# Chunk framing and gzip overhead that a body may carry above its size.
_FRAMING_BYTES = 1 * MIB
_COMPRESSED_PIECE_BYTES = 64 * KIB
_READ_AHEAD_BYTES = 64 * KIB
_ERROR_BODY_S = 10.0
_REDIRECTS = frozenset((301, 302, 303, 307, 308))

# A CAR is mostly hashes and keys: compressing costs the host more than the bytes cost the wire, so it is accepted but not asked for.
ACCEPT_ENCODING_CAR = "gzip;q=0.5, identity"
ACCEPT_ENCODING_JSON = "gzip"


def user_agent(contact: str = "") -> str:
    """Return the User-Agent: product, version, and `http.contact` when the operator gave one."""
    contact = "".join(char for char in contact if " " <= char <= "~" and char not in "()")
    return f"tradr-relay/{__version__}" + (f" (+{contact})" if contact else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Bounds of one request, redirects included. Seconds and bytes; `max_bytes` counts the unpacked body."""

    max_bytes: int
    total_s: float
    connect_timeout_s: float = 10.0
    head_timeout_s: float = 60.0  # from the request to the end of the answer's head
    min_bytes_per_s: float = 0.0  # 0: any speed
    speed_grace_s: float = 30.0
    speed_window_s: float = 20.0
    max_redirects: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A complete 200. `body_bytes` is the unpacked size, `origin` who answered in the end, after redirects."""

    origin: str
    status: int
    content_type: str
    body_bytes: int
    took_s: float
    facts: HostFacts


class Fetcher:
    """Guarded keep-alive connections and the one GET. Safe for any number of threads; `abort` ends them all.

    At most `max_idle` idle connections, `idle_per_origin` of them to one origin. How many requests run at a time is the callers'
    business (`hosts.HostTable`).
    """

    def __init__(
        self,
        guard: Guard,
        *,
        user_agent: str,
        tls: ssl.SSLContext | None = None,
        max_idle: int = 64,
        idle_per_origin: int = 8,
        clock: Clock | None = None,
    ) -> None:
        self.guard = guard
        self._user_agent = user_agent
        self._clock = clock or SystemClock()
        self._pool = Pool(max_idle=max_idle, idle_per_origin=idle_per_origin)
        self._connector = Connector(guard, tls or default_tls(), self._pool)

    def get(
        self,
        url: str | Target,
        sink: BodySink,
        *,
        limits: FetchLimits,
        accept: str = "*/*",
        accept_encoding: str = ACCEPT_ENCODING_CAR,
        content_types: tuple[str, ...] = (),
    ) -> Answer:
        """Download `url` into `sink` and return the answer; any other status than 200 is an error.

        `content_types`: a 200 with another one is a BadResponse (empty: any; a missing one passes). Raises every NetError, and
        whatever the sink raises. After an error the sink may hold a part of the body.
        """
        started = time.monotonic()
        deadline = started + limits.total_s
        target = self._parse(url) if isinstance(url, str) else url
        for _ in range(limits.max_redirects + 1):
            self.guard.check_name(target.origin)
            result = self._get_once(target, sink, limits, started, deadline, accept, accept_encoding, content_types)
            if isinstance(result, Answer):
                return result
            target = result
        raise BadResponse(
            f"{url}: more than {limits.max_redirects} redirects (http.max_redirects)", host=str(target.origin)
        )

    def get_bytes(
        self, url: str | Target, *, limits: FetchLimits, accept: str = "application/json"
    ) -> tuple[Answer, bytes]:
        """Download a small body into memory. Raises as `get`."""
        sink = BytesSink()
        answer = self.get(url, sink, limits=limits, accept=accept, accept_encoding=ACCEPT_ENCODING_JSON)
        return answer, sink.body()

    def server_time(self, url: str, *, limits: FetchLimits) -> float | None:
        """Return what the server's `Date` header says, wall seconds to the second; None: it says nothing that can be read.

        The answer's status is no matter, and its body is not read. Raises NetError when there is no answer.
        """
        target = self._parse(url)
        self.guard.check_name(target.origin)
        head = request_head(target, user_agent=self._user_agent, accept="*/*", accept_encoding="identity")
        connection, response, _ = self._exchange(target.origin, head, limits, time.monotonic() + limits.total_s)
        self._pool.drop(connection)
        try:
            return parsedate_to_datetime(response.fields.get("date") or "").timestamp()
        except ValueError:
            return None

    def target(self, base: str, path: str) -> Target:
        """Return what `get` takes instead of a URL where one base is asked again and again; see `address.target_below`.

        Raises PrivateAddress, as `get` does for what is no URL.
        """
        try:
            return target_below(base, path)
        except InvalidAddress as exc:
            raise PrivateAddress(str(exc), host=base[:200]) from exc

    def abort(self) -> None:
        """End every request in all threads (they raise Stopped) and refuse new ones. From any thread, any number of times."""
        self._pool.abort_all()

    @property
    def idle_connections(self) -> int:
        return self._pool.idle_count

    def _parse(self, url: str) -> Target:
        try:
            return parse_target(url)
        except InvalidAddress as exc:
            raise PrivateAddress(str(exc), host=url[:200]) from exc

    def _get_once(
        self,
        target: Target,
        sink: BodySink,
        limits: FetchLimits,
        started: float,
        deadline: float,
        accept: str,
        accept_encoding: str,
        content_types: tuple[str, ...],
    ) -> Answer | Target:
        """One hop: the answer, or where it redirects to."""
        head = request_head(target, user_agent=self._user_agent, accept=accept, accept_encoding=accept_encoding)
        connection, response, allowance = self._exchange(target.origin, head, limits, deadline)
        is_reusable = False
        try:
            facts = parse_facts(response.fields, self._clock.now())
            if response.status in _REDIRECTS:
                following = self._redirect(target, response)
                self._read_error_body(response, allowance, limits)
                is_reusable = response.isclosed() and not response.will_close
                return following
            if response.status != http.client.OK:
                body = self._read_error_body(response, allowance, limits)
                is_reusable = response.isclosed() and not response.will_close
                raise error_from_answer(host=str(target.origin), status=response.status, body=body, facts=facts)
            content_type = (response.fields.get("Content-Type") or "").partition(";")[0].strip().lower()
            if content_types and content_type and content_type not in content_types:
                raise BadResponse(
                    f"{target.origin}: answered with {content_type[:100]!r} instead of {content_types[0]}",
                    host=str(target.origin),
                    status=response.status,
                    facts=facts,
                )
            self._begin_body(allowance, limits, limits.max_bytes + _FRAMING_BYTES, deadline)
            size = self._copy_body(response, sink, limits, target.origin)
            is_reusable = response.isclosed() and not response.will_close
            return Answer(
                origin=str(target.origin),
                status=response.status,
                content_type=content_type,
                body_bytes=size,
                took_s=time.monotonic() - started,
                facts=facts,
            )
        except http.client.IncompleteRead as exc:
            raise Truncated(f"{target.origin}: the body was cut", host=str(target.origin)) from exc
        except http.client.HTTPException as exc:
            raise BadResponse(f"{target.origin}: not HTTP ({exc!r:.200})", host=str(target.origin)) from exc
        except OSError as exc:
            if connection.is_aborted:
                raise Stopped(f"{target.origin}: stopping", host=str(target.origin)) from exc
            raise  # the sink's own: the reader's are translated where they arise
        finally:
            response.close()
            if is_reusable:
                self._pool.give_back(connection)
            else:
                self._pool.drop(connection)

    def _exchange(
        self, origin: Origin, head: bytes, limits: FetchLimits, deadline: float
    ) -> tuple[Connection, Response, Allowance]:
        """Send the request on an idle connection or a new one, and parse the answer's head.

        An idle connection that the server closed meanwhile is not a failure: the request goes out again on another.
        """
        while True:
            connection = self._pool.take(origin) or self._connector.connect(
                origin, connect_timeout_s=limits.connect_timeout_s, deadline=deadline
            )
            allowance = Allowance(
                origin=origin,
                deadline=deadline,
                head_deadline=time.monotonic() + limits.head_timeout_s,
                raw_bytes=HEAD_BYTES,
            )
            try:
                return connection, connection.exchange(head, allowance), allowance
            except (OSError, http.client.HTTPException) as exc:
                self._pool.drop(connection)
                if connection.is_aborted:
                    raise Stopped(f"{origin}: stopping", host=str(origin)) from exc
                if connection.is_reused and allowance.received == 0 and not isinstance(exc, TimeoutError):
                    continue
                if isinstance(exc, OSError):
                    raise as_net_error(exc, origin) from exc
                raise BadResponse(f"{origin}: not HTTP ({exc!r:.200})", host=str(origin)) from exc
            except NetError:
                self._pool.drop(connection)
                raise

    def _begin_body(self, allowance: Allowance, limits: FetchLimits, raw_bytes: int, deadline: float) -> None:
        speed = SpeedGate(
            min_bytes_per_s=limits.min_bytes_per_s,
            grace_s=limits.speed_grace_s,
            window_s=limits.speed_window_s,
            started=time.monotonic(),
        )
        allowance.begin_body(speed, raw_bytes, deadline)

    def _redirect(self, target: Target, response: Response) -> Target:
        host = str(target.origin)
        location = response.fields.get("Location")
        if not location:
            raise BadResponse(f"{host}: {response.status} without a Location", host=host, status=response.status)
        try:
            following = join_target(target, location)
        except InvalidAddress as exc:
            raise BadResponse(
                f"{host}: redirects to an address of no use: {exc}", host=host, status=response.status
            ) from exc
        if target.origin.scheme == "https" and following.origin.scheme == "http" and not self.guard.allow_private:
            raise PrivateAddress(f"{host}: redirects from https to {following.origin}: refused", host=host)
        return following

    def _copy_body(self, response: Response, sink: BodySink, limits: FetchLimits, origin: Origin) -> int:
        """Move the body into the sink, unpacked; return its size. Raises TooLarge, Truncated, BadResponse."""
        encoding = (response.fields.get("Content-Encoding") or "").lower()
        if encoding in ("", "identity"):
            return self._copy_plain(response, sink, limits, origin)
        if encoding in ("gzip", "x-gzip"):
            return self._copy_gzip(response, sink, limits, origin)
        raise BadResponse(
            f"{origin}: Content-Encoding {encoding[:40]!r} was not asked for", host=str(origin), status=response.status
        )

    def _copy_plain(self, response: Response, sink: BodySink, limits: FetchLimits, origin: Origin) -> int:
        if response.length is not None and response.length > limits.max_bytes:
            raise _too_large(origin, limits.max_bytes, response.length)
        size = 0
        while not response.isclosed():
            room = limits.max_bytes - size
            if room <= 0:
                if response.read(1):
                    raise _too_large(origin, limits.max_bytes)
                break
            view = sink.buffer()
            count = response.readinto(view[:room] if len(view) > room else view)
            if count:
                sink.wrote(count)
                size += count
        if response.length:
            raise _truncated(origin, size, response.length)
        return size

    def _copy_gzip(self, response: Response, sink: BodySink, limits: FetchLimits, origin: Origin) -> int:
        unpack = Gunzip()
        size = 0
        try:
            while not response.isclosed():
                piece = response.read(_COMPRESSED_PIECE_BYTES)
                unpack.feed(piece)
                while True:
                    view = sink.buffer()
                    out = unpack.take(min(len(view), limits.max_bytes - size + 1))
                    if not out:
                        break
                    size += len(out)
                    if size > limits.max_bytes:
                        raise _too_large(origin, limits.max_bytes)
                    view[: len(out)] = out
                    sink.wrote(len(out))
                if not piece:
                    break
        except CorruptBody as exc:
            raise BadResponse(f"{origin}: the gzip body is corrupt ({exc})", host=str(origin), status=200) from exc
        if response.length:
            raise _truncated(origin, size, response.length)
        if not unpack.is_complete:
            raise Truncated(f"{origin}: the gzip body ends in its middle", host=str(origin), status=200)
        return size

    def _read_error_body(self, response: Response, allowance: Allowance, limits: FetchLimits) -> bytes:
        """Return at most 64 KiB of an error's body, unpacked. One that cannot be read, or not soon, is empty: the status says enough."""
        self._begin_body(allowance, limits, ERROR_BODY_BYTES + _READ_AHEAD_BYTES, time.monotonic() + _ERROR_BODY_S)
        try:
            body = response.read(ERROR_BODY_BYTES)
        except Stopped:
            raise
        except (NetError, http.client.HTTPException):
            return b""
        if (response.fields.get("Content-Encoding") or "").lower() not in ("gzip", "x-gzip"):
            return body
        unpack = Gunzip()
        unpack.feed(body)
        try:
            return unpack.take(ERROR_BODY_BYTES)
        except CorruptBody:
            return b""


def _too_large(origin: Origin, limit_bytes: int, told_bytes: int | None = None) -> TooLarge:
    told = f"is {told_bytes:,} bytes, more than" if told_bytes is not None else "passed"
    return TooLarge(f"{origin}: the body {told} {limit_bytes:,} bytes", host=str(origin), status=200)


def _truncated(origin: Origin, got_bytes: int, missing_bytes: int) -> Truncated:
    return Truncated(
        f"{origin}: the body was cut after {got_bytes:,} bytes, {missing_bytes:,} are missing", host=str(origin)
    )
