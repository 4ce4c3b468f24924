"""Every metric, declared once; dashboards rely on the names. Labels come from closed sets, never a DID.

The supervisor makes one `Metrics` and hands it down; only its process has one, children report through messages. Methods are
cheap, thread-safe, and meant to be called once a batch or a repo, not once a record. Counts are exact, gauges are what the last
call said.
"""

from __future__ import annotations

import enum
import threading
from bisect import bisect_left
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
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from relay.model import Lane, OpType, RepoState, Source

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds; from a live operation on loopback to a backfill that waits for an ingester that was restarted.
_DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_FETCH_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

# States in which a commit is dropped, because a fetch that starts later contains it.
_NOT_FORWARDED = (
    RepoState.DISCOVERED,
    RepoState.PENDING,
    RepoState.FAILED,
    RepoState.DESYNCED,
    RepoState.QUARANTINED,
)

# Otherwise each counter has a second series with the time of its birth, of which nobody makes anything.
_without_created: Callable[[], None] = disable_created_metrics


class EventKind(enum.StrEnum):
    """What an event of the firehose was; the words of `tail.envelope.KINDS`."""

    COMMIT = "commit"
    SYNC = "sync"
    IDENTITY = "identity"
    ACCOUNT = "account"


class FetchOutcome(enum.StrEnum):
    """How a download ended."""

    OK = "ok"
    RATE_LIMITED = "rate_limited"
    NOT_FOUND = "not_found"
    INACTIVE = "inactive"
    HOST_DOWN = "host_down"
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"
    REFUSED = "refused"
    OTHER = "other"


class CacheResult(enum.StrEnum):
    """How an identity was found: fresh in the cache, stale because the directory is away, or looked up."""

    HIT = "hit"
    STALE = "stale"
    MISS = "miss"
    NEGATIVE = "negative"


class Reconciled(enum.StrEnum):
    """What a reconcile found of a repo; one that differs was compared too, and one that is queued differs."""

    COMPARED = "compared"
    DIFFERED = "differed"
    QUEUED = "queued"
    FOUND = "found"


class ChildRole(enum.StrEnum):
    """What a child process does."""

    FETCH = "fetch"
    WORKER = "worker"
    VERIFY = "verify"


class Queue(enum.StrEnum):
    """The bounded queues between the parts of the supervisor, and to its children."""

    STORE = "store"
    FETCH = "fetch"
    WORKER = "worker"
    FRAMES = "frames"  # batches of frames that were read and are not in their repos' hands yet
    VERIFY = "verify"  # frames at the verify workers
    KEY = "key"  # frames that were checked and wait for a fresh signing key
    LIVE = "live"
    BACKFILL = "backfill"


