"""The host table for several threads, with waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from relay.net.errors import NetError, Stopped
from relay.net.facts import NO_FACTS, HostFacts
from relay.net.hosts import HostCounts, HostPolicy, HostTable, HostView, Outcome, outcome_of
from relay.runtime.clock import Clock, SystemClock

# A connection that another thread gives back wakes us through the condition; stopping and the clock only through this.
_LONGEST_WAIT_S = 0.25


class Passage:
    """One request on its way. The user reports the facts of its answer; the gate sees the error by itself."""

    facts: HostFacts = NO_FACTS


class HostGate:
    """Shares one HostTable between threads. The condition's lock guards the table; nothing is called under it."""

    def __init__(self, table: HostTable, clock: Clock | None = None) -> None:
        self._table = table
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()

    @contextmanager
    def passage(self, host: str, stopping: threading.Event) -> Iterator[Passage]:
        """Wait until `host` may be asked, run the body as one request, and note how it ended.

            with gate.passage(origin, stopping) as passage:
                passage.facts = ...

        Raises Stopped when `stopping` is set before the request could start.
        """
        self._wait(host, stopping)
        passage = Passage()
        error: BaseException | None = None
        try:
            yield passage
        except BaseException as exc:
            error = exc
            raise
        finally:
            facts = error.facts if isinstance(error, NetError) else passage.facts
            self.finished(host, outcome_of(error), facts)

    def try_start(self, host: str) -> bool:
        with self._changed:
            return self._table.try_start(host, self._clock.monotonic())

    def limit(self, host: str, policy: HostPolicy | None) -> HostPolicy:
        """Ask this host so often from now on (None: as all others); return the policy that is in force."""
        with self._changed:
            self._table.limit(host, policy, self._clock.monotonic())
            self._changed.notify_all()
            return policy or self._table.policy

    def set_policy(self, *, requests_per_s: float, burst: float, connections: int) -> None:
        """Ask all hosts so often from now on but those with a limit of their own."""
        with self._changed:
            policy = replace(self._table.policy, requests_per_s=requests_per_s, burst=burst, connections=connections)
            self._table.set_policy(policy, self._clock.monotonic())
            self._changed.notify_all()

    def not_started(self, host: str) -> None:
        with self._changed:
            self._table.not_started(host, self._clock.monotonic())
            self._changed.notify_all()

    def finished(self, host: str, outcome: Outcome, facts: HostFacts = NO_FACTS) -> None:
        with self._changed:
            self._table.finished(host, self._clock.monotonic(), outcome, facts)
            self._changed.notify_all()

    def answered_recently(self, host: str) -> bool:
        with self._changed:
            return self._table.answered_recently(host, self._clock.monotonic())

    def silent_s(self, host: str) -> float:
        """Return for how long the host has only failed (`HostTable.silent_s`)."""
        with self._changed:
            return self._table.silent_s(host, self._clock.monotonic())

    def ready_in_s(self, host: str) -> float:
        """Return seconds until time alone allows a start."""
        with self._changed:
            now = self._clock.monotonic()
            return self._table.ready_at(host, now) - now

    def limited(self) -> tuple[int, float]:
        """Return how often hosts asked us to wait, and seconds in sum."""
        with self._changed:
            return self._table.limited_total, self._table.limited_s

    def snapshot(self, limit: int = 100) -> list[HostView]:
        with self._changed:
            return self._table.snapshot(self._clock.monotonic(), limit)

    def count(self) -> HostCounts:
        with self._changed:
            return self._table.count(self._clock.monotonic())

    def _wait(self, host: str, stopping: threading.Event) -> None:
        while not stopping.is_set():
            with self._changed:
                now = self._clock.monotonic()
                if self._table.try_start(host, now):
                    return
                delay = self._table.ready_at(host, now) - now
                self._changed.wait(min(delay, _LONGEST_WAIT_S) if delay > 0 else _LONGEST_WAIT_S)
        raise Stopped(f"{host}: stopping", host=host)
