"""The token bucket, against a server that counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.net.bucket import TokenBucket

STEPS = st.lists(st.floats(min_value=0, max_value=5, allow_nan=False), min_size=1, max_size=200)


@given(rate=st.floats(0.1, 50), burst=st.integers(1, 30), steps=STEPS)
def test_never_more_than_the_burst_and_the_rate_allow(rate: float, burst: int, steps: list[float]) -> None:
    now = 100.0
    bucket = TokenBucket(rate_per_s=rate, burst=burst, now=now)
    taken = 0
    for step in steps:
        now += step
        while bucket.try_take(now):
            taken += 1
            assert taken <= burst + rate * (now - 100.0) + 1e-6


@given(rate=st.floats(0.1, 50), burst=st.integers(1, 30), used=st.integers(0, 30), later=st.floats(0, 10))
def test_ready_at_is_the_first_moment_at_which_a_token_can_be_taken(
    rate: float, burst: int, used: int, later: float
) -> None:
    bucket = TokenBucket(rate_per_s=rate, burst=burst, now=0.0)
    for _ in range(used):
        bucket.try_take(0.0)
    at = bucket.ready_at(later)
    assert at >= later
    if at > later + 1e-6:
        assert not bucket.try_take(at - (at - later) / 2 - 1e-6)
    assert bucket.try_take(at + 1e-6)


@given(
    remaining=st.integers(0, 50),
    reset_after=st.floats(0.5, 60),
    rate=st.floats(0.5, 20),
    steps=st.lists(st.floats(0, 2), min_size=1, max_size=100),
)
def test_within_the_servers_window_no_more_is_taken_than_it_said(
    remaining: int, reset_after: float, rate: float, steps: list[float]
) -> None:
    bucket = TokenBucket(rate_per_s=rate, burst=30, now=0.0)
    bucket.tighten(remaining=remaining, reset_after_s=reset_after, now=0.0)
    now, taken = 0.0, 0
    for step in steps:
        now += step
        if now >= reset_after:
            break
        while bucket.try_take(now):
            taken += 1
    assert taken <= remaining


def test_an_exhausted_window_ends_at_its_reset_and_not_before() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=30, now=0.0)
    bucket.tighten(remaining=0, reset_after_s=100, now=0.0)
    assert not bucket.try_take(99.9)
    assert bucket.ready_at(50.0) == pytest.approx(100.1)
    assert bucket.try_take(100.2)


def test_a_generous_server_does_not_raise_the_rate() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=10, now=0.0)
    bucket.tighten(remaining=100_000, reset_after_s=1, now=0.0)
    assert sum(bucket.try_take(0.5) for _ in range(100)) == 10


def test_a_token_that_is_put_back_can_be_taken_again() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=1, now=0.0)
    assert bucket.try_take(0.0)
    assert not bucket.try_take(0.0)
    bucket.put_back(0.0)
    assert bucket.try_take(0.0)


def test_time_that_falls_changes_nothing() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=1, now=10.0)
    assert bucket.try_take(10.0)
    assert not bucket.try_take(5.0)
