"""The engine: one thread that owns all repo state in memory, and never waits for anything but its next event.

Events are messages of children (their pipes) and calls that other threads post; after each round the pipeline does what has
become possible. Databases, networks and ingesters are other threads' business: they post their answers here.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from relay.ipc.child import ChildProcess
from relay.observe.log import get_logger
from relay.runtime.service import ServiceThread
from relay.supervisor.children import ChildSeats

log = get_logger(__name__)

LONGEST_WAIT_S = 0.1


@dataclass(slots=True)
class _Periodic:
    every_s: float
    do: Callable[[], None]
    due: float = 0.0


class Engine(ServiceThread):
    """`handle(role, seat, message)` takes children's messages; `pump()` does what is possible and may return when to come back."""

    def __init__(self, on_death: Callable[[str, BaseException], None]) -> None:
        super().__init__("engine", on_death)
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, None)
        self._inbox: deque[Callable[[], None]] = deque()
        self._awake = threading.Event()  # set: the eventfd has been written and not read
        self._periodic: list[_Periodic] = []
        self.children: ChildSeats | None = None
        self.handle: Callable[[str, int, object], None] = _unplugged
        self.pump: Callable[[], float | None] = lambda: None
        self.busy_s = 0.0  # time spent working, for status
        self.round_at = time.monotonic()  # heartbeat

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` run in the engine's thread, soon and in the order of posting. From any thread; never blocks."""
        self._inbox.append(call)
        if not self._awake.is_set():
            self._awake.set()
            os.eventfd_write(self._wake_fd, 1)

    def post_lazily(self, call: Callable[[], None]) -> None:
        """As `post`, but with the engine's next round, at most LONGEST_WAIT_S from now: for what other events follow anyway."""
        self._inbox.append(call)

    def wake(self) -> None:
        self.post(_nothing)

    def every(self, seconds: float, do: Callable[[], None]) -> None:
        """Run `do` in the engine's thread every so often; to be called before the start."""
        self._periodic.append(_Periodic(seconds, do))

    def watch(self, child: ChildProcess) -> None:
        self._selector.register(child.pipe, selectors.EVENT_READ, child)

    def unwatch(self, child: ChildProcess) -> None:
        try:
            self._selector.unregister(child.pipe)
        except (KeyError, ValueError):  # it was not watched any more
            pass

    def run(self) -> None:
        wait_s = 0.0
        while not self.stopping.is_set():
            ready = self._selector.select(wait_s)
            began = self.round_at = time.monotonic()
            for key, _ in ready:
                if key.data is None:
                    self._take_wake()
                else:
                    self._take_messages(key.data)
            self._run_posted()
            for periodic in self._periodic:
                if began >= periodic.due:
                    periodic.due = began + periodic.every_s
                    periodic.do()
            if self.children is not None:
                self.children.start_due()
            back_at = self.pump()
            if self.children is not None:
                self.children.flush()
            ended = time.monotonic()
            self.busy_s += ended - began
            wait_s = LONGEST_WAIT_S if back_at is None else min(LONGEST_WAIT_S, max(0.0, back_at - ended))
            if self._inbox:
                wait_s = 0.0
        self._run_posted()

    def close(self) -> None:
        """Free what the thread used; after it has ended."""
        self._selector.close()
        os.close(self._wake_fd)

    def _take_wake(self) -> None:
        # First read, then clear, then look into the inbox. A call that is posted before the clearing is in the inbox by then; one
        # posted after it writes anew. (Cleared first, a write between the two is read away with the mark left set: nobody would
        # write any more, and every post would wait for the next timeout.)
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            pass
        self._awake.clear()

    def _run_posted(self) -> None:
        for _ in range(len(self._inbox)):
            self._inbox.popleft()()

    def _take_messages(self, child: ChildProcess) -> None:
        assert self.children is not None
        try:
            for wire in child.pipe.receive_ready():
                self.handle(child.role, child.seat, self.children.decode(child.role, wire))
        except EOFError:
            self.children.ended(child)


def _nothing() -> None:
    return None


def _unplugged(role: str, seat: int, message: object) -> None:
    raise AssertionError(f"{role}/{seat} sent {message!r} and nobody listens")
