"""Waiting before trying again: it doubles, it is bounded, and it differs."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from relay.runtime.backoff import Backoff, delay_s


@given(failures=st.integers(0, 10_000), first_s=st.floats(0.001, 100), limit_s=st.floats(0.001, 1e5))
def test_a_delay_doubles_up_to_its_limit(failures: int, first_s: float, limit_s: float) -> None:
    delay = delay_s(failures, first_s, limit_s)
    assert delay == min(limit_s, first_s * 2**failures if failures < 200 else limit_s)


@given(seed=st.integers(), steps=st.integers(1, 100))
def test_jitter_is_in_the_upper_half(seed: int, steps: int) -> None:
    backoff = Backoff(0.5, 60.0, random.Random(seed))
    for step in range(steps):
        whole = delay_s(step, 0.5, 60.0)
        assert whole / 2 <= backoff.next_delay_s() <= whole
    backoff.reset()
    assert backoff.next_delay_s() <= 0.5
