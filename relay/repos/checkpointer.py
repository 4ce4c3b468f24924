"""The thread with the one transaction: it writes what the keeper decided, and tells when it is stored.

Changes wait here until somebody is waiting for one of them (`urgent`), `interval_operations` operations were acknowledged, or a
tenth of a second has passed; then everything goes into one fenced transaction. While the database is away the changes wait, in order,
and nothing is told: whoever depends on them stands still, and that is the back pressure.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from relay.errors import StoreAway, StoreFenced
from relay.model import Identity, RepoState
from relay.observe.log import get_logger
from relay.runtime.backoff import Backoff
from relay.runtime.service import ServiceThread
from relay.store import dead_letters, identities, incidents, partitions, repos
from relay.store.dead_letters import DeadLetter
from relay.store.pool import Database
from relay.store.repos import RepoRow

log = get_logger(__name__)

# A repo passes here twice without anybody waiting for it (resolved, synced): with a second each, a backfill of one repo took 2.5 s,
# with a tenth 0.7. Under load urgent changes take the others with them, so this costs at most ten transactions a second, of an idle server.
INTERVAL_S = 0.1
SHORTEST_INTERVAL_S = 0.01
MAX_CHANGES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorChange:
    """How far the stream is done; counts in the sequence of `upstream`. `time_us`: of the cursor's event."""

    upstream: str
    seq: int
    time_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentChange:
    """An incident to be opened: stored no later than a cursor that is put after it."""

    kind: str
    text: str
    at: float


@dataclass(slots=True, kw_only=True)
class Change:
    """Something to store, all of it in one transaction. `then` is called (by the keeper's thread) when it is.

    `row` is copied when the change is put, so the keeper may go on changing its own. `is_new`: it may have no row yet.
    """

    row: RepoRow | None = None
    is_new: bool = False
    cursor: CursorChange | None = None
    incident: IncidentChange | None = None
    identity: Identity | None = None
    dead: list[DeadLetter] = field(default_factory=list)
    operations: int = 0
    urgent: bool = False
    then: Callable[[RepoState | None], None] | None = None


class Stored:
    """Posted to the keeper's loop: these changes are stored; `corrected` has rows whose state was stored differently."""

    __slots__ = ("changes", "corrected")

    def __init__(self, changes: list[Change], corrected: dict[str, RepoState]) -> None:
        self.changes, self.corrected = changes, corrected


class Checkpointer(ServiceThread):
    """Owns the writing connection. `put` may be called from the keeper's thread only, so changes keep their order."""

    def __init__(
        self,
        database: Database,
        epoch: Callable[[], int],
        post: Callable[[Stored], None],
        *,
        interval_operations: int,
        on_death: Callable[[str, BaseException], None],
        on_away: Callable[[str | None], None],
    ) -> None:
        super().__init__("checkpointer", on_death)
        self._database, self._epoch, self._post = database, epoch, post
        self._interval_operations = interval_operations
        self._on_away = on_away
        self._wake = threading.Condition()  # guards: _waiting, _operations, _urgent
        self._waiting: list[Change] = []
        self._operations = 0
        self._urgent = False
        self._began = 0.0  # of the last transaction, monotonic seconds
        self.stored = 0  # transactions since the start
        self.stored_at = time.monotonic()  # of the last one; until then of our birth

    def put(self, change: Change) -> None:
        if change.row is not None:
            change.row = copy.copy(change.row)
        with self._wake:
            self._waiting.append(change)
            self._operations += change.operations
            if change.urgent or self._operations >= self._interval_operations or len(self._waiting) >= MAX_CHANGES:
                self._urgent = True
                self._wake.notify()

    def wake(self) -> None:
        with self._wake:
            self._wake.notify()

    @property
    def waiting(self) -> int:
        """Changes that are not stored yet, without those of a transaction that runs."""
        return len(self._waiting)

    def run(self) -> None:
        """Store until asked to stop, and then what is left: the owner stops us last."""
        while True:
            # Transactions cost the server by their number: what comes within this time shares one.
            self.stopping.wait(self._began + SHORTEST_INTERVAL_S - time.monotonic())
            with self._wake:
                if not self._urgent and not self.stopping.is_set():
                    self._wake.wait(INTERVAL_S)
                batch, self._waiting = self._waiting[:MAX_CHANGES], self._waiting[MAX_CHANGES:]
                self._operations = 0
                self._urgent = bool(self._waiting)
            self._began = time.monotonic()
            if batch:
                self._store_until_done(batch)
            elif self.stopping.is_set():
                return

    def _store_until_done(self, batch: list[Change]) -> None:
        backoff: Backoff | None = None
        told = False
        while True:
            try:
                corrected = self._store(batch)
            except StoreFenced:
                raise
            except StoreAway as exc:
                if self.stopping.is_set():
                    # Nobody was told that these are stored: a start does the work again.
                    log.warning("changes_not_stored", changes=len(batch), reason=str(exc))
                    return
                if not told:
                    log.warning("store_away", reason=str(exc), changes_waiting=len(batch))
                    self._on_away(str(exc))
                    told = True
                backoff = backoff or Backoff(0.1, 5.0)
                self.stopping.wait(backoff.next_delay_s())
            else:
                if told:
                    log.info("store_back")
                    self._on_away(None)
                self.stored += 1
                self.stored_at = time.monotonic()
                self._post(Stored(batch, corrected))
                return

    def _store(self, batch: Sequence[Change]) -> dict[str, RepoState]:
        rows = last_rows(batch)
        known = {change.identity.did: change.identity for change in batch if change.identity is not None}
        dead = [letter for change in batch for letter in change.dead]
        new = {change.row.did for change in batch if change.row is not None and change.is_new}
        cursors = [change.cursor for change in batch if change.cursor is not None]
        with self._database.transaction("checkpoint", epoch=self._epoch()) as cursor:
            for change in batch:
                if change.incident is not None:
                    incidents.open_incident(cursor, change.incident.kind, change.incident.text, change.incident.at)
            if new:
                repos.insert_streamed(cursor, [rows[did] for did in sorted(new)])
            corrected = repos.store_rows(cursor, [rows[did] for did in sorted(rows)]) if rows else []
            if known:
                identities.upsert_many(cursor, [known[did] for did in sorted(known)])
            if dead:
                dead_letters.add_many(cursor, dead)
            if cursors:
                partitions.store_cursor(cursor, cursors[-1].upstream, cursors[-1].seq, cursors[-1].time_us)
        return dict(corrected)


def last_rows(changes: Iterable[Change]) -> dict[str, RepoRow]:
    """Return the row to be written of each DID: of several changes of one repo the last has them all.

    Which mark for a check it had seen in the database is what the first of them had.
    """
    rows: dict[str, RepoRow] = {}
    for change in changes:
        row = change.row
        if row is not None:
            if (earlier := rows.get(row.did)) is not None:
                row.seen_check_due = earlier.seen_check_due
            rows[row.did] = row
    return rows
