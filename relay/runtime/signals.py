"""SIGTERM and SIGINT as items of a queue: the handler only notes the number, the main loop does the work."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Callable
from types import FrameType


class StopSignals:
    """Counts stop signals. The first is for the main loop; `second` is called in the handler at the next, and must not return.

    `reload` counts SIGHUPs likewise.
    """

    def __init__(self, second: Callable[[int], None] | None = None) -> None:
        self.items: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._second = second or (lambda number: os._exit(128 + number))
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
            self._second(number)
        self.items.put(number)  # SimpleQueue.put is reentrant: made for this

    def _handle_hup(self, number: int, frame: FrameType | None) -> None:
        self.items.put(number)
