"""Rates and time left."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.observe.rates import BacklogMeter, EtaMeter, RateMeter


def test_a_steady_count_has_its_rate() -> None:
    meter = RateMeter(window_s=10)
    for second in range(30):
        meter.update(float(second), second * 7)
    assert meter.rate() == pytest.approx(7)


def test_nothing_is_said_before_there_are_two_counts() -> None:
    meter = RateMeter()
    assert meter.rate() is None
    meter.update(1.0, 5)
    assert meter.rate() is None
    meter.update(1.01, 6)
    assert meter.rate() is None  # too close together to mean anything


def test_a_count_that_stands_still_falls_to_zero_within_the_window() -> None:
    meter = RateMeter(window_s=10)
    for tenth in range(100):
        meter.update(tenth / 10, tenth)
    for tenth in range(100, 220):
        meter.update(tenth / 10, 99)
    assert meter.rate() == pytest.approx(0.0)


def test_a_count_that_starts_anew_gives_no_negative_rate() -> None:
    meter = RateMeter(window_s=10)
    meter.update(0.0, 1000)
    meter.update(5.0, 2000)
    meter.update(6.0, 0)
    meter.update(8.0, 20)
    assert meter.rate() == pytest.approx(10)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 100)), min_size=1, max_size=300))
def test_the_rate_lies_between_zero_and_the_steepest_step_and_memory_is_bounded(steps: list[tuple[float, int]]) -> None:
    meter = RateMeter(window_s=10, samples=20)
    now, total = 0.0, 0
    for wait, more in steps:
        now, total = now + wait, total + more
        meter.update(now, total)
        rate = meter.rate()
        assert rate is None or 0 <= rate <= total / 0.25
        assert len(meter._points) <= 22


def test_the_time_left_is_what_is_left_over_the_rate() -> None:
    eta = EtaMeter(settle_s=3, settle_done=5)
    for second in range(11):
        eta.update(float(second), second * 10, 1000)
    assert eta.eta_s() == pytest.approx((1000 - 100) / 10)


def test_no_time_is_told_too_early_or_without_progress_or_without_a_total() -> None:
    eta = EtaMeter(window_s=10, settle_s=3, settle_done=5)
    assert eta.eta_s() is None
    eta.update(0.0, 0, 100)
    eta.update(1.0, 50, 100)
    assert eta.eta_s() is None  # too early
    eta.update(4.0, 50, None)
    assert eta.eta_s() is None  # no total
    for second in range(4, 60):
        eta.update(float(second), 50, 100)
    assert eta.eta_s() is None  # stuck: no number would be honest


def test_what_was_done_before_a_resumed_run_does_not_make_it_look_fast() -> None:
    eta = EtaMeter()
    eta.update(0.0, 900_000, 1_000_000)
    eta.update(1.0, 900_001, 1_000_000)
    eta.update(10.0, 900_010, 1_000_000)
    assert eta.eta_s() == pytest.approx(99_990, rel=0.01)


def test_nothing_is_left_at_the_end() -> None:
    eta = EtaMeter()
    eta.update(0.0, 10, 10)
    assert eta.eta_s() == 0


def test_a_backlog_goes_at_the_pace_at_which_it_shrinks_whatever_is_added() -> None:
    meter = BacklogMeter(settle_s=10)
    for second in range(31):
        meter.update(float(second), 1000 - second * 20 + second * 10)  # 20 finished, 10 new
    assert meter.eta_s() == pytest.approx((1000 - 300) / 10)


def test_a_backlog_that_grew_before_is_judged_from_its_highest_point() -> None:
    meter = BacklogMeter(settle_s=10)
    for second in range(20):
        meter.update(float(second), second * 100)
    for second in range(20, 41):
        meter.update(float(second), 1900 - (second - 20) * 50)
    assert meter.eta_s() == pytest.approx(900 / 50, rel=0.1)


def test_no_end_is_told_of_a_backlog_too_early_or_while_it_does_not_shrink() -> None:
    meter = BacklogMeter(window_s=30, settle_s=10)
    assert meter.eta_s() is None
    meter.update(0.0, 100)
    meter.update(5.0, 50)
    assert meter.eta_s() is None  # too early
    for second in range(6, 60):
        meter.update(float(second), 50)
    assert meter.eta_s() is None  # it stands still
    meter.update(60.0, 90)
    assert meter.eta_s() is None  # it grows
    meter.update(61.0, 0)
    assert meter.eta_s() == 0


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 1000)), min_size=1, max_size=300))
def test_a_backlogs_end_is_never_below_zero_and_costs_little_memory(steps: list[tuple[float, int]]) -> None:
    meter = BacklogMeter(window_s=10, settle_s=1)
    now = 0.0
    for wait, left in steps:
        now += wait
        meter.update(now, left)
        eta = meter.eta_s()
        assert eta is None or eta >= 0
        assert len(meter._pace._points) <= 241


def _sizes(repos: int, seed: int) -> list[float]:
    """Sizes as real repos have them: the mean is five times the median."""
    drawing = random.Random(seed)
    return [drawing.lognormvariate(10.5, 1.8) for _ in range(repos)]


def _seconds_each(sizes: list[float], limit: str) -> list[float]:
    """Return how long each repo takes in a run of half an hour in which this is scarce."""
    whole_s = 1800.0
    if limit == "requests":
        return [whole_s / len(sizes)] * len(sizes)
    if limit == "bytes":
        return [whole_s * size / sum(sizes) for size in sizes]
    return [0.5 * whole_s / len(sizes) + 0.5 * whole_s * size / sum(sizes) for size in sizes]


def _run(seconds: list[float], sizes: list[float]) -> Iterator[tuple[float, int, float]]:
    """Yield what is seen twice a second: the time, repos done, bytes fetched (downloads in progress count)."""
    now, done, fetched, free = 0.0, 0, 0.0, 0.0
    while done < len(seconds):
        now, free = now + 0.5, free + 0.5
        while done < len(seconds) and seconds[done] <= free:
            free -= seconds[done]
            fetched += sizes[done]
            done += 1
        share = 0.0 if done == len(seconds) else free / seconds[done] * sizes[done]
        yield now, done, fetched + share


@pytest.mark.parametrize("limit", ["requests", "bytes", "both"])
@pytest.mark.parametrize("seed", range(3))
def test_after_a_fifth_of_a_run_the_time_left_is_right_to_a_quarter_whatever_is_scarce(limit: str, seed: int) -> None:
    sizes = _sizes(8_000, seed)
    seen = list(_run(_seconds_each(sizes, limit), sizes))
    ends, meter, worst = seen[-1][0], EtaMeter(), 0.0
    for now, done, size in seen:
        meter.update(now, done, len(sizes), size)
        if 0.2 * ends <= now <= 0.8 * ends and now % 10 == 0:
            eta = meter.eta_s()
            assert eta is not None
            worst = max(worst, abs(eta - (ends - now)) / (ends - now))
    assert worst < 0.25


def test_the_first_estimate_comes_within_seconds_and_is_of_the_right_size() -> None:
    sizes = _sizes(20_000, 1)
    meter = EtaMeter()
    for now, done, size in _run(_seconds_each(sizes, "both"), sizes):
        meter.update(now, done, len(sizes), size)
        if now >= 5:
            break
    assert meter.eta_s() == pytest.approx(1800, rel=0.5)


def test_when_most_hosts_are_done_and_one_is_slow_the_time_left_is_that_hosts_within_a_minute() -> None:
    meter = EtaMeter()
    done, size = 0.0, 0.0
    for half in range(2 * 400):
        pace = 50 if half < 2 * 300 else 1
        done, size = done + pace / 2, size + pace * 50_000 / 2
        meter.update(half / 2, int(done), 16_000, size)
        if half == 2 * 360:
            break
    assert meter.eta_s() == pytest.approx(16_000 - done, rel=0.1)


def test_the_bytes_that_are_left_are_estimated_from_those_that_were_fetched() -> None:
    meter = EtaMeter(settle_done=5)
    meter.update(0.0, 100, 1000, 0.0)
    assert meter.bytes_left() is None
    meter.update(9.0, 200, 1000, 5_000.0)
    assert meter.bytes_left() == pytest.approx(40_000)
    backlog = BacklogMeter()
    backlog.update(0.0, 900)
    assert backlog.bytes_left() is None
    backlog.update(9.0, 800, finished=100, size=5_000.0)
    assert backlog.bytes_left() == pytest.approx(40_000)
