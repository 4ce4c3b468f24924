"""What an instance shows of itself: every half second one frozen snapshot, and the metrics that follow from it.

`look` runs in the engine's thread, so it may read everything there; the snapshot is then anybody's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from relay import __version__
from relay.deliver.health import Away
from relay.deliver.segment import IngesterStatus
from relay.discovery.progress import ReconcileView
from relay.identity.resolver import Result
from relay.model import RepoState
from relay.observe.metrics import Arena, CacheResult, ChildRole, HostState, Metrics, Queue
from relay.observe.rates import BacklogMeter, EtaMeter, RateMeter
from relay.observe.status import (
    Backlog,
    ErrorView,
    FetchView,
    FirehoseStatus,
    Gauge,
    HostView,
    IncidentView,
    IngesterView,
    ListingView,
    Phase,
    Rates,
    StatusSnapshot,
    Targets,
    WorkerView,
    rfc3339,
)
from relay.repos.lifecycle import FINISHED
from relay.supervisor.noticed import Noticed
from relay.supervisor.resume import StartKind
from relay.supervisor.tail_shown import Added, ReconcileShown, TailShown
from relay.supervisor.wiring import Machine
from relay.tail.reader import IncidentKind

HOSTS_SHOWN = 50
LAST_ERRORS_SHOWN = 10
# A lookup that failed went to the directory all the same; the table's entries are as good as the memory's.
_CACHE_RESULTS = {
    Result.HIT: CacheResult.HIT,
    Result.TABLE: CacheResult.HIT,
    Result.LIMITED: CacheResult.HIT,
    Result.STALE: CacheResult.STALE,
    Result.NEGATIVE: CacheResult.NEGATIVE,
    Result.LOOKUP: CacheResult.MISS,
    Result.REFRESH: CacheResult.MISS,
    Result.FAILED: CacheResult.MISS,
}


class Observer:
    """`listing()` tells how far the enumeration is, `reconcile()` how far the running reconcile, or how the last one ended.

    Who has them sets what is not the machine's: `phase` (it is judged here but for the first and the last ones), and `store_away`.
    """

    def __init__(
        self,
        machine: Machine,
        metrics: Metrics,
        *,
        instance: str,
        command: str,
        listing: Callable[[], ListingView],
        reconcile: Callable[[], ReconcileView | None] = lambda: None,
    ) -> None:
        self._machine, self._metrics, self._instance, self._command = machine, metrics, instance, command
        self._listing, self._reconcile = listing, reconcile
        self._started = time.monotonic()
        self._repos_rate, self._records_rate, self._bytes_rate = RateMeter(), RateMeter(), RateMeter()
        self._operations_rate = RateMeter()
        self._host_rates: dict[str, RateMeter] = {}  # of the hosts that are shown
        self._eta, self._backlog = EtaMeter(), BacklogMeter()
        self._added = Added().since
        self._tail = TailShown(metrics, max_open_frames=machine.settings.firehose.max_open_frames)
        self._reconcile_shown = ReconcileShown(metrics)
        metrics.declare_incidents((*IncidentKind, *StartKind))
        self.phase = Phase.STARTING
        self.paused = ""  # by an operator: which parts
        self.reason = ""
        self.store_away: str | None = None
        self._noticed = Noticed(machine.tasks, time.time)
        self.snapshot = StatusSnapshot(instance=instance, phase=Phase.STARTING, command=command, version=__version__)

    def look(self) -> None:
        """Make a new snapshot and update the metrics."""
        now = time.monotonic()
        machine, totals = self._machine, self._machine.pipeline.totals
        ingesters = machine.delivery.status()
        self._judge_phase(ingesters)
        listing = self._listing()
        counts, targets = machine.keeper.counts, machine.keeper.targets
        done = sum(targets[state] for state in FINISHED)
        finished = totals.synced + totals.inactive
        self._repos_rate.update(now, finished)
        records = self._records_delivered()
        self._records_rate.update(now, records)
        self._bytes_rate.update(now, totals.bytes_fetched)
        departed = machine.delivery.departed
        delivered = departed.delivered_operations + sum(each.delivered_operations for each in ingesters)
        self._operations_rate.update(now, delivered)
        target_view, backlog = Targets(), Backlog()
        if machine.keeper.batch is None and any(counts.values()):
            left = sum(max(0, number) for state, number in counts.items() if state not in FINISHED)
            self._backlog.update(now, left, finished=finished, size=totals.bytes_fetched)
            backlog = Backlog(repos=left, eta_s=self._backlog.eta_s(), bytes_left=_whole(self._backlog.bytes_left()))
        elif machine.keeper.batch is not None:
            total = sum(targets.values())
            self._eta.update(now, done, total, totals.bytes_fetched)
            target_view = Targets(
                total=total,
                done=done,
                synced=targets[RepoState.SYNCED],
                inactive=targets[RepoState.INACTIVE],
                quarantined=targets[RepoState.QUARANTINED],
                final=not listing.running,
                eta_s=self._eta.eta_s(),
                bytes_left=_whole(self._eta.bytes_left()),
            )
        self._noticed.look(now)
        tail = machine.tail_view()
        firehose = FirehoseStatus(cursor=self._noticed.cursor, upstream=self._noticed.upstream)
        if tail is not None:
            firehose = self._tail.look(tail, machine.keeper.buffer, now=now, wall=time.time())
        hosts = machine.gate.snapshot(HOSTS_SHOWN)
        self._host_rates = {each.host: self._host_rates.get(each.host) or RateMeter() for each in hosts}
        for each in hosts:
            self._host_rates[each.host].update(now, each.started)
        self.snapshot = StatusSnapshot(
            instance=self._instance,
            phase=self.phase,
            reason=self.reason,
            at=rfc3339(time.time()),
            version=__version__,
            command=self._command,
            pid=os.getpid(),
            uptime_s=now - self._started,
            repos={state.value: max(0, counts[state]) for state in RepoState},
            records_delivered=records,
            bytes_fetched=totals.bytes_fetched,
            rates=Rates(
                repos_per_s=self._repos_rate.rate(),
                records_per_s=self._records_rate.rate(),
                bytes_per_s=self._bytes_rate.rate(),
            ),
            firehose=firehose,
            ingesters=tuple(
                IngesterView(
                    address=each.address,
                    healthy=each.healthy,
                    reason=each.reason,
                    in_flight_batches=each.in_flight_batches,
                    queued_operations=each.queued_operations,
                    oldest_unacked_s=each.oldest_unacked_s,
                    queued_live=each.queued_live,
                    queued_backfill=each.queued_backfill,
                    in_flight_bytes=each.in_flight_bytes,
                    window_batches=each.window_batches,
                    rtt_ms=each.rtt_ms,
                    sent_operations=each.sent_operations,
                    delivered_operations=each.delivered_operations,
                )
                for each in ingesters
            ),
            incidents=tuple(IncidentView.of(incident) for incident in self._noticed.incidents),
            operations_sent=departed.sent_operations + sum(each.sent_operations for each in ingesters),
            operations_delivered=delivered,
            operations_per_s=self._operations_rate.rate(),
            targets=target_view,
            backlog=backlog,
            listing=listing,
            reconcile=self._reconcile_shown.look(self._reconcile()),
            fetch=FetchView(
                active=len(machine.pipeline.downloads.running),
                limit=machine.settings.backfiller.parallel_backfills,
                done=totals.fetch_outcomes["ok"],
                failed=sum(totals.fetch_outcomes.values()) - totals.fetch_outcomes["ok"],
                rate_limit_waits=totals.fetch_outcomes["rate_limited"],
            ),
            workers=self._workers(firehose.verifying or 0),
            hosts=tuple(
                HostView(
                    host=each.host,
                    state="down" if each.is_open else "waiting" if each.paused_for_s > 0 else "ok",
                    connections=each.in_flight,
                    requests_per_s=self._host_rates[each.host].rate(),
                    limit_per_s=machine.settings.backfiller.host_requests_per_sec,
                    wait_s=each.paused_for_s,
                    done=each.started - each.failed - each.limited,
                    failed=each.failed,
                )
                for each in hosts
            ),
            gauges=self._gauges(),
            failures=dict(totals.failures.most_common(50)),
            checkpoint_age_s=time.monotonic() - machine.checkpointer.stored_at,
            last_errors=tuple(
                ErrorView(at=rfc3339(at), reason=reason, text=text)
                for at, _did, reason, text in list(totals.last_failures)[-LAST_ERRORS_SHOWN:]
            ),
        )
        self._count(ingesters)

    def _records_delivered(self) -> int:
        return self._machine.pipeline.totals.records + self._machine.keeper.records_delivered

    def _judge_phase(self, ingesters: Sequence[IngesterStatus]) -> None:
        if self.phase in (Phase.DRAINING, Phase.STOPPED):
            return
        if self.store_away is not None:
            self.phase, self.reason = Phase.WAITING, f"database away: {self.store_away}"
        elif any(each.healthy for each in ingesters):
            self.phase = Phase.PAUSED if self.paused else Phase.RUNNING
            self.reason = f"paused by an operator: {self.paused}" if self.paused else self._clock()
        elif all(each.reason == Away.STARTING for each in ingesters):
            self.phase, self.reason = Phase.STARTING, ""
        else:
            self.phase, self.reason = Phase.WAITING, "no ingester answers"

    def _clock(self) -> str:
        behind_s = self._tail.clock_behind_s
        return "" if behind_s is None else f"this machine's clock is {behind_s:.0f} s behind the firehose's"

    def _workers(self, verifying: int) -> tuple[WorkerView, ...]:
        busy = {"fetch": len(self._machine.pipeline.downloads.running), "verify": verifying}
        return tuple(
            self._worker(number, pid, restarts)
            if role == "worker"
            else WorkerView(
                role=role,
                number=number,
                pid=pid,
                state="dead" if pid is None else "busy" if busy.get(role) else "idle",
                restarts=restarts,
            )
            for role, number, pid, restarts in self._machine.children.snapshot()
        )

    def _worker(self, number: int, pid: int | None, restarts: int) -> WorkerView:
        doing, busy_s, done = self._machine.pipeline.seats.view(number, time.monotonic())
        state = "dead" if pid is None else "busy" if doing else "idle"
        return WorkerView(
            role="worker", number=number, pid=pid, state=state, doing=doing, busy_s=busy_s, done=done, restarts=restarts
        )

    def _gauges(self) -> tuple[Gauge, ...]:
        machine = self._machine
        pipeline = machine.pipeline
        return (
            Gauge(name="CAR slots", used=pipeline.downloads.slots.in_use, limit=machine.plan.car_slots),
            Gauge(name="operation slots", used=pipeline.seats.slots_in_use, limit=machine.plan.operation_slots),
            Gauge(name="claimed, waiting for host", used=pipeline.downloads.queued),
            Gauge(name="resolving", used=len(pipeline.resolves)),
            Gauge(name="waiting for worker", used=len(pipeline.seats.queue)),
            Gauge(name="in work", used=pipeline.in_work),
            Gauge(name="to be stored", used=machine.keeper.waiting),
        )

    def _count(self, ingesters: Sequence[IngesterStatus]) -> None:
        """Feed the metrics: counters get what was added since the last look."""
        metrics, machine = self._metrics, self._machine
        totals, pipeline = machine.pipeline.totals, machine.pipeline
        metrics.repos({state: max(0, machine.keeper.counts[state]) for state in RepoState})
        metrics.slots(Arena.CAR, pipeline.downloads.slots.in_use, machine.plan.car_slots)
        metrics.slots(Arena.OPERATIONS, pipeline.seats.slots_in_use, machine.plan.operation_slots)
        if machine.live is not None:
            metrics.slots(Arena.FRAMES, *machine.live.tailer.slots)
        metrics.queue(Queue.STORE, machine.keeper.waiting)
        metrics.queue(Queue.FETCH, pipeline.downloads.queued)
        metrics.queue(Queue.WORKER, len(pipeline.seats.queue))
        metrics.queue(Queue.LIVE, sum(each.queued_live for each in ingesters))
        metrics.queue(Queue.BACKFILL, sum(each.queued_backfill for each in ingesters))
        metrics.records_delivered.inc(self._added("records", self._records_delivered()))
        metrics.repo_finished(RepoState.SYNCED, int(self._added("synced", totals.synced)))
        metrics.repo_finished(RepoState.INACTIVE, int(self._added("inactive", totals.inactive)))
        metrics.repo_finished(RepoState.QUARANTINED, int(self._added("quarantined", totals.quarantined)))
        for (kind, source), count in totals.made.items():
            metrics.made(kind, source, int(self._added(f"made {kind} {source}", count)))
        for reason, count in totals.failures.items():
            added = int(self._added(f"failure {reason}", count))
            metrics.error(reason, added)
            metrics.repo_failed(reason, added)
        for reason, count in machine.keeper.dead_letters.items():
            metrics.dead_letter(reason, int(self._added(f"dead letter {reason}", count)))
        for result, count in totals.identity_cache.items():
            metrics.identity(_CACHE_RESULTS[Result(result)], int(self._added(f"identity {result}", count)))
        for (role, reason), count in machine.children.replaced.items():
            metrics.child_replaced(ChildRole(role), reason, int(self._added(f"child {role} {reason}", count)))
        waits, waited_s = machine.gate.limited()
        metrics.rate_limited(
            self._added("limited seconds", waited_s + pipeline.resolves.limited_s),
            int(self._added("limited", waits + pipeline.resolves.limited_total)),
        )
        metrics.hosts({HostState(state): count for state, count in asdict(machine.gate.count()).items()})
        for each in ingesters:
            metrics.ingester_health(
                each.address,
                healthy=each.healthy,
                window_batches=each.window_batches,
                round_trip_s=None if each.rtt_ms is None else each.rtt_ms / 1000,
            )
        metrics.firehose_followed.set(machine.live is not None)
        metrics.repos_in_memory.set(len(machine.keeper.residents))
        metrics.open_incidents.set(sum(each.closed_at is None for each in self._noticed.incidents))
        checkpointer = machine.checkpointer
        metrics.checkpoints.inc(self._added("checkpoints", checkpointer.stored))
        metrics.checkpoint_age.set(time.monotonic() - checkpointer.stored_at)


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)
