"""`run` and `tail`: the firehose followed, whatever is pending fetched, until they are stopped. `run` enumerates as well, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay.atproto.nsid_filter import NsidFilter
from relay.config.load import Loaded
from relay.config.schema import Settings
from relay.discovery.listing import EnumerationResult
from relay.errors import StreamError
from relay.model import RepoState
from relay.net.address import http_origin
from relay.observe.log import get_logger
from relay.observe.status import ListingView
from relay.runtime.service import ServiceThread
from relay.store import incidents, instances, listings, partitions, repos, sweeps
from relay.store.listings import Listing
from relay.store.partitions import Partition
from relay.store.repos import Transitions
from relay.store.statements import Cursor
from relay.supervisor.census import Census
from relay.supervisor.chain import PUMP_EVERY_S, OperationChain
from relay.supervisor.control import RelayControl
from relay.supervisor.covering import filter_text
from relay.supervisor.discovery import Discovery, Sources, Then, collection_origin
from relay.supervisor.enumerating import enumeration_into
from relay.supervisor.firstseq import ask_position, await_cursor
from relay.supervisor.handed_over import LOOK_EVERY_S as HANDED_OVER_EVERY_S
from relay.supervisor.handed_over import HandedOver
from relay.supervisor.live import Follow
from relay.supervisor.management import Management
from relay.supervisor.observer import Observer
from relay.supervisor.patience import store_patiently
from relay.supervisor.reconcile import Reconciler
from relay.supervisor.rereading import Rereading
from relay.supervisor.resharding import Resharder, reshard
from relay.supervisor.resume import Resume, where_to_resume
from relay.supervisor.session import Interrupted, Reporter, Session, Workplace
from relay.supervisor.widening import Widening
from relay.supervisor.wiring import Machine, operator_origins

log = get_logger(__name__)

FORGET_INSTANCES_S = 3600.0
QUARANTINED_EVERY_S = 60.0
QUARANTINED_AT_A_TIME = 5000
WIDENING_EVERY_S = 0.2
RECONCILER_EVERY_S = 0.25
# An incident is stored within a tenth of a second; a pass that begins before that would not be its answer.
ASK_AFTER_S = 1.0
# The listing row (batch 0) that stands for a whole enumeration.
KIND_WHOLE = "whole"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """What the first transaction found. `is_enumerated`: what `run` enumerates has been, completely."""

    stored: Partition
    resume: Resume | None
    is_enumerated: bool


class Service:
    """One `run` or `tail`. `run()` blocks until it has ended; call it from the main thread.

    `cursor`, `live`: as the operator of a `tail` asked (DESIGN 9).
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        command: str,
        cursor: int | None = None,
        live: bool = False,
        reporter: Reporter,
    ) -> None:
        settings = loaded.settings
        self._loaded, self._settings, self._command, self._cursor, self._live = loaded, settings, command, cursor, live
        self._session = Session(settings, command=command, reporter=reporter)
        self._filter = NsidFilter.parse(settings.firehose.nsid_filter)
        self._upstream = settings.firehose.relay_host
        self._origins = operator_origins(settings)
        self._sources = _sources(settings) if command == "run" else None

    def run(self) -> str | None:
        """Do it. Return why it could not go on; None: it was stopped as asked. Raises RelayError when it cannot begin."""
        session = self._session
        with session.opened():
            try:
                session.acquire(visible=True)
                session.presence.listen(required=not session.stood_by)
                with session.workplace() as place:
                    return self._work(place)
            except Interrupted:
                return None

    def _work(self, place: Workplace) -> str | None:
        settings, session = self._settings, self._session
        begun = session.store("begin", self._begin)
        reshard(session.store, settings.delivery, place.addresses, session.clock.now)
        resume = begun.resume
        if resume is not None and resume.incident is not None:
            session.metrics.incident(resume.incident[0])
        if resume is not None and resume.cursor is None and self._command == "run":
            resume = self._first_cursor(resume)
        asking = _Asking()

        def gave_up(text: str) -> None:
            session.died("firehose", StreamError(text))

        follow: Follow | None = None
        if resume is not None:
            follow = Follow(
                upstream=self._upstream,
                cursor=resume.cursor,
                time_us=resume.time_us,
                mode=settings.discovery.mode,
                collections=settings.discovery.collections,
                on_incident=lambda _kind, _text: asking.soon(),
                on_give_up=gave_up,
            )
            log.info("stream_resumed", upstream=self._upstream, cursor=resume.cursor)
        else:
            log.info(
                "no_firehose",
                reason="firehose.relay_host is empty: what is pending is fetched, and nothing is followed",
            )
        machine = Machine(
            settings,
            session.database,
            addresses=place.addresses,
            nsid_filter=self._filter,
            batch=None,
            epoch=session.epoch,
            spool_dir=place.spool_dir,
            operator_origins=self._origins,
            metrics=session.metrics,
            on_death=session.died,
            on_store=session.store_away,
            follow=follow,
        )
        work = _Work(session, machine, self._filter, self._origins)
        discovery = self._discovery(work, begun)
        beside: list[ServiceThread] = [] if discovery is None else [discovery]
        reconciler = Reconciler(
            settings,
            session.database,
            epoch=session.epoch,
            gate=machine.gate,
            operator_origins=self._origins,
            on_death=session.died,
            on_decided=lambda _decided: machine.engine.post(machine.scheduler.something_changed),
        )
        observer = Observer(
            machine,
            session.metrics,
            instance=settings.relay.name,
            command=self._command,
            listing=work.listing,
            reconcile=reconciler.view,
        )
        refilter = self._plug(work, reconciler, asking, begun)
        chain = OperationChain(session.database, machine.engine.post, machine.delivery)
        machine.engine.every(PUMP_EVERY_S, chain.pump)
        resharder: Resharder | None = None
        if settings.delivery.failover_after_sec == 0:
            resharder = Resharder(self._patiently, machine.delivery, session.clock.now, session.died)
            beside.append(resharder)
        control = RelayControl(session, machine, observer, refilter, resharder)
        session.reread = Rereading(self._loaded, control, machine.gate).look
        management = Management(session, control, chain)
        with session.working(machine, observer, work.census, place, beside, management):
            return session.wait(observer, place, is_over=lambda: False)

    def _patiently(self, name: str, act: Callable[[Cursor], Any], stopped_within: Callable[[float], bool]) -> Any:
        session = self._session
        return store_patiently(session.database, name, act, epoch=session.epoch, stopped_within=stopped_within)

    # --- before -------------------------------------------------------------------------------------------------------------

    def _begin(self, cursor: Cursor) -> _Begun:
        """The first transaction with the lease in hand."""
        reset = repos.reset_active(cursor)
        instances.forget_silent(cursor, FORGET_INSTANCES_S)
        stored = partitions.read(cursor)
        partitions.store_filter(cursor, filter_text(self._filter))
        resume: Resume | None = None
        if self._upstream:
            resume = where_to_resume(
                stored, self._upstream, cursor=self._cursor, live=self._live, has_repos=sweeps.is_any_repo(cursor)
            )
            if resume.incident is not None:
                kind, text = resume.incident
                incidents.open_incident(cursor, kind, text, self._session.clock.now())
                log.warning("incident_opened", kind=kind, text=text)
        whole = None if self._sources is None else listings.load(cursor, KIND_WHOLE, *_place(self._sources))
        log.info("service_began", command=self._command, left_active=reset)
        return _Begun(stored=stored, resume=resume, is_enumerated=whole is not None)

    def _first_cursor(self, resume: Resume) -> Resume:
        """Have a cursor stored before anything is enumerated; where upstream is away, the stream's first event will be it."""
        position = ask_position(self._settings, self._origins)
        if position is None:
            return resume

        def store(cursor: Cursor) -> bool:
            return partitions.store_first_cursor(cursor, self._upstream, position.seq, position.time_us)

        self._session.store("store the first cursor", store)
        log.info("first_cursor_stored", upstream=self._upstream, seq=position.seq)
        return Resume(cursor=position.seq, time_us=position.time_us)

    def _discovery(self, work: _Work, begun: _Begun) -> Discovery | None:
        """Return the enumeration of a `run` that has not been complete yet. A complete one is repeated by reconciles only."""
        sources = self._sources
        if sources is None or begun.is_enumerated:
            return None
        session = self._session

        def first(stopping: threading.Event) -> bool:
            return not self._upstream or await_cursor(session.database, self._upstream, stopping)

        def then(result: EnumerationResult, stopping: threading.Event) -> None:
            if not result.is_complete:
                log.info(
                    "enumeration_incomplete", failed=len(result.failed), again="at the next start, and by reconciles"
                )
                return

            def note(cursor: Cursor) -> bool:
                host, param = _place(sources)
                now = session.clock.now()
                listings.save(cursor, Listing(kind=KIND_WHOLE, host=host, param=param, started_at=now, finished_at=now))
                return True

            store_patiently(session.database, "enumerated", note, epoch=session.epoch, stopped_within=stopping.wait)

        work.first = work.discovery(None, sources, "discovery", self._origins, then, first)
        return work.first

    # --- while it runs --------------------------------------------------------------------------------------------------------

    def _plug(
        self, work: _Work, reconciler: Reconciler, asking: _Asking, begun: _Begun
    ) -> Callable[[NsidFilter], None]:
        """Return what has stored repos compared with another filter."""
        machine, session = work.machine, self._session

        def moved(transitions: Transitions) -> None:
            if transitions:
                machine.keeper.moved(transitions, of_batch=False)
                machine.scheduler.something_changed()

        def retry_quarantined() -> None:
            machine.tasks.submit(
                "retry quarantined",
                lambda cur: sweeps.retry_quarantined(cur, session.clock.now(), QUARANTINED_AT_A_TIME),
                moved,
            )

        def widening(wanted: NsidFilter, compared: str | None) -> Widening:
            return Widening(
                machine.tasks,
                session.clock,
                wanted,
                compared,
                lambda count: moved({(RepoState.SYNCED, RepoState.PENDING): count}),
            )

        comparing = [widening(self._filter, begun.stored.filter_compared)]

        def refilter(wanted: NsidFilter) -> None:
            work.wanted = wanted
            comparing[0].is_over = True
            comparing[0] = widening(wanted, None)

        engine = machine.engine
        engine.every(HANDED_OVER_EVERY_S, work.handed_over.look)
        engine.every(QUARANTINED_EVERY_S, retry_quarantined)
        engine.every(WIDENING_EVERY_S, lambda: comparing[0].look())
        engine.every(RECONCILER_EVERY_S, lambda: asking.look(machine, reconciler, session.start_beside))
        return refilter


