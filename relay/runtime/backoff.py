"""How long to wait before trying again (pure)."""

from __future__ import annotations

import random


class Backoff:
    """Exponential back-off with full jitter on the upper half: attempt n waits between half and all of `first * 2**n`.

    Seconds throughout; never above `limit_s`. `reset()` after a success. The random source is passed in.
    """

    def __init__(self, first_s: float, limit_s: float, rng: random.Random | None = None) -> None:
        self.first_s = first_s
        self.limit_s = limit_s
        self.failures = 0
        self._rng = rng or random.Random()

    def next_delay_s(self) -> float:
        """Return how long to wait after one more failure."""
        delay = delay_s(self.failures, self.first_s, self.limit_s)
        self.failures += 1
        return delay * (0.5 + self._rng.random() / 2)

    def reset(self) -> None:
        self.failures = 0


def delay_s(failures: int, first_s: float, limit_s: float) -> float:
    """Return the full delay after `failures` earlier failures: first, 2x, 4x ... up to the limit."""
    if failures >= 63:
        return limit_s
    return min(limit_s, first_s * (1 << failures))
