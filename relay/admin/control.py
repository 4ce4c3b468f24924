"""`relay.v1.RelayAdmin`: what an operator's program asks, checked; what it means is done by whoever implements `Control`."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol

import grpc
import orjson

from relay.atproto.errors import AtprotoError
from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.syntax import is_nsid, is_resolvable_did
from relay.config.addresses import http_form
from relay.config.checks import ingester_addresses
from relay.errors import StoreAway, StoreError
from relay.model import RepoState
from relay.observe.log import get_logger
from relay.observe.status import StatusSnapshot
from relay.pb import admin_pb2 as pb
from relay.repos.shown import list_entry, show_entry
from relay.store.repos import RepoRow

log = get_logger(__name__)

MOST_DIDS = 100_000
LEAST_INTERVAL_S = 0.5
PAGE = 1000


class Part(enum.IntEnum):
    """Numbers of relay.v1.Part: what can be paused."""

    DISCOVERY = 1
    BACKFILL = 2
    TAIL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLimits:
    """Of one PDS."""

    requests_per_sec: float
    connections: int


class NotNow(Exception):
    """It cannot be done as things are; the text says why."""


class Control(Protocol):
    """What a running service does for an operator. Any thread; may wait for the database, and for other people's servers only where it says so.

    Raises StoreAway (trying again helps) and StoreError.
    """

    def add(self, dids: Sequence[str]) -> tuple[int, int, int]:
        """Return how many are new, are tried again, were tracked already."""

    def remove(self, dids: Sequence[str]) -> list[str]:
        """Return those that were not tracked."""

    def resync(
        self, dids: Sequence[str] | None, *, host: str | None, changed_since: float | None
    ) -> tuple[int, list[str]]:
        """Return how many will be delivered again, and the named ones that are not tracked."""

    def resync_collections(
        self, collections: Sequence[str], on_begin: Callable[[Callable[[], None]], None]
    ) -> tuple[int, list[str]]:
        """Return how many will be delivered again, and the listings without a complete answer. Waits for other people's servers:
        `on_begin(stop)` is given what ends it."""

    def show(self, did: str) -> RepoRow | None: ...

    def page(self, states: Collection[RepoState], host: str | None, after: str, limit: int) -> list[RepoRow]:
        """Return tracked repos above `after` in DID order."""

    def pause(self, parts: Collection[Part]) -> frozenset[Part]:
        """Return what is paused now."""

    def resume(self, parts: Collection[Part]) -> frozenset[Part]:
        """Return what still is."""

    def paused(self) -> frozenset[Part]: ...

    def set_host_limits(self, host: str, requests_per_sec: float | None, connections: int | None) -> HostLimits:
        """Return what is in force now; None: as configured."""

    def set_filter(self, wanted: NsidFilter) -> bool:
        """Return whether it wants something that the one before did not."""

    def set_ingesters(self, addresses: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return those that join and those that leave. Raises NotNow."""

    def status(self) -> StatusSnapshot: ...