class _Work:
    """What a service enumerates: its own discovery, and those of batches that were handed over."""

    def __init__(self, session: Session, machine: Machine, wanted: NsidFilter, origins: tuple[str, ...]) -> None:
        self._session, self.machine, self.wanted, self._origins = session, machine, wanted, origins
        self.first: Discovery | None = None
        self.census = Census(machine.keeper, machine.tasks, None, lambda: self.listing().running)
        self.handed_over = HandedOver(
            machine.tasks, session.clock, self._enumerate_batch, session.database, session.epoch
        )

    def discovery(
        self,
        batch: int | None,
        sources: Sources,
        name: str,
        origins: tuple[str, ...],
        then: Then,
        first: Callable[[threading.Event], bool],
    ) -> Discovery:
        enumeration = enumeration_into(
            self._session, self.machine, self.census, batch=batch, wanted=self.wanted, origins=origins
        )
        return Discovery(enumeration, sources, first=first, then=then, on_death=self._session.died, name=name)

    def listing(self) -> ListingView:
        """Return how far the enumeration is that runs, or that ran last; from the engine's thread."""
        known = [each for each in (self.first, *self.handed_over.running) if each is not None]
        for each in known:
            if not each.is_over:
                return each.view()
        return known[-1].view() if known else ListingView()

    def _enumerate_batch(self, batch: int, sources: Sources, then: Then) -> Discovery:
        origins = (*self._origins, *sources.named)
        discovery = self.discovery(batch, sources, f"discovery-{batch}", origins, then, lambda _stopping: True)
        self._session.start_beside(discovery)
        return discovery


