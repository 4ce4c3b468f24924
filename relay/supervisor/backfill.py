"""`backfill`: from a list of targets to a result. Opens what is needed, runs the machine until the targets are finished, stops it."""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from relay import __version__
from relay.admin.http import AdminHttp
from relay.atproto.nsid_filter import NsidFilter
from relay.cluster.leases import Lease
from relay.config.schema import Settings
from relay.discovery.listing import Enumeration, EnumerationResult
from relay.discovery.pages import PagePolicy
from relay.discovery.sink import StoreSink
from relay.errors import RelayError
from relay.ipc.child import stop_forkserver
from relay.net.address import http_origin
from relay.net.guard import Guard
from relay.net.http import Fetcher, user_agent
from relay.net.xrpc import Xrpc
from relay.observe.log import get_logger
from relay.observe.metrics import Metrics
from relay.observe.status import ListingView, Phase, StatusSnapshot
from relay.runtime.clock import SystemClock
from relay.runtime.signals import StopSignals
from relay.store import batches, instances, repos
from relay.store.partitions import Holder
from relay.store.pool import Database
from relay.store.repos import UpsertResult
from relay.store.statements import Cursor
from relay.supervisor.books import Books, Summary, missing_targets
from relay.supervisor.census import Census
from relay.supervisor.discovery import Discovery, Targets
from relay.supervisor.firstseq import store_first_cursor
from relay.supervisor.local_ingester import LocalIngester, default_sink
from relay.supervisor.observer import Observer
from relay.supervisor.patience import store_patiently
from relay.supervisor.wiring import Machine, operator_origins

log = get_logger(__name__)

T = TypeVar("T")

LOOK_EVERY_S = 0.5
HEARTBEAT_EVERY_S = 2.0
FINISH_CHECK_S = 0.2


class Reporter(Protocol):
    """Whom a run tells how it goes: the terminal, or lines."""

    def waiting(self, text: str) -> None:
        """It waits for something before it can begin."""

    def started(self, addresses: Mapping[str, str]) -> None:
        """It runs; what listens where."""

    def show(self, snapshot: StatusSnapshot) -> None:
        """Called about four times a second."""

    def ended(self) -> None:
        """No more snapshots: give the terminal back."""

    def give_back_terminal(self) -> None:
        """In a signal handler, right before the process ends without unwinding."""


