"""Threads that are started, asked to stop, and joined in one way; none dies in silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from relay.observe.log import get_logger

log = get_logger(__name__)


class Service(Protocol):
    """Something the supervisor starts and stops. `name` is the thread's name and the log field."""

    name: str

    def start(self) -> None: ...

    def request_stop(self) -> None:
        """From any thread, any number of times; returns at once."""

    def join(self, deadline: float) -> bool:
        """Wait until `deadline` (monotonic seconds); False: still running."""


class ServiceThread:
    """A thread with a stopping event that its loop waits on; an exception in it is reported, never swallowed.

    Subclasses implement `run`, which returns when `self.stopping` is set, and may override `wake` to interrupt whatever
    `run` waits for. `on_death` is called in the dying thread with the exception.
    """

    def __init__(self, name: str, on_death: Callable[[str, BaseException], None] | None = None) -> None:
        self.name = name
        self.stopping = threading.Event()
        self.death: BaseException | None = None
        self._on_death = on_death
        self._thread = threading.Thread(target=self._run_reported, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def request_stop(self) -> None:
        self.stopping.set()
        self.wake()

    def wake(self) -> None:
        """Interrupt a wait of `run` that `stopping` alone does not end."""

    def join(self, deadline: float) -> bool:
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def run(self) -> None:
        raise NotImplementedError

    def _run_reported(self) -> None:
        _show_name(self.name)
        try:
            self.run()
        except Exception as exc:
            self.death = exc
            log.error("thread_died", thread=self.name, error=f"{type(exc).__name__}: {exc}", exc_info=True)
            if self._on_death is not None:
                self._on_death(self.name, exc)


def _show_name(name: str) -> None:
    """Have `top -H` and `perf` call the calling thread so (15 characters)."""
    try:
        Path("/proc/thread-self/comm").write_bytes(name.encode()[:15])
    except OSError as exc:  # no /proc: then nobody sees it
        log.debug("thread_not_named", thread=name, error=str(exc))
