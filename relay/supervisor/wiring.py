"""The composition root: from settings, a database and a lease to an engine with everything plugged into it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from relay.atproto.limits import Limits
from relay.atproto.nsid_filter import NsidFilter
from relay.backfill.fetcher import FetcherSettings, fetcher_main
from relay.backfill.messages import Checked, Fetched, FetchFailed, Resolved
from relay.backfill.pipeline import Pipeline
from relay.backfill.scheduler import Scheduler
from relay.backfill.worker import WorkerSettings, worker_main
from relay.config.schema import Settings
from relay.deliver.delivery import Delivery
from relay.ipc.arena import Arena
from relay.ipc.child import ChildProcess
from relay.model import RecordEncoding
from relay.net.address import http_origin
from relay.net.bucket import TokenBucket
from relay.net.gate import HostGate
from relay.net.hosts import HostPolicy, HostTable
from relay.observe.log import get_logger
from relay.observe.metrics import Metrics
from relay.repos.checkpointer import Checkpointer
from relay.repos.failures import RetryPolicy
from relay.repos.keeper import Keeper
from relay.repos.tasks import StoreTasks
from relay.runtime.clock import SystemClock
from relay.store.pool import Database
from relay.supervisor.arenas import plan
from relay.supervisor.children import ChildSeats
from relay.supervisor.engine import Engine
from relay.supervisor.live import Follow as Follow
from relay.supervisor.live import LiveHalf
from relay.supervisor.outlet import DeliveryOutlet, DeliveryReports, LiveLane
from relay.tail.ports import TailView

log = get_logger(__name__)

# What a message may have beside the operations themselves.
MESSAGE_OVERHEAD_BYTES = 64 * 1024
# Repos claimed ahead of their download: enough that a claim's round trip is never waited for.
CLAIMED_AHEAD = 128
STUCK_AFTER_S = 60.0
# A stop waits so long for an ingester that is not there: the time in which a stream that broke is opened again.
NOBODY_S = 1.0
# While the database is away the stream is read no further than this many changes: each holds a row, a kilobyte.
MOST_TO_STORE = 20_000


class Machine:
    """Everything that moves a repo, plugged together. Start and stop along the flow; `epoch()` is the lease's.

    `on_death(name, exc)` hears of a thread that died; `on_store(reason or None)` of the database going away and coming back;
    both from any thread.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        addresses: tuple[str, ...],
        nsid_filter: NsidFilter,
        batch: int | None,
        epoch: Callable[[], int],
        spool_dir: Path,
        operator_origins: tuple[str, ...],
        metrics: Metrics,
        on_death: Callable[[str, BaseException], None],
        on_store: Callable[[str | None], None],
        follow: Follow | None = None,
    ) -> None:
        self.settings, self.database = settings, database
        self.clock = SystemClock()
        self.plan = plan(settings)
        self.nsid_filter = nsid_filter
        self.operator_origins = operator_origins
        self.ingester_changes = 0
        self.tail_paused = False  # by an operator: nothing more is read
        self.cars = Arena("relay-cars", self.plan.car_slots, self.plan.car_slot_bytes)
        self.operations = Arena("relay-operations", self.plan.operation_slots, self.plan.operation_slot_bytes)
        self.gate = HostGate(HostTable(HostPolicy.from_settings(settings.backfiller)), self.clock)
        self.engine = Engine(on_death)
        self.children = ChildSeats(
            on_started=self._child_started,
            on_died=self._child_died,
            watch=self.engine.watch,
            unwatch=self.engine.unwatch,
        )
        self.checkpointer = Checkpointer(
            database,
            epoch,
            lambda stored: self.engine.post(lambda: self.keeper.stored(stored)),
            interval_operations=settings.backfiller.checkpoint_interval,
            on_death=on_death,
            on_away=on_store,
        )
        self.tasks = StoreTasks(database, epoch, self.engine.post, on_death=on_death, on_away=on_store)
        policy = RetryPolicy(
            max_retries=settings.relay.max_retries,
            first_delay_s=settings.relay.retry_backoff_ms / 1000,
            breaker_s=settings.backfiller.host_breaker_sec,
            give_up_on_silent_hosts=batch is not None,
        )
        self.keeper = Keeper(
            self.checkpointer,
            self.clock,
            batch=batch,
            wanted=nsid_filter,
            policy=policy,
            buffer_operations=settings.backfiller.buffer_size,
            follows=follow is not None,
            count=metrics.count,
        )
        self.outlet = DeliveryOutlet()
        self.delivery = Delivery(
            addresses,
            settings.delivery,
            settings.grpc,
            settings.relay,
            DeliveryReports(self.engine.post, self._ingester_changed),
            repo_operations=settings.backfiller.parallel_record_creates,
            on_room=lambda _address: self._has_room(),
            metrics=metrics,
            on_death=on_death,
        )
        self.outlet.delivery = self.delivery
        rate = settings.identity.requests_per_sec
        self.live_lane = LiveLane(self.keeper, self.delivery)
        room = max(CLAIMED_AHEAD, 2 * settings.backfiller.parallel_backfills)
        per_host = max(
            2 * settings.backfiller.host_connections,
            min(CLAIMED_AHEAD, int(settings.backfiller.host_requests_per_sec / 2)),
        )
        self.pipeline = Pipeline(
            keeper=self.keeper,
            outlet=self.outlet,
            children=self.children,
            hosts=self.gate,
            directory=TokenBucket(rate_per_s=rate, burst=max(1.0, rate / 4), now=self.clock.monotonic()),
            cars=self.cars,
            operations=self.operations,
            worker_seats=self.plan.workers,
            clock=self.clock,
            policy=policy,
            parallel=settings.backfiller.parallel_backfills,
            room=room,
            per_host=per_host,
            fresh_identity_s=settings.identity.fresh_sec,
            fetch_timeout_s=settings.backfiller.fetch_timeout_sec,
            verify_signatures=settings.verify.signatures,
            copied=self._copied,
            spool_dir=spool_dir,
            metrics=metrics,
            waits=self.delivery.is_behind,
        )
        self.scheduler = Scheduler(
            pipeline=self.pipeline,
            keeper=self.keeper,
            hosts=self.gate,
            tasks=self.tasks,
            clock=self.clock,
            room=room,
            per_host=per_host,
            give_up_silent_s=policy.max_retries * policy.breaker_s if batch is not None else None,
        )
        self.keeper.outlet, self.keeper.fetching = self.live_lane, self.pipeline
        self.live: LiveHalf | None = None
        self.row_tasks: StoreTasks | None = None  # rows that the stream asks for wait for no other question
        if follow is not None:
            self.row_tasks = StoreTasks(
                database,
                epoch,
                self.engine.post,
                on_death=on_death,
                on_away=on_store,
                name="store-rows",
                reads_only=True,
            )
            self.live = LiveHalf(
                follow,
                settings,
                engine=self.engine,
                keeper=self.keeper,
                tasks=self.row_tasks,
                clock=self.clock,
                patterns=nsid_filter.patterns,
                operator_origins=operator_origins,
                limits=_limits(settings),
                max_operation_bytes=settings.grpc.max_message_size - MESSAGE_OVERHEAD_BYTES,
                blocked=lambda: self.tail_paused or self.live_lane.is_blocked or self.keeper.waiting >= MOST_TO_STORE,
                send=self.children.send_verify,
                resolve=self.pipeline.resolve,
                on_death=on_death,
            )
            self.keeper.stream = self.live.sequencer
        self._seat_children(spool_dir)
        self.engine.children = self.children
        self.engine.handle = self._handle
        self.engine.pump = self._pump
        self.engine.every(0.02, self.scheduler.tick)
        self.engine.every(5.0, self._look_for_stuck_children)
        self.engine.every(5.0, self.keeper.look_after_resting)

    def start(self) -> None:
        """Start the threads; the engine starts the children."""
        self.checkpointer.start()
        self.tasks.start()
        if self.row_tasks is not None:
            self.row_tasks.start()
        self.delivery.start()
        self.engine.start()
        self.engine.post(self.scheduler.look_for_tells)
        if self.live is not None:
            self.live.tailer.start()

    def set_filter(self, wanted: NsidFilter) -> None:
        """From now on these collections are wanted; repos that do not cover them are fetched again. In the engine's thread."""
        self.nsid_filter = wanted
        if self.live is not None:
            self.live.sequencer.set_wanted(wanted.patterns)
        self.keeper.change_filter(wanted)

    def tail_view(self) -> TailView | None:
        """What the live half is doing; None: no stream is followed. Any thread."""
        return None if self.live is None else self.live.view()

    def stop(self, deadline: float) -> bool:
        """Stop along the flow: no new work, what is on its way to the ingesters, what is to be stored, the children.

        `deadline` is monotonic seconds; what has not ended by then is done again by the next start. True: everything ended.
        """
        if self.live is not None:
            self.live.stop_reading(deadline)
        calm = self._call(self._stop_intake, deadline)
        there_at = time.monotonic()
        while calm and self.engine.is_alive() and time.monotonic() < deadline:
            if self._is_delivered() and self.keeper.waiting == 0:
                break
            if not self.checkpointer.is_alive():
                break  # fenced, perhaps: nothing more can be stored, so nothing more may go out
            if self.delivery.is_anybody_there():
                there_at = time.monotonic()
            elif time.monotonic() - there_at >= NOBODY_S:
                log.warning(
                    "stopped_unacknowledged",
                    reason="no ingester answers",
                    operations=self.delivery.operations,
                    again="sent by the next start",
                )
                break
            self.engine.stopping.wait(0.02)
        calm = self._is_delivered()
        self.tasks.request_stop()
        if self.row_tasks is not None:
            self.row_tasks.request_stop()
        self.live_lane.is_stopping = True
        self.delivery.request_stop()
        # Storing is never cut short by the ingesters' slowness: it gets time of its own.
        store_by = max(deadline, time.monotonic() + 5.0)
        self._call(self._put_last_cursor, store_by)
        self.checkpointer.request_stop()
        stored = self.checkpointer.join(store_by)
        stopped = self._call(lambda: self.children.stop(time.monotonic() + 2.0), store_by + 3.0)
        self.engine.request_stop()
        ended = self.engine.join(store_by + 4.0)
        self.delivery.join(time.monotonic() + 2.0)
        self.tasks.join(time.monotonic() + 2.0)
        if self.row_tasks is not None:
            self.row_tasks.join(time.monotonic() + 2.0)
        if not (ended and stopped):
            # The engine died, or hangs: nobody else ends them, and they ignore every signal but SIGKILL.
            self.children.stop(time.monotonic() + 1.0)
        self.engine.close()
        self.cars.close()
        self.operations.close()
        if self.live is not None:
            self.live.close()
        return calm and stored and ended

    def is_stuck(self) -> str | None:
        """Say what does not move although it should; for /health."""
        if time.monotonic() - self.engine.round_at > STUCK_AFTER_S:
            return "the engine has not finished a round for a minute"
        return None

    # --- plumbing -----------------------------------------------------------------------------------------------------------

    def _stop_intake(self) -> None:
        self.scheduler.paused = True
        if self.live is not None:
            self.live.sequencer.stop_taking()
        self.pipeline.stop_accepting()

    def _is_delivered(self) -> bool:
        """Is everything that was sent acknowledged, and every frame in hand proved? Any thread."""
        if self.pipeline.in_delivery or self.keeper.in_flight:
            return False
        return self.live is None or self.live.sequencer.is_quiet

    def _put_last_cursor(self) -> None:
        if self.live is not None:
            self.live.sequencer.store_cursor()

    def _pump(self) -> float | None:
        self.live_lane.pump()
        soon = [self.pipeline.pump()]
        if self.live is not None:
            soon.append(self.live.pump())
        return min((at for at in soon if at is not None), default=None)

    def _look_for_stuck_children(self) -> None:
        self.pipeline.look_for_stuck_children()
        if self.live is not None:
            for seat in self.live.sequencer.overdue(self.clock.monotonic()):
                self.children.kill("verify", seat, "a job took too long")

    def _child_started(self, role: str, seat: int) -> None:
        if role == "verify":
            assert self.live is not None
            self.live.sequencer.child_started(seat)
        else:
            self.pipeline.child_started(role, seat)

    def _child_died(self, role: str, seat: int, why: str) -> None:
        if role == "verify":
            assert self.live is not None
            self.live.sequencer.child_died(seat)
        else:
            self.pipeline.child_died(role, seat, why)

    def _call(self, do: Callable[[], None], deadline: float) -> bool:
        """Run something in the engine's thread and wait for it."""
        done = threading.Event()

        def run() -> None:
            try:
                do()
            finally:
                done.set()

        if not self.engine.is_alive():
            return False
        self.engine.post(run)
        while not done.wait(0.05):
            if time.monotonic() > deadline or not self.engine.is_alive():
                return False
        return True

    def _copied(self, seat: int, slot: int) -> None:
        """From a sender's thread: the bytes of a slot are in a batch now."""
        # The acknowledgement of that batch wakes the engine a moment later; a thread switch for each slot costs more than it gains.
        self.engine.post_lazily(lambda: self.pipeline.seats.copied(seat, slot))

    def _handle(self, role: str, seat: int, message: object) -> None:
        if role == "verify":
            assert self.live is not None
            self.live.said(seat, message)
            return
        if isinstance(message, Resolved | Fetched | FetchFailed | Checked):
            self.children.answered(role, seat)
        self.pipeline.child_said(role, seat, message)

    def _has_room(self) -> None:
        self.live_lane.stir()
        self.engine.wake()

    def _ingester_changed(self, address: str, healthy: bool, reason: str) -> None:
        self.ingester_changes += 1

    def _seat_children(self, spool_dir: Path) -> None:
        settings = self.settings
        worker = WorkerSettings(
            encoding=RecordEncoding(settings.delivery.record_encoding),
            chunk_bytes=settings.delivery.batch_bytes,
            chunk_operations=settings.backfiller.parallel_record_creates,
            max_operation_bytes=settings.grpc.max_message_size - MESSAGE_OVERHEAD_BYTES,
            limits=_limits(settings),
            log_level=settings.log_level,
            log_format=settings.log_format,
        )
        fetcher = FetcherSettings(
            backfiller=settings.backfiller,
            http=settings.http,
            identity=settings.identity,
            allow_private_hosts=settings.security.allow_private_hosts,
            operator_origins=self.operator_origins,
            spool_dir=str(spool_dir),
            downloads=self.plan.downloads,
            log_level=settings.log_level,
            log_format=settings.log_format,
        )

        def start_worker(seat: int) -> ChildProcess:
            return ChildProcess("worker", seat, worker_main, (self.cars, self.operations, worker))

        def start_fetcher(seat: int) -> ChildProcess:
            return ChildProcess("fetch", seat, fetcher_main, (self.cars, fetcher))

        for seat in range(self.plan.workers):
            self.children.add("worker", seat, start_worker)
        for seat in range(self.plan.fetchers):
            self.children.add("fetch", seat, start_fetcher)
        if self.live is not None:
            for seat in range(settings.verify.workers):
                self.children.add("verify", seat, self.live.start_verifier)


def _limits(settings: Settings) -> Limits:
    verify = settings.verify
    return Limits(
        record_bytes=verify.max_record_bytes,
        block_bytes=verify.max_block_bytes,
        blocks=verify.max_blocks,
        cbor_depth=verify.max_cbor_depth,
        cbor_items=verify.max_cbor_items,
        tree_depth=verify.max_tree_depth,
        node_entries=verify.max_node_entries,
    )


def operator_origins(settings: Settings, hosts: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the origins that the operator has named: they may be private."""
    named = [settings.identity.plc_url, *hosts]
    if settings.firehose.relay_host:
        named.append(settings.firehose.relay_host)
    if settings.discovery.collection_host:
        named.append(settings.discovery.collection_host)
    return tuple(dict.fromkeys(http_origin(each) for each in named))
