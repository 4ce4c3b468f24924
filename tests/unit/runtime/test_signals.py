"""Signals as items of a queue; the second stop signal ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from relay.runtime.signals import EXIT_INTERRUPTED, StopSignals
from tests.support.processes import ROOT


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put the handlers of this process back afterwards."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_an_item_for_the_main_loop(handlers: None, number: signal.Signals) -> None:
    signals = StopSignals()
    signals.install()
    assert signals.wait(0.0) is None
    os.kill(os.getpid(), number)
    assert signals.wait(10.0) == number
    assert signals.wait(0.0) is None


_TWICE = """
import os, signal, sys
from relay.runtime.signals import StopSignals
signals = StopSignals(lambda: os.write(1, b"given back"))
signals.install()
os.kill(os.getpid(), signal.SIGHUP)
os.kill(os.getpid(), signal.SIGTERM)
assert signals.wait(10.0) == signal.SIGHUP
assert signals.wait(10.0) == signal.SIGTERM
os.kill(os.getpid(), signal.SIGINT)
os.write(1, b"never reached")
"""


def test_a_second_stop_signal_ends_the_process_at_once_and_gives_the_terminal_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TWICE], env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (EXIT_INTERRUPTED, b"given back"), done.stderr


_TO_ANOTHER_THREAD = """
import queue, signal, threading, time
from relay.runtime.signals import next_item
items = queue.SimpleQueue()
signal.signal(signal.SIGTERM, lambda number, frame: items.put(number))
def kill():
    time.sleep(0.1)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    time.sleep(60)
threading.Thread(target=kill, daemon=True).start()
print(next_item(items))
"""


def test_a_signal_that_another_thread_took_is_heard_as_well() -> None:
    command = [sys.executable, "-c", _TO_ANOTHER_THREAD]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.strip() == str(int(signal.SIGTERM))
