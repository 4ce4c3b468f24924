"""How many repos are in each state: of all, and of a batch's targets. Lives in the engine's thread.

The keeper counts every transition that it makes; this takes the counts from the database at start, when the enumeration is over, and
now and then, because of rows that SQL moves by itself nobody knows whether they are targets. A count that is taken while
transitions are on their way is off by those until the next one, which then comes soon: it is for eyes. The last one, of a machine that
has ended, is exact; the result of a batch is read from the database.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeAlias

from relay.errors import StoreError, StoreFenced
from relay.model import RepoState
from relay.observe.log import get_logger
from relay.repos.keeper import Keeper
from relay.repos.tasks import StoreTasks
from relay.store import repos
from relay.store.pool import Database, limit_time
from relay.store.repos import UpsertResult
from relay.store.statements import Cursor

EVERY_S = 30.0
WHILE_LISTING_S = 2.0
UNSETTLED_S = 2.0  # something was on its way while it was counted
# Counting may take this share of the time: a scan of 50 M rows is not repeated every half minute.
SHARE = 0.02

LAST_MS = 2000  # for the last count: people wait for the end

_Answer: TypeAlias = tuple[float, dict[RepoState, int], dict[RepoState, int]]  # seconds, found, put before

log = get_logger(__name__)


class _Count:
    """One of the two counts: when it was taken last, and when it is due."""

    def __init__(
        self,
        name: str,
        counts: Counter[RepoState],
        put: Counter[RepoState],
        ask: Callable[[Cursor], dict[RepoState, int]],
    ) -> None:
        self.name, self.counts, self.put, self.ask = name, counts, put, ask
        self.due_at = 0.0
        self.cheap_at = 0.0  # sooner it would take more than its share of the time
        self.is_asking = False
        self.is_unsettled = False

    def replace(self, found: Mapping[RepoState, int]) -> None:
        self.counts.clear()
        self.counts.update(found)


class Census:
    """`look` is to be called about once a second; `is_listing()`: does an enumeration still run? `batch` None: there is none."""

    def __init__(self, keeper: Keeper, tasks: StoreTasks, batch: int | None, is_listing: Callable[[], bool]) -> None:
        self._keeper, self._tasks, self._is_listing = keeper, tasks, is_listing
        self._whole = _Count("count repos", keeper.counts, keeper.counts_put, lambda cur: repos.count_by_state(cur))
        self._targets: _Count | None = None
        if batch is not None:
            self._targets = _Count(
                "count targets", keeper.targets, keeper.targets_put, lambda cur: repos.count_by_state(cur, batch)
            )
        self._was_listing = True

    def look(self) -> None:
        listing = self._is_listing()
        if self._was_listing and not listing:
            self._was_listing = False
            self._whole.due_at = 0.0
            if self._targets is not None:
                self._targets.due_at = 0.0
        self._take_if_due(self._whole, EVERY_S)
        if self._targets is not None:
            self._take_if_due(self._targets, WHILE_LISTING_S if listing else EVERY_S)

    def page(self, result: UpsertResult, uncovered: int) -> None:
        """A page of discovered repos is stored; which of them were targets before only the next count tells."""
        # It was stored by another thread: the last count, or the one that is asked for, may have it already.
        self.unsettle()
        for (old, new), count in result.transitions.items():
            self._keeper.counts[new] += count
            if old is not None:
                self._keeper.counts[old] -= count
        if uncovered:
            self._keeper.moved({(RepoState.SYNCED, RepoState.PENDING): uncovered}, of_batch=False)

    def unsettle(self) -> None:
        """Rows were changed by others: count soon."""
        self._whole.is_unsettled = True
        self._whole.due_at = min(self._whole.due_at, max(self._whole.cheap_at, time.monotonic() + UNSETTLED_S))

    def close(self, database: Database) -> None:
        """Count for the last time, now that the engine has ended and everything is stored; what takes too long stays as it is."""
        try:
            with database.transaction("last count") as cursor:
                limit_time(cursor, LAST_MS)
                for count in (self._whole, self._targets):
                    if count is not None:
                        count.replace(count.ask(cursor))
        except (StoreError, StoreFenced) as exc:
            log.debug("last_count_missing", reason=str(exc))

    def _take_if_due(self, count: _Count, every_s: float) -> None:
        now = time.monotonic()
        if count.is_asking or now < count.due_at:
            return
        count.is_asking, count.is_unsettled = True, self._keeper.waiting > 0

        def ask(cursor: Cursor) -> _Answer:
            before = dict(count.put)  # a copy, made in one step: this is another thread
            began = time.monotonic()
            found = count.ask(cursor)
            return time.monotonic() - began, found, before

        def take(answer: _Answer) -> None:
            took_s, found, before = answer
            count.is_asking = False
            now = time.monotonic()
            count.cheap_at = now + took_s / SHARE
            # What was put while the database counted is not in its answer. What others moved is: we are told of it afterwards.
            since = {state: number - before.get(state, 0) for state, number in count.put.items()}
            unsettled = count.is_unsettled or self._keeper.waiting > 0 or any(since.values())
            count.due_at = max(count.cheap_at, now + (min(UNSETTLED_S, every_s) if unsettled else every_s))
            count.replace({state: found.get(state, 0) + since.get(state, 0) for state in {*found, *since}})

        self._tasks.submit(count.name, ask, take)
