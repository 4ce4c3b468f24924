"""When does an ingester lose its DIDs, when does it get them back, and when may one that is removed go? (pure)"""

from __future__ import annotations

import enum

FIRST_PROBATION_S = 60.0
LONGEST_PROBATION_S = 900.0


class Absence:
    """One ingester's. Away without a break for `failover_after_s` (0: never), it may be failed over; healthy again, taken back.

    One that is only healthy while it has nothing to do (it takes everything and acknowledges nothing, or answers RETRY) would come back and
    go for ever, and each time its DIDs stand still until that is seen. So whoever is failed over again without having acknowledged a
    batch since it came back stays out for FIRST_PROBATION_S, and twice as long each time, LONGEST_PROBATION_S at most.
    """

    def __init__(self, failover_after_s: float) -> None:
        self._after_s = failover_after_s
        self._away_since: float | None = None
        self._failed_over_at: float | None = None
        self._probation_s = 0.0
        self._batches_at_return: int | None = None

    def look(self, now: float, *, is_healthy: bool) -> None:
        """Call at every look."""
        if is_healthy:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = now

    def may_go(self, now: float) -> bool:
        """Has it been away for so long that others should have its DIDs?"""
        if self._failed_over_at is not None or self._away_since is None or not self._after_s:
            return False
        return now - self._away_since >= self._after_s

    def may_return(self, now: float) -> bool:
        """Is it there again, for good as far as one can tell?"""
        if self._failed_over_at is None or self._away_since is not None:
            return False
        return now - self._failed_over_at >= self._probation_s

    def gone(self, now: float, acknowledged_batches: int) -> None:
        """It is failed over; `acknowledged_batches`: by it, since the start."""
        self._failed_over_at = now
        if self._batches_at_return != acknowledged_batches:
            self._probation_s = 0.0
        elif self._probation_s:
            self._probation_s = min(2 * self._probation_s, LONGEST_PROBATION_S)
        else:
            self._probation_s = FIRST_PROBATION_S

    def returned(self, acknowledged_batches: int) -> None:
        """It is taken back."""
        self._failed_over_at = None
        self._batches_at_return = acknowledged_batches

    def joins(self) -> None:
        """It was never there: it gets its DIDs as soon as it is healthy."""
        self._failed_over_at = 0.0


class Step(enum.Enum):
    """What is to be done with an ingester that is removed."""

    KEEP = "keep"  # it works on: nobody else is there
    AWAIT = "await"  # nothing more is written to it; what it has may be acknowledged
    GO = "go"  # the others get what is left


class Departure:
    """One ingester that is removed. It goes when another is there, and what was written to it is acknowledged; at once when it is away,
    and after `patience_s` in any case: the others then get what may be stored already, which does no harm."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._waits_since: float | None = None

    def look(self, now: float, *, is_healthy: bool, is_awaited: bool, is_another_there: bool) -> Step:
        """Call at every look. `is_awaited`: something that was written to it is not acknowledged."""
        if not is_another_there:
            self._waits_since = None
            return Step.KEEP
        if not is_healthy:
            return Step.GO
        if self._waits_since is None:
            self._waits_since = now
            return Step.AWAIT
        is_over = not is_awaited or now - self._waits_since >= self._patience_s
        return Step.GO if is_over else Step.AWAIT
