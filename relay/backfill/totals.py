"""What the backfill has done since the start, for status and metrics."""

from __future__ import annotations

from collections import Counter, deque

from relay.model import OpType, Source

LAST_FAILURES = 20


class Totals:
    """Counters that only rise. Written by the engine's thread; anybody may read a number."""

    __slots__ = (
        "bytes_fetched",
        "cpu_s",
        "failures",
        "fetch_outcomes",
        "fetch_s",
        "identity_cache",
        "inactive",
        "last_failures",
        "made",
        "quarantined",
        "records",
        "resolved",
        "synced",
    )

    def __init__(self) -> None:
        self.synced = self.inactive = self.quarantined = 0
        self.records = self.bytes_fetched = self.resolved = 0
        self.cpu_s = self.fetch_s = 0.0
        self.failures: Counter[str] = Counter()
        self.identity_cache: Counter[str] = Counter()  # lookups, by identity.resolver.Result
        self.fetch_outcomes: Counter[str] = Counter()
        self.made: Counter[tuple[OpType, Source]] = Counter()  # operations of verified snapshots, sent or not
        self.last_failures: deque[tuple[float, str, str, str]] = deque(maxlen=LAST_FAILURES)  # time, did, reason, text

    def failed(self, at: float, did: str, reason: str, text: str, *, is_last: bool) -> None:
        """Note a failed attempt, at wall time `at`; `is_last`: there will be no other."""
        self.failures[reason] += 1
        self.quarantined += is_last
        self.last_failures.append((at, did, reason, text))
