"""Reconciles in a service: after every incident, after each interval, and when somebody asks; and what the command needs of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from relay.config.schema import Settings
from relay.discovery.notebook import Decided, Notebook
from relay.discovery.pages import PagePolicy
from relay.discovery.progress import ReconcileView
from relay.discovery.reconcile import Reconcile, ReconcileResult, Scope
from relay.errors import StoreAway
from relay.net.address import http_origin
from relay.net.gate import HostGate
from relay.net.guard import Guard
from relay.net.http import Fetcher, user_agent
from relay.net.xrpc import Xrpc
from relay.observe.log import get_logger
from relay.runtime.backoff import Backoff
from relay.runtime.clock import Clock, SystemClock
from relay.runtime.service import ServiceThread
from relay.store import incidents, reconcile
from relay.store.pool import Database, Session
from relay.store.reconcile import BASELINE

log = get_logger(__name__)

ROUNDS_S = (60.0, 300.0, 900.0, 3600.0)
"""After these waits the hosts that did not answer are asked again; then the pass ends without them, and names them."""
AGAIN_S = 600.0
"""When most hosts did not answer (it is we who are cut off), the incidents stay open and everything is asked again after this."""
LOOK_EVERY_S = 60.0
LOCK_EVERY_S = 5.0
_TURN_S = 0.25


def scope_of(settings: Settings, *, tracked_only: bool = False) -> Scope:
    """Return what a reconcile finds beside what is tracked, as `discovery.mode` says."""
    discovery, upstream = settings.discovery, settings.firehose.relay_host
    origin = http_origin(upstream) if upstream else ""
    if tracked_only or discovery.mode == "tracked":
        return Scope()
    if discovery.mode == "all":
        return Scope(finds_all=True, upstream=origin)
    host = http_origin(discovery.collection_host) if discovery.collection_host else origin
    return Scope(collections=discovery.collections, collection_host=host) if host else Scope()


def make_reconcile(
    settings: Settings,
    database: Database,
    *,
    epoch: Callable[[], int | None],
    gate: HostGate,
    clock: Clock,
    operator_origins: Sequence[str] = (),
    rounds_s: Sequence[float] = (),
    tracked_only: bool = False,
    on_decided: Callable[[Decided], None] | None = None,
) -> Reconcile:
    """Return one pass, not begun, with connections of its own. `operator_origins` may be private, as may those of the configuration."""
    scope = scope_of(settings, tracked_only=tracked_only)
    named = [http_origin(each) for each in (settings.firehose.relay_host, settings.discovery.collection_host) if each]
    fetcher = Fetcher(
        Guard(allow_private=settings.security.allow_private_hosts, exempt=(*named, *operator_origins)),
        user_agent=user_agent(settings.http.contact),
    )
    notebook = Notebook(database, epoch=epoch, partitions=settings.relay.partitions, clock=clock)
    return Reconcile(
        Xrpc(fetcher),
        gate,
        notebook,
        scope,
        clock=clock,
        policy=PagePolicy.from_settings(settings.relay),
        rounds_s=rounds_s,
        closes_incidents=scope == scope_of(settings),
        on_stop=fetcher.abort,
        on_decided=on_decided,
    )


class ReconcileLock:
    """The right to reconcile: one process at a time. It ends with its session, so with the process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._session: Session | None = None

    def try_take(self) -> bool:
        """Take it; False: another process reconciles. Raises StoreAway."""
        if self._session is None or self._session.is_broken:
            self._session = self._database.session("reconcile")
        with self._session.transaction("lock the reconcile") as cur:
            return reconcile.try_lock(cur)

    def give_up(self) -> None:
        """Let others have it."""
        session, self._session = self._session, None
        if session is not None:
            session.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outlook:
    """What the database says: is a pass needed now, and when is the next one? Wall seconds of the server's clock."""

    now: float
    has_open_pass: bool
    incidents: int
    last_finished_at: float
    last_completed_at: float | None


