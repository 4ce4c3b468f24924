"""What every host may be asked, and when: rate, connections, Retry-After, circuit breaker (pure)."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from relay.config.schema import BackfillerSettings
from relay.errors import FetchError
from relay.net.bucket import TokenBucket
from relay.net.errors import NetError, RateLimited, Stopped
from relay.net.facts import NO_FACTS, HostFacts

MAX_BURST = 30.0
# A 429 without any header (PROTOCOL 7): the window of such hosts is 5 minutes, so the pause doubles up to that.
FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 300.0
_LOOKED_AT = 64


class Outcome(enum.StrEnum):
    """How a request ended, as far as its host is concerned."""

    SUCCESS = "success"
    ANSWERED = "answered"  # a 4xx, or too large: the host is well
    LIMITED = "limited"  # 429 or Retry-After
    FAILED = "failed"  # no connection, 5xx, cut, too slow, garbage
    ABANDONED = "abandoned"  # ended by us: says nothing


def outcome_of(error: BaseException | None) -> Outcome:
    """Return the outcome of a request that raised `error`, or ended well (None)."""
    if error is None:
        return Outcome.SUCCESS
    if isinstance(error, RateLimited):
        return Outcome.LIMITED
    if isinstance(error, Stopped) or not isinstance(error, FetchError):
        return Outcome.ABANDONED
    if isinstance(error, NetError):
        return Outcome.ANSWERED if error.answered else Outcome.FAILED
    return Outcome.ABANDONED  # the sink's own error, such as a full spool: not the host's doing


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPolicy:
    """Limits of one host: requests a second and at once, connections, and the pause after it stopped answering, seconds."""

    requests_per_s: float
    burst: float
    connections: int
    breaker_s: float

    @classmethod
    def from_settings(cls, settings: BackfillerSettings) -> HostPolicy:
        rate = settings.host_requests_per_sec
        return cls(
            requests_per_s=rate,
            burst=min(MAX_BURST, max(1.0, 3 * rate)),
            connections=settings.host_connections,
            breaker_s=settings.host_breaker_sec,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """One host for `status`. Seconds are counted from the moment of the snapshot."""

    host: str
    in_flight: int
    is_open: bool  # the circuit breaker: nothing is sent but a probe
    paused_for_s: float
    silent_for_s: float
    started: int
    limited: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCounts:
    """How many hosts are taken from, wait for what they asked for, or are silent (their breaker is open)."""

    ok: int
    waiting: int
    down: int


class _Host:
    __slots__ = (
        "answered_at",
        "bucket",
        "failed",
        "failing_since",
        "in_flight",
        "limited",
        "limited_in_row",
        "open_until",
        "paused_until",
        "policy",
        "started",
        "succeeded_at",
    )

    def __init__(self, policy: HostPolicy, now: float) -> None:
        self.policy = policy
        self.bucket = TokenBucket(rate_per_s=policy.requests_per_s, burst=policy.burst, now=now)
        self.in_flight = 0
        self.paused_until = now
        self.limited_in_row = 0
        self.open_until: float | None = None  # None: closed; a time in the past: half open, one probe at a time
        self.answered_at: float | None = None
        self.succeeded_at: float | None = None
        self.failing_since: float | None = None
        self.started = 0
        self.limited = 0
        self.failed = 0

    def answered_recently(self, now: float) -> bool:
        # A breaker of 0 s is off, but a failure is still judged by what the host did a moment ago.
        return self.answered_at is not None and now - self.answered_at <= max(self.policy.breaker_s, 1.0)

    def earliest(self, now: float) -> float:
        ready = max(now, self.paused_until)
        if self.open_until is not None:
            ready = max(ready, self.open_until)
        return max(ready, self.bucket.ready_at(now))

    def has_room(self) -> bool:
        return self.in_flight < (1 if self.open_until is not None else self.policy.connections)

    def is_forgettable(self, now: float) -> bool:
        return (
            self.in_flight == 0
            and now >= self.paused_until
            and self.open_until is None
            and self.failing_since is None
            and self.limited_in_row == 0
            and not self.answered_recently(now)
            and self.bucket.is_full(now)
        )


class HostTable:
    """Every host's limits and health. Invariants: in flight <= connections (1 while the breaker is half open), no start
    before Retry-After has passed, none while the breaker is open, no more starts than the bucket has tokens.

    A host is an origin. `now` is monotonic seconds (any clock, as long as it is one). Every start is followed by exactly one
    `finished` or `not_started`. Not thread-safe: `gate.HostGate` is. Memory: `max_hosts` entries; idle healthy hosts go first.

    The breaker opens when a request fails and the host answered no other one within the last `breaker_s` (the rule by which the
    failure is the host's and not the repo's, DESIGN 8), for `breaker_s`; then one probe at a time goes out until there is an answer.
    """

    def __init__(
        self, policy: HostPolicy, *, overrides: Mapping[str, HostPolicy] | None = None, max_hosts: int = 20_000
    ) -> None:
        self.policy = policy
        self._overrides = dict(overrides or {})
        self._max_hosts = max_hosts
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self.limited_total = 0
        self.limited_s = 0.0  # pauses that were asked for, in sum

    def __len__(self) -> int:
        return len(self._hosts)

    def try_start(self, host: str, now: float) -> bool:
        """Start a request to `host` if it may be asked at `now`; True means started."""
        entry = self._entry(host, now)
        if not entry.has_room() or entry.earliest(now) > now or not entry.bucket.try_take(now):
            return False
        entry.in_flight += 1
        entry.started += 1
        return True

    def ready_at(self, host: str, now: float) -> float:
        """Return the earliest time at which time alone allows a start; `now` when only a connection is missing."""
        entry = self._hosts.get(host)
        return now if entry is None else entry.earliest(now)

    def not_started(self, host: str, now: float) -> None:
        """Take back a `try_start` whose request was never sent."""
        entry = self._leave(host)
        entry.started -= 1
        entry.bucket.put_back(now)

    def finished(self, host: str, now: float, outcome: Outcome, facts: HostFacts = NO_FACTS) -> None:
        """A started request has ended. A 429 or Retry-After pauses the host; a failure may open its breaker."""
        entry = self._leave(host)
        if facts.remaining is not None and facts.reset_after_s is not None:
            # Requests on their way are not in the server's count yet.
            entry.bucket.tighten(
                remaining=facts.remaining - entry.in_flight, reset_after_s=facts.reset_after_s, now=now
            )
        paused_until = max(entry.paused_until, now)
        if facts.retry_after_s is not None:
            entry.paused_until = max(entry.paused_until, now + facts.retry_after_s)
        match outcome:
            case Outcome.SUCCESS | Outcome.ANSWERED:
                self._answered(entry, now)
                entry.limited_in_row = 0
                if outcome is Outcome.SUCCESS:
                    entry.succeeded_at = now
            case Outcome.LIMITED:
                self._answered(entry, now)
                entry.limited += 1
                self.limited_total += 1
                if facts.retry_after_s is None and now >= entry.paused_until:
                    entry.paused_until = now + self._pause_s(entry, facts)
                    entry.limited_in_row += 1
            case Outcome.FAILED:
                self._failed(entry, now)
            case Outcome.ABANDONED:
                pass
        self.limited_s += max(0.0, entry.paused_until - paused_until)

    def limit(self, host: str, policy: HostPolicy | None, now: float) -> None:
        """Ask this host so often from now on; None: as all others. What it has asked of us itself stands."""
        if policy is None:
            self._overrides.pop(host, None)
        else:
            self._overrides[host] = policy
        if (entry := self._hosts.get(host)) is not None:
            entry.policy = policy or self.policy
            entry.bucket = TokenBucket(rate_per_s=entry.policy.requests_per_s, burst=entry.policy.burst, now=now)

    def set_policy(self, policy: HostPolicy, now: float) -> None:
        """Ask all hosts so often from now on but those with a limit of their own."""
        self.policy = policy
        for host, entry in self._hosts.items():
            if host not in self._overrides:
                entry.policy = policy
                entry.bucket = TokenBucket(rate_per_s=policy.requests_per_s, burst=policy.burst, now=now)

    def answered_recently(self, host: str, now: float) -> bool:
        """Say whether the host answered any request within the last `breaker_s`: then a failure is the repo's own."""
        entry = self._hosts.get(host)
        return entry is not None and entry.answered_recently(now)

    def silent_s(self, host: str, now: float) -> float:
        """Return for how long the host has only failed: seconds since its first failure after the last answer, 0 if none."""
        entry = self._hosts.get(host)
        return 0.0 if entry is None or entry.failing_since is None else now - entry.failing_since

    def last_success_at(self, host: str) -> float | None:
        entry = self._hosts.get(host)
        return None if entry is None else entry.succeeded_at

    def count(self, now: float) -> HostCounts:
        """Return how many hosts are known here, and how."""
        down = sum(entry.open_until is not None for entry in self._hosts.values())
        waiting = sum(entry.open_until is None and entry.paused_until > now for entry in self._hosts.values())
        return HostCounts(ok=len(self._hosts) - down - waiting, waiting=waiting, down=down)

    def snapshot(self, now: float, limit: int = 100) -> list[HostView]:
        """Return the busiest and the sickest hosts, at most `limit`: open breakers first, then the paused, then by requests."""
        views = [
            HostView(
                host=host,
                in_flight=entry.in_flight,
                is_open=entry.open_until is not None,
                paused_for_s=max(0.0, entry.paused_until - now),
                silent_for_s=0.0 if entry.failing_since is None else now - entry.failing_since,
                started=entry.started,
                limited=entry.limited,
                failed=entry.failed,
            )
            for host, entry in self._hosts.items()
        ]
        views.sort(
            key=lambda view: (not view.is_open, view.paused_for_s <= 0, -view.in_flight, -view.started, view.host)
        )
        return views[:limit]

    def _answered(self, entry: _Host, now: float) -> None:
        entry.answered_at = now
        entry.open_until = None
        entry.failing_since = None

    def _failed(self, entry: _Host, now: float) -> None:
        entry.failed += 1
        if entry.answered_recently(now):
            return
        if entry.failing_since is None:
            entry.failing_since = now
        # Several requests that were on their way fail together: that is one opening.
        if entry.open_until is None or now >= entry.open_until:
            entry.open_until = now + entry.policy.breaker_s

    def _pause_s(self, entry: _Host, facts: HostFacts) -> float:
        if facts.remaining == 0 and facts.reset_after_s is not None and facts.reset_after_s > 0:
            return facts.reset_after_s
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * float(1 << min(entry.limited_in_row, 10)))

    def _entry(self, host: str, now: float) -> _Host:
        entry = self._hosts.get(host)
        if entry is not None:
            self._hosts.move_to_end(host)
            return entry
        if len(self._hosts) >= self._max_hosts:
            self._forget_one(now)
        entry = self._hosts[host] = _Host(self._overrides.get(host, self.policy), now)
        return entry

    def _forget_one(self, now: float) -> None:
        """Drop the longest unused host that is well, else the longest unused one that is idle."""
        idle: str | None = None
        for _, (host, entry) in zip(range(_LOOKED_AT), self._hosts.items(), strict=False):
            if entry.is_forgettable(now):
                del self._hosts[host]
                return
            if idle is None and entry.in_flight == 0:
                idle = host
        if idle is not None:
            del self._hosts[idle]

    def _leave(self, host: str) -> _Host:
        entry = self._hosts.get(host)
        if entry is None or entry.in_flight == 0:
            raise RuntimeError(f"{host}: a request ended that was never started")
        entry.in_flight -= 1
        return entry
