"""How much may be in flight on one stream (pure)."""

from __future__ import annotations

FIRST_BATCHES = 8
LEAST_BATCHES = 2  # one under way while the other is stored
TARGET_S = 0.5  # what is in flight should be acknowledged within this: it is what a live operation waits behind
SLOWEST_SHRINK = 0.5
SMOOTHING = 0.2


class Window:
    """Batches and bytes that may be unacknowledged at a time: between LEAST_BATCHES and `most_batches`, times `batch_bytes`.

    It grows by what is acknowledged whenever it was the limit (doubling in a round trip), and shrinks in proportion, at
    most by half and once in a round trip, when an acknowledgement took longer than the target: TARGET_S, or twice the
    ingester's own time where that is longer. Its own time is the shortest round trip seen; at the smallest window it is
    measured anew, because nothing is queueing there. So a fast ingester always has enough, and a slow one has little
    in flight, whatever the reason: few bytes to send again, and a live operation waits half a second at most behind others.
    """

    def __init__(self, *, most_batches: int, batch_bytes: int) -> None:
        self.most = most_batches
        self.least = min(LEAST_BATCHES, most_batches)
        self.batch_bytes = batch_bytes
        self.smoothed_s: float | None = None
        self._limit = float(min(FIRST_BATCHES, most_batches))
        self._base_s: float | None = None
        self._shrunk_at = float("-inf")

    @property
    def batches(self) -> int:
        """The current limit, batches."""
        return int(self._limit)

    def is_open(self, batches: int, held_bytes: int) -> bool:
        """May one more batch be written, with so many batches and bytes in flight?"""
        limit = int(self._limit)
        return batches == 0 or (batches < limit and held_bytes < limit * self.batch_bytes)

    def acknowledged(self, *, sent_at: float, now: float, batches: int, was_limit: bool) -> None:
        """An acknowledgement freed `batches`, the oldest of them written at `sent_at`; `was_limit`: a writer waited for it."""
        took_s = max(0.0, now - sent_at)
        self.smoothed_s = (
            took_s if self.smoothed_s is None else self.smoothed_s + SMOOTHING * (took_s - self.smoothed_s)
        )
        if self._base_s is None or took_s < self._base_s or self._limit <= self.least:
            self._base_s = took_s
        target_s = max(TARGET_S, 2 * self._base_s)
        if took_s > target_s:
            # A batch written before the last shrinking waited behind the larger window: it says nothing about this one.
            if sent_at >= self._shrunk_at:
                self._limit = max(self.least, self._limit * max(SLOWEST_SHRINK, target_s / took_s))
                self._shrunk_at = now
        elif was_limit:
            self._limit = min(self.most, self._limit + batches)

    def new_stream(self) -> None:
        """Start over: the new stream may lead to another machine."""
        self._limit = float(min(FIRST_BATCHES, self.most))
        self._base_s = None
        self._shrunk_at = float("-inf")
