"""How fast it goes, and how long it will take (pure: the caller passes the time in)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise


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


_PIECES = 8  # of the window, to see which of the two rates is the steadier one
_RECENT_S = 30.0
_COLLAPSED = 0.5  # a recent pace below this share of the long one is the one that counts
_SHARE_OF_RUN = 0.25
_LEAST_VARIATION = 0.01  # squared: no rate is believed to be steadier than to a tenth


class _Pace:
    """Repos and bytes over time, and how long more of them take.

    The window is `window_s`, or a quarter of the run where that is longer: what is far away is told by many, and a change of pace
    shows all the same. Memory: `_MOST` points; when they are too many every second one goes.
    """

    _MOST = 240

    def __init__(self, window_s: float) -> None:
        self._window_s, self._step_s = window_s, window_s / self._MOST
        self._points: list[tuple[float, float, float]] = []  # time, repos, bytes
        self._last: tuple[float, float, float] | None = None
        self._began: float | None = None

    def add(self, now: float, repos: float, size: float) -> None:
        """Tell both counts at `now` (monotonic seconds, never falling)."""
        if self._began is None:
            self._began = now
        self._last = (now, repos, size)
        if not self._points or now - self._points[-1][0] >= self._step_s:
            self._points.append(self._last)
        oldest = now - max(self._window_s, (now - self._began) * _SHARE_OF_RUN)
        while len(self._points) > 1 and self._points[1][0] <= oldest:
            self._points.pop(0)
        if len(self._points) > self._MOST:
            del self._points[1::2]
            self._step_s *= 2

    def forget_the_fall(self) -> None:
        """Begin at the lowest count of repos in the window, the newest of such."""
        lowest = min(point[1] for point in self._points)
        del self._points[: max(index for index, point in enumerate(self._points) if point[1] == lowest)]

    @property
    def lasted_s(self) -> float:
        return 0.0 if self._last is None else self._last[0] - self._points[0][0]

    def seconds_for(self, repos: float, size: float | None) -> float | None:
        """Return how long `repos` more, and their `size` bytes (None: not known), take; None where nothing moves."""
        if self._last is None or not self._points:
            return None
        start = self._points[0][0]
        long = self._estimate(start, repos, size)
        recent_from = self._last[0] - _RECENT_S
        if long is None or recent_from <= start:
            return long
        recent = self._estimate(recent_from, repos, size)
        # Some hosts may hold up the rest: what went before says nothing about it then. Nothing at all moves: nobody knows.
        return recent if recent is None or recent * _COLLAPSED > long else long

    def _estimate(self, start: float, repos: float, size: float | None) -> float | None:
        """Return the mean of both estimates, the steadier rate's counting more: it is the one of what holds us up.

        Bytes are steady where the network or the processors are the limit, repos where hosts' limits of requests are.
        """
        by_repos = self._by(lambda point: point[1], start, repos)
        by_bytes = None if not size else self._by(lambda point: point[2], start, size)
        if by_repos is None or by_bytes is None:
            # One large repo may take minutes, in which no repo ends but bytes arrive.
            only = by_repos or by_bytes
            return None if only is None else only[0]
        weights = [1 / (variation + _LEAST_VARIATION) for _, variation in (by_repos, by_bytes)]
        return (by_repos[0] * weights[0] + by_bytes[0] * weights[1]) / sum(weights)

    def _by(
        self, count: Callable[[tuple[float, float, float]], float], start: float, left: float
    ) -> tuple[float, float] | None:
        """Return seconds for `left` at the rate since `start`, and that rate's squared coefficient of variation."""
        assert self._last is not None
        span = self._last[0] - start
        edges = [self._at(start + span * piece / _PIECES, count) for piece in range(_PIECES + 1)]
        pieces = [after - before for before, after in pairwise(edges)]
        mean = sum(pieces) / _PIECES
        if mean <= 0 or span <= 0:
            return None
        variation = sum((piece - mean) ** 2 for piece in pieces) / _PIECES / mean**2
        return left * span / (mean * _PIECES), variation

    def _at(self, at: float, count: Callable[[tuple[float, float, float]], float]) -> float:
        """Return the count at a time within the window, between two points in proportion."""
        points = self._points
        assert self._last is not None
        low, high = 0, len(points)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if points[middle][0] <= at else (low, middle)
        before = points[max(0, low - 1)]
        after = points[low] if low < len(points) else self._last
        if after[0] <= before[0]:
            return count(after)
        share = min(1.0, max(0.0, (at - before[0]) / (after[0] - before[0])))
        return count(before) + share * (count(after) - count(before))