class AdminService:
    """The servicer. `stopping` ends streams; gRPC calls it from its pool's threads."""

    def __init__(self, control: Control, stopping: threading.Event) -> None:
        self._control, self._stopping = control, stopping

    # The names are those of the contract.

    def AddRepos(self, request: pb.AddReposRequest, context: Any) -> pb.AddReposResponse:  # noqa: N802
        dids = _dids(request.dids, context)
        new, again, known = self._stored(context, lambda: self._control.add(dids))
        log.info("admin_call", call="AddRepos", peer=context.peer(), repos=len(dids))
        return pb.AddReposResponse(added=new, again=again, known=known)

    def RemoveRepos(self, request: pb.RemoveReposRequest, context: Any) -> pb.RemoveReposResponse:  # noqa: N802
        dids = _dids(request.dids, context)
        unknown = self._stored(context, lambda: self._control.remove(dids))
        log.info("admin_call", call="RemoveRepos", peer=context.peer(), repos=len(dids))
        return pb.RemoveReposResponse(removed=len(dids) - len(unknown), not_tracked=unknown)

    def ResyncRepos(self, request: pb.ResyncReposRequest, context: Any) -> pb.ResyncReposResponse:  # noqa: N802
        by_row = bool(request.host or request.changed_since)
        if sum((bool(request.dids), request.all, by_row, bool(request.collections))) != 1:
            _refuse(context, "name DIDs, or a host and a time, or collections, or all: exactly one of them")
        if request.collections:
            return self._resync_collections(list(request.collections), context)
        dids = _dids(request.dids, context) if request.dids else None
        host = _origin(request.host, context) if request.host else None
        count, unknown = self._stored(
            context, lambda: self._control.resync(dids, host=host, changed_since=request.changed_since or None)
        )
        log.info("admin_call", call="ResyncRepos", peer=context.peer(), repos=count)
        return pb.ResyncReposResponse(repos=count, not_tracked=unknown)

    def _resync_collections(self, collections: list[str], context: Any) -> pb.ResyncReposResponse:
        bad = [name for name in collections if not is_nsid(name)]
        if bad:
            _refuse(context, f"not an NSID: {bad[0][:100]!r}")

        def begun(stop: Callable[[], None]) -> None:
            if not context.add_callback(stop):  # the call has ended already
                stop()

        count, failed = self._stored(context, lambda: self._control.resync_collections(collections, begun))
        log.info("admin_call", call="ResyncRepos", peer=context.peer(), repos=count, collections=",".join(collections))
        return pb.ResyncReposResponse(repos=count, failed=failed)

    def ShowRepo(self, request: pb.ShowRepoRequest, context: Any) -> pb.ShowRepoResponse:  # noqa: N802
        row = self._stored(context, lambda: self._control.show(request.did))
        if row is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{request.did[:100]}: not known here")
        return pb.ShowRepoResponse(repo=_repo(row), tracked=row.tracked, json=orjson.dumps(show_entry(row)).decode())

    def ListRepos(self, request: pb.ListReposRequest, context: Any) -> Iterator[pb.Repo]:  # noqa: N802
        known = {state.value for state in RepoState}
        bad = [state for state in request.states if state not in known]
        if bad:
            _refuse(context, f"no such state: {bad[0][:100]}; there are {', '.join(sorted(known))}")
        states = [RepoState(state) for state in request.states]
        host = _origin(request.host, context) if request.host else None
        left, after = request.limit or 2**62, ""
        while left > 0 and not self._stopping.is_set():
            size = min(PAGE, left)
            rows: list[RepoRow] = self._stored(context, partial(self._control.page, states, host, after, size))
            yield from (_repo(row) for row in rows)
            if len(rows) < size:
                return
            after, left = rows[-1].did, left - len(rows)

    def Pause(self, request: pb.PauseRequest, context: Any) -> pb.PauseResponse:  # noqa: N802
        parts = _parts(request.parts, context)
        paused = self._control.pause(parts)
        log.info("admin_call", call="Pause", peer=context.peer(), parts=_names(parts))
        return pb.PauseResponse(paused=_numbers(paused))

    def Resume(self, request: pb.ResumeRequest, context: Any) -> pb.ResumeResponse:  # noqa: N802
        parts = _parts(request.parts, context)
        paused = self._control.resume(parts)
        log.info("admin_call", call="Resume", peer=context.peer(), parts=_names(parts))
        return pb.ResumeResponse(paused=_numbers(paused))

    def SetHostLimits(self, request: pb.SetHostLimitsRequest, context: Any) -> pb.SetHostLimitsResponse:  # noqa: N802
        host = _origin(request.host, context)
        rate = request.requests_per_sec if request.HasField("requests_per_sec") else None
        connections = request.connections if request.HasField("connections") else None
        if rate is not None and not 0.001 <= rate <= 100_000:
            _refuse(context, "requests_per_sec is from 0.001 to 100000; to ask nothing of a host, remove its repos")
        if connections is not None and not 1 <= connections <= 1000:
            _refuse(context, "connections is from 1 to 1000")
        limits = self._control.set_host_limits(host, rate, connections)
        log.info(
            "admin_call", call="SetHostLimits", peer=context.peer(), host=host,
            requests_per_sec=limits.requests_per_sec, connections=limits.connections,
        )  # fmt: skip
        return pb.SetHostLimitsResponse(requests_per_sec=limits.requests_per_sec, connections=limits.connections)

    def SetFilter(self, request: pb.SetFilterRequest, context: Any) -> pb.SetFilterResponse:  # noqa: N802
        try:
            wanted = NsidFilter.parse(request.patterns)
        except AtprotoError as exc:
            _refuse(context, str(exc))
        if wanted.is_nothing:
            _refuse(context, "wants no collection at all")
        widened = self._stored(context, lambda: self._control.set_filter(wanted))
        log.info("admin_call", call="SetFilter", peer=context.peer(), filter=",".join(wanted.patterns), widened=widened)
        return pb.SetFilterResponse(patterns=wanted.patterns, widened=widened)

    def SetIngesters(self, request: pb.SetIngestersRequest, context: Any) -> pb.SetIngestersResponse:  # noqa: N802
        try:
            addresses = ingester_addresses(tuple(request.addresses))
        except ValueError as exc:
            _refuse(context, str(exc))
        if not addresses:
            _refuse(context, "the last ingester cannot be removed: name at least one")
        joining, leaving = self._stored(context, lambda: self._control.set_ingesters(addresses))
        log.info("admin_call", call="SetIngesters", peer=context.peer(), ingesters=",".join(addresses))
        return pb.SetIngestersResponse(joining=joining, leaving=leaving)

    def Status(self, request: pb.StatusRequest, context: Any) -> Iterator[pb.StatusResponse]:  # noqa: N802
        yield self._status()
        if not request.interval_sec > 0:
            return
        interval_s = max(LEAST_INTERVAL_S, request.interval_sec)
        due = time.monotonic() + interval_s
        while context.is_active() and not self._stopping.wait(min(0.25, max(0.0, due - time.monotonic()))):
            if time.monotonic() >= due:
                due += interval_s
                yield self._status()

    # --- small ----------------------------------------------------------------------------------------------------------

    def _status(self) -> pb.StatusResponse:
        snapshot = self._control.status()
        return pb.StatusResponse(
            phase=snapshot.phase.value,
            reason=snapshot.reason,
            repos={state: max(0, count) for state, count in snapshot.repos.items() if count is not None},
            paused=_numbers(self._control.paused()),
            json=snapshot.to_json().decode(),
        )

    @staticmethod
    def _stored(context: Any, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except StoreAway as exc:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(exc))
        except StoreError as exc:
            context.abort(grpc.StatusCode.INTERNAL, str(exc))
        except NotNow as exc:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(exc))


