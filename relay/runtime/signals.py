"""SIGTERM and SIGINT as items of a queue: the handler only notes the number, the main loop does the work."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

EXIT_INTERRUPTED = 130
LOOK_EVERY_S = 0.2


def next_item(items: queue.SimpleQueue[T]) -> T:
    """Wait for an item, in the main thread, where handlers of signals run that may put one.

    Python runs them between two instructions: a signal that another thread took, or that came a moment before the wait, does not
    interrupt it. So this never waits for long.
    """
    while True:
        with contextlib.suppress(queue.Empty):
            return items.get(timeout=LOOK_EVERY_S)


class StopSignals:
    """Stop signals. The first is for the main loop; the second ends the process at once, after `before_exit()`.

    What that loses is only work that a start repeats. SIGHUP is an item as well.
    """

    def __init__(self, before_exit: Callable[[], None] | None = None) -> None:
        self.items: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._before_exit = before_exit
        self._seen = 0

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        signal.signal(signal.SIGHUP, self._handle_hup)

    def wait(self, timeout_s: float) -> int | None:
        """Return the number of a signal that came within `timeout_s`, or None."""
        try:
            return self.items.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._seen += 1
        if self._seen > 1:
            if self._before_exit is not None:
                self._before_exit()
            os._exit(EXIT_INTERRUPTED)
        self.items.put(number)  # SimpleQueue.put is reentrant: made for this

    def _handle_hup(self, number: int, frame: FrameType | None) -> None:
        self.items.put(number)