class EtaMeter:
    """How long a batch will still take: what is left, by repos and by bytes, at the pace of the last minutes.

    Honest rather than early: nothing is said before `settle_s` seconds and `settle_done` finished repos, nor when nothing
    finished of late, and the estimate of a growing total (`final` false) is for the part that is known.
    """

    def __init__(self, window_s: float = 120.0, settle_s: float = 3.0, settle_done: int = 5) -> None:
        self._pace = _Pace(window_s)
        self._settle_s, self._settle_done = settle_s, settle_done
        self._first: tuple[float, int, float] | None = None
        self._last = (0.0, 0, 0.0)
        self._total: int | None = None

    def update(self, now: float, done: int, total: int | None, size: float = 0.0) -> None:
        """Tell how many targets are finished, how many there are, and the bytes fetched, at `now` (monotonic seconds)."""
        if self._first is None:
            self._first = (now, done, size)
        self._last, self._total = (now, done, size), total
        self._pace.add(now, done, size)

    def bytes_left(self) -> float | None:
        """Return an estimate: those left are as large as those that were fetched. None while that cannot be told."""
        if self._first is None or self._total is None:
            return None
        repos = self._last[1] - self._first[1]
        if repos < self._settle_done or self._last[2] <= self._first[2]:
            return None
        return max(0, self._total - self._last[1]) * (self._last[2] - self._first[2]) / repos

    def eta_s(self) -> float | None:
        """Return seconds until the known targets are finished; None while that cannot be told."""
        if self._first is None or self._total is None:
            return None
        now, done, _ = self._last
        left = self._total - done
        if left <= 0:
            return 0.0
        if now - self._first[0] < self._settle_s or done - self._first[1] < self._settle_done:
            return None
        return self._pace.seconds_for(left, self.bytes_left())


class BacklogMeter:
    """When a backlog will be gone to which something may be added all the time: what is left, over how fast it shrinks.

    The pace is that since its highest point in the window. Nothing is said before `settle_s` seconds, nor while it does not shrink.
    """

    def __init__(self, window_s: float = 120.0, settle_s: float = 10.0) -> None:
        self._pace = _Pace(window_s)
        self._settle_s = settle_s
        self._left: int | None = None
        self._mean: float | None = None

    def update(self, now: float, left: int, *, finished: int = 0, size: float = 0.0) -> None:
        """Tell how much is left at `now` (monotonic seconds, never falling); repos finished and bytes fetched since the start."""
        self._left = left
        self._mean = size / finished if finished and size else None
        self._pace.add(now, -left, size)
        # From the top on: while repos are listed it grows, and that says nothing about how fast it shrinks.
        self._pace.forget_the_fall()

    def bytes_left(self) -> float | None:
        """Return an estimate: those left are as large as those that were fetched. None while that cannot be told."""
        return None if self._left is None or self._mean is None else self._left * self._mean

    def eta_s(self) -> float | None:
        """Return seconds until nothing is left; None while that cannot be told."""
        if self._left is None:
            return None
        if self._left <= 0:
            return 0.0
        if self._pace.lasted_s < self._settle_s:
            return None
        return self._pace.seconds_for(self._left, self.bytes_left())
