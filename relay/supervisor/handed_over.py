"""The other side of `handing_over`: a service takes over the targets of batches, enumerates them, and finishes the batches."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from relay.discovery.listing import EnumerationResult
from relay.observe.log import get_logger
from relay.repos.tasks import StoreTasks
from relay.runtime.clock import Clock
from relay.store import batches, listings, repos
from relay.store.batches import Batch
from relay.store.pool import Database
from relay.store.statements import Cursor
from relay.supervisor.discovery import Discovery, Sources, Then
from relay.supervisor.patience import store_patiently

log = get_logger(__name__)

LOOK_EVERY_S = 1.0
# Looking whether batches of millions are finished may take this share of the time.
SHARE = 0.05


@dataclass(slots=True)
class _Seen:
    """What one look at the table found."""

    to_enumerate: list[Batch]
    took_s: float


class HandedOver:
    """Lives in the engine's thread; `look` is to be called about once a second.

    `enumerate_batch(batch, sources, then)` starts an enumeration and returns it; `then` is a Discovery's. A batch that was cut by a stop
    is enumerated by the next service, from its last stored page.
    """

    def __init__(
        self,
        tasks: StoreTasks,
        clock: Clock,
        enumerate_batch: Callable[[int, Sources, Then], Discovery],
        database: Database,
        epoch: Callable[[], int],
    ) -> None:
        self._tasks, self._clock, self._enumerate = tasks, clock, enumerate_batch
        self._database, self._epoch = database, epoch
        self._running: dict[tuple[int, float | None], Discovery] = {}
        self._is_looking = False
        self._look_at = 0.0

    @property
    def running(self) -> list[Discovery]:
        """The enumerations, those that are over included."""
        return list(self._running.values())

    def look(self) -> None:
        """Look for batches to take over, and whether those that were are finished."""
        if self._is_looking or time.monotonic() < self._look_at:
            return
        self._is_looking = True
        now = self._clock.now()

        def ask(cursor: Cursor) -> _Seen:
            began = time.monotonic()
            to_enumerate = []
            for batch in batches.list_handed_over(cursor):
                if batch.enumerated_at is None:
                    to_enumerate.append(batch)
                elif repos.unfinished_of_batch(cursor, batch.id) == 0:
                    note = json.dumps(repos.count_by_state(cursor, batch.id))
                    batches.finish_batch(cursor, batch.id, now, note)
                    log.info("batch_finished", batch=batch.id, targets=note)
            return _Seen(to_enumerate, time.monotonic() - began)

        self._tasks.submit("handed over", ask, self._seen)

    def _seen(self, seen: _Seen) -> None:
        self._is_looking = False
        self._look_at = time.monotonic() + max(LOOK_EVERY_S / 2, seen.took_s / SHARE)
        for key in [key for key, discovery in self._running.items() if discovery.is_over]:
            del self._running[key]
        for batch in seen.to_enumerate:
            self._take(batch)

    def _take(self, batch: Batch) -> None:
        # A batch that was handed over again is enumerated again, behind its enumeration that runs.
        if batch.sources is None or any(each == batch.id for each, _ in self._running):
            return
        identifier, handed_over_at = batch.id, batch.handed_over_at
        log.info("batch_taken_over", batch=identifier, asked_for=batch.spec)

        def enumerated(result: EnumerationResult, stopping: threading.Event) -> None:
            failed = [(each.host or each.param, each.text) for each in result.failed]

            def note(cursor: Cursor) -> bool:
                batches.enumerated(cursor, identifier, failed, self._clock.now())
                listings.forget(cursor, identifier)
                return True

            store_patiently(self._database, "enumerated", note, epoch=self._epoch, stopped_within=stopping.wait)

        self._running[identifier, handed_over_at] = self._enumerate(
            identifier, Sources.from_json(batch.sources), enumerated
        )
