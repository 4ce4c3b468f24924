"""A histogram for those who observe a thousand equal things at a time."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class WeightedHistogram(Collector):
    """A histogram that takes n equal observations in one call: a batch of 1,000 operations costs what one does."""

    def __init__(
        self, name: str, text: str, *, label: str, values: tuple[str, ...], buckets: tuple[float, ...]
    ) -> None:
        self._name, self._text, self._label = name, text, label
        self._bounds = (*buckets, float("inf"))
        self._counts = {str(value): [0] * len(self._bounds) for value in values}
        self._sums = {str(value): 0.0 for value in values}
        self._lock = threading.Lock()  # guards _counts and _sums

    def observe(self, value: str, seconds: float, count: int = 1) -> None:
        """Add `count` observations of `seconds` to the series of the label `value`; a clock that went back counts as 0."""
        seconds = max(0.0, seconds)
        place = bisect_left(self._bounds, seconds)
        with self._lock:
            self._counts[value][place] += count
            self._sums[value] += seconds * count

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        with self._lock:
            for value, counts in self._counts.items():
                running, buckets = 0, []
                for bound, count in zip(self._bounds, counts, strict=True):
                    running += count
                    buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(running)))
                family.add_metric([value], buckets, self._sums[value])
        return [family]
