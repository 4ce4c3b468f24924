"""What an operator does to the tracked set: straight in the database, beside a holder of the lease or without one.

Whoever holds it has rows in memory, and reads in the same transactions' notices that they are not what they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from relay.discovery.sink import ListingSink
from relay.model import RepoState
from relay.runtime.clock import Clock, SystemClock
from relay.store import dead_letters, notices, repos
from relay.store.dead_letters import FRAME, DeadLetter
from relay.store.listings import Listing
from relay.store.notices import DIDS_AT_A_TIME, Kind
from relay.store.pool import Database
from relay.store.repos import Discovered, RepoRow
from relay.store.statements import Cursor

Page = Callable[[int], None]
# Of one operation, as its letter has it.
_RECORD_TYPES = frozenset({"CREATE", "UPDATE", "DELETE"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """`again`: were removed, given up or had failed, and are tried again. `known`: were tracked already."""

    new: int = 0
    again: int = 0
    known: int = 0


@dataclass(slots=True, kw_only=True)
class Resynced:
    """How many are delivered again, by the state that they were in; `unknown`: named ones that are not tracked."""

    states: Counter[RepoState] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)

    @property
    def repos(self) -> int:
        return self.states.total()


class RepoCommands:
    """Any thread. A transaction for each 5,000 repos: what was done before an error stays done, and doing it again does no harm.

    Every method raises StoreAway (trying again helps) and StoreError.
    """

    def __init__(self, database: Database, *, partitions: int, clock: Clock | None = None) -> None:
        self._database, self._partitions, self._clock = database, partitions, clock or SystemClock()

    def add(self, dids: Sequence[str]) -> Added:
        """Have repos tracked."""
        new = again = known = 0
        for page in _pages(dids):
            with self._database.transaction("add repos") as cur:
                is_held = notices.hold(cur)
                result = repos.upsert_discovered(
                    cur,
                    [Discovered(did=did) for did in page],
                    batch=None,
                    named=True,
                    partitions=self._partitions,
                    now=self._clock.now(),
                )
                if is_held:
                    notices.add(cur, Kind.ADDED, page)
            new, again, known = new + result.new, again + result.requeued, known + result.unchanged
        return Added(new=new, again=again, known=known)

    def remove(self, dids: Sequence[str]) -> list[str]:
        """Have repos not tracked any more; return those that were not. Their rows stay, as do those of the ingesters."""
        unknown: list[str] = []
        for page in _pages(dids):
            with self._database.transaction("remove repos") as cur:
                is_held = notices.hold(cur)
                rows = repos.load(cur, page)
                tracked = [did for did in page if did in rows and rows[did].tracked]
                repos.remove(cur, tracked)
                if is_held:
                    notices.add(cur, Kind.REMOVED, tracked)
            unknown += [did for did in page if did not in rows or not rows[did].tracked]
        return unknown

    def resync(self, dids: Sequence[str]) -> Resynced:
        """Have named repos delivered again: their status, then everything."""
        done = Resynced()
        for page in _pages(dids):
            with self._database.transaction("resync repos") as cur:
                is_held = notices.hold(cur)
                rows = repos.load(cur, page)
                tracked = [did for did in page if did in rows and rows[did].tracked]
                _resync(cur, tracked, self._clock.now(), is_held=is_held, into=done)
            done.unknown += [did for did in page if did not in rows or not rows[did].tracked]
        return done

    def resync_selected(
        self, *, host: str | None = None, changed_since: float | None = None, on_page: Page | None = None
    ) -> Resynced:
        """Have all repos delivered again; only those of `host`; only those whose row was changed since (wall seconds).

        `on_page(repos so far)` is called after each page.
        """
        done, after = Resynced(), ""
        while True:
            with self._database.transaction("resync repos") as cur:
                is_held = notices.hold(cur)
                chosen, last = repos.selected(
                    cur, host=host, changed_since=changed_since, after=after, limit=DIDS_AT_A_TIME
                )
                _resync(cur, chosen, self._clock.now(), is_held=is_held, into=done)
            if on_page is not None:
                on_page(done.repos)
            if last is None:
                return done
            after = last


class ResyncSink(ListingSink):
    """Where an enumeration goes whose tracked repos are to be delivered again; others are passed over. Nothing is stored of it."""

    def __init__(self, commands: RepoCommands) -> None:
        self._commands = commands
        self.states: Counter[RepoState] = Counter()

    def load(self) -> list[Listing]:
        return []

    def take(self, entries: Sequence[Discovered], *, named: bool, listing: Listing | None) -> int:
        done = self._commands.resync([entry.did for entry in entries])
        self.states.update(done.states)
        return done.repos


@dataclass(slots=True, kw_only=True)
class Requeued:
    """`sent`: letters whose operation is sent again; `repos`: that are delivered again instead, for `letters` of them.

    `left`: (letter, why) that stay as they are; `missing`: ids without a letter.
    """

    sent: int = 0
    letters: int = 0
    repos: int = 0
    left: list[tuple[DeadLetter, str]] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)


class LetterCommands:
    """Dead letters again. As RepoCommands."""

    def __init__(self, database: Database, *, clock: Clock | None = None) -> None:
        self._database, self._clock = database, clock or SystemClock()

    def requeue(self, ids: Sequence[int]) -> Requeued:
        """Have the operations of letters sent again, in the order of their repos (at most 1,000 letters at a time).

        An operation of the rev that its repo stands at is sent by itself; an older one, or one of a repo that does not stand anywhere,
        would meet newer ones, so the whole repo is delivered again, which contains it. Its letter goes: it comes back with the refusal.
        """
        done = Requeued()
        now = self._clock.now()
        with self._database.transaction("requeue dead letters") as cur:
            is_held = notices.hold(cur)
            letters = dead_letters.get(cur, ids)
            rows = repos.load(cur, sorted({letter.did for letter in letters}))
            to_send: list[int] = []
            to_drop: list[int] = []
            again: dict[str, None] = {}
            for letter in letters:
                assert letter.id is not None
                row = rows.get(letter.did)
                if letter.type == FRAME:
                    done.left.append(
                        (letter, "a frame of the firehose cannot be sent: `repos resync` fetches its repo")
                    )
                elif row is None or not row.tracked:
                    done.left.append((letter, "its repo is not tracked: `repos add` fetches it"))
                elif can_be_sent(letter, row):
                    to_send.append(letter.id)
                else:
                    to_drop.append(letter.id)
                    again[letter.did] = None
            dead_letters.requeue(cur, to_send, now)
            dead_letters.delete(cur, to_drop)
            _resync(cur, sorted(again), now, is_held=is_held, into=Resynced())
        done.missing = sorted(set(ids) - {letter.id for letter in letters})
        done.sent, done.letters, done.repos = len(to_send), len(to_drop), len(again)
        return done


def can_be_sent(letter: DeadLetter, row: RepoRow) -> bool:
    """Is a letter's operation what its repo holds now, so that nothing newer can have been delivered?"""
    return (
        letter.operation is not None
        and letter.type in _RECORD_TYPES
        and row.state is RepoState.SYNCED
        and row.rev is not None
        and letter.rev == row.rev
    )


def _resync(cur: Cursor, dids: Sequence[str], now: float, *, is_held: bool, into: Resynced) -> None:
    if not dids:
        return
    transitions = repos.resync(cur, now=now, dids=dids)
    if is_held:
        notices.add(cur, Kind.RESYNC, dids)
    for (old, _), count in transitions.items():
        into.states[old] += count


def _pages(dids: Sequence[str]) -> Iterator[list[str]]:
    named = sorted(set(dids))
    for start in range(0, len(named), DIDS_AT_A_TIME):
        yield named[start : start + DIDS_AT_A_TIME]
