"""What `backfill`, `run` and `tail` have in common, from the first signal handler to the last closed connection.

opened      signals, database                                  ┐
acquire     the lease; until then a stand-by                   │ each is left in the
workplace   an empty spool folder, the ingester of our own     │ opposite order
working     the machine, HTTP, heartbeat, threads beside it    ┘
"""

from __future__ import annotations

import faulthandler
import os
import queue
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Protocol, TypeVar

from relay import __version__
from relay.cluster.leases import Lease
from relay.config.schema import Settings
from relay.errors import RelayError, StoreError
from relay.ipc.child import stop_forkserver
from relay.observe.log import get_logger
from relay.observe.metrics import Metrics
from relay.observe.status import Phase, StatusSnapshot
from relay.runtime.clock import SystemClock
from relay.runtime.service import Service
from relay.runtime.signals import StopSignals
from relay.runtime.systemd import ServiceManager
from relay.store.partitions import Holder
from relay.store.pool import Database
from relay.store.statements import Cursor
from relay.supervisor.census import Census
from relay.supervisor.local_ingester import LocalIngester, default_sink
from relay.supervisor.notices import Notices
from relay.supervisor.observer import Observer
from relay.supervisor.patience import store_patiently
from relay.supervisor.presence import Presence
from relay.supervisor.requeueing import Requeueing
from relay.supervisor.wiring import Machine

log = get_logger(__name__)

T = TypeVar("T")

LOOK_EVERY_S = 0.5
HEARTBEAT_EVERY_S = 2.0
CENSUS_EVERY_S = 0.5
NOTICES_EVERY_S = 0.5
REQUEUED_EVERY_S = 1.0
WAIT_S = 0.25
ALIVE_EVERY_S = 5.0  # the service manager's patience (WatchdogSec) is many times that
SERVICES = ("run", "tail")  # commands that work until they are stopped
# A question that waits behind so many others would only make it worse.
MOST_OUTSTANDING = 50


class Reporter(Protocol):
    """Whom a command tells how it goes: the terminal, or lines."""

    def waiting(self, text: str) -> None:
        """It waits for something before it can begin."""

    def started(self, addresses: Mapping[str, str]) -> None:
        """It runs; what listens where."""

    def show(self, snapshot: StatusSnapshot) -> None:
        """Called about four times a second."""

    def last(self, snapshot: StatusSnapshot) -> None:
        """How it stands after everything has been stopped."""

    def ended(self) -> None:
        """No more snapshots: give the terminal back."""

    def give_back_terminal(self) -> None:
        """In a signal handler, right before the process ends without unwinding."""


class Doors(Protocol):
    """Another port of ours; the main thread's."""

    @property
    def address(self) -> str | None: ...
    def listen(self, *, required: bool) -> None:
        """Raises CannotListen when `required`."""

    def look(self) -> None:
        """Called about four times a second."""

    def renew(self) -> None: ...
    def close(self) -> None: ...