class _Asking:
    """When the reconciler is started, and when it is asked for a pass. Lives in the engine's thread.

    What a pass compares must not be older than the stream that we are on: without a cursor it begins when we are let in. Let in again
    before the first event, nobody knows what we missed, so another pass follows.
    """

    def __init__(self) -> None:
        self._ask_at: float | None = None  # monotonic
        self._is_started = False
        self._connections = 0

    def soon(self) -> None:
        """An incident is on its way to the table."""
        self._ask_at = time.monotonic() + ASK_AFTER_S

    def look(self, machine: Machine, reconciler: Reconciler, start: Callable[[ServiceThread], None]) -> None:
        view = machine.tail_view()
        if view is not None and view.seq is None:
            if not view.is_connected or view.connections == self._connections:
                return
            self._connections = view.connections
            if self._is_started:
                reconciler.ask()
                return
        if not self._is_started:
            self._is_started = True
            start(reconciler)
        elif self._ask_at is not None and time.monotonic() >= self._ask_at:
            self._ask_at = None
            reconciler.ask()


def _sources(settings: Settings) -> Sources | None:
    """Return what `run` enumerates, None: nothing (discovery.mode `tracked`, or nobody to ask)."""
    mode, upstream = settings.discovery.mode, settings.firehose.relay_host
    if mode == "all" and upstream:
        return Sources(origin=http_origin(upstream))
    if mode == "collection" and settings.discovery.collections and (settings.discovery.collection_host or upstream):
        return Sources(collections=settings.discovery.collections, origin=collection_origin(settings))
    return None


def _place(sources: Sources) -> tuple[str, str]:
    """Return host and param of the listing row that stands for the whole of them."""
    return sources.origin, sources.param
