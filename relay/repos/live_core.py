"""What a live repo is, and what can be done with it (pure); live.py says when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.atproto.nsid_filter import NsidFilter
from relay.model import RepoState
from relay.repos import live_events as e
from relay.repos.buffer import LiveBuffer
from relay.repos.facts import Facts
from relay.repos.handover import Chain, Handover, LiveEvent, Verdict
from relay.repos.lifecycle import Event as LifeEvent
from relay.repos.lifecycle import after
from relay.repos.live_draft import Draft
from relay.repos.live_flow import Flow
from relay.repos.live_standing import Standing

S = RepoState

# How much of a buffer is on its way at a time: the rest follows as acknowledgements come, so that a drain does not fill the
# ingester's queue, and the bound that desyncs repos is not met by a repo that has just been fetched.
DRAIN_OPERATIONS: Final = 1000

# What a repo that has nothing yet stands at: its first commit has no `since` and no `prevData`.
BEGINNING: Final = Chain("", b"")


@dataclass(slots=True)
class Snapshot:
    """A proved snapshot before its delivery. `version`: of the row that says it begins."""

    rev: str
    sends: bool
    version: int
    is_sent: bool = False


class LiveCore:
    """The state of one repo beside the stream, and the moves that events have in common.

    Which event makes which move is decided in `LiveRepo`, whose docstring has the invariants.
    """

    def __init__(self, did: str, buffer: LiveBuffer[LiveEvent], wanted: NsidFilter, facts: Facts | None) -> None:
        """`facts` None: a DID without a row. Call `begin` for what a loaded row asks for."""
        self.did = did
        self.is_known = facts is not None  # has a row, stored or on its way
        self.is_removed = False
        self.fetch = 0  # number of the newest claim
        self.account_events = 0  # `#account` frames so far
        self.refetches = 0
        facts = facts or Facts()
        self.state = facts.state
        self.is_fresh = False  # brand-new, and its own first commits are all there is: active, and a start fetches it
        self._reason = facts.reason
        chain = Chain(facts.rev, facts.data) if facts.rev is not None and facts.data is not None else None
        self._flow = Flow(did, chain)
        self._begun, self._heard = facts.rev_begun or "", facts.rev_heard or ""
        self._covers = facts.covers
        self._touched = facts.touched
        self._again: str | None = None  # why another fetch must follow; a start fetches an active repo anyway
        self._touched_version = 0
        self._buffer, self._wanted = buffer, wanted
        self._narrowest = wanted  # of the filters in force since the claim
        self._handover: Handover | None = Handover(did, buffer) if self.state is S.ACTIVE else None
        self._held: set[int] = set()  # buffered frames that hold the cursor
        self._proving: dict[int, tuple[str, bool]] = {}  # frames being verified: rev, and whether they are done already
        self._is_raw = False  # fresh, and its identity is not known: frames are buffered unproved
        self._fetching = False
        self._snapshot: Snapshot | None = None
        self._flying_snapshot: int | None = None
        self._stored = 0
        self._draft = Draft()
        self._effects = self._draft.effects
        self._change = self._draft.change
        self._standing = Standing(self._flow, facts, self._draft)

    # --- what the owner sees ------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """What is to be stored now."""
        chain = self._flow.acknowledged
        return Facts(
            state=self.state,
            reason=self._reason,
            rev=chain.rev if chain else None,
            data=chain.data if chain else None,
            rev_begun=self._begun or None,
            rev_heard=self._heard or None,
            covers=self._covers,
            told=self._standing.told,
            tell=self._standing.tell,
            told_identity_us=self._standing.told_identity_us,
            tell_identity=self._standing.tell_identity,
            check_due=self._standing.check_due,
            touched=self._touched,
        )

    @property
    def is_idle(self) -> bool:
        """Nothing is known here that is not stored: the owner may forget the object."""
        return (
            self._flow.is_empty
            and self._handover is None
            and not self.is_fresh
            and not self._proving
            and not self._fetching
            and self._flying_snapshot is None
            and not self._standing.is_resolving
            and self._stored == self._draft.version
        )

    @property
    def is_attended(self) -> bool:
        """Does somebody see to it that this active repo gets on: a fetch that runs, a drain, its own first commits?"""
        return self._fetching or self.is_fresh or self._will_hold()

    @property
    def is_being_stored(self) -> bool:
        """Is a row on its way to the database?"""
        return self._stored != self._draft.version

    @property
    def is_in_flight(self) -> bool:
        """Are live operations or tellings on their way?"""
        return not self._flow.is_quiet

    def is_telling(self, token: e.LiveToken) -> bool:
        """Is it of a status or an identity on its way?"""
        return self._flow.is_telling(token)

    @property
    def check_mark(self) -> int:
        """Number of the newest mark for a check, as its CheckDue has it."""
        return self._standing.check_mark

    @property
    def accepted_rev(self) -> str | None:
        """The rev that the next commit must follow; newer than the stored one while operations are in flight."""
        return self._flow.accepted.rev if self._flow.accepted else None

    # --- forward and back ---------------------------------------------------------------------------------------------

    def _accept(self, event: LiveEvent, *, is_open: bool) -> None:
        """Forward an event that follows. One without wanted operations is done at once: a replay brings it again, if need be."""
        if event.operations and not self._touched:
            self._touched = True
            self._touched_version = self._change(is_urgent=True)
        if self._flow.accept(event, version=self._touched_version, is_open=is_open and event.operations > 0):
            self._change()
        if is_open and not event.operations:
            self._done(event.seq)

    def _desync(self, reason: str) -> None:
        """What is known is not to be built upon: a fetch brings everything, and the frames of this repo are done."""
        self.state, self._reason = after(self.state, LifeEvent.OUTDATED), reason
        self.refetches += 1
        self._stop_fetch()
        self._drop_buffer()
        self._all_done(self._flow.give_up())
        self._change()
        self._count("desyncs", reason)
        self._effects.append(e.Desync(reason=reason, refetches=self.refetches))

    def _pending_again(self, reason: str) -> None:
        self._drop_buffer()
        self._all_done(self._flow.give_up())
        self.state = after(after(self.state, LifeEvent.OUTDATED), LifeEvent.RETRY_DUE)
        self._reason, self._again = reason, None
        self.refetches += 1
        self._change()
        self._effects.append(e.FetchAgain(reason=reason, refetches=self.refetches))

    def _fetch_again(self, reason: str) -> None:
        """An active repo needs another fetch: after the one that runs, or at once when that one is delivered already."""
        if self.is_fresh or self._will_hold():
            self._desync(reason)
            return
        if self._handover is not None:
            self._handover.give_up()
        self._again = reason
        self._change()
        self._count("again", reason)

    def _stop_fetch(self) -> None:
        if self._fetching:
            self._effects.append(e.StopSnapshot(fetch=self.fetch))
        self._fetching, self._snapshot = False, None

    def _send_snapshot(self) -> None:
        snapshot = self._snapshot
        if snapshot is None or snapshot.is_sent or not snapshot.sends:
            return
        if snapshot.version <= self._stored and self._flow.is_quiet and self._flying_snapshot is None:
            snapshot.is_sent = True
            self._flying_snapshot = self.fetch
            self._effects.append(e.SendSnapshot(fetch=self.fetch))

    # --- buffer and drain ---------------------------------------------------------------------------------------------

    def _will_hold(self) -> bool:
        """Does a frame that is buffered now hold the cursor? Not while the repo is stored in a state that means a fetch."""
        return self._handover is not None and self._handover.is_draining

    def _put_in_buffer(self, event: LiveEvent) -> None:
        assert self._handover is not None
        if self._handover.is_lost:
            self._done_held(event.seq)
            return
        buffered = self._handover.live(event)
        for overflow in buffered.overflows:
            if overflow.did == self.did:
                self._overflowed(overflow.events)
            else:
                self._effects.append(e.Overflowed(did=overflow.did, events=overflow.events))

    def _overflowed(self, events: tuple[LiveEvent, ...]) -> None:
        for event in events:
            self._done_held(event.seq)
        if self._handover is not None:
            self._handover.thrown_away()
            self._fetch_again("overflow")

    def _drain(self) -> None:
        """Forward what is buffered, as far as there is room; synced when all that was buffered before REPO_END is delivered."""
        handover = self._handover
        if handover is None or self.state not in (S.ACTIVE, S.SYNCED):
            return
        if self.is_fresh and not handover.is_draining:
            if self._is_raw or any(is_done for _, is_done in self._proving.values()):
                return
            handover.end_acknowledged(BEGINNING)
        if not handover.is_draining:
            return
        while self._flow.operations < DRAIN_OPERATIONS and (drained := handover.drain()) is not None:
            event = drained.event
            self._held.discard(event.seq)
            if drained.verdict is Verdict.FOLLOWS:
                self._accept(event, is_open=drained.held_cursor)
                if not event.operations:
                    continue
            elif drained.held_cursor:
                self._done(event.seq)
            if drained.verdict is Verdict.BROKEN:
                self._desync("chain")
                return
        if handover.is_synced and self.state is S.ACTIVE:
            self.state, self.is_fresh, self._reason = after(self.state, LifeEvent.SNAPSHOT_DELIVERED), False, None
            self._change()
        if handover.is_over:
            self._handover = None

    def _drop_buffer(self) -> None:
        if self._handover is not None:
            for event in self._handover.give_up():
                self._done_held(event.seq)
            self._handover = None
        self.is_fresh = self._is_raw = False

    # --- small change -------------------------------------------------------------------------------------------------

    def _hear(self, rev: str) -> None:
        if rev > self._heard:
            self._heard = rev
            self._change()

    def _drop(self, seq: int, rev: str) -> None:
        self._hear(rev)
        self._count("dropped", self.state)
        self._done(seq)

    def _done(self, seq: int) -> None:
        self._effects.append(e.Done(seq=seq))

    def _all_done(self, seqs: list[int]) -> None:
        for seq in seqs:
            self._done(seq)

    def _done_unless(self, is_done: bool, seq: int) -> None:
        if not is_done:
            self._done(seq)

    def _done_held(self, seq: int) -> None:
        """A buffered frame is dropped: done now, if it was not when it was buffered."""
        if seq in self._held:
            self._held.discard(seq)
            self._done(seq)

    def _count(self, metric: str, label: str) -> None:
        self._effects.append(e.Count(metric=metric, label=label))

    def _end(self) -> tuple[e.Effect, ...]:
        draft = self._draft
        if self.is_removed:
            return draft.taken()
        if self._handover is not None:
            self._drain()
        if self._flying_snapshot is None:
            self._effects.extend(self._flow.release(self._stored))
        if self._snapshot is not None:
            self._send_snapshot()
        if draft.is_dirty and self.is_known:
            draft.version += 1
            self._effects.insert(0, e.Store(facts=self.facts, version=draft.version, is_urgent=draft.is_urgent))
        return draft.taken()