def _dids(values: Collection[str], context: Any) -> list[str]:
    if not values:
        _refuse(context, "no DID")
    if len(values) > MOST_DIDS:
        _refuse(context, f"{len(values):,} DIDs; at most {MOST_DIDS:,} in one call")
    for value in values:
        if not is_resolvable_did(value):
            _refuse(context, f"not a did:plc or did:web: {value[:100]!r}")
    return list(dict.fromkeys(values))


def _origin(text: str, context: Any) -> str:
    try:
        return http_form(text)
    except ValueError as exc:
        _refuse(context, f"{text[:100]}: {exc}")


def _parts(values: Collection[int], context: Any) -> frozenset[Part]:
    try:
        return frozenset(Part(value) for value in values) or frozenset(Part)
    except ValueError:
        _refuse(context, "no such part: DISCOVERY, BACKFILL or TAIL")


def _numbers(parts: Collection[Part]) -> list[Any]:
    return sorted(int(part) for part in parts)


def _names(parts: Collection[Part]) -> str:
    return ",".join(part.name.lower() for part in sorted(parts))


def _repo(row: RepoRow) -> pb.Repo:
    entry = list_entry(row)
    return pb.Repo(**{name: value for name, value in entry.items() if value is not None})  # type: ignore[arg-type]


def _refuse(context: Any, why: str) -> NoReturn:
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)
    raise AssertionError("abort raises")
