"""The host table shared by threads."""

from __future__ import annotations

import threading

import pytest

from relay.net.errors import HostDown, RateLimited, Stopped
from relay.net.facts import HostFacts
from relay.net.gate import HostGate
from relay.net.hosts import HostPolicy, HostTable
from relay.runtime.clock import ManualClock

HOST = "https://pds.example.com"
FREE = threading.Event()


def gate(clock: ManualClock | None = None, connections: int = 4) -> HostGate:
    policy = HostPolicy(requests_per_s=1000, burst=30, connections=connections, breaker_s=10)
    return HostGate(HostTable(policy), clock)


def test_a_passage_reports_success_and_facts() -> None:
    clock = ManualClock()
    shared = gate(clock)
    with shared.passage(HOST, FREE) as passage:
        passage.facts = HostFacts(retry_after_s=3)
    assert shared.answered_recently(HOST)
    assert shared.ready_in_s(HOST) == 3


def test_a_passage_reports_the_error_that_ended_it() -> None:
    clock = ManualClock()
    shared = gate(clock)
    with pytest.raises(HostDown), shared.passage(HOST, FREE):
        raise HostDown("x", host=HOST)
    clock.advance(4)
    assert shared.silent_s(HOST) == 4
    assert shared.snapshot()[0].is_open


def test_the_facts_of_an_error_count() -> None:
    shared = gate(ManualClock())
    with pytest.raises(RateLimited), shared.passage(HOST, FREE):
        raise RateLimited("x", host=HOST, status=429, facts=HostFacts(retry_after_s=77))
    assert shared.ready_in_s(HOST) == 77


def test_a_passage_waits_for_a_connection_and_gets_it_when_one_ends() -> None:
    shared = gate(connections=1)
    entered = threading.Event()

    def second() -> None:
        with shared.passage(HOST, FREE):
            entered.set()

    with shared.passage(HOST, FREE):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.is_set()
    thread.join(10)
    assert entered.is_set()


def test_stopping_ends_the_wait() -> None:
    shared = gate(connections=1)
    stopping = threading.Event()
    failures: list[BaseException] = []

    def second() -> None:
        try:
            with shared.passage(HOST, stopping):
                pass
        except Stopped as exc:
            failures.append(exc)

    with shared.passage(HOST, FREE):
        thread = threading.Thread(target=second)
        thread.start()
        stopping.set()
        thread.join(10)
    assert len(failures) == 1


def test_try_start_and_not_started_balance() -> None:
    shared = gate(ManualClock(), connections=1)
    assert shared.try_start(HOST)
    assert not shared.try_start(HOST)
    shared.not_started(HOST)
    assert shared.try_start(HOST)
