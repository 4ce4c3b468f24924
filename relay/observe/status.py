"""The state of an instance at one moment: what `status --json`, the status page and the terminal view all show.

`to_json` is a contract (README, "status --json"): the keys `instance`, `phase`, `repos`, `records_delivered`, `bytes_fetched`,
`rates`, `firehose`, `ingesters`, `incidents` and what stands in them are always there, and a number that is not known is null.
The other keys may grow. `from_json` reads what another version wrote: unknown keys are passed over, missing ones get their default.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from relay.model import Incident, RepoState


class Phase(enum.StrEnum):
    """What an instance is doing as a whole."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"  # for something named in `reason`: database, ingesters
    PAUSED = "paused"
    DRAINING = "draining"
    STANDBY = "standby"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Over the last ten seconds."""

    repos_per_s: float | None = None
    records_per_s: float | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FirehoseStatus:
    """`seq` is the newest one read, `cursor` the stored one; `connected` is false where there is no firehose.

    `lag_s`: the age of the newest event read, so in a quiet network it rises although nothing is missing. Counts are since the
    start: `events` by kind, `outcomes` of checks, `invalid` and `ignored` by reason. `distance`: frames from the oldest open one
    on, at most `max_open_frames`. `waiting_batches`: read and not taken up; `verifying`: frames at the verify workers;
    `waiting_for_key`: frames whose signature failed, until a fresh document is read.
    """

    seq: int | None = None
    cursor: int | None = None
    lag_s: float | None = None
    connected: bool = False
    events_per_s: float | None = None
    upstream: str = ""
    events: Mapping[str, int] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    invalid: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    open_frames: int | None = None
    distance: int | None = None
    max_open_frames: int | None = None
    waiting_batches: int | None = None
    verifying: int | None = None
    waiting_for_key: int | None = None
    buffered_operations: int | None = None
    buffer_size: int | None = None
    connections: int | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IngesterView:
    """One ingester. `reason` says why it is not healthy."""

    address: str
    healthy: bool
    in_flight_batches: int | None = None
    queued_operations: int | None = None
    oldest_unacked_s: float | None = None
    queued_live: int | None = None
    queued_backfill: int | None = None
    in_flight_bytes: int | None = None
    window_batches: int | None = None
    rtt_ms: float | None = None
    sent_operations: int | None = None
    delivered_operations: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentView:
    """`at` and `closed_at` are RFC 3339 UTC; `closed_at` is null while the incident is open."""

    at: str
    kind: str
    text: str
    closed_at: str | None = None

    @classmethod
    def of(cls, incident: Incident) -> IncidentView:
        closed = None if incident.closed_at is None else rfc3339(incident.closed_at)
        return cls(at=rfc3339(incident.at), kind=incident.kind, text=incident.text, closed_at=closed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The targets of a batch; `final` once the enumeration is over. Null numbers: there is no batch.

    `bytes_left` is an estimate: those left are as large as those that were fetched.
    """

    total: int | None = None
    done: int | None = None
    synced: int | None = None
    inactive: int | None = None
    quarantined: int | None = None
    final: bool = False
    eta_s: float | None = None
    bytes_left: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """Where there is no batch: how many tracked repos are not at rest, and when they will be at the pace of the last minutes.

    At rest is what needs nothing now: synced, inactive, quarantined. Null: there is a batch, or the counts are not known.
    """

    repos: int | None = None
    eta_s: float | None = None
    bytes_left: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingView:
    """How far the enumeration is. `hosts_failed` hosts gave no complete listing."""

    running: bool = False
    source: str = ""  # what is enumerated, in words
    hosts_total: int | None = None
    hosts_done: int | None = None
    hosts_failed: int | None = None
    repos_seen: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileStatus:
    """How far the comparison with the hosts' listings is, or how the last one ended. Null numbers: none ran.

    `compared` tracked repos were listed, `differed` of them have another rev or status, `queued` were marked for it, `found` DIDs
    had no row. `completed_at`: of the last complete one, RFC 3339.
    """

    running: bool = False
    hosts_total: int | None = None
    hosts_done: int | None = None
    hosts_failed: int | None = None
    compared: int | None = None
    differed: int | None = None
    queued: int | None = None
    found: int | None = None
    completed_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchView:
    """Downloads: running now, and since the start."""

    active: int | None = None
    limit: int | None = None
    done: int | None = None
    failed: int | None = None
    rate_limit_waits: int | None = None
    rate_limit_wait_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One child process. `doing` is what it works on now, empty when idle."""

    role: str
    number: int
    pid: int | None = None
    state: str = "idle"  # starting, idle, busy, dead
    doing: str = ""
    busy_s: float | None = None
    done: int | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """One host that repos are fetched from. `state`: ok, waiting (its limit), down (circuit open)."""

    host: str
    state: str = "ok"
    pending: int | None = None
    connections: int | None = None
    requests_per_s: float | None = None
    limit_per_s: float | None = None
    wait_s: float | None = None
    done: int | None = None
    failed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """Something bounded: a queue, slots, a buffer."""

    name: str
    used: int
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorView:
    """A failure as an operator should see it."""

    at: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSnapshot:
    """Everything at once. Frozen: made by one thread, shown by any."""

    instance: str
    phase: Phase
    repos: Mapping[str, int] = field(default_factory=dict)
    records_delivered: int | None = None
    bytes_fetched: int | None = None
    rates: Rates = field(default_factory=Rates)
    firehose: FirehoseStatus = field(default_factory=FirehoseStatus)
    ingesters: tuple[IngesterView, ...] = ()
    incidents: tuple[IncidentView, ...] = ()
    # Beyond the contract: for the terminal view and the page.
    at: str = ""
    version: str = ""
    command: str = ""  # backfill, run, tail
    reason: str = ""  # why it waits
    pid: int | None = None
    uptime_s: float | None = None
    operations_sent: int | None = None
    operations_delivered: int | None = None
    operations_per_s: float | None = None  # acknowledged ones, over the last ten seconds
    targets: Targets = field(default_factory=Targets)
    backlog: Backlog = field(default_factory=Backlog)
    listing: ListingView = field(default_factory=ListingView)
    reconcile: ReconcileStatus = field(default_factory=ReconcileStatus)
    fetch: FetchView = field(default_factory=FetchView)
    workers: tuple[WorkerView, ...] = ()
    hosts: tuple[HostView, ...] = ()
    hosts_total: int | None = None
    gauges: tuple[Gauge, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)  # failed attempts by reason
    last_errors: tuple[ErrorView, ...] = ()  # oldest first
    dead_letters: int | None = None
    checkpoint_age_s: float | None = None

    def state_counts(self) -> dict[str, int]:
        """Return the count of every state by name, 0 where there is none."""
        return {state.value: self.repos.get(state.value, 0) for state in RepoState}

    def to_json(self) -> bytes:
        """Return the snapshot as one line of JSON."""
        values = dataclasses.asdict(self)
        values["repos"] = self.state_counts()
        return orjson.dumps(values)

    @classmethod
    def from_json(cls, data: bytes) -> StatusSnapshot:
        """Read what `to_json` wrote, of this or another version. Raises ValueError with what is wrong."""
        values = orjson.loads(data)
        return typing.cast(StatusSnapshot, _read(cls, values, "status"))


def rfc3339(at: float) -> str:
    """Return wall time (seconds since the epoch) as RFC 3339 in UTC, with milliseconds."""
    text = datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _read(declared: Any, value: Any, place: str) -> Any:
    """Turn parsed JSON into the declared type; the types used above, no more."""
    origin = typing.get_origin(declared)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _read(next(each for each in typing.get_args(declared) if each is not type(None)), value, place)
    if origin is tuple:
        if isinstance(value, list):
            item = typing.get_args(declared)[0]
            return tuple(_read(item, each, f"{place}[{index}]") for index, each in enumerate(value))
    elif origin is Mapping:
        if isinstance(value, dict) and all(type(each) is int for each in value.values()):
            return value
    elif dataclasses.is_dataclass(declared):
        if isinstance(value, dict):
            return _read_dataclass(declared, value, place)
    elif declared is Phase:
        if value in list(Phase):
            return Phase(value)
    elif declared is float and type(value) is int:
        return float(value)
    elif type(value) is declared:
        return value
    raise ValueError(f"{place}: unexpected {type(value).__name__}")


def _read_dataclass(declared: Any, value: dict[str, Any], place: str) -> Any:
    hints = typing.get_type_hints(declared)
    arguments = {}
    for each in dataclasses.fields(declared):
        if each.name in value:
            arguments[each.name] = _read(hints[each.name], value[each.name], f"{place}.{each.name}")
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise ValueError(f"{place}.{each.name}: is missing")
    return declared(**arguments)
