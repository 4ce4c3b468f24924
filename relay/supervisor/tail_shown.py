"""What is shown of the firehose and of reconciles: one look becomes a block of the status, and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from relay.discovery.progress import ReconcileView
from relay.model import Source
from relay.observe.log import get_logger
from relay.observe.metrics import EventKind, Metrics, Queue, Reconciled
from relay.observe.rates import RateMeter
from relay.observe.status import FirehoseStatus, ReconcileStatus, rfc3339
from relay.tail.ports import TailView

log = get_logger(__name__)

_US = 1_000_000
BEHIND_S = 60.0  # so far behind the events' times our clock is wrong, and not a producer's
BEHIND_FOR_S = 10.0  # one producer's clock that is ahead passes sooner


class Buffered(Protocol):
    """The live buffer's numbers, all in operations but `overflows`."""

    max_operations: int
    operations: int
    added: int
    overflows: int


class Added:
    """How much counts that only rise have risen since the last time, by name: what a counter of the metrics wants."""

    def __init__(self) -> None:
        self._counted: dict[str, float] = {}

    def since(self, name: str, total: float) -> float:
        before = self._counted.get(name, 0.0)
        self._counted[name] = total
        return max(0.0, total - before)


class TailShown:
    """Looked at by one thread, a few times a second."""

    def __init__(self, metrics: Metrics, *, max_open_frames: int) -> None:
        self._metrics, self._max_open_frames = metrics, max_open_frames
        self._events_rate = RateMeter()
        self._added = Added()
        self._behind_since: float | None = None
        self.clock_behind_s: float | None = None
        """How far this machine's clock is behind the events' times; None: it is not. Commits above 5 min are refused (`future_rev`)."""

    def look(self, tail: TailView, buffer: Buffered, *, now: float, wall: float) -> FirehoseStatus:
        """Return what to show of `tail`, and update the metrics. `now`: monotonic seconds; `wall`: seconds since 1970."""
        self._events_rate.update(now, sum(tail.events.values()))
        lag_s = None if tail.time_us is None else max(0.0, wall - tail.time_us / _US)
        self._count(tail, buffer, lag_s)
        self._judge_clock(tail, now, wall)
        return FirehoseStatus(
            seq=tail.seq,
            cursor=tail.cursor,
            lag_s=lag_s,
            connected=tail.is_connected,
            events_per_s=self._events_rate.rate(),
            upstream=tail.upstream,
            events=_by_word(tail.events),
            outcomes=_by_word(tail.outcomes),
            invalid=_by_word(tail.invalid),
            ignored=_by_word(tail.ignored),
            open_frames=tail.open_frames,
            distance=tail.distance,
            max_open_frames=self._max_open_frames,
            waiting_batches=tail.waiting_batches,
            verifying=tail.verifying,
            waiting_for_key=tail.waiting_for_key,
            buffered_operations=buffer.operations,
            buffer_size=buffer.max_operations,
            connections=tail.connections,
            last_error=tail.last_error,
        )

    def _judge_clock(self, tail: TailView, now: float, wall: float) -> None:
        behind_s = 0.0 if tail.time_us is None else tail.time_us / _US - wall
        if behind_s < BEHIND_S:
            self._behind_since = self.clock_behind_s = None
            return
        self._behind_since = now if self._behind_since is None else self._behind_since
        if now - self._behind_since >= BEHIND_FOR_S:
            if self.clock_behind_s is None:
                log.warning(
                    "clock_behind_firehose", seconds=round(behind_s), hint="is this machine's time synchronised?"
                )
            self.clock_behind_s = behind_s

    def _count(self, tail: TailView, buffer: Buffered, lag_s: float | None) -> None:
        metrics, since = self._metrics, self._added.since
        metrics.firehose_connected.set(tail.is_connected)
        if tail.seq is not None:
            metrics.firehose_seq.set(tail.seq)
        if tail.cursor is not None:
            metrics.firehose_cursor.set(tail.cursor)
        if lag_s is not None:
            metrics.firehose_lag.set(lag_s)
        metrics.firehose_connections.inc(since("connections", tail.connections))
        metrics.firehose_bytes.inc(since("bytes", tail.received_bytes))
        metrics.firehose_stalled.inc(since("stalled", tail.slot_wait_s))
        metrics.verify_cpu.inc(since("cpu", tail.verify_cpu_s))
        metrics.open_frames.set(tail.open_frames)
        metrics.cursor_distance.set(tail.distance)
        metrics.queue(Queue.FRAMES, tail.waiting_batches)
        metrics.queue(Queue.VERIFY, tail.verifying)
        metrics.queue(Queue.KEY, tail.waiting_for_key)
        metrics.key_refreshes.inc(since("key refreshes", tail.key_refreshes))
        metrics.reliefs.inc(since("reliefs", tail.reliefs))
        metrics.buffered_operations.set(buffer.operations)
        metrics.operations_buffered.inc(since("buffered", buffer.added))
        metrics.buffer_overflows.inc(since("overflows", buffer.overflows))
        for kind, count in tail.events.items():
            metrics.event(EventKind(kind), int(since(f"event {kind}", count)))
        for op_type, count in tail.made.items():
            metrics.made(op_type, Source.FIREHOSE, int(since(f"made {op_type}", count)))
        for name, counts, counted in (
            ("ignored", tail.ignored, metrics.ignored),
            ("checked", tail.outcomes, metrics.checked),
            ("invalid", tail.invalid, metrics.invalid),
            ("incident", tail.incidents, metrics.incident),
        ):
            for label, count in counts.items():
                counted(label, int(since(f"{name} {label}", count)))


class ReconcileShown:
    """Looked at by one thread, a few times a second."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._added = Added()

    def look(self, view: ReconcileView | None) -> ReconcileStatus:
        """Return what to show of a reconcile (None: none ran), and update the metrics."""
        self._metrics.reconciling.set(view is not None and view.running)
        if view is None:
            return ReconcileStatus()
        for result, total in (
            (Reconciled.COMPARED, view.compared),
            (Reconciled.DIFFERED, view.differed),
            (Reconciled.QUEUED, view.queued),
            (Reconciled.FOUND, view.found),
        ):
            self._metrics.reconciled(result, int(self._added.since(result, total)))
        completed_at = None if view.last_completed_at is None else rfc3339(view.last_completed_at)
        if not view.running and not view.hosts_total:
            return ReconcileStatus(completed_at=completed_at)  # none ran since the start
        return ReconcileStatus(
            running=view.running,
            hosts_total=view.hosts_total,
            hosts_done=view.hosts_done,
            hosts_failed=view.hosts_failed,
            compared=view.compared,
            differed=view.differed,
            queued=view.queued,
            found=view.found,
            completed_at=completed_at,
        )


def _by_word(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts with plain strings as keys: JSON knows no others."""
    return {str(word): count for word, count in counts.items()}
