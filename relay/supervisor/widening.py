"""At a start with another filter: synced repos that do not cover it become pending (reason `filter`), page by page (DESIGN 3, "Filter")."""

from __future__ import annotations

from collections.abc import Callable

from relay.atproto.nsid_filter import NsidFilter
from relay.observe.log import get_logger
from relay.repos.tasks import StoreTasks
from relay.runtime.clock import Clock
from relay.store import partitions, repos, sweeps
from relay.store.statements import Cursor
from relay.supervisor.covering import filter_text, insufficient_for

log = get_logger(__name__)

PAGE = 5000


class Widening:
    """Lives in the engine's thread; `look` is to be called a few times a second, each takes a page at most.

    A restart in the middle begins again: what is pending already costs nothing. `moved(count)` hears of repos that became pending.
    """

    def __init__(
        self, tasks: StoreTasks, clock: Clock, wanted: NsidFilter, compared: str | None, moved: Callable[[int], None]
    ) -> None:
        self._tasks, self._clock, self._wanted, self._moved = tasks, clock, wanted, moved
        self._insufficient = insufficient_for(wanted)
        self.is_over = compared == filter_text(wanted)
        self._is_asking = False
        self._after = ""
        self._found = 0

    def look(self) -> None:
        """Take the next page."""
        if self.is_over or self._is_asking:
            return
        self._is_asking = True
        after, now = self._after, self._clock.now()

        def ask(cursor: Cursor) -> tuple[str | None, int]:
            if not after:
                # Repos that move on from now on may cover less than the filter before: until the end none is known to be compared.
                partitions.store_filter_compared(cursor, None)
            page = sweeps.covers_above(cursor, after, PAGE)
            known = {covers for _, covers in page}
            lacking = self._insufficient(known)
            dids = [did for did, covers in page if covers is None or covers in lacking]
            moved = repos.requeue_uncovered(cursor, dids, lacking, None, now=now) if dids else 0
            if len(page) < PAGE:
                partitions.store_filter_compared(cursor, filter_text(self._wanted))
                return None, moved
            return page[-1][0], moved

        self._tasks.submit("compare filters", ask, self._taken)

    def _taken(self, answer: tuple[str | None, int]) -> None:
        last, moved = answer
        self._is_asking = False
        self._found += moved
        if moved:
            self._moved(moved)
        if last is not None:
            self._after = last
            return
        self.is_over = True
        log.info("filter_compared", filter=filter_text(self._wanted) or "all collections", to_fetch=self._found)
