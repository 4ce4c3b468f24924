"""The engine's thread: calls in the order of posting, woken at once, and what it does now and then."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator

import pytest

from relay.supervisor import engine as engine_module
from relay.supervisor.engine import Engine
from tests.support.waiting import wait_until


@pytest.fixture
def deaths() -> list[tuple[str, BaseException]]:
    return []


@pytest.fixture
def engine(deaths: list[tuple[str, BaseException]]) -> Iterator[Engine]:
    made = Engine(lambda name, exc: deaths.append((name, exc)))
    yield made
    made.request_stop()
    made.join(time.monotonic() + 10.0)
    made.close()


def test_calls_run_in_the_order_in_which_a_thread_posts_them_and_none_is_lost(engine: Engine) -> None:
    heard: list[tuple[int, int]] = []
    engine.start()

    def post_many(poster: int) -> None:
        for number in range(2000):
            engine.post(lambda number=number: heard.append((poster, number)))  # type: ignore[misc]

    posters = [threading.Thread(target=post_many, args=(poster,)) for poster in range(3)]
    for thread in posters:
        thread.start()
    for thread in posters:
        thread.join()
    wait_until(lambda: len(heard) == 6000, "every call has run")
    for poster, calls in itertools.groupby(sorted(heard, key=lambda call: call[0]), key=lambda call: call[0]):
        assert [number for _, number in calls] == list(range(2000)), poster


def test_a_post_wakes_the_engine_also_after_one_that_came_while_it_was_waking(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "LONGEST_WAIT_S", 3600.0)
    heard: list[str] = []
    read = os.eventfd_read
    meanwhile = [lambda: heard.append("while waking")]

    def read_and_post(fd: int) -> int:
        if meanwhile:
            engine.post(meanwhile.pop())
        return read(fd)

    monkeypatch.setattr(os, "eventfd_read", read_and_post)
    engine.start()
    engine.post(lambda: heard.append("first"))
    wait_until(lambda: len(heard) == 2, "the first two calls")
    engine.post(lambda: heard.append("later"))
    wait_until(lambda: len(heard) == 3, "a call posted to a sleeping engine")


def test_what_a_call_posts_runs_in_a_later_round(engine: Engine) -> None:
    rounds: list[int] = []
    pumped = itertools.count()
    now = [0]

    def pump() -> None:
        now[0] = next(pumped)

    engine.pump = pump
    engine.post(lambda: engine.post(lambda: rounds.append(now[0])))
    engine.post(lambda: rounds.append(now[0]))
    engine.start()
    wait_until(lambda: len(rounds) == 2, "both calls")
    assert rounds[0] < rounds[1] or rounds == [0, 0]


def test_periodic_work_runs_again_and_again_without_any_event(engine: Engine) -> None:
    runs: list[float] = []
    engine.every(0.01, lambda: runs.append(time.monotonic()))
    engine.start()
    wait_until(lambda: len(runs) >= 3, "three rounds")
    assert all(later - earlier >= 0.01 for earlier, later in itertools.pairwise(runs))


def test_the_pump_says_when_it_wants_to_run_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "LONGEST_WAIT_S", 3600.0)
    runs: list[float] = []

    def pump() -> float | None:
        runs.append(time.monotonic())
        return time.monotonic() + 0.01

    engine.pump = pump
    engine.start()
    wait_until(lambda: len(runs) >= 3, "three rounds")
    engine.post(lambda: None)


def test_what_was_posted_before_the_stop_is_done(engine: Engine) -> None:
    heard: list[int] = []
    engine.post(engine.stopping.set)
    engine.post(lambda: heard.append(1))
    engine.start()
    assert engine.join(time.monotonic() + 10.0)
    assert heard == [1]


def test_a_call_that_raises_ends_the_engine_and_is_told(
    engine: Engine, deaths: list[tuple[str, BaseException]]
) -> None:
    def broken() -> None:
        raise ValueError("as a test")

    engine.start()
    engine.post(broken)
    assert engine.join(time.monotonic() + 10.0)
    assert [(name, str(exc)) for name, exc in deaths] == [("engine", "as a test")]