class Arena(enum.StrEnum):
    """The shared-memory arenas: downloaded CARs, encoded operations."""

    CAR = "car"
    OPERATIONS = "operations"


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
        if runtime:
            for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
                registry.register(collector)
        Info("relay_build", "version of the relay", registry=registry).info({"version": version})

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        # What goes through.
        self._operations = counter("relay_operations_total", "operations made, by type and source", "type", "source")
        self._sent = counter("relay_operations_sent_total", "operations written to an ingester's stream", "ingester")
        self._delivered = counter("relay_operations_delivered_total", "operations acknowledged", "ingester")
        self._delivered_bytes = counter("relay_delivered_bytes_total", "bytes of acknowledged operations", "ingester")
        self._moved = counter("relay_moved_repos_total", "repos moved to others by a fail-over", "ingester")
        self._redelivered = counter("relay_operations_redelivered_total", "operations written again", "ingester")
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
        self.records_delivered = counter("relay_records_delivered_total", "records of acknowledged operations")
        # What waits.
        self.buffered_operations = gauge("relay_buffered_operations", "live operations held back now")
        self.buffer_overflows = counter(
            "relay_buffer_overflows_total", "buffers of live operations that were thrown away for lack of room"
        )
        self._queue_depth = gauge("relay_queue_depth", "entries of a queue", "queue")
        self._slots_in_use = gauge("relay_slots_in_use", "slots of shared memory that are taken", "arena")
        self._slots = gauge("relay_slots", "slots of shared memory", "arena")
        # Ingesters.
        self.healthy_ingesters = gauge("relay_healthy_ingesters", "ingesters that acknowledge")
        self._oldest_unacked = gauge("relay_oldest_unacked_seconds", "age of the oldest unacknowledged", "ingester")
        self._in_flight = gauge("relay_in_flight_batches", "batches written, not acknowledged", "ingester")
        self._dead_letters = counter("relay_dead_letters_total", "operations given up, by reason", "reason")
        # Repos.
        self._repos = gauge("relay_repos", "tracked repos, by state", "state")
        self._repos_finished = counter("relay_repos_finished_total", "repos that came to rest in a state", "state")
        self._repo_failures = counter("relay_repo_failures_total", "failed attempts, by reason", "reason")
        self._desyncs = counter("relay_desyncs_total", "repos that have to be fetched again, by reason", "reason")
        self._refetches = counter(
            "relay_refetches_total", "repos that need another fetch after the one that runs, by reason", "reason"
        )
        self.repos_in_memory = gauge("relay_repos_in_memory", "repos that something happens to now")
        # Fetching.
        self._fetches = Histogram(
            "relay_fetch_seconds", "one download, by outcome", ("outcome",), buckets=_FETCH_BUCKETS, registry=registry
        )
        self._fetch_bytes = counter("relay_fetch_bytes_total", "bytes downloaded, by outcome", "outcome")
        self.rate_limit_waits = counter("relay_rate_limit_waits_total", "times that a host made us wait")
        self.rate_limit_wait_seconds = counter("relay_rate_limit_wait_seconds_total", "seconds hosts made us wait")
        self._identity_cache = counter("relay_identity_cache_total", "identity lookups, by result", "result")
        self._worker_restarts = counter("relay_worker_restarts_total", "replaced children", "role", "reason")
        # Firehose.
        self.firehose_seq = gauge("relay_firehose_seq", "newest sequence number read")
        self.firehose_cursor = gauge("relay_firehose_cursor", "stored cursor: everything up to it is done")
        self.firehose_lag = gauge("relay_firehose_lag_seconds", "age of the newest event read")
        self.firehose_connected = gauge("relay_firehose_connected", "1 while the stream is open")
        self.firehose_connections = counter("relay_firehose_connections_total", "times that the stream was opened")
        self.firehose_bytes = counter("relay_firehose_bytes_total", "bytes read from the stream")
        self.firehose_stalled = counter(
            "relay_firehose_stalled_seconds_total", "seconds in which nothing was read because nobody took it"
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
        self.verify_cpu = counter("relay_verify_cpu_seconds_total", "CPU seconds of the verify workers")
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
        self.checkpoint_age = gauge("relay_checkpoint_age_seconds", "since the last stored checkpoint")
        self.checkpoints = counter("relay_checkpoints_total", "stored checkpoints")
        self._errors = counter("relay_errors_total", "errors, by type", "type")
        self._incidents = counter("relay_incidents_total", "incidents, by kind", "kind")
        self.open_incidents = gauge("relay_open_incidents", "incidents that are not over")
        self.healthy = gauge("relay_healthy", "1 while /health answers 200")
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
        for op_type in OpType:
            for source in Source:
                self._operations.labels(op_type.name, source.name)
        for outcome in FetchOutcome:
            self._fetches.labels(outcome)
            self._fetch_bytes.labels(outcome)
        for kind in EventKind:
            self._events.labels(kind)
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

    def declare_ingesters(self, addresses: Iterable[str]) -> None:
        """Start the series of these ingesters at 0."""
        for address in addresses:
            for metric in (self._sent, self._delivered, self._delivered_bytes, self._redelivered, self._moved):
                metric.labels(address)
            self._oldest_unacked.labels(address)
            self._in_flight.labels(address)

    def forget_ingester(self, address: str) -> None:
        """End the gauges of one that has been removed; its counters stay, as counters do."""
        for metric in (self._oldest_unacked, self._in_flight):
            metric.remove(address)

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

    def dead_letter(self, reason: str, count: int = 1) -> None:
        self._dead_letters.labels(self.label(reason)).inc(count)

    def repos(self, counts: Mapping[RepoState, int]) -> None:
        """Set the number of repos in each state; a state that is not named has none."""
        for state in RepoState:
            self._repos.labels(state).set(counts.get(state, 0))

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


class WeightedHistogram(Collector):
    """A histogram that takes n equal observations in one call: a batch of 1,000 operations costs what one does."""

    def __init__(
        self, name: str, text: str, *, label: str, values: tuple[str, ...], buckets: tuple[float, ...]
    ) -> None:
        self._name, self._text, self._label = name, text, label
        self._bounds = (*buckets, float("inf"))
        self._counts = {str(value): [0] * len(self._bounds) for value in values}
        self._sums = {str(value): 0.0 for value in values}
        self._lock = threading.Lock()  # guards _counts and _sums

    def observe(self, value: str, seconds: float, count: int = 1) -> None:
        """Add `count` observations of `seconds` to the series of the label `value`; a clock that went back counts as 0."""
        seconds = max(0.0, seconds)
        place = bisect_left(self._bounds, seconds)
        with self._lock:
            self._counts[value][place] += count
            self._sums[value] += seconds * count

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        with self._lock:
            for value, counts in self._counts.items():
                running, buckets = 0, []
                for bound, count in zip(self._bounds, counts, strict=True):
                    running += count
                    buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(running)))
                family.add_metric([value], buckets, self._sums[value])
        return [family]
