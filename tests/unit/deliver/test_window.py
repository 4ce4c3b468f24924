from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.deliver.window import FIRST_BATCHES, LEAST_BATCHES, Window


def run(window: Window, *, seconds: float, per_batch_s: float, latency_s: float = 0.0) -> float:
    """Play an ingester that stores one batch after another and answers `latency_s` later; return batches a second."""
    now, stored_at, done = 0.0, 0.0, 0
    flight: list[tuple[float, float]] = []  # sent at, acknowledged at
    while now < seconds:
        while window.is_open(len(flight), len(flight) * window.batch_bytes):
            stored_at = max(stored_at, now) + per_batch_s
            flight.append((now, stored_at + latency_s))
        sent_at, now = flight.pop(0)
        window.acknowledged(sent_at=sent_at, now=now, batches=1, was_limit=True)
        done += 1
    return done / seconds


@given(
    st.integers(1, 64),
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 64), st.booleans()), max_size=100),
)
def test_the_window_stays_between_its_bounds(most: int, answers: list[tuple[float, int, bool]]) -> None:
    window = Window(most_batches=most, batch_bytes=100)
    now = 0.0
    for took_s, batches, was_limit in answers:
        now += 1
        window.acknowledged(sent_at=now - took_s, now=now, batches=batches, was_limit=was_limit)
        assert min(LEAST_BATCHES, most) <= window.batches <= most
        assert not window.is_open(most, 0)
        assert not window.is_open(1, most * 100)
        assert window.is_open(0, 0)


def test_a_fast_ingester_gets_the_whole_window() -> None:
    window = Window(most_batches=32, batch_bytes=100)
    run(window, seconds=1, per_batch_s=0.002)
    assert window.batches == 32


def test_a_slow_ingester_gets_what_it_stores_in_half_a_second() -> None:
    window = Window(most_batches=32, batch_bytes=100)
    rate = run(window, seconds=60, per_batch_s=0.1)
    assert 3 <= window.batches <= 6
    assert rate > 9.9


def test_a_very_slow_ingester_keeps_the_smallest_window_and_its_full_rate() -> None:
    window = Window(most_batches=32, batch_bytes=100)
    rate = run(window, seconds=600, per_batch_s=3)
    assert window.batches <= 5
    assert rate > 0.32


def test_a_distant_ingester_is_not_taken_for_a_slow_one() -> None:
    window = Window(most_batches=32, batch_bytes=100)
    rate = run(window, seconds=120, per_batch_s=0.02, latency_s=1.0)
    assert window.batches == 32
    assert rate > 25


def test_an_ingester_that_recovers_gets_its_window_back() -> None:
    window = Window(most_batches=32, batch_bytes=100)
    run(window, seconds=60, per_batch_s=0.4)
    assert window.batches < 8
    run(window, seconds=5, per_batch_s=0.001)
    assert window.batches == 32


def test_a_window_that_was_not_the_limit_does_not_grow() -> None:
    window = Window(most_batches=32, batch_bytes=100)
    for now in range(100):
        window.acknowledged(sent_at=now, now=now + 0.01, batches=1, was_limit=False)
    assert window.batches == FIRST_BATCHES


def test_small_batches_are_bounded_by_number_and_large_ones_by_bytes() -> None:
    window = Window(most_batches=4, batch_bytes=100)
    assert window.is_open(3, 3)
    assert not window.is_open(4, 4)
    assert window.is_open(1, 399)
    assert not window.is_open(1, 400)


def test_a_new_stream_starts_over() -> None:
    window = Window(most_batches=32, batch_bytes=100)
    run(window, seconds=60, per_batch_s=0.5)
    window.new_stream()
    assert window.batches == FIRST_BATCHES
