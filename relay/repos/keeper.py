"""The only writer of repo state: rows of repos that something happens to, their transitions, and the counts per state.

Lives in the engine's thread. Memory holds the rows of repos in work only; everything else is in PostgreSQL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from relay.model import Identity, RepoState
from relay.repos.checkpointer import Change, Checkpointer, Stored
from relay.repos.lifecycle import Event, after
from relay.runtime.clock import Clock
from relay.store.dead_letters import DeadLetter
from relay.store.repos import RepoRow


class Keeper:
    """Rows by DID while they are in work, and how many repos are in each state, stored ones included.

    `batch`: the run whose targets are counted apart (None: no batch).
    """

    def __init__(self, checkpointer: Checkpointer, clock: Clock, *, batch: int | None) -> None:
        self._checkpointer, self._clock = checkpointer, clock
        self.batch = batch
        self.rows: dict[str, RepoRow] = {}
        self.counts: Counter[RepoState] = Counter()
        self.targets: Counter[RepoState] = Counter()
        self.waiting = 0  # changes put and not yet told as stored
        self.dead_letters: Counter[str] = Counter()  # stored ones, by reason
        self._claimed_meanwhile: set[str] = set()  # claimed in the database while we were still busy with them
        self._looks: dict[int, set[str]] = {}  # a question that is out -> the DIDs forgotten since it was asked
        self._looked = 0

    def adopt(self, rows: Iterable[RepoRow]) -> list[RepoRow]:
        """Take rows that were just claimed or loaded; those already in work are left out: they are older than what we know."""
        fresh = [row for row in rows if row.did not in self.rows]
        for row in fresh:
            self.rows[row.did] = row
        return fresh

    def begin_look(self) -> int:
        """A question to the database goes out whose answer has rows; to be ended with `end_look` when the answer is here."""
        self._looked += 1
        self._looks[self._looked] = set()
        return self._looked

    def end_look(self, look: int, rows: Iterable[RepoRow]) -> list[RepoRow]:
        """Leave out the rows of an answer that may be older than what was stored, and forgotten, since the question."""
        forgotten = self._looks.pop(look)
        return [row for row in rows if row.did not in forgotten]

    def claimed(self, rows: Iterable[RepoRow]) -> list[RepoRow]:
        """Take rows that a claim has already stored as active.

        A repo that is still in work can be among them: what we know as not yet stored may be so already, and others make repos
        pending too. Such a claim is given back when we are through with the repo: nobody else would.
        """
        rows = list(rows)
        for row in rows:
            self._count(row, RepoState.PENDING, row.state)
            if row.did in self.rows:
                self._claimed_meanwhile.add(row.did)
        return self.adopt(rows)

    def moved(self, transitions: Mapping[tuple[RepoState, RepoState], int], *, of_batch: bool) -> None:
        """Count transitions that SQL made by itself (due retries, newly listed repos)."""
        for (old, new), count in transitions.items():
            self.counts[old] -= count
            self.counts[new] += count
            if of_batch:
                self.targets[old] -= count
                self.targets[new] += count

    def apply(self, row: RepoRow, event: Event, reason: str | None = None, text: str | None = None) -> None:
        """Move a row along its life; to be followed by `store`."""
        old = row.state
        row.state = after(old, event)
        row.reason = reason
        row.last_error = text
        row.updated_at = self._clock.now()
        self._count(row, old, row.state)

    def store(
        self,
        row: RepoRow,
        *,
        identity: Identity | None = None,
        dead: list[DeadLetter] | None = None,
        operations: int = 0,
        urgent: bool = False,
        then: Callable[[RepoState | None], None] | None = None,
    ) -> None:
        """Have the row stored as it is now; `then(corrected state or None)` runs in this thread when it is."""
        self.waiting += 1
        self._checkpointer.put(
            Change(row=row, identity=identity, dead=dead or [], operations=operations, urgent=urgent, then=then)
        )

    def store_letters(self, dead: list[DeadLetter]) -> None:
        """Have dead letters stored and nothing else: the row may belong to another attempt by now."""
        self.waiting += 1
        self._checkpointer.put(Change(dead=dead))

    def stored(self, message: Stored) -> None:
        """Take the checkpointer's word, count what it stored differently, and run what waited for it."""
        for did, state in message.corrected.items():
            for change in reversed(message.changes):
                if change.row is not None and change.row.did == did:
                    self._count(change.row, change.row.state, state)
                    break
        for change in message.changes:
            self.waiting -= 1
            self.dead_letters.update(letter.reason for letter in change.dead)
            if change.then is not None:
                change.then(message.corrected.get(change.row.did) if change.row is not None else None)

    def forget(self, row: RepoRow) -> None:
        """Drop a row from memory: it is stored, and nothing of it is in work."""
        if self.rows.get(row.did) is not row:
            return
        if row.did in self._claimed_meanwhile:
            self._claimed_meanwhile.discard(row.did)
            row.state = RepoState.ACTIVE  # so the claim has stored it
            self.apply(row, Event.RELEASED, row.reason, row.last_error)
            self.store(row, then=lambda _state: self.forget(row))
            return
        del self.rows[row.did]
        for forgotten in self._looks.values():
            forgotten.add(row.did)

    def _count(self, row: RepoRow, old: RepoState, new: RepoState) -> None:
        if old is new:
            return
        self.counts[old] -= 1
        self.counts[new] += 1
        if self.batch is not None and row.batch == self.batch:
            self.targets[old] -= 1
            self.targets[new] += 1
