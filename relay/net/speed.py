"""Is a download fast enough? (pure)"""

from __future__ import annotations

from collections import deque


class SpeedGate:
    """Average speed over a sliding window, judged after a grace.

    Slow in the beginning is normal (the server still walks its blocks), and so is a pause; a whole window below the minimum is
    not. Time is monotonic seconds and never falls. Memory: one entry for each `window_s / 16` of the window.
    """

    def __init__(self, *, min_bytes_per_s: float, grace_s: float, window_s: float, started: float) -> None:
        self.min_bytes_per_s = min_bytes_per_s
        self.window_s = window_s
        self._judged_from = started + max(grace_s, window_s)
        self._step_s = window_s / 16
        self._steps: deque[tuple[float, int]] = deque()
        self._bytes = 0

    def note(self, now: float, count: int) -> None:
        """Count bytes that arrived at `now`."""
        self._bytes += count
        if self._steps and now - self._steps[-1][0] < self._step_s:
            at, earlier = self._steps[-1]
            self._steps[-1] = (at, earlier + count)
        else:
            self._forget(now)
            self._steps.append((now, count))

    def speed(self, now: float) -> float:
        """Return bytes a second over the last window."""
        self._forget(now)
        return self._bytes / self.window_s

    def is_too_slow(self, now: float) -> bool:
        """Say whether the last whole window was below the minimum. Never true within the grace, or with a minimum of 0."""
        return now >= self._judged_from and self.speed(now) < self.min_bytes_per_s

    def _forget(self, now: float) -> None:
        oldest = now - self.window_s
        while self._steps and self._steps[0][0] < oldest:
            self._bytes -= self._steps.popleft()[1]
