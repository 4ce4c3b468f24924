"""How fast it goes, and how long it will take (pure: the caller passes the time in)."""

from __future__ import annotations

from collections import deque


class RateMeter:
    """The rate of a rising count over a sliding window, per second.

    Memory: at most `samples + 1` pairs, however often it is fed. A count that falls (a restart) starts the window anew.
    """

    def __init__(self, window_s: float = 10.0, samples: int = 40) -> None:
        self._window_s = window_s
        self._step_s = window_s / samples
        self._points: deque[tuple[float, float]] = deque()
        self._last: tuple[float, float] | None = None

    def update(self, now: float, total: float) -> None:
        """Tell the count at `now` (monotonic seconds, never falling)."""
        if self._last is not None and total < self._last[1]:
            self._points.clear()
        self._last = (now, total)
        if not self._points or now - self._points[-1][0] >= self._step_s:
            self._points.append((now, total))
        # One point older than the window is kept: the rate is taken between it and the newest count.
        while len(self._points) > 1 and now - self._points[1][0] >= self._window_s:
            self._points.popleft()

    def rate(self) -> float | None:
        """Return the rate over the window; None until two counts are at least half a step apart."""
        if self._last is None or not self._points:
            return None
        (start_at, start), (end_at, end) = self._points[0], self._last
        if end_at - start_at < self._step_s / 2:
            return None
        return (end - start) / (end_at - start_at)


class EtaMeter:
    """How long a batch will still take: what is left, over the rate of the last two minutes.

    Honest rather than early: nothing is said before `settle_s` seconds and `settle_done` finished repos, nor when nothing
    finished within the window, and the estimate of a growing total (`final` false) is for the part that is known.
    """

    def __init__(self, window_s: float = 120.0, settle_s: float = 3.0, settle_done: int = 5) -> None:
        self._meter = RateMeter(window_s, samples=120)
        self._settle_s, self._settle_done = settle_s, settle_done
        self._first: tuple[float, int] | None = None
        self._now = 0.0
        self._done = 0
        self._total: int | None = None

    def update(self, now: float, done: int, total: int | None) -> None:
        """Tell how many targets are finished and how many there are, at `now` (monotonic seconds)."""
        if self._first is None:
            self._first = (now, done)
        self._now, self._done, self._total = now, done, total
        self._meter.update(now, done)

    def eta_s(self) -> float | None:
        """Return seconds until the known targets are finished; None while that cannot be told."""
        if self._first is None or self._total is None:
            return None
        left = self._total - self._done
        if left <= 0:
            return 0.0
        since, before = self._first
        if self._now - since < self._settle_s or self._done - before < self._settle_done:
            return None
        rate = self._meter.rate()
        return left / rate if rate else None


class BacklogMeter:
    """When a backlog will be gone to which something may be added all the time: what is left, over how fast it shrinks.

    The pace is that since its highest point of the last `window_s` seconds. Nothing is said before `settle_s` seconds, nor while
    it does not shrink. Memory: at most `samples + 1` pairs.
    """

    def __init__(self, window_s: float = 120.0, settle_s: float = 10.0, samples: int = 60) -> None:
        self._window_s, self._settle_s, self._step_s = window_s, settle_s, window_s / samples
        self._points: deque[tuple[float, int]] = deque()
        self._last: tuple[float, int] | None = None

    def update(self, now: float, left: int) -> None:
        """Tell how much is left at `now` (monotonic seconds, never falling)."""
        self._last = (now, left)
        if not self._points or now - self._points[-1][0] >= self._step_s:
            self._points.append((now, left))
        while len(self._points) > 1 and now - self._points[1][0] >= self._window_s:
            self._points.popleft()

    def eta_s(self) -> float | None:
        """Return seconds until nothing is left; None while that cannot be told."""
        if self._last is None:
            return None
        now, left = self._last
        # From the top on: while repos are listed it grows, and that says nothing about how fast it shrinks.
        start_at, start = max(self._points, key=lambda point: point[1])
        if left <= 0:
            return 0.0
        if now - start_at < self._settle_s or left >= start:
            return None
        return left * (now - start_at) / (start - left)
