"""`backfill`: from a list of targets to a result. Runs the machine until the targets are finished, or hands them to a service that runs."""

from __future__ import annotations

import time

from relay.atproto.nsid_filter import NsidFilter
from relay.config.schema import Settings
from relay.observe.log import get_logger
from relay.runtime.clock import SystemClock
from relay.store import batches, instances, partitions, repos
from relay.store.statements import Cursor
from relay.supervisor.books import Books, Summary, missing_targets
from relay.supervisor.census import Census
from relay.supervisor.covering import parse_covers
from relay.supervisor.discovery import Discovery, Targets
from relay.supervisor.enumerating import enumeration_into
from relay.supervisor.firstseq import store_first_cursor
from relay.supervisor.handing_over import HandingOver
from relay.supervisor.observer import Observer
from relay.supervisor.resharding import reshard
from relay.supervisor.session import Interrupted, Reporter, Session, Workplace
from relay.supervisor.wiring import Machine, operator_origins

log = get_logger(__name__)

FINISH_CHECK_S = 0.2
FORGET_INSTANCES_S = 3600.0


class BackfillRun:
    """One `backfill` command. `run()` blocks until it has ended; call it from the main thread."""

    def __init__(self, settings: Settings, targets: Targets, nsid_filter: NsidFilter, reporter: Reporter) -> None:
        self._settings, self._targets, self._filter = settings, targets, nsid_filter
        self._session = Session(settings, command="backfill", reporter=reporter)
        self._clock = SystemClock()
        self._summary = Summary()
        self._finished = False
        self._finish_asked = False

    def run(self) -> Summary:
        """Do it. Raises RelayError when it cannot begin (configuration, database, ports, ingester)."""
        session = self._session
        with session.opened():
            beside = HandingOver(session, self._targets, self._filter, self._summary)
            try:
                if session.acquire(visible=False, beside=beside.look):
                    with session.workplace() as place:
                        self._work(place)
            except Interrupted:
                self._summary.interrupted = True
        return self._summary

    def _work(self, place: Workplace) -> None:
        settings, session, targets = self._settings, self._session, self._targets
        batch = session.store("begin", self._begin)
        reshard(session.store, settings.delivery, place.addresses, session.clock.now)
        origins = operator_origins(settings, targets.hosts)
        machine = Machine(
            settings,
            session.database,
            addresses=place.addresses,
            nsid_filter=self._filter,
            batch=batch,
            epoch=session.epoch,
            spool_dir=place.spool_dir,
            operator_origins=origins,
            metrics=session.metrics,
            on_death=session.died,
            on_store=session.store_away,
        )

        def first(_stopping: object) -> bool:
            store_first_cursor(settings, session.database, session.epoch, origins)
            return True

        census = Census(machine.keeper, machine.tasks, batch, lambda: not discovery.is_over)
        enumeration = enumeration_into(session, machine, census, batch=batch, wanted=self._filter, origins=origins)
        discovery = Discovery(enumeration, targets.sources(settings), first=first, on_death=session.died)
        observer = Observer(
            machine, session.metrics, instance=settings.relay.name, command="backfill", listing=discovery.view
        )
        machine.engine.every(FINISH_CHECK_S, lambda: self._look_for_end(machine, discovery, batch))
        began = time.monotonic()
        try:
            with session.working(machine, observer, census, place, [discovery]):
                self._summary.why = session.wait(observer, place, is_over=lambda: self._finished)
        finally:
            self._close_books(machine, discovery, batch, time.monotonic() - began)

    def _begin(self, cursor: Cursor) -> int:
        reset = repos.reset_active(cursor)
        compared = partitions.read(cursor).filter_compared
        if compared is not None and not self._filter.covers(parse_covers(compared)):
            # What is fetched here will cover less than the next service may rely on: it compares all repos again.
            partitions.store_filter_compared(cursor, None)
        batch, resumed = batches.open_batch(cursor, self._targets.spec(self._filter), self._clock.now())
        instances.forget_silent(cursor, FORGET_INSTANCES_S)
        log.info("batch_opened", batch=batch, resumed=resumed, left_active=reset)
        return batch

    def _look_for_end(self, machine: Machine, discovery: Discovery, batch: int) -> None:
        """The end: everything is enumerated, nothing is in work, and the database knows of no unfinished target."""
        if self._finished or self._finish_asked or not discovery.is_over:
            return
        if machine.pipeline.in_work or machine.keeper.residents or machine.keeper.waiting:
            return
        self._finish_asked = True
        nothing_is_claimed = not machine.scheduler.is_claiming

        def ask(cursor: Cursor) -> int:
            if nothing_is_claimed and repos.reset_active(cursor):
                # A claim whose commit broke with its connection may have taken place: nobody knows of these repos.
                log.warning("forgotten_claims_released")
            return repos.unfinished_of_batch(cursor, batch)

        def answer(unfinished: int) -> None:
            self._finish_asked = False
            if unfinished == 0 and not machine.pipeline.in_work and not machine.keeper.residents:
                self._finished = True

        machine.tasks.submit("unfinished", ask, answer)

    def _close_books(self, machine: Machine, discovery: Discovery, batch: int, took_s: float) -> None:
        session, summary, totals = self._session, self._summary, machine.pipeline.totals
        summary.took_s = took_s
        summary.records, summary.bytes_fetched, summary.repos_synced = (
            totals.records,
            totals.bytes_fetched,
            totals.synced,
        )
        summary.operations = sum(each.delivered_operations for each in machine.delivery.status())
        result = discovery.result
        if result is not None:
            failed = [(each.host, each.text) for each in result.failed]
            summary.failed_listings = [f"{host}: {text}" for host, text in failed]
        books = Books(session.database, session.epoch, summary, batch=batch)
        books.close(finished=self._finished, now=self._clock.now())
        if result is not None and self._finished and summary.why is None:
            upstream = self._targets.sources(self._settings).network
            summary.why = missing_targets(failed, upstream=upstream, counts=summary.counts)