class Reconciler(ServiceThread):
    """The thread. `ask` and `view` from any thread; passes run in this one, one after the other.

    A pass is needed: an incident is open, a pass was cut by a stop or a kill, `reconcile.interval_h` has passed since the last one, or
    somebody asked. What happens while one runs is answered by another one after it: an incident stays open unless the pass began after
    it. `on_decided` hears of marks (in this thread): claims should look.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        epoch: Callable[[], int],
        gate: HostGate,
        operator_origins: Sequence[str] = (),
        on_death: Callable[[str, BaseException], None],
        on_decided: Callable[[Decided], None] | None = None,
        clock: Clock | None = None,
        rounds_s: Sequence[float] = ROUNDS_S,
    ) -> None:
        super().__init__("reconciler", on_death)
        self._settings, self._database, self._epoch, self._gate = settings, database, epoch, gate
        self._origins, self._on_decided = tuple(operator_origins), on_decided
        self._clock, self._rounds_s = clock or SystemClock(), tuple(rounds_s)
        self._wake = threading.Event()
        self._lock = threading.Lock()  # guards: _asked, _current, _ended
        self._asked = 0
        self._current: Reconcile | None = None
        self._ended = ReconcileView()
        self._again_at = 0.0  # monotonic seconds: not before this, after a pass that reached hardly anybody

    # --- from any thread ----------------------------------------------------------------------------------------------------

    def ask(self, incident_ids: Collection[int] = ()) -> None:
        """Have a pass made that begins after this call: for incidents that are stored (their ids are for the log), or without any."""
        log.info("reconcile_asked", incidents=len(incident_ids))
        with self._lock:
            self._asked += 1
            current = self._current
        if current is not None:
            current.hurry()
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()
        with self._lock:
            current = self._current
        if current is not None:
            current.request_stop()

    def view(self) -> ReconcileView:
        """Return how far the running pass is, or how the last one ended."""
        with self._lock:
            current, ended = self._current, self._ended
        return ended if current is None else replace(current.view(), last_completed_at=ended.last_completed_at)

    # --- the thread ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        backoff = Backoff(0.5, 10.0)
        while not self.stopping.is_set():
            self._wake.clear()
            try:
                wait_s = self._turn()
                backoff.reset()
            except StoreAway as exc:
                wait_s = backoff.next_delay_s()
                log.warning("reconciler_waits_for_store", wait_s=round(wait_s, 1), error=str(exc))
            if not self.stopping.is_set() and wait_s > 0:
                self._wake.wait(wait_s)

    def _turn(self) -> float:
        """Make a pass if one is needed; return how long to wait for the next look, seconds."""
        with self._lock:
            asked = self._asked
        outlook = self._look()
        with self._lock:
            self._ended = replace(self._ended, last_completed_at=outlook.last_completed_at)
        wait_s = self._due_in_s(outlook, asked)
        if wait_s > 0:
            return min(wait_s, LOOK_EVERY_S)
        lock = ReconcileLock(self._database)
        try:
            if not lock.try_take():
                return LOCK_EVERY_S
            result = self._pass()
        finally:
            lock.give_up()
        if result.stopped:
            return _TURN_S
        with self._lock:
            self._asked -= asked
        if not result.answered:
            self._again_at = self._clock.monotonic() + AGAIN_S
        return 0.0

    def _due_in_s(self, outlook: _Outlook, asked: int) -> float:
        held_s = self._again_at - self._clock.monotonic()
        if asked or outlook.has_open_pass:
            return 0.0
        if outlook.incidents:
            return max(0.0, held_s)
        interval_s = self._settings.reconcile.interval_h * 3600
        if not interval_s:
            return LOOK_EVERY_S
        return max(0.0, held_s, outlook.last_finished_at + interval_s - outlook.now)

    def _look(self) -> _Outlook:
        with self._database.transaction("reconcile: what is due", epoch=self._epoch()) as cur:
            reconcile.set_baseline(cur)
            last = reconcile.find_last(cur)
            now = reconcile.stream(cur).now
            finished_at = now if last is None or last.finished_at is None else last.finished_at
            return _Outlook(
                now=now,
                has_open_pass=reconcile.find_open(cur) is not None,
                incidents=len(incidents.list_open(cur)),
                last_finished_at=finished_at,
                last_completed_at=None if last is None or last.note == BASELINE else finished_at,
            )

    def _pass(self) -> ReconcileResult:
        running = make_reconcile(
            self._settings,
            self._database,
            epoch=self._epoch,
            gate=self._gate,
            operator_origins=self._origins,
            clock=self._clock,
            rounds_s=self._rounds_s,
            on_decided=self._on_decided,
        )
        with self._lock:
            self._current = running
        if self.stopping.is_set():  # it may have been asked before `_current` was there
            running.request_stop()
        try:
            return running.run()
        finally:
            with self._lock:
                self._ended = replace(running.view(), running=False, last_completed_at=self._ended.last_completed_at)
                self._current = None


def wait_for_lock(lock: ReconcileLock, stopping: threading.Event, on_waiting: Callable[[], None]) -> bool:
    """Take the right to reconcile, however long another process has it; False: `stopping` was set. `on_waiting` is called once."""
    told = False
    while not stopping.is_set():
        if lock.try_take():
            return True
        if not told:
            on_waiting()
            told = True
        stopping.wait(min(LOCK_EVERY_S, 1.0))
    return False