class Interrupted(Exception):
    """The operator asked us to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """Where the work is done. `local` is the ingester of our own; None: the operator has named some."""

    spool_dir: Path
    addresses: tuple[str, ...]
    local: LocalIngester | None


class Session:
    """One command at work. Its methods are for the main thread, but for `died` and `store_away`."""

    def __init__(self, settings: Settings, *, command: str, reporter: Reporter) -> None:
        self.settings, self.command, self.reporter = settings, command, reporter
        self.clock = SystemClock()
        self.metrics = Metrics(version=__version__, runtime=settings.metrics.enable_runtime_metrics)
        self.data_dir = Path(settings.relay.data_dir)
        self.database = Database(settings.database, self.data_dir)
        self.lease = Lease(self.database, owner_text(command), on_lost=lambda exc: self.died("lease", exc))
        self.presence = Presence(settings, self.metrics, self.database, command=command)
        self.stood_by = False
        self._signals = StopSignals(reporter.give_back_terminal)
        self._deaths: queue.SimpleQueue[tuple[str, BaseException]] = queue.SimpleQueue()
        self._store_away: dict[str, str] = {}
        self._changing = threading.Lock()  # guards: _beside, _is_draining
        self._beside: list[Service] = []
        self._is_draining = False
        self._beat_at = 0.0
        self._doors: Doors | None = None
        self.may_enumerate = threading.Event()
        self.may_enumerate.set()
        self.look_at_notices: Callable[[], None] = lambda: None  # in the engine's thread
        self.reread: Callable[[], None] | None = None  # SIGHUP: the configuration
        self._is_reread_wanted = False
        self._manager = ServiceManager.of_environment(os.environ)
        self._alive_at = 0.0

    # --- from any thread ------------------------------------------------------------------------------------------------

    def died(self, name: str, exc: BaseException) -> None:
        """A thread died: the command ends."""
        self._deaths.put((name, exc))

    def store_away(self, reason: str | None) -> None:
        """The calling thread cannot reach the database, and why; None: it can again."""
        name = threading.current_thread().name
        if reason is None:
            self._store_away.pop(name, None)
        else:
            self._store_away[name] = reason

    def epoch(self) -> int:
        return self.lease.epoch

    # --- opened, acquired -----------------------------------------------------------------------------------------------

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Raises RelayError when it cannot begin (configuration, database)."""
        faulthandler.enable()  # the same for SIGABRT, by which a service manager ends whoever hangs
        faulthandler.register(signal.SIGUSR1)  # every thread's stack to stderr: for whoever finds us stuck
        self._signals.install()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        try:
            self.database.open()
            try:
                yield
            finally:
                self._manager.stopping()
                self.reporter.ended()
                self.presence.close()
                self._unregister()
                self.lease.release(time.monotonic() + 2.0)
                self.database.close()
        finally:
            stop_forkserver()

    def acquire(self, *, visible: bool, beside: Callable[[Holder], bool] | None = None) -> bool:
        """Wait for the lease. False: `beside(holder)`, called about twice a second, said that there is no need for it any more.

        `visible`: whoever waits serves HTTP and is among the instances. Raises Interrupted, and what `beside` raises.
        """
        stop = threading.Event()
        said: set[str] = set()
        ended = {"interrupted": False}

        def waiting(holder: Holder | None, trouble: str | None) -> None:
            if self._stop_asked(0.0):
                ended["interrupted"] = True
                stop.set()
                return
            text = trouble or f"another instance is at work ({(holder and holder.owner) or '?'}): waiting until it ends"
            if text not in said:
                said.add(text)
                log.info("standing_by", reason=text)
                self.reporter.waiting(text)
            self.stood_by = True
            self._manager.ready()
            self._tell_manager()
            if visible:
                self._stand_by(Phase.STANDBY if trouble is None else Phase.WAITING, text)
            if holder is not None and beside is not None and beside(holder):
                stop.set()

        acquired = self.lease.acquire(stop, waiting)
        if ended["interrupted"]:
            raise Interrupted
        if acquired:
            self.presence.say(Phase.STARTING)
        return acquired

    def _stand_by(self, phase: Phase, text: str) -> None:
        self.presence.say(phase, text)
        self.presence.listen(required=False)
        now = time.monotonic()
        if now < self._beat_at:
            return
        self._beat_at = now + HEARTBEAT_EVERY_S
        try:
            with self.database.transaction("stand by") as cursor:
                self.presence.beat(cursor)
        except StoreError as exc:
            log.debug("not_registered", reason=str(exc))

    def _unregister(self) -> None:
        if self.presence.instance is None:
            return
        try:
            with self.database.transaction("unregister") as cursor:
                self.presence.unregister(cursor)
        except StoreError as exc:  # whoever has the lease next forgets silent rows
            log.debug("not_unregistered", reason=str(exc))

    def store(self, name: str, act: Callable[[Cursor], T]) -> T:
        """Return what `act(cursor)` returned, in a fenced transaction; waits while the database is away. Raises Interrupted.

        `act` may run again after a commit that broke, and has to bear that. Before the machine runs.
        """

        def waiting(text: str) -> None:
            self.presence.say(Phase.WAITING, f"database away: {text}")
            self.reporter.waiting(text)

        wrapped: list[T] = []

        def once(cursor: Cursor) -> bool:
            wrapped[:] = [act(cursor)]
            return True

        stored = store_patiently(
            self.database,
            name,
            once,
            epoch=self.epoch,
            stopped_within=self._stop_asked,
            waiting=waiting,
        )
        if stored is None:
            raise Interrupted
        return wrapped[0]

    # --- at work --------------------------------------------------------------------------------------------------------

    @contextmanager
    def workplace(self) -> Iterator[Workplace]:
        """With the lease in hand. Raises DeliveryError when the ingester of our own does not start."""
        spool_dir = self.data_dir / "spool"
        shutil.rmtree(spool_dir, ignore_errors=True)  # whoever wrote there does not hold the lease any more
        spool_dir.mkdir(parents=True)
        settings = self.settings
        local: LocalIngester | None = None
        addresses = settings.ingesters
        try:
            if not addresses:
                local = LocalIngester(
                    default_sink(self.data_dir), log_level=settings.log_level, log_format=settings.log_format
                )
                addresses = (local.start(),)
            yield Workplace(spool_dir=spool_dir, addresses=addresses, local=local)
        finally:
            if local is not None:
                local.stop(time.monotonic() + 20.0)
            shutil.rmtree(spool_dir, ignore_errors=True)

    @contextmanager
    def working(
        self,
        machine: Machine,
        observer: Observer,
        census: Census,
        place: Workplace,
        beside: Sequence[Service] = (),
        management: Doors | None = None,
    ) -> Iterator[None]:
        """The machine runs, and `beside` it threads that feed it; left, everything is stopped along the flow.

        Raises CannotListen, and Interrupted while the database is waited for.
        """
        self.presence.plug(machine, observer)
        self.presence.listen(required=not self.stood_by)
        self._doors = management
        if management is not None:
            management.listen(required=not self.stood_by)
        self.store("register", self.presence.beat)
        self._plug(machine, observer, census)
        machine.start()
        for service in beside:
            self.start_beside(service)
        shown = {"ingesters": ", ".join(place.addresses)}
        if management is not None:
            shown = {"grpc": management.address or "not served", **shown}
        self.reporter.started({"metrics": self.presence.address or "not served", **shown})
        self._manager.ready()
        try:
            yield
        finally:
            self._manager.stopping()
            observer.phase = Phase.DRAINING
            if management is not None:
                management.close()
            deadline = time.monotonic() + self.settings.relay.shutdown_timeout_sec
            with self._changing:
                self._is_draining = True
            for service in self._beside:
                service.request_stop()
            has_ended = machine.stop(deadline)
            for service in self._beside:
                service.join(deadline)
            observer.phase = Phase.STOPPED
            if has_ended:
                if not self._store_away:
                    census.close(self.database)
                observer.look()  # what is on this side of the engine's end is ours
            self.reporter.last(observer.snapshot)
            self.presence.close()

    def start_beside(self, service: Service) -> None:
        """Start a thread that is stopped before the machine is; nothing, if that has begun. From the main thread, or the engine's."""
        with self._changing:
            if self._is_draining:
                return
            self._beside.append(service)
        service.start()

    def wait(self, observer: Observer, place: Workplace, *, is_over: Callable[[], bool]) -> str | None:
        """Return None when `is_over()`, or why it cannot go on. Raises Interrupted."""
        while True:
            if self._stop_asked(WAIT_S):
                raise Interrupted
            if self._doors is not None:
                self._doors.look()
            if self._is_reread_wanted and self.reread is not None:
                self._is_reread_wanted = False
                self.reread()
            if not self._deaths.empty():
                name, exc = self._deaths.get()
                return str(exc) if isinstance(exc, RelayError) else f"{name}: {type(exc).__name__}: {exc}"
            if is_over():
                return None
            if place.local is not None:
                place.local.restart_if_dead()
            self.presence.listen_again()
            self._tell_manager()
            self.reporter.show(observer.snapshot)

    def _tell_manager(self) -> None:
        """What we do when that changes, and, unless something is stuck, now and then that we are alive; called often."""
        code, text = self.presence.health()
        self._manager.status(text)
        now = time.monotonic()
        if code == HTTPStatus.OK and now >= self._alive_at:
            self._alive_at = now + ALIVE_EVERY_S
            self._manager.alive()

    def _stop_asked(self, timeout_s: float) -> bool:
        """Wait for a signal that asks us to stop. SIGHUP does not: files that may have been renewed are read again, the configuration
        as soon as we are at work."""
        number = self._signals.wait(timeout_s)
        if number == signal.SIGHUP:
            self._is_reread_wanted = True
            if self._doors is not None:
                self._doors.renew()
            return False
        return number is not None

    def _plug(self, machine: Machine, observer: Observer, census: Census) -> None:
        """What the engine does now and then, whatever the command."""

        def look() -> None:
            away = next(iter(self._store_away.values()), None)
            observer.store_away = away or self.presence.silence(time.monotonic())
            observer.look()

        def heartbeat() -> None:
            if machine.tasks.outstanding < MOST_OUTSTANDING:
                machine.tasks.submit(
                    "heartbeat", self.presence.beat, lambda _: self.presence.answered(time.monotonic())
                )

        def changed() -> None:
            census.unsettle()
            machine.scheduler.something_changed()

        beside = Notices(machine.keeper, machine.tasks, changed, machine.scheduler.look_for_tells)
        requeueing = Requeueing(machine.keeper, machine.tasks, self.clock, machine.delivery.offer)
        self.look_at_notices = beside.look
        machine.engine.every(NOTICES_EVERY_S, beside.look)
        machine.engine.every(REQUEUED_EVERY_S, requeueing.look)
        machine.engine.every(LOOK_EVERY_S, look)
        machine.engine.every(HEARTBEAT_EVERY_S, heartbeat)
        machine.engine.every(CENSUS_EVERY_S, census.look)


def owner_text(command: str) -> str:
    """Return how this process calls itself as the holder of the lease."""
    return f"{command}, process {os.getpid()} on {socket.gethostname()}"


def command_of(owner: str | None) -> str:
    """Return the command of a holder that called itself so; empty: nobody knows."""
    return (owner or "").partition(",")[0]
