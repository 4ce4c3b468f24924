"""What a reconcile does with the database: its notes a page at a time, and marks on repos that still differ at a second look."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from relay.discovery.comparison import DIFFERENCES, MARKS, Verdict, compare
from relay.runtime.clock import Clock
from relay.runtime.crashpoint import CrashPoint, crash_point
from relay.store import incidents, listings, reconcile
from relay.store.listings import Listing
from relay.store.pool import Database
from relay.store.reconcile import Candidate, Counts, Pass, Stream
from relay.store.statements import Cursor

DECIDED_AT_A_TIME = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What one second look did: `requeued` rows are pending now (reason newer_rev), `to_check` wait for a question to their host."""

    looked_at: int = 0
    differed: int = 0
    requeued: int = 0
    to_check: int = 0
    found: int = 0


class Notebook:
    """The real one. `epoch()` None: this process is not the holder, and writes beside it (or without one).

    Any number of threads; writes are made one at a time: each holds the row of the lease, and the holder's checkpoints update it.
    """

    def __init__(self, database: Database, *, epoch: Callable[[], int | None], partitions: int, clock: Clock) -> None:
        self._database, self._epoch, self._partitions, self._clock = database, epoch, partitions, clock
        self._writing = threading.Lock()  # held by who writes; the only I/O under a lock, and what it is for

    def begin(self, scope: str) -> tuple[Pass, list[Listing]]:
        """Return the open pass of this scope, or a new one, and how far its listings came. A pass of another scope is given up."""
        with self._write("begin a reconcile") as cur:
            found = reconcile.find_open(cur)
            if found is not None and found.scope != scope:
                self._end(cur, found, hosts_total=0, hosts_failed=0, note="given up for another one")
                found = None
            if found is None:
                reconcile.forget_seen(cur, None)
                found = reconcile.open_new(cur, scope)
            return found, listings.load_batch(cur, _batch(found))

    def hosts(self, enough: int) -> list[tuple[str, int]]:
        """Return the hosts that repos live on, and how many do (counted up to `enough`)."""
        found: list[tuple[str, int]] = []
        while True:
            with self._database.transaction("reconcile: hosts") as cur:
                page = reconcile.tracked_hosts(cur, after=found[-1][0] if found else "", enough=enough)
            if not page:
                return found
            found += page

    def dids_of(self, host: str, after: str, limit: int) -> list[str]:
        """Return some tracked repos of a host that are at rest, above `after`."""
        with self._database.transaction("reconcile: repos of a host") as cur:
            return reconcile.dids_of_host(cur, host, after=after, limit=limit)

    def take(
        self, number: int, said: Sequence[Candidate], listing: Listing, *, seen: Sequence[str] | None, finds: bool
    ) -> int:
        """Store a page: how far its listing came, what it has listed (`seen`), and what differs; return how many were compared.

        `finds`: DIDs without a row are to be discovered.
        """
        with self._database.transaction("reconcile: compare") as cur:
            rows = reconcile.load(cur, [each.did for each in said])
        noted = {*MARKS, Verdict.UNKNOWN} if finds else MARKS
        differing = [each for each in said if compare(rows.get(each.did), each) in noted]
        compared = sum(row.tracked and row.host == listing.host for row in rows.values())
        with self._write("reconcile: a page") as cur:
            reconcile.put_candidates(cur, differing)
            if seen is not None:
                reconcile.add_seen(cur, listing.host, listing.pages, seen)
            listings.save(cur, listing)
            reconcile.add_counts(cur, number, Counts(compared=compared))
        crash_point(CrashPoint.DISCOVERED_STORED)
        return compared

    def take_missing(self, listing: Listing) -> int:
        """Note a host's repos that its complete listing does not have; return how many.

        Not fenced: these are notes, and what comes of them is decided in `decide`. It may take seconds, and must not keep checkpoints.
        """
        with self._writing, self._database.transaction("reconcile: what is missing") as cur:
            missing = reconcile.put_missing(cur, listing.host)
            reconcile.forget_seen(cur, listing.host)
            listings.save(cur, listing)
        return missing

    def save(self, listing: Listing) -> None:
        """Store how far a listing came."""
        with self._write("reconcile: a listing") as cur:
            listings.save(cur, listing)

    def stream(self) -> Stream:
        """Return where the followed stream is."""
        with self._database.transaction("reconcile: the stream") as cur:
            return reconcile.stream(cur)

    def has_undecided(self) -> bool:
        """Whether candidates are left."""
        with self._database.transaction("reconcile: what is left") as cur:
            return reconcile.has_candidates(cur)

    def decide(self, number: int, until: float) -> Decided:
        """Look again at up to 1,000 candidates found by `until`, mark those that still differ, and forget them.

        Rows that somebody is writing just now are left for the next look.
        """
        with self._database.transaction("reconcile: candidates") as cur:
            due = reconcile.candidates(cur, until, DECIDED_AT_A_TIME)
        if not due:
            return Decided()
        now = self._clock.now()
        with self._write("reconcile: a second look") as cur:
            rows, busy = reconcile.lock(cur, sorted(each.did for each in due))
            decided = [(each, compare(rows.get(each.did), each)) for each in due if each.did not in busy]
            marks = [(each.did, verdict.value, each.rev) for each, verdict in decided if verdict in MARKS]
            unknown = [(each.did, each.rev) for each, verdict in decided if verdict is Verdict.UNKNOWN]
            changed = reconcile.mark(cur, marks, now)
            found = reconcile.insert_found(cur, unknown, partitions=self._partitions, now=now)
            reconcile.drop_candidates(cur, [each.did for each, _ in decided])
            differed = sum(verdict in DIFFERENCES for _, verdict in decided)
            requeued = changed[Verdict.NEWER]
            to_check = changed[Verdict.STATUS] + changed[Verdict.COMMIT]
            reconcile.add_counts(cur, number, Counts(differed=differed, queued=requeued + to_check, found=found))
        return Decided(looked_at=len(decided), differed=differed, requeued=requeued, to_check=to_check, found=found)

    def finish(
        self, ended: Pass, *, hosts_total: int, hosts_failed: int, note: str | None, closes_incidents: bool
    ) -> tuple[Pass, list[int]]:
        """End the pass, and close the incidents that did not happen (again) after it began; return it, and their ids."""
        with self._write("finish a reconcile") as cur:
            closed = []
            if closes_incidents:
                text = f"; reconciled, but {note}" if note else ""
                closed = incidents.close_answered(cur, ended.began_at, self._clock.now(), text)
            self._end(cur, ended, hosts_total=hosts_total, hosts_failed=hosts_failed, note=note)
            last = reconcile.find_last(cur)
        return last or ended, closed

    def counts(self) -> Pass | None:
        """Return the open pass, with its counts so far."""
        with self._database.transaction("reconcile: counts") as cur:
            return reconcile.find_open(cur)

    def _end(self, cur: Cursor, ended: Pass, *, hosts_total: int, hosts_failed: int, note: str | None) -> None:
        reconcile.finish(cur, ended.id, hosts_total=hosts_total, hosts_failed=hosts_failed, note=note)
        listings.forget(cur, _batch(ended))
        reconcile.forget_seen(cur, None)

    @contextmanager
    def _write(self, name: str) -> Iterator[Cursor]:
        epoch = self._epoch()
        with self._writing, self._database.transaction(name, epoch=epoch) as cur:
            if epoch is None:
                reconcile.hold_epoch(cur)
            yield cur


def _batch(of: Pass) -> int:
    """The listings of a pass: below zero, where no batch is."""
    return -of.id


def listing_of(of: Pass, kind: str, host: str, param: str, now: float) -> Listing:
    """Return a listing of the pass that has not begun."""
    return Listing(kind=kind, host=host, param=param, batch=_batch(of), started_at=now)
