"""What an operator's calls do in a running service: implements `admin.control.Control`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from relay.admin.control import HostLimits, NotNow, Part
from relay.atproto.nsid_filter import NsidFilter
from relay.errors import StoreAway
from relay.model import RepoState
from relay.net.hosts import MAX_BURST, HostPolicy
from relay.observe.log import get_logger
from relay.observe.status import StatusSnapshot
from relay.store import partitions, repos
from relay.store.repos import RepoRow
from relay.supervisor.commands import RepoCommands
from relay.supervisor.covering import filter_text
from relay.supervisor.observer import Observer
from relay.supervisor.resharding import Resharder, note
from relay.supervisor.resyncing import resync_collections
from relay.supervisor.session import Session
from relay.supervisor.wiring import Machine

log = get_logger(__name__)

ENGINE_S = 10.0
"""An engine that has not got round to a call within this is stuck."""


class RelayControl:
    """Any thread. `refilter(wanted)`, in the engine's thread: stored repos are to be compared with another filter."""

    def __init__(
        self,
        session: Session,
        machine: Machine,
        observer: Observer,
        refilter: Callable[[NsidFilter], None],
        resharder: Resharder | None,
    ) -> None:
        """`resharder`: where ingesters each keep their own shard."""
        self._resharder = resharder
        self._session, self._machine, self._observer, self._refilter = session, machine, observer, refilter
        self._commands = RepoCommands(
            session.database, partitions=session.settings.relay.partitions, clock=session.clock
        )
        self._lock = threading.Lock()  # guards _paused; held while a filter changes, so that two calls do not cross
        self._paused: frozenset[Part] = frozenset()

    # --- the tracked set --------------------------------------------------------------------------------------------------

    def add(self, dids: Sequence[str]) -> tuple[int, int, int]:
        added = self._commands.add(dids)
        self._follow()
        return added.new, added.again, added.known

    def remove(self, dids: Sequence[str]) -> list[str]:
        unknown = self._commands.remove(dids)
        self._follow()
        return unknown

    def resync(
        self, dids: Sequence[str] | None, *, host: str | None, changed_since: float | None
    ) -> tuple[int, list[str]]:
        if dids is not None:
            done = self._commands.resync(dids)
        else:
            done = self._commands.resync_selected(host=host, changed_since=changed_since)
        self._follow()
        return done.repos, done.unknown

    def resync_collections(
        self, collections: Sequence[str], on_begin: Callable[[Callable[[], None]], None]
    ) -> tuple[int, list[str]]:
        settings = self._session.settings
        if not (settings.discovery.collection_host or settings.firehose.relay_host):
            raise NotNow(
                "nobody to ask who holds a collection: discovery.collection_host and firehose.relay_host are empty"
            )
        done, failed = resync_collections(
            settings, self._commands, collections, gate=self._machine.gate, on_begin=on_begin
        )
        self._follow()
        return done.repos, failed

    def show(self, did: str) -> RepoRow | None:
        with self._session.database.transaction("show a repo") as cursor:
            return repos.load(cursor, [did]).get(did)

    def page(self, states: Collection[RepoState], host: str | None, after: str, limit: int) -> list[RepoRow]:
        with self._session.database.transaction("list repos") as cursor:
            return repos.list_repos(cursor, states=states, host=host, after=after, limit=limit)

    def _follow(self) -> None:
        """Look at the notices at once."""
        self._machine.engine.post(self._session.look_at_notices)

    # --- what is paused, limited, wanted ------------------------------------------------------------------------------------

    def pause(self, parts: Collection[Part]) -> frozenset[Part]:
        with self._lock:
            return self._set_paused(self._paused | frozenset(parts))

    def resume(self, parts: Collection[Part]) -> frozenset[Part]:
        with self._lock:
            return self._set_paused(self._paused - frozenset(parts))

    def paused(self) -> frozenset[Part]:
        return self._paused

    def set_host_limits(self, host: str, requests_per_sec: float | None, connections: int | None) -> HostLimits:
        policy: HostPolicy | None = None
        if requests_per_sec is not None or connections is not None:
            policy = HostPolicy.from_settings(self._session.settings.backfiller)
            if requests_per_sec is not None:
                burst = min(MAX_BURST, max(1.0, 3 * requests_per_sec))
                policy = replace(policy, requests_per_s=requests_per_sec, burst=burst)
            if connections is not None:
                policy = replace(policy, connections=connections)
        in_force = self._machine.gate.limit(host, policy)
        return HostLimits(requests_per_sec=in_force.requests_per_s, connections=in_force.connections)

    def set_filter(self, wanted: NsidFilter) -> bool:
        with self._lock:
            before = self._machine.nsid_filter
            with self._session.database.transaction("another filter", epoch=self._session.epoch()) as cursor:
                partitions.store_filter(cursor, filter_text(wanted))
                # Repos that move on now cover less than the one before, or more is wanted of all: none has been compared with this one.
                partitions.store_filter_compared(cursor, None)

            def change() -> None:
                self._machine.set_filter(wanted)
                self._refilter(wanted)

            self._in_engine(change)
            log.info(
                "filter_changed", before=filter_text(before) or "all collections", now=filter_text(wanted) or "all"
            )
            return not before.covers(wanted)

    def set_ingesters(self, addresses: Sequence[str]) -> tuple[list[str], list[str]]:
        if not self._session.settings.ingesters:
            raise NotNow("the ingester is the relay's own: name others in the configuration, and start anew")
        with self._lock:
            if self._resharder is not None:
                # Stored before anything goes elsewhere: whatever happens then, a start knows whose repos have moved.
                with self._session.database.transaction("other shards", epoch=self._session.epoch()) as cursor:
                    note(cursor, wanted=sorted(addresses))
            try:
                added, removed = self._machine.delivery.set_addresses(addresses)
            except ValueError as exc:
                raise NotNow(str(exc)) from exc
            if self._resharder is not None:
                self._resharder.ask()
            return added, removed

    def status(self) -> StatusSnapshot:
        return self._session.presence.snapshot

    def _set_paused(self, parts: frozenset[Part]) -> frozenset[Part]:
        self._paused = parts

        def change() -> None:
            machine = self._machine
            machine.scheduler.paused = Part.BACKFILL in parts
            machine.tail_paused = Part.TAIL in parts
            self._observer.paused = ", ".join(part.name.lower() for part in sorted(parts))

        if Part.DISCOVERY in parts:
            self._session.may_enumerate.clear()
        else:
            self._session.may_enumerate.set()
        self._in_engine(change)
        return parts

    def _in_engine(self, do: Callable[[], None]) -> None:
        """Raises StoreAway: the engine is stuck, or has ended."""
        done = threading.Event()

        def run() -> None:
            do()
            done.set()

        self._machine.engine.post(run)
        if not done.wait(ENGINE_S):
            raise StoreAway(f"the engine has not answered for {ENGINE_S:.0f} s")
