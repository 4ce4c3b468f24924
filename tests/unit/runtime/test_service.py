"""Threads: they end when asked, and none dies in silence."""

from __future__ import annotations

import threading
import time

import pytest

from relay.runtime.service import ServiceThread


class Waiter(ServiceThread):
    def run(self) -> None:
        self.stopping.wait(30.0)


class Dier(ServiceThread):
    def run(self) -> None:
        raise ValueError("as a test")


def test_a_thread_that_is_asked_to_stop_ends() -> None:
    waiter = Waiter("waiter")
    waiter.start()
    assert waiter.is_alive()
    assert not waiter.join(time.monotonic())
    for _ in range(3):
        waiter.request_stop()
    assert waiter.join(time.monotonic() + 10.0)
    assert waiter.death is None


def test_a_thread_that_was_never_started_can_be_joined() -> None:
    assert Waiter("waiter").join(time.monotonic())


def test_a_death_is_told_with_its_name_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[str, BaseException, str]] = []
    dier = Dier("dier", lambda name, exc: heard.append((name, exc, threading.current_thread().name)))
    dier.start()
    assert dier.join(time.monotonic() + 10.0)
    ((name, exc, thread),) = heard
    assert (name, thread) == ("dier", "dier")
    assert exc is dier.death
    assert isinstance(exc, ValueError)
