"""The minimum speed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.net.speed import SpeedGate


def gate(minimum: float = 1000.0) -> SpeedGate:
    return SpeedGate(min_bytes_per_s=minimum, grace_s=30, window_s=20, started=100.0)


def test_silence_is_tolerated_in_the_grace_and_not_after_it() -> None:
    speed = gate()
    assert not speed.is_too_slow(129.9)
    assert speed.is_too_slow(130.1)


def test_a_pause_shorter_than_the_window_is_tolerated() -> None:
    speed = gate()
    for second in range(40):
        speed.note(100.0 + second, 5000)
    assert not speed.is_too_slow(139 + 12)
    assert speed.is_too_slow(139 + 25)


def test_a_trickle_is_too_slow_although_it_never_stops() -> None:
    speed = gate()
    for second in range(60):
        speed.note(100.0 + second, 10)
    assert speed.is_too_slow(160)


def test_a_minimum_of_zero_tolerates_anything() -> None:
    assert not gate(0).is_too_slow(1e6)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 10_000)), max_size=300))
def test_memory_stays_bounded_and_the_speed_is_that_of_the_last_window(steps: list[tuple[float, int]]) -> None:
    speed = gate()
    now = 100.0
    seen: list[tuple[float, int]] = []
    for wait, count in steps:
        now += wait
        speed.note(now, count)
        seen.append((now, count))
    exact_least = sum(count for at, count in seen if at >= now - 20 + 1.3)
    exact_most = sum(count for at, count in seen if at >= now - 20 - 1.3)
    assert exact_least / 20 - 1e-6 <= speed.speed(now) <= exact_most / 20 + 1e-6
    assert len(speed._steps) <= 18