class BackfillRun:
    """One `backfill` command. `run()` blocks until it has ended; call it from the main thread."""

    def __init__(self, settings: Settings, targets: Targets, nsid_filter: NsidFilter, reporter: Reporter) -> None:
        self._settings, self._targets, self._filter, self._reporter = settings, targets, nsid_filter, reporter
        self._clock = SystemClock()
        self._deaths: queue.SimpleQueue[tuple[str, BaseException]] = queue.SimpleQueue()
        self._summary = Summary()
        self._metrics = Metrics(version=__version__, runtime=settings.metrics.enable_runtime_metrics)
        self._enumeration_result: EnumerationResult | None = None
        self._finished = False
        self._finish_asked = False
        self._store_away: dict[str, str] = {}

    def run(self) -> Summary:
        """Do it. Raises RelayError when it cannot begin (configuration, database, ports, ingester)."""
        settings = self._settings
        faulthandler.register(signal.SIGUSR1)  # every thread's stack to stderr: for whoever finds us stuck
        signals = StopSignals(self._reporter.give_back_terminal)
        signals.install()
        data_dir = Path(settings.relay.data_dir)
        data_dir.mkdir(parents=True, exist_ok=True)
        database = Database(settings.database, data_dir)
        database.open()
        lease = Lease(database, _owner(), on_lost=lambda exc: self._deaths.put(("lease", exc)))
        try:
            if self._acquire(lease, signals):
                self._with_lease(database, lease, signals, data_dir)
            else:
                self._summary.interrupted = True
        finally:
            self._reporter.ended()
            lease.release(time.monotonic() + 2.0)
            database.close()
            stop_forkserver()
        return self._summary

    # --- before -----------------------------------------------------------------------------------------------------------

    def _acquire(self, lease: Lease, signals: StopSignals) -> bool:
        """Wait for the lease; False: interrupted."""
        stop = threading.Event()
        said: set[str] = set()

        def waiting(holder: Holder | None, trouble: str | None) -> None:
            if signals.wait(0.0) is not None:
                stop.set()
                return
            text = trouble or f"another instance is at work ({holder.owner if holder else '?'}): waiting until it ends"
            if text not in said:
                said.add(text)
                self._reporter.waiting(text)

        return lease.acquire(stop, waiting)

    def _with_lease(self, database: Database, lease: Lease, signals: StopSignals, data_dir: Path) -> None:
        settings = self._settings
        now = self._clock.now()

        def begin(cursor: Cursor) -> tuple[int, int, bool]:
            reset = repos.reset_active(cursor)
            batch, resumed = batches.open_batch(cursor, self._targets.spec(self._filter), now)
            instances.forget_silent(cursor, 3600)
            return reset, batch, resumed

        begun = self._store_patiently(database, lease, signals, "begin", begin)
        if begun is None:
            return
        reset, batch, resumed = begun
        log.info("batch_opened", batch=batch, resumed=resumed, left_active=reset)
        spool_dir = data_dir / "spool"
        shutil.rmtree(spool_dir, ignore_errors=True)  # whoever wrote there does not hold the lease any more
        spool_dir.mkdir(parents=True)
        local: LocalIngester | None = None
        addresses = settings.ingesters
        if not addresses:
            local = LocalIngester(default_sink(data_dir), log_level=settings.log_level, log_format=settings.log_format)
            addresses = (local.start(),)
        try:
            self._with_ingesters(database, lease, signals, batch, spool_dir, addresses, local)
        finally:
            if local is not None:
                local.stop(time.monotonic() + 20.0)
            shutil.rmtree(spool_dir, ignore_errors=True)

    def _store_patiently(
        self, database: Database, lease: Lease, signals: StopSignals, name: str, act: Callable[[Cursor], T]
    ) -> T | None:
        """Wait for the database if it is away; None: interrupted."""
        stored = store_patiently(
            database,
            name,
            act,
            epoch=lambda: lease.epoch,
            stopped_within=lambda seconds: signals.wait(seconds) is not None,
            waiting=self._reporter.waiting,
        )
        if stored is None:
            self._summary.interrupted = True
        return stored

    def _with_ingesters(
        self,
        database: Database,
        lease: Lease,
        signals: StopSignals,
        batch: int,
        spool_dir: Path,
        addresses: tuple[str, ...],
        local: LocalIngester | None,
    ) -> None:
        settings = self._settings
        origins = operator_origins(settings, self._targets.hosts)
        machine = Machine(
            settings,
            database,
            addresses=addresses,
            nsid_filter=self._filter,
            batch=batch,
            epoch=lambda: lease.epoch,
            spool_dir=spool_dir,
            operator_origins=origins,
            metrics=self._metrics,
            on_death=lambda name, exc: self._deaths.put((name, exc)),
            on_store=self._on_store,
        )
        census = Census(machine.keeper, machine.tasks, batch, lambda: not self._discovery.is_over)
        observer = Observer(
            machine, self._metrics, instance=settings.relay.name, command="backfill", listing=self._listing
        )
        fetcher = Fetcher(
            Guard(allow_private=settings.security.allow_private_hosts, exempt=origins),
            user_agent=user_agent(settings.http.contact),
        )
        self._discovery = Discovery(
            Enumeration(
                Xrpc(fetcher),
                machine.gate,
                StoreSink(
                    database,
                    epoch=lambda: lease.epoch,
                    batch=batch,
                    partitions=settings.relay.partitions,
                    clock=self._clock,
                    insufficient=self._insufficient,
                    took=lambda result, uncovered: machine.engine.post(
                        lambda: _page(machine, census, result, uncovered)
                    ),
                ),
                batch=batch,
                policy=PagePolicy.from_settings(settings.relay),
                on_stop=fetcher.abort,
            ),
            self._targets,
            settings,
            first=lambda: store_first_cursor(settings, database, lambda: lease.epoch, origins),
            on_death=lambda name, exc: self._deaths.put((name, exc)),
        )
        http = AdminHttp(
            settings.metrics.host,
            settings.metrics.port,
            health=lambda: _health(machine, observer),
            ready=lambda: _ready(observer),
            snapshot=lambda: observer.snapshot,
            metrics=lambda: _metrics_page(self._metrics, machine, observer),
        )
        address = f"{http.address[0]}:{http.address[1]}"
        instance = self._store_patiently(
            database,
            lease,
            signals,
            "register",
            lambda cursor: instances.register(
                cursor,
                name=settings.relay.name,
                command="backfill",
                pid=os.getpid(),
                host=socket.gethostname(),
                version=__version__,
                phase=observer.phase.value,
                started_at=self._clock.now(),
                metrics_address=address,
            ),
        )
        if instance is None:
            http.join(time.monotonic())
            return
        began = time.monotonic()
        self._plug(machine, observer, census, batch, instance, address)
        http.start()
        machine.start()
        self._discovery.start()
        self._reporter.started({"metrics": address, "ingesters": ", ".join(addresses)})
        try:
            self._wait(machine, observer, signals, local)
        finally:
            observer.phase = Phase.DRAINING
            deadline = time.monotonic() + settings.relay.shutdown_timeout_sec
            self._discovery.request_stop()
            machine.stop(deadline)
            self._discovery.join(deadline)
            observer.phase = Phase.STOPPED
            http.request_stop()
            http.join(time.monotonic() + 2.0)
            self._close_books(database, lease, machine, batch, instance, time.monotonic() - began)

    # --- while it runs ------------------------------------------------------------------------------------------------------

    def _plug(
        self, machine: Machine, observer: Observer, census: Census, batch: int, instance: int, address: str
    ) -> None:
        """What the engine does now and then for this run."""

        def look() -> None:
            observer.store_away = next(iter(self._store_away.values()), None)
            observer.look()

        def heartbeat() -> None:
            if machine.tasks.outstanding >= 50:
                return
            phase = observer.phase.value
            status = json.loads(observer.snapshot.to_json())

            def beat(cursor: Cursor) -> None:
                instances.heartbeat(cursor, instance, phase, metrics_address=address, status=status)

            machine.tasks.submit("heartbeat", beat, lambda _: None)

        machine.engine.every(LOOK_EVERY_S, look)
        machine.engine.every(HEARTBEAT_EVERY_S, heartbeat)
        machine.engine.every(0.5, census.look)
        machine.engine.every(FINISH_CHECK_S, lambda: self._look_for_end(machine, batch))

    def _wait(self, machine: Machine, observer: Observer, signals: StopSignals, local: LocalIngester | None) -> None:
        while True:
            if signals.wait(0.25) is not None:
                self._summary.interrupted = True
                return
            if not self._deaths.empty():
                name, exc = self._deaths.get()
                self._summary.why = str(exc) if isinstance(exc, RelayError) else f"{name}: {type(exc).__name__}: {exc}"
                return
            if self._finished:
                return
            if local is not None:
                local.restart_if_dead()
            self._reporter.show(observer.snapshot)

    def _look_for_end(self, machine: Machine, batch: int) -> None:
        """The end: everything is enumerated, nothing is in work, and the database knows of no unfinished target."""
        if self._finished or self._finish_asked or not self._discovery.is_over:
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

    def _insufficient(self, covers: Collection[str | None]) -> Collection[str]:
        """Which of these filters do not cover ours?"""
        return [text for text in covers if text is not None and not _parse_covers(text).covers(self._filter)]

    def _listing(self) -> ListingView:
        progress = self._discovery.enumeration.snapshot()
        return ListingView(
            running=not self._discovery.is_over,
            source=progress.source,
            hosts_total=progress.hosts_total,
            hosts_done=progress.hosts_done,
            hosts_failed=progress.hosts_failed,
            repos_seen=progress.repos_seen,
        )

    def _on_store(self, reason: str | None) -> None:
        name = threading.current_thread().name
        if reason is None:
            self._store_away.pop(name, None)
        else:
            self._store_away[name] = reason

    # --- after ----------------------------------------------------------------------------------------------------------------

    def _close_books(
        self, database: Database, lease: Lease, machine: Machine, batch: int, instance: int, took_s: float
    ) -> None:
        summary, totals = self._summary, machine.pipeline.totals
        summary.took_s = took_s
        summary.records, summary.bytes_fetched, summary.repos_synced = (
            totals.records,
            totals.bytes_fetched,
            totals.synced,
        )
        summary.operations = sum(each.delivered_operations for each in machine.delivery.status())
        result = self._discovery.result
        if result is not None:
            summary.failed_listings = [f"{each.host or each.param}: {each.text}" for each in result.failed]
        books = Books(database, lambda: lease.epoch, summary, batch=batch, instance=instance)
        books.close(finished=self._finished, now=self._clock.now())
        if result is not None and self._finished and summary.why is None:
            relay_host = self._settings.firehose.relay_host
            upstream = http_origin(relay_host) if relay_host else ""
            whole = not (self._targets.hosts or self._targets.collections)
            summary.why = missing_targets(result, upstream=upstream if whole else None, counts=summary.counts)


def _page(machine: Machine, census: Census, result: UpsertResult, uncovered: int) -> None:
    """A page of discovered repos is stored."""
    census.page(result, uncovered)
    machine.scheduler.something_changed()


def _parse_covers(text: str) -> NsidFilter:
    return NsidFilter.parse(text.split(",") if text else ())


def _owner() -> str:
    return f"backfill, process {os.getpid()} on {socket.gethostname()}"


def _health(machine: Machine, observer: Observer) -> tuple[int, str]:
    stuck = machine.is_stuck()
    if stuck is not None:
        return 503, stuck
    if observer.phase is Phase.STOPPED:
        return 503, "stopping"
    return 200, f"{observer.phase.value}{': ' + observer.reason if observer.reason else ''}"


def _metrics_page(metrics: Metrics, machine: Machine, observer: Observer) -> bytes:
    # Not by the observer: when the engine is stuck, so is that.
    metrics.healthy.set(_health(machine, observer)[0] == 200)
    return metrics.render()


def _ready(observer: Observer) -> tuple[int, str]:
    ready = observer.phase is Phase.RUNNING
    return (200 if ready else 503), f"{observer.phase.value}{': ' + observer.reason if observer.reason else ''}"
