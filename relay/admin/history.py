"""What the page's charts are drawn from: a few numbers of each status, of the last 20 minutes and of the last day (pure).

Two rings of fixed size: a point every 5 seconds, and the mean of what came in every 6 minutes. Kept in memory only: who wants
weeks of it asks Prometheus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from relay.observe.status import StatusSnapshot

STEP_S = 5.0
POINTS = 240
COARSE = 72  # fine steps in a coarse one


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One moment. `at` is wall seconds; `values` by name, of which those that were not known are left out."""

    at: float
    values: Mapping[str, float] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)


class History:
    """Fed by one thread; `recent` and `day` may be read by any. Memory: two rings of `POINTS`, about 400 KB."""

    def __init__(self) -> None:
        self._recent: deque[Point] = deque(maxlen=POINTS)
        self._day: deque[Point] = deque(maxlen=POINTS)
        self._open: list[Point] = []

    def add(self, at: float, snapshot: StatusSnapshot) -> None:
        """Take the status at wall time `at`; to be called every `STEP_S`."""
        point = point_of(at, snapshot)
        self._recent.append(point)
        self._open.append(point)
        if len(self._open) >= COARSE:
            self._day.append(_mean(self._open))
            self._open = []

    def recent(self) -> list[Point]:
        """Return the last 20 minutes, oldest first."""
        return _copy(self._recent)

    def day(self) -> list[Point]:
        """Return the last 24 hours, oldest first; nothing in the first minutes."""
        return _copy(self._day)


def point_of(at: float, snapshot: StatusSnapshot) -> Point:
    rates, firehose = snapshot.rates, snapshot.firehose
    known = [each.oldest_unacked_s for each in snapshot.ingesters if each.oldest_unacked_s is not None]
    values = {
        "repos": rates.repos_per_s,
        "operations": snapshot.operations_per_s,
        "bytes": rates.bytes_per_s,
        "events": firehose.events_per_s,
        "lag": firehose.lag_s,
        "unacked": max(known) if known else (0.0 if snapshot.ingesters else None),
    }
    return Point(
        at=at,
        values={name: value for name, value in values.items() if value is not None},
        states={name: number for name, number in snapshot.repos.items() if number},
    )


def _mean(points: Sequence[Point]) -> Point:
    """Return the mean of each value that is known, and the newest states."""
    sums: dict[str, list[float]] = {}
    for point in points:
        for name, value in point.values.items():
            sums.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in sums.items()}
    return Point(at=points[-1].at, values=means, states=points[-1].states)


def _copy(ring: deque[Point]) -> list[Point]:
    while True:
        try:
            return list(ring)
        except RuntimeError:  # it was added to meanwhile
            continue
