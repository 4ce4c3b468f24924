"""How many repos are in each state: of all, and of a batch's targets. Lives in the engine's thread.

The keeper counts every transition that it makes; this takes the counts from the database at start, when the enumeration is over, and
now and then, because of rows that SQL moves by itself nobody knows whether they are targets. A count that is taken while
transitions are on their way is off by those until the next one, which then comes soon: it is for eyes. The result of a batch is read
from the database.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

from relay.model import RepoState
from relay.repos.keeper import Keeper
from relay.repos.tasks import StoreTasks
from relay.store import repos
from relay.store.repos import UpsertResult
from relay.store.statements import Cursor

EVERY_S = 30.0
WHILE_LISTING_S = 2.0
UNSETTLED_S = 2.0  # something was on its way while it was counted
# Counting may take this share of the time: a scan of 50 M rows is not repeated every half minute.
SHARE = 0.02

_Answer: TypeAlias = tuple[float, dict[RepoState, int], dict[RepoState, int]]  # seconds, found, counted before


class _Count:
    """One of the two counts: when it was taken last, and when it is due."""

    def __init__(self, name: str, counts: Counter[RepoState], ask: Callable[[Cursor], dict[RepoState, int]]) -> None:
        self.name, self.counts, self.ask = name, counts, ask
        self.due_at = 0.0
        self.cheap_at = 0.0  # sooner it would take more than its share of the time
        self.is_asking = False
        self.is_unsettled = False


class Census:
    """`look` is to be called about once a second; `is_listing()`: does an enumeration still run? `batch` None: there is none."""

    def __init__(self, keeper: Keeper, tasks: StoreTasks, batch: int | None, is_listing: Callable[[], bool]) -> None:
        self._keeper, self._tasks, self._is_listing = keeper, tasks, is_listing
        self._whole = _Count("count repos", keeper.counts, lambda cur: repos.count_by_state(cur))
        self._targets: _Count | None = None
        if batch is not None:
            self._targets = _Count("count targets", keeper.targets, lambda cur: repos.count_by_state(cur, batch))
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

    def _take_if_due(self, count: _Count, every_s: float) -> None:
        now = time.monotonic()
        if count.is_asking or now < count.due_at:
            return
        count.is_asking, count.is_unsettled = True, self._keeper.waiting > 0

        def ask(cursor: Cursor) -> _Answer:
            before = dict(count.counts)  # a copy, made in one step: this is another thread
            began = time.monotonic()
            found = count.ask(cursor)
            return time.monotonic() - began, found, before

        def take(answer: _Answer) -> None:
            took_s, found, before = answer
            count.is_asking = False
            now = time.monotonic()
            count.cheap_at = now + took_s / SHARE
            # What was counted while the database counted is not in its answer.
            since = {state: number - before.get(state, 0) for state, number in count.counts.items()}
            unsettled = count.is_unsettled or self._keeper.waiting > 0 or any(since.values())
            count.due_at = max(count.cheap_at, now + (min(UNSETTLED_S, every_s) if unsettled else every_s))
            count.counts.clear()
            for state in {*found, *since}:
                count.counts[state] = found.get(state, 0) + since.get(state, 0)

        self._tasks.submit(count.name, ask, take)
