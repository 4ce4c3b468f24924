"""Where discovered repos go: each page with its listing's cursor in one transaction, so that a kill resumes at the page."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from relay.runtime.clock import Clock
from relay.runtime.crashpoint import CrashPoint, crash_point
from relay.store import listings, repos
from relay.store.listings import Listing
from relay.store.pool import Database
from relay.store.repos import Discovered, UpsertResult


class ListingSink(Protocol):
    """What discovery needs of the database. Both raise StoreAway (trying again helps) and StoreError (StoreFenced: it does not)."""

    def load(self) -> list[Listing]:
        """Return the listings of this batch as they were stored last."""

    def take(self, entries: Sequence[Discovered], *, named: bool, listing: Listing | None) -> int:
        """Store repos, and with them how far the listing came; return how many were new. All of it or nothing."""


def _none_of(covers: Collection[str]) -> Collection[str]:
    return ()


def _unheard(result: UpsertResult, widened: int) -> None:
    return None


class StoreSink:
    """The real one: fenced transactions on the repo and listing tables; any number of threads.

    `insufficient(covers)` says which of the filters that synced rows cover do not suffice for this run: those go `pending`
    (reason `filter`), as do those that cover nothing. `took(result, widened)` hears what became of each page after it is stored, and
    how many synced repos went pending for the filter, in the enumerating thread.
    """

    def __init__(
        self,
        database: Database,
        *,
        epoch: Callable[[], int | None],
        batch: int | None,
        partitions: int,
        clock: Clock,
        insufficient: Callable[[Collection[str]], Collection[str]] = _none_of,
        took: Callable[[UpsertResult, int], None] = _unheard,
    ) -> None:
        self._database = database
        self._epoch = epoch
        self._batch = batch
        self._partitions = partitions
        self._clock = clock
        self._insufficient = insufficient
        self._took = took

    def load(self) -> list[Listing]:
        with self._database.transaction("listings_load") as cursor:
            return listings.load_batch(cursor, self._batch)

    def take(self, entries: Sequence[Discovered], *, named: bool, listing: Listing | None) -> int:
        now = self._clock.now()
        with self._database.transaction("discovered", epoch=self._epoch()) as cursor:
            result = repos.upsert_discovered(
                cursor, entries, batch=self._batch, named=named, partitions=self._partitions, now=now
            )
            widened = 0
            wanting = self._insufficient([covers for covers in result.covers if covers is not None])
            if wanting or None in result.covers:
                dids = [entry.did for entry in entries]
                widened = repos.requeue_uncovered(cursor, dids, wanting, self._batch, now=now)
            if listing is not None:
                listings.save(cursor, listing)
        crash_point(CrashPoint.DISCOVERED_STORED)
        self._took(result, widened)
        return result.new
