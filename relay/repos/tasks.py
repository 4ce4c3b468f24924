"""The thread that asks the database on behalf of the engine, which must never wait: claims, looks, counts.

One question at a time, in order. While the database is away the question waits and is asked again.
"""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from relay.errors import StoreAway
from relay.observe.log import get_logger
from relay.runtime.backoff import Backoff
from relay.runtime.service import ServiceThread
from relay.store.pool import Database
from relay.store.statements import Cursor

log = get_logger(__name__)

Ask = Callable[[Cursor], Any]


class StoreTasks(ServiceThread):
    """`submit(name, ask, then)`: `ask(cursor)` runs here, in a fenced transaction; `then(result)` runs in the engine's thread."""

    def __init__(
        self,
        database: Database,
        epoch: Callable[[], int],
        post: Callable[[Callable[[], None]], None],
        *,
        on_death: Callable[[str, BaseException], None],
        on_away: Callable[[str | None], None],
        name: str = "store-tasks",
        reads_only: bool = False,
    ) -> None:
        """`reads_only`: the questions write nothing, so they are asked without a transaction: somebody waits for the answers."""
        super().__init__(name, on_death)
        self._reads_only = reads_only
        self._database, self._epoch, self._post, self._on_away = database, epoch, post, on_away
        self._queue: queue.SimpleQueue[tuple[str, Ask, Callable[[Any], None]] | None] = queue.SimpleQueue()
        self.outstanding = 0  # belongs to the engine's thread

    def submit(self, name: str, ask: Ask, then: Callable[[Any], None]) -> None:
        """From the engine's thread; the owner keeps the number of outstanding questions small."""
        self.outstanding += 1
        self._queue.put((name, ask, then))

    def wake(self) -> None:
        self._queue.put(None)

    def run(self) -> None:
        while not self.stopping.is_set():
            item = self._queue.get()
            if item is None:
                continue
            name, ask, then = item
            answered, result = self._ask(name, ask)
            if answered:
                self._post(functools.partial(self._answer, then, result))

    def _answer(self, then: Callable[[Any], None], result: Any) -> None:
        self.outstanding -= 1
        then(result)

    def _ask(self, name: str, ask: Ask) -> tuple[bool, Any]:
        backoff: Backoff | None = None
        told = False
        while not self.stopping.is_set():
            try:
                with self._asking(name) as cursor:
                    result = ask(cursor)
            except StoreAway as exc:
                if not told:
                    log.warning("store_away", reason=str(exc), waiting=name)
                    self._on_away(str(exc))
                    told = True
                backoff = backoff or Backoff(0.1, 5.0)
                self.stopping.wait(backoff.next_delay_s())
            else:
                if told:
                    self._on_away(None)
                return True, result
        return False, None

    def _asking(self, name: str) -> AbstractContextManager[Cursor]:
        if self._reads_only:
            return self._database.reading(name)
        return self._database.transaction(name, epoch=self._epoch())
