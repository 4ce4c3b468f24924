"""Every metric, declared once; dashboards rely on the names. Labels come from closed sets, never a DID.

The supervisor makes one `Metrics` and hands it down; only its process has one, children report through messages. Methods are
cheap, thread-safe, and meant to be called once a batch or a repo, not once a record. Counts are exact, gauges are what the last
call said.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)

from relay.model import Lane, OpType, RepoState, Source
from relay.observe.declared import Declared
from relay.observe.histogram import WeightedHistogram
from relay.observe.labels import Arena as Arena
from relay.observe.labels import CacheResult as CacheResult
from relay.observe.labels import ChildRole as ChildRole
from relay.observe.labels import EventKind as EventKind
from relay.observe.labels import FetchOutcome as FetchOutcome
from relay.observe.labels import HostState as HostState
from relay.observe.labels import Queue as Queue
from relay.observe.labels import Reconciled as Reconciled
from relay.observe.processes import LABELS, Process, ProcessCosts
from relay.observe.status import Phase

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds; from a live operation on loopback to a backfill that waits for an ingester that was restarted. What is promised of the
# slowest hundredth (50 ms, 200 ms) has to be a bound, or a histogram cannot tell whether it was kept.
_DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_FETCH_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

# States in which a commit is dropped, because a fetch that starts later contains it.
_NOT_FORWARDED = (
    RepoState.DISCOVERED,
    RepoState.PENDING,
    RepoState.FAILED,
    RepoState.DESYNCED,
    RepoState.QUARANTINED,
)

# The words of `supervisor.children` and of `deliver.refusals`.
_ENDS = ("killed", "ended")
_REFUSALS = ("rejected", "retries", "oversize", "record_too_large", "operation_too_large", "undecodable")

# Otherwise each counter has a second series with the time of its birth, of which nobody makes anything.
_without_created: Callable[[], None] = disable_created_metrics


class Metrics:
    """All metrics of one process, in a registry of their own; `render()` is the answer to GET /metrics.

    `ingester` labels are the configured addresses; `reason` and `kind` labels are the `reason` words of our error classes, which
    `label` keeps to a closed shape and a bounded number.
    """

    # More distinct reasons than the program has: only a fault of ours could go past it.
    MOST_REASONS = 200

    def __init__(self, *, version: str, runtime: bool = False) -> None:
        """`runtime`: also the metrics of the Python runtime and the process (metrics.enable_runtime_metrics)."""
        _without_created()
        self.registry = registry = CollectorRegistry()
        self._reasons: set[str] = set()
        self._reasons_lock = threading.Lock()  # guards _reasons
        self._children: Callable[[], Iterable[Process]] = tuple
        self.declared: list[Declared] = []  # all of ours, in the order of the page

        def declare(name: str, kind: str, labels: tuple[str, ...], text: str) -> None:
            self.declared.append(Declared(name=name, kind=kind, labels=labels, text=text))

        def counter(name: str, text: str, *labels: str) -> Counter:
            declare(name, "counter", labels, text)
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            declare(name, "gauge", labels, text)
            return Gauge(name, text, labels, registry=registry)

        declare("relay_build_info", "info", ("version",), "1; version of the relay")
        Info("relay_build", "version of the relay", registry=registry).info({"version": version})
        if runtime:
            for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
                registry.register(collector)
            for name, kind, text in ProcessCosts.FAMILIES:
                declare(name, kind, LABELS, text)
            registry.register(ProcessCosts(self._processes))

        # What goes through.
        self._operations = counter("relay_operations_total", "operations made, by type and source", "type", "source")
        self._sent = counter("relay_operations_sent_total", "operations written to an ingester's stream", "ingester")
        self._delivered = counter("relay_operations_delivered_total", "operations acknowledged", "ingester")
        self._delivered_bytes = counter("relay_delivered_bytes_total", "bytes of acknowledged operations", "ingester")
        self._moved = counter("relay_moved_repos_total", "repos moved to others by a fail-over", "ingester")
        self._redelivered = counter(
            "relay_operations_redelivered_total", "operations written again, after a stream broke", "ingester"
        )
        self.operations_buffered = counter(
            "relay_operations_buffered_total", "live operations held back while a repo was fetched"
        )
        self.operation_duration = WeightedHistogram(
            "relay_operation_duration_seconds",
            "from received to acknowledged, one observation an operation",
            label="lane",
            values=tuple(Lane),
            buckets=_DURATION_BUCKETS,
        )
        registry.register(self.operation_duration)
        declare(
            "relay_operation_duration_seconds",
            "histogram",
            ("lane",),
            "from received to acknowledged, one observation an operation",
        )
        self.records_delivered = counter(
            "relay_records_delivered_total",
            "records delivered: those of complete snapshots, and acknowledged creates and updates of the stream",
        )
        # What waits.
        self.buffered_operations = gauge("relay_buffered_operations", "live operations held back now")
        self.buffer_overflows = counter(
            "relay_buffer_overflows_total", "buffers of live operations that were thrown away for lack of room"
        )
        self._queue_depth = gauge("relay_queue_depth", "what waits in a queue", "queue")
        self._slots_in_use = gauge("relay_slots_in_use", "slots of shared memory that are taken", "arena")
        self._slots = gauge("relay_slots", "slots of shared memory", "arena")
        # Ingesters.
        self.healthy_ingesters = gauge("relay_healthy_ingesters", "ingesters that acknowledge")
        self._oldest_unacked = gauge(
            "relay_oldest_unacked_seconds",
            "age of the oldest operation that is queued or written and not acknowledged",
            "ingester",
        )
        self._in_flight = gauge("relay_in_flight_batches", "batches written and not acknowledged", "ingester")
        self._ingester_healthy = gauge("relay_ingester_healthy", "1 while the ingester acknowledges", "ingester")
        self._window = gauge("relay_window_batches", "batches that may be in flight now", "ingester")
        self._round_trip = gauge(
            "relay_round_trip_seconds", "smoothed time from a batch's writing to its acknowledgement", "ingester"
        )
        self._dead_letters = counter("relay_dead_letters_total", "operations given up, by reason", "reason")
        # Repos.
        self._repos = gauge("relay_repos", "tracked repos, by state", "state")
        self._repos_finished = counter("relay_repos_finished_total", "repos that came to rest in a state", "state")
        self._repo_failures = counter("relay_repo_failures_total", "failed attempts, by reason", "reason")
        self._desyncs = counter("relay_desyncs_total", "repos that have to be fetched again, by reason", "reason")
        self._refetches = counter(
            "relay_refetches_total", "repos that need another fetch after the one that runs, by reason", "reason"
        )
        self.repos_in_memory = gauge("relay_repos_in_memory", "repos that something happens to, or did a moment ago")
        # Fetching.
        declare("relay_fetch_seconds", "histogram", ("outcome",), "one download, by outcome")
        self._fetches = Histogram(
            "relay_fetch_seconds", "one download, by outcome", ("outcome",), buckets=_FETCH_BUCKETS, registry=registry
        )
        self._fetch_bytes = counter("relay_fetch_bytes_total", "bytes downloaded, by outcome", "outcome")
        self.rate_limit_waits = counter(
            "relay_rate_limit_waits_total", "answers by which hosts and the directory asked for patience"
        )
        self.rate_limit_wait_seconds = counter("relay_rate_limit_wait_seconds_total", "for how much they asked")
        self._hosts = gauge("relay_hosts", "hosts that repos were fetched from lately, by state", "state")
        self._identity_cache = counter(
            "relay_identity_cache_total",
            "DID documents that were asked for, by result; a miss went to the directory",
            "result",
        )
        self._worker_restarts = counter(
            "relay_worker_restarts_total", "child processes that were replaced", "role", "reason"
        )
        # Firehose.
        self.firehose_seq = gauge("relay_firehose_seq", "newest sequence number read")
        self.firehose_cursor = gauge("relay_firehose_cursor", "stored cursor: everything up to it is done")
        self.firehose_lag = gauge(
            "relay_firehose_lag_seconds", "age of the newest event read; rises while nobody in the network writes"
        )
        self.firehose_followed = gauge("relay_firehose_followed", "1 where this instance follows a stream")
        self.firehose_connected = gauge("relay_firehose_connected", "1 while the stream is open")
        self.firehose_connections = counter("relay_firehose_connections_total", "times that the stream was opened")
        self.firehose_bytes = counter("relay_firehose_bytes_total", "bytes read from the stream")
        self.firehose_stalled = counter(
            "relay_firehose_stalled_seconds_total", "time in which nothing was read because nobody took it"
        )
        self._events = counter("relay_events_total", "events of the firehose, by kind", "kind")
        self._ignored = counter("relay_frames_ignored_total", "frames that are of no use, by reason", "reason")
        self._outcomes = counter("relay_frames_total", "frames by what their check came to", "outcome")
        self._invalid = counter(
            "relay_invalid_total", "frames that prove nothing and were dropped, by reason", "reason"
        )
        self._dropped = counter(
            "relay_frames_dropped_total",
            "frames not forwarded: known already, or of a repo that a fetch brings",
            "reason",
        )
        self.verify_cpu = counter("relay_verify_cpu_seconds_total", "CPU time that proving frames took")
        self.key_refreshes = counter(
            "relay_key_refreshes_total", "signing keys asked for anew after a failed signature"
        )
        self.reliefs = counter(
            "relay_open_frames_reliefs_total", "repos that had to give way because their frame was the oldest open one"
        )
        self.open_frames = gauge("relay_open_frames", "frames that are not done")
        self.cursor_distance = gauge(
            "relay_cursor_distance_frames", "frames read from the oldest open one on; bounded by max_open_frames"
        )
        # Reconciles.
        self.reconciling = gauge("relay_reconciling", "1 while listings are compared with what is stored")
        self._reconciled = counter(
            "relay_reconciled_repos_total", "repos that reconciles looked at, by result", "result"
        )
        # State and trouble.
        self.checkpoint_age = gauge(
            "relay_checkpoint_age_seconds", "since the last stored checkpoint; rises while there is nothing to store"
        )
        self.checkpoints = counter("relay_checkpoints_total", "stored checkpoints")
        self._errors = counter("relay_errors_total", "errors, by type", "type")
        self._incidents = counter("relay_incidents_total", "incidents, by kind", "kind")
        self.open_incidents = gauge("relay_open_incidents", "incidents whose reconcile is not complete")
        self.healthy = gauge("relay_healthy", "1 while /health answers 200")
        self.ready = gauge("relay_ready", "1 while /ready answers 200: the pipeline can move")
        self._phase = gauge("relay_phase", "1 for what the instance is doing as a whole, 0 for the rest", "phase")
        # What `Count` effects of a repo's live life are called there, and the counter and label that they are here.
        self._counted: dict[str, tuple[Counter, str | None]] = {
            "dropped": (self._dropped, None),
            "known": (self._dropped, "known"),
            "desyncs": (self._desyncs, None),
            "again": (self._refetches, None),
        }
        self._create_known_series()

    def _create_known_series(self) -> None:
        """Start every series whose labels are known at 0: a rate over a series that appears late misses its first step."""
        for state in RepoState:
            self._repos.labels(state)
        for host_state in HostState:
            self._hosts.labels(host_state)
        for phase in Phase:
            self._phase.labels(phase)
        for op_type in OpType:
            for source in Source:
                self._operations.labels(op_type.name, source.name)
        for outcome in FetchOutcome:
            self._fetches.labels(outcome)
            self._fetch_bytes.labels(outcome)
        for kind in EventKind:
            self._events.labels(kind)
        for role in ChildRole:
            for how in _ENDS:
                self._worker_restarts.labels(role, how)
        for refusal in _REFUSALS:
            self._dead_letters.labels(self.label(refusal))
        for reason in ("known", *_NOT_FORWARDED):
            self._dropped.labels(reason)
        for result in CacheResult:
            self._identity_cache.labels(result)
        for found in Reconciled:
            self._reconciled.labels(found)
        for queue in Queue:
            self._queue_depth.labels(queue)
        for arena in Arena:
            self._slots.labels(arena)
            self._slots_in_use.labels(arena)

    def render(self) -> bytes:
        """Return everything in the Prometheus text format."""
        return generate_latest(self.registry)

    def declare_incidents(self, kinds: Iterable[str]) -> None:
        """Start the series of these kinds at 0: the first incident is the one that nobody may miss."""
        for kind in kinds:
            self._incidents.labels(self.label(kind))

    def declare_ingesters(self, addresses: Iterable[str]) -> None:
        """Start the series of these ingesters at 0."""
        for address in addresses:
            for metric in (self._sent, self._delivered, self._delivered_bytes, self._redelivered, self._moved):
                metric.labels(address)
            for gauge in self._of_ingesters():
                gauge.labels(address)

    def _of_ingesters(self) -> tuple[Gauge, ...]:
        return self._oldest_unacked, self._in_flight, self._ingester_healthy, self._window, self._round_trip

    def forget_ingester(self, address: str) -> None:
        """End the gauges of one that has been removed; its counters stay, as counters do."""
        for gauge in self._of_ingesters():
            gauge.remove(address)

    def made(self, op_type: OpType, source: Source, count: int = 1) -> None:
        """Count operations made (encoded), whether or not they have been sent."""
        self._operations.labels(op_type.name, source.name).inc(count)

    def sent(self, ingester: str, operations: int, *, again: bool = False) -> None:
        """Count operations written to a stream; `again`: they had been written to an earlier one."""
        self._sent.labels(ingester).inc(operations)
        if again:
            self._redelivered.labels(ingester).inc(operations)

    def delivered(self, ingester: str, lane: Lane, operations: int, size: int, took_s: float) -> None:
        """Count acknowledged operations of `size` bytes, all received `took_s` seconds ago."""
        self._delivered.labels(ingester).inc(operations)
        self._delivered_bytes.labels(ingester).inc(size)
        self.operation_duration.observe(lane, took_s, operations)

    def moved(self, ingester: str, repos: int) -> None:
        """Count repos whose unacknowledged operations an ingester lost to others."""
        self._moved.labels(ingester).inc(repos)

    def ingester(self, address: str, *, in_flight_batches: int, oldest_unacked_s: float | None) -> None:
        """Set what waits at one ingester."""
        self._in_flight.labels(address).set(in_flight_batches)
        self._oldest_unacked.labels(address).set(oldest_unacked_s or 0.0)

    def ingester_health(self, address: str, *, healthy: bool, window_batches: int, round_trip_s: float | None) -> None:
        """Set how one ingester is."""
        self._ingester_healthy.labels(address).set(healthy)
        self._window.labels(address).set(window_batches)
        self._round_trip.labels(address).set(round_trip_s or 0.0)

    def dead_letter(self, reason: str, count: int = 1) -> None:
        self._dead_letters.labels(self.label(reason)).inc(count)

    def repos(self, counts: Mapping[RepoState, int]) -> None:
        """Set the number of repos in each state; a state that is not named has none."""
        for state in RepoState:
            self._repos.labels(state).set(counts.get(state, 0))

    def hosts(self, counts: Mapping[HostState, int]) -> None:
        """Set the number of hosts in each state; a state that is not named has none."""
        for state in HostState:
            self._hosts.labels(state).set(counts.get(state, 0))

    def phase(self, now: Phase) -> None:
        for phase in Phase:
            self._phase.labels(phase).set(phase is now)

    def watch_children(self, find: Callable[[], Iterable[Process]]) -> None:
        """Show from now on what these processes cost too, beside our own; `find` is called by whoever scrapes."""
        self._children = find

    def _processes(self) -> Iterable[Process]:
        yield Process(role="supervisor", number=0, pid=os.getpid())
        yield from self._children()

    def repo_finished(self, state: RepoState, count: int = 1) -> None:
        self._repos_finished.labels(state).inc(count)

    def repo_failed(self, reason: str, count: int = 1) -> None:
        """Count failed attempts, whoever is to blame."""
        self._repo_failures.labels(self.label(reason)).inc(count)

    def count(self, metric: str, label: str, n: int = 1) -> None:
        """Count a `Count` effect of a repo's live life, or a telling ("account", "identity", by source). Raises KeyError for a name
        that has no counter.

        Not "invalid": that is counted where every frame is, those of unknown repos too (`invalid`).
        """
        if metric == "invalid":
            return
        if metric in ("account", "identity"):
            self.made(OpType[metric.upper()], Source[label], n)
            return
        counter, fixed = self._counted[metric]
        counter.labels(fixed or self.label(label)).inc(n)

    def fetched(self, outcome: FetchOutcome, size: int, took_s: float) -> None:
        """Count one download: its bytes, also those of a failed one, and its seconds."""
        self._fetches.labels(outcome).observe(took_s)
        self._fetch_bytes.labels(outcome).inc(size)

    def rate_limited(self, wait_s: float, count: int = 1) -> None:
        """Count waits that hosts' limits caused, `wait_s` seconds in sum."""
        self.rate_limit_waits.inc(count)
        self.rate_limit_wait_seconds.inc(max(0.0, wait_s))

    def identity(self, result: CacheResult, count: int = 1) -> None:
        self._identity_cache.labels(result).inc(count)

    def child_replaced(self, role: ChildRole, reason: str, count: int = 1) -> None:
        self._worker_restarts.labels(role, self.label(reason)).inc(count)

    def event(self, kind: EventKind, count: int = 1) -> None:
        self._events.labels(kind).inc(count)

    def ignored(self, reason: str, count: int = 1) -> None:
        """Count frames of which nothing can be made: replayed, of an unknown kind, undecodable."""
        self._ignored.labels(self.label(reason)).inc(count)

    def checked(self, outcome: str, count: int = 1) -> None:
        """Count frames by what their check came to."""
        self._outcomes.labels(self.label(outcome)).inc(count)

    def invalid(self, reason: str, count: int = 1) -> None:
        self._invalid.labels(self.label(reason)).inc(count)

    def reconciled(self, result: Reconciled, count: int = 1) -> None:
        self._reconciled.labels(result).inc(count)

    def queue(self, queue: Queue, depth: int) -> None:
        self._queue_depth.labels(queue).set(depth)

    def slots(self, arena: Arena, in_use: int, total: int) -> None:
        self._slots_in_use.labels(arena).set(in_use)
        self._slots.labels(arena).set(total)

    def error(self, reason: str, count: int = 1) -> None:
        """Count an error by the `reason` of its class."""
        self._errors.labels(self.label(reason)).inc(count)

    def incident(self, kind: str, count: int = 1) -> None:
        self._incidents.labels(self.label(kind)).inc(count)

    def label(self, reason: str) -> str:
        """Return `reason` if it is a short word of ours, else `other`: no foreign text and no growing set becomes a label."""
        if reason in self._reasons:
            return reason
        if not (0 < len(reason) <= 40 and reason.isascii() and reason.replace("_", "").isalnum() and reason.islower()):
            return "other"
        with self._reasons_lock:
            if len(self._reasons) >= self.MOST_REASONS:
                return "other"
            self._reasons.add(reason)
        return reason
