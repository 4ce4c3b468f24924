"""The only writer of repo state: the repos in memory, each with its machine, what the machines ask for, and the counts per state.

Lives in the engine's thread. Memory holds what something happens to, and a bounded number of repos that the stream will ask for
again; everything else is in PostgreSQL.
"""

from __future__ import annotations

import functools
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Set

from relay.atproto.nsid_filter import NsidFilter
from relay.model import Identity, OpType, RepoState
from relay.observe.log import get_logger
from relay.pb.encode import count_records
from relay.repos import live_events as e
from relay.repos.buffer import LiveBuffer
from relay.repos.checkpointer import Change, Checkpointer, CursorChange, IncidentChange, Stored
from relay.repos.facts import facts_of_row, put_facts
from relay.repos.failures import RetryPolicy, retry_delay_s
from relay.repos.handover import LiveEvent
from relay.repos.letters import Refusal, letter_of
from relay.repos.live import LiveRepo
from relay.repos.resident import Fetching, LiveOutlet, Resident, Stream, Unplugged
from relay.repos.telling import account_operation, identity_operation, source_of
from relay.runtime.clock import Clock
from relay.runtime.crashpoint import CrashPoint, crash_point
from relay.store.dead_letters import DeadLetter
from relay.store.repos import RepoRow

log = get_logger(__name__)

Then = Callable[[RepoState | None], None]

# Most of what the stream brings is of accounts that wrote a moment ago: their rows need no second question. 4 KB each.
RESTING_KEPT = 20_000
RESTING_S = 60.0  # ... and for so long at most: others (an operator, a listing) write rows too

# What a machine counts is what it decided about a frame or a repo: the event of it at debug.
_DECISIONS = {
    "again": "repo_fetched_again",
    "desyncs": "repo_desynced",
    "dropped": "frame_dropped",
    "invalid": "frame_refused",
    "known": "frame_known",
}


class LivePiece:
    """What comes back with operations of the live lane, in the engine's thread. `records`: its creates and updates."""

    __slots__ = ("_did", "_keeper", "_records", "token")

    def __init__(self, keeper: Keeper, did: str, token: e.LiveToken, records: int = 0) -> None:
        self._keeper, self._did, self.token, self._records = keeper, did, token, records

    def acknowledged(self) -> None:
        self._keeper.records_delivered += self._records
        self._keeper.acknowledged(self._did, self.token)

    def refused(self, refusal: Refusal) -> None:
        self._records -= count_records(refusal.operation)
        self._keeper.refused(self._did, self.token, refusal)


class _Extra:
    """What goes with the next `Store` of an event, or alone if there is none."""

    __slots__ = ("dead", "identity", "is_urgent", "operations", "then")

    def __init__(
        self, dead: list[DeadLetter], identity: Identity | None, operations: int, is_urgent: bool, then: Then | None
    ) -> None:
        self.dead, self.identity, self.operations, self.is_urgent, self.then = (
            dead,
            identity,
            operations,
            is_urgent,
            then,
        )


class Keeper:
    """Repos by DID, and how many are in each state, stored ones included.

    `batch`: the run whose targets are counted apart (None: no batch). `follows`: a stream is followed, so repos at rest stay in
    memory for a while, and a filter that a repo does not cover has it fetched. `stream`, `outlet`, `fetching` are plugged in
    before anything is fed.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        clock: Clock,
        *,
        batch: int | None,
        wanted: NsidFilter,
        policy: RetryPolicy,
        buffer_operations: int,
        follows: bool = False,
        resting_kept: int = RESTING_KEPT,
        count: Callable[[str, str], None] | None = None,
    ) -> None:
        self._checkpointer, self._clock, self._policy = checkpointer, clock, policy
        self.batch, self.wanted, self._follows = batch, wanted, follows
        self.records_delivered = 0  # acknowledged creates and updates of the live lane
        self.buffer: LiveBuffer[LiveEvent] = LiveBuffer(max_operations=buffer_operations)
        self.residents: dict[str, Resident] = {}
        self._resting: OrderedDict[str, Resident] = OrderedDict()
        self._resting_kept = resting_kept if follows else 0
        self.counts: Counter[RepoState] = Counter()
        self.targets: Counter[RepoState] = Counter()
        # Of those what we counted when we put it, before it was stored: the rest (SQL's own moves) is counted after. Only differences tell.
        self.counts_put: Counter[RepoState] = Counter()
        self.targets_put: Counter[RepoState] = Counter()
        self.waiting = 0  # changes put and not yet told as stored
        self.dead_letters: Counter[str] = Counter()  # stored ones, by reason
        self.moments: Counter[tuple[str, str]] = Counter()  # what the machines count: (metric, label)
        self._count_moment = count
        self._looks: dict[int, set[str]] = {}  # a question that is out -> the DIDs written since it was asked
        self._looked = 0
        self._events: deque[tuple[Resident, e.Event | None, _Extra | None]] = deque()  # None: it begins
        self._feeding = False
        self.stream: Stream = Unplugged()
        self.outlet: LiveOutlet = Unplugged()
        self.fetching: Fetching = Unplugged()

    # --- who is in memory -------------------------------------------------------------------------------------------------

    def get(self, did: str) -> Resident | None:
        return self.residents.get(did)

    @property
    def busy(self) -> int:
        """Repos in memory that something happens to."""
        return len(self.residents) - len(self._resting)

    def is_busy(self, did: str) -> bool:
        return did in self.residents and did not in self._resting

    def take(self, rows: Iterable[RepoRow], identities: Mapping[str, Identity] | None = None) -> list[Resident]:
        """Have rows that were just loaded in memory; what we know already is not replaced by them. Each is held, for the caller."""
        residents = [self._taken(row, identities.get(row.did) if identities is not None else None) for row in rows]
        for resident in residents:
            self.hold(resident)
        return residents

    def take_unknown(self, did: str, partition: int) -> Resident:
        """Have a DID in memory that has no row: its first commit will make one. It is held, for the caller."""
        resident = self.residents.get(did)
        if resident is None:
            now = self._clock.now()
            row = RepoRow(did=did, partition=partition, next_attempt_at=now, created_at=now, updated_at=now)
            resident = Resident(row, LiveRepo(did, self.buffer, self.wanted, None), is_stored=False, identity=None)
            self.residents[did] = resident
        self.hold(resident)
        return resident

    def claimed(self, rows: Iterable[RepoRow], identities: Mapping[str, Identity]) -> list[Resident]:
        """Take rows that a claim has stored as active, whatever we thought of them. Each is held, for the caller."""
        residents = []
        for row in rows:
            # Removed and tracked again while something is on its way: its machine answers nothing. Nobody attends to it, so it is released.
            if self.is_busy(row.did) and self.residents[row.did].life.is_removed:
                self._count(row, RepoState.PENDING, RepoState.ACTIVE)
                continue
            resident = self._taken(row, identities.get(row.did))
            # It was pending in the database, and so it is counted, but for what we have put since and not heard of as stored.
            old = RepoState.PENDING
            if resident.life.is_being_stored and resident.counted is not None:
                old = resident.counted
            self._count(resident.row, old, RepoState.ACTIVE)
            resident.counted = RepoState.ACTIVE
            self.hold(resident)
            log.debug("repo_claimed", did=row.did, host=row.host, reason=row.reason, attempts=row.attempts)
            self.feed(resident, e.Claimed())
            residents.append(resident)
        return residents

    def hold(self, resident: Resident) -> None:
        """Keep it in memory until `release`."""
        resident.holds += 1
        self._resting.pop(resident.did, None)

    def release(self, resident: Resident) -> None:
        resident.holds -= 1
        self._rest(resident)

    def begin_look(self) -> int:
        """A question to the database goes out whose answer has rows; to be ended with `end_look` when the answer is here."""
        self._looked += 1
        self._looks[self._looked] = set()
        return self._looked

    def end_look(self, look: int, rows: Iterable[RepoRow]) -> list[RepoRow]:
        """Leave out the rows of an answer that may be older than what was stored since the question.

        What is put and not stored yet is no matter: its repo is busy, and what we know of it is not replaced.
        """
        outdated = self.close_look(look)
        return [row for row in rows if row.did not in outdated]

    def close_look(self, look: int) -> Set[str]:
        """End a look; return the DIDs that were stored since: an answer is no good for them unless they are in memory."""
        return self._looks.pop(look)

    def others_wrote(self, dids: Collection[str]) -> list[Resident]:
        """Others have changed these rows: those at rest are forgotten, answers that are on their way are no good for them.

        Return those that are in work, which know nothing of it yet.
        """
        for written in self._looks.values():
            written.update(dids)
        busy = []
        for did in dids:
            if self._resting.pop(did, None) is not None:
                del self.residents[did]
            elif (resident := self.residents.get(did)) is not None:
                busy.append(resident)
        return busy

    def change_filter(self, wanted: NsidFilter) -> None:
        """From now on these collections are wanted. Repos at rest are forgotten: they are compared with it when they are loaded again."""
        self.wanted = wanted
        while self._resting:
            did, _ = self._resting.popitem()
            del self.residents[did]
        for resident in list(self.residents.values()):
            self.feed(resident, e.FilterChanged(wanted=wanted))

    def _taken(self, row: RepoRow, identity: Identity | None) -> Resident:
        resident = self.residents.get(row.did)
        if resident is not None and row.did not in self._resting:
            if identity is not None and resident.identity is None:
                resident.identity = identity
            resident.row.batch = row.batch
            return resident
        self._resting.pop(row.did, None)
        life = LiveRepo(row.did, self.buffer, self.wanted, facts_of_row(row))
        resident = Resident(row, life, is_stored=True, identity=identity)
        self.residents[row.did] = resident
        self._events.append((resident, None if row.tracked else e.Removed(), None))
        self._drain()
        return resident

    def _rest(self, resident: Resident) -> None:
        """Nothing happens to it: keep it for a while if the stream may ask for it again, else forget it."""
        if resident.holds or not resident.life.is_idle or self.residents.get(resident.did) is not resident:
            return
        if not self._resting_kept or not resident.is_stored:
            self._resting.pop(resident.did, None)
            del self.residents[resident.did]
            return
        resident.rests_since = self._clock.monotonic()
        self._resting[resident.did] = resident
        self._resting.move_to_end(resident.did)
        if len(self._resting) > self._resting_kept:
            did, _ = self._resting.popitem(last=False)
            del self.residents[did]

    def look_after_resting(self) -> None:
        """Forget those that have rested for long; to be called every few seconds."""
        longest = self._clock.monotonic() - RESTING_S
        while self._resting:
            did, resident = next(iter(self._resting.items()))
            if resident.rests_since > longest:
                return
            del self._resting[did]
            del self.residents[did]

    # --- events and effects -----------------------------------------------------------------------------------------------

    def feed(
        self,
        resident: Resident,
        event: e.Event,
        *,
        dead: list[DeadLetter] | None = None,
        identity: Identity | None = None,
        operations: int = 0,
        is_urgent: bool = False,
        then: Then | None = None,
    ) -> None:
        """Tell the machine what happened and do what it asks for. The rest is stored with the row that this changes.

        Called while effects are carried out, the event waits for its turn. `then(corrected state or None)` runs when everything
        is stored.
        """
        extra = None
        if dead or identity is not None or operations or is_urgent or then is not None:
            extra = _Extra(dead or [], identity, operations, is_urgent, then)
        self._events.append((resident, event, extra))
        self._drain()

    def acknowledged(self, did: str, token: e.LiveToken) -> None:
        if (resident := self.residents.get(did)) is not None:
            if resident.life.is_telling(token):
                crash_point(CrashPoint.STATUS_ACKNOWLEDGED)
            self.feed(resident, e.Acknowledged(token=token))

    def refused(self, did: str, token: e.LiveToken, refusal: Refusal) -> None:
        """An ingester will never take this operation: a dead letter; its piece is acknowledged later all the same."""
        letter = letter_of(refusal, self._clock.now())
        self.store_letters([letter])
        resident = self.residents.get(did)
        if resident is not None and letter.type in (OpType.ACCOUNT.name, OpType.IDENTITY.name):
            self.feed(resident, e.Refused(token=token))

    def checkpoint(self, cursor: CursorChange) -> None:
        """Have the cursor stored, behind everything that was put before."""
        self.waiting += 1
        self._checkpointer.put(Change(cursor=cursor))

    def open_incident(self, incident: IncidentChange) -> None:
        """Have it stored that events may be missing, before any cursor that is put from now on."""
        self.waiting += 1
        self._checkpointer.put(Change(incident=incident, urgent=True))

    def store_letters(self, dead: list[DeadLetter]) -> None:
        """Have dead letters stored and nothing else: the row may belong to another attempt by now."""
        self.waiting += 1
        self._checkpointer.put(Change(dead=dead))

    def stored(self, message: Stored) -> None:
        """Take the checkpointer's word, count what it stored differently, and run what waited for it."""
        for change in message.changes:
            self.waiting -= 1
            self.dead_letters.update(letter.reason for letter in change.dead)
            if change.then is not None:
                change.then(message.corrected.get(change.row.did) if change.row is not None else None)

    def moved(self, transitions: Mapping[tuple[RepoState, RepoState], int], *, of_batch: bool) -> None:
        """Count transitions that SQL made by itself (due retries, newly listed repos)."""
        for (old, new), count in transitions.items():
            self.counts[old] -= count
            self.counts[new] += count
            if of_batch:
                self.targets[old] -= count
                self.targets[new] += count

    @property
    def in_flight(self) -> int:
        """Repos with live operations or tellings on their way. Any thread: a copy, made in one step."""
        return sum(1 for each in list(self.residents.values()) if each.life.is_in_flight)

    def _drain(self) -> None:
        if self._feeding:
            return
        self._feeding = True
        try:
            events = self._events
            while events:
                resident, event, extra = events.popleft()
                life = resident.life
                self._do(resident, life.begin(narrows=self._follows) if event is None else life.feed(event), extra)
                if event is not None and not resident.holds:
                    self._rest(resident)
        finally:
            self._feeding = False

    def _do(self, resident: Resident, effects: tuple[e.Effect, ...], extra: _Extra | None) -> None:
        """Carry the effects out, in their order."""
        behind: e.LiveToken | None = None
        for effect in effects:
            match effect:
                case e.Store():
                    self._wait_between_fetches(resident, effects)
                    self._put(resident, effect, extra)
                    extra = None
                case e.Done():
                    self.stream.done(effect.seq)
                case e.Verify():
                    self.stream.verify(resident.did, effect.seq, effect.frame)
                case e.Offer():
                    if behind is None and not self.outlet.offer(
                        resident.did, effect.payload, effect.operations, effect.token, effect.received_at
                    ):
                        behind = effect.token
                case e.OfferAccount():
                    if behind is None:
                        self._note("account", source_of(effect).name)
                        crash_point(CrashPoint.STATUS_STORED)
                        self.outlet.tell(resident.did, account_operation(resident.did, effect), effect.token)
                case e.OfferIdentity():
                    if behind is None:
                        self._note("identity", source_of(effect).name)
                        self.outlet.tell(resident.did, identity_operation(resident.did, effect), effect.token)
                case e.Withdraw():
                    for token in self.outlet.withdraw(resident.did, effect.tokens):
                        self._events.append((resident, e.Withdrawn(token=token), None))
                case e.SendSnapshot():
                    self.fetching.send_snapshot(resident, effect.fetch)
                case e.RefuseSnapshot():
                    self.fetching.refuse_snapshot(resident, effect.fetch, effect.reason)
                case e.StopSnapshot():
                    self.fetching.stop_snapshot(resident, effect.fetch)
                case e.Overflowed():
                    if (other := self.residents.get(effect.did)) is not None:
                        self._events.append((other, e.BufferOverflow(events=effect.events), None))
                case e.ResolveIdentity():
                    self.fetching.look_up(resident)
                case e.Count():
                    self._note(effect.metric, effect.label)
                    log.debug(_DECISIONS[effect.metric], did=resident.did, host=resident.row.host, reason=effect.label)
                case e.CheckDue():
                    log.debug("repo_check_due", did=resident.did, host=resident.row.host, what=effect.what)
                case e.Desync() | e.FetchAgain():
                    pass  # the row says it
        if behind is not None:
            self._events.appendleft((resident, e.IngesterBehind(token=behind), None))
        if extra is not None:
            self._put_alone(extra)

    def _wait_between_fetches(self, resident: Resident, effects: tuple[e.Effect, ...]) -> None:
        """A repo that does not hold is fetched again after a back-off that grows: a very busy one must not be fetched for ever."""
        for effect in effects:
            if isinstance(effect, e.Desync | e.FetchAgain):
                delay_s = retry_delay_s(effect.refetches - 1, self._policy) if effect.refetches > 1 else 0.0
                resident.row.next_attempt_at = self._clock.now() + delay_s
                resident.row.attempts = 0

    def _put(self, resident: Resident, store: e.Store, extra: _Extra | None) -> None:
        row = resident.row
        put_facts(store.facts, row)
        row.updated_at = self._clock.now()
        if resident.counted is not row.state:
            self._count(row, resident.counted, row.state, is_put=True)
            resident.counted = row.state
        resident.put_version = store.version
        self.waiting += 1
        change = Change(
            row=row,
            is_new=not resident.is_stored,
            urgent=store.is_urgent,
            then=functools.partial(self._row_stored, resident, store.version, extra.then if extra else None),
        )
        if extra is not None:
            change.dead, change.identity, change.operations = extra.dead, extra.identity, extra.operations
            change.urgent |= extra.is_urgent
        resident.is_stored = True
        self._checkpointer.put(change)
        row.seen_check_due = row.check_due

    def _put_alone(self, extra: _Extra) -> None:
        self.waiting += 1
        self._checkpointer.put(
            Change(
                identity=extra.identity,
                dead=extra.dead,
                operations=extra.operations,
                urgent=extra.is_urgent,
                then=extra.then,
            )
        )

    def _row_stored(self, resident: Resident, version: int, then: Then | None, corrected: RepoState | None) -> None:
        for written in self._looks.values():
            written.add(resident.did)
        if corrected is not None and resident.put_version == version and resident.counted is not None:
            self._count(resident.row, resident.counted, corrected)
            resident.counted = corrected
        if then is not None:
            then(corrected)
        self.feed(resident, e.RowStored(version=version))

    # --- counting -----------------------------------------------------------------------------------------------------------

    def _note(self, metric: str, label: str) -> None:
        self.moments[metric, label] += 1
        if self._count_moment is not None:
            self._count_moment(metric, label)

    def _count(self, row: RepoRow, old: RepoState | None, new: RepoState, *, is_put: bool = False) -> None:
        if old is new:
            return
        counted = [self.counts, self.counts_put] if is_put else [self.counts]
        if self.batch is not None and row.batch == self.batch:
            counted += [self.targets, self.targets_put] if is_put else [self.targets]
        for counter in counted:
            counter[new] += 1
            if old is not None:
                counter[old] -= 1
