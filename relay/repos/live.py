"""The life of a tracked repo beside the stream: what each event means in each state (pure; DESIGN 3 and 4).

One thread owns a `LiveRepo` for each DID in work, feeds it what happens, and executes the effects in order. Without threads,
sockets, clocks and database, so that the interleavings can be tried by the thousand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, assert_never

from relay.atproto.nsid_filter import NsidFilter
from relay.model import RepoState
from relay.repos import live_events as e
from relay.repos.buffer import LiveBuffer
from relay.repos.handover import Chain, Handover, LiveEvent, Verdict, check_chain
from relay.repos.lifecycle import Event as LifeEvent
from relay.repos.lifecycle import after
from relay.repos.live_flow import Flow
from relay.repos.live_standing import Standing

S = RepoState

# How much of a buffer is on its way at a time: the rest follows as acknowledgements come, so that a drain does not fill the
# ingester's queue, and the bound that desyncs repos is not met by a repo that has just been fetched.
DRAIN_OPERATIONS: Final = 1000

# What a repo that has nothing yet stands at: its first commit has no `since` and no `prevData`.
BEGINNING: Final = Chain("", b"")

REJECTED: Final = "rejected"  # the reason of a repo whose status an ingester did not take


@dataclass(slots=True)
class _Snapshot:
    """A proved snapshot before its delivery. `version`: of the row that says it begins."""

    rev: str
    sends: bool
    version: int
    is_sent: bool = False


def filter_of(covers: str) -> NsidFilter:
    """Return the filter that a stored `covers` names; '' is every collection."""
    return NsidFilter.parse(covers.split(","))


class LiveRepo:
    """One tracked DID. `feed` takes an event and returns its effects, a `Store` first where the row changed.

    What the owner promises: frames of one DID come in the order of their seq (FrameSeen may run ahead of the results of earlier
    frames; `#account` and `#identity` may not), every `Verify` is answered, everything offered is acknowledged, refused or
    withdrawn in the end, and `Store` and the cursor travel through one queue in the order of the effects.

    Invariants (each has a test):
    - every frame is Done exactly once, after the Store of what it caused, and a crash loses nothing of it: its operations are
      acknowledged, or the repo is stored in a state that a start answers with a fetch, or nothing hangs on it;
    - `facts.rev` and `facts.data` are acknowledged, never only accepted; what is accepted follows the chain;
    - stored synced only when everything buffered before REPO_END's acknowledgement is delivered;
    - nothing overtakes: neither a snapshot the live operations in flight, nor live operations a buffer, nor a status either;
    - a status and an identity are stored before they are told, with rising times, and told again until acknowledged;
    - rows are stored as touched before the first operation leaves.
    """

    def __init__(self, did: str, buffer: LiveBuffer[LiveEvent], wanted: NsidFilter, facts: e.Facts | None) -> None:
        """`facts` None: a DID without a row. Call `begin` for what a loaded row asks for."""
        self.did = did
        self.is_known = facts is not None  # has a row, stored or on its way
        self.is_removed = False
        self.fetch = 0  # number of the newest claim
        self.account_events = 0  # `#account` frames so far
        self.refetches = 0
        facts = facts or e.Facts()
        self.state = facts.state
        self.is_fresh = False  # brand-new, and its own first commits are all there is: stored pending, in memory active
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
        self._snapshot: _Snapshot | None = None
        self._flying_snapshot: int | None = None
        self._version = self._stored = 0
        self._effects: list[e.Effect] = []
        self._dirty = self._urgent = False
        self._standing = Standing(self._flow, facts, self._change, self._effect)

    # --- the owner's side -------------------------------------------------------------------------------------------------

    @property
    def facts(self) -> e.Facts:
        """What is to be stored now."""
        chain = self._flow.acknowledged
        return e.Facts(
            state=S.PENDING if self.is_fresh else self.state,
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
            and self._stored == self._version
        )

    @property
    def check_mark(self) -> int:
        """Number of the newest mark for a check, as its CheckDue has it."""
        return self._standing.check_mark

    @property
    def accepted_rev(self) -> str | None:
        """The rev that the next commit must follow; newer than the stored one while operations are in flight."""
        return self._flow.accepted.rev if self._flow.accepted else None

    def begin(self) -> tuple[e.Effect, ...]:
        """Take up what the loaded row has left to do: untold status and identity, a check, a filter that it does not cover."""
        self._standing.begin()
        self._narrow()
        return self._end()

    def feed(self, event: e.Event) -> tuple[e.Effect, ...]:
        """Take what happened; return what to do, in order. Raises ImpossibleEvent when the owner's account is broken."""
        if self.is_removed:
            self._feed_removed(event)
        else:
            self._feed(event)
        return self._end()

    def _feed(self, event: e.Event) -> None:
        match event:
            case e.FrameSeen():
                self._frame_seen(event)
            case e.Proved():
                self._proved(event.event)
            case e.Invalid():
                self._invalid(event)
            case e.Acknowledged():
                self._acknowledged(event.token)
            case e.RowStored():
                self._stored = max(self._stored, event.version)
            case e.Account():
                self._account(event)
            case e.IdentitySeen():
                self._identity_seen(event)
            case e.IdentityLearnt():
                self._identity_learnt(event)
            case e.IdentityFailed():
                self._identity_failed()
            case e.Refused():
                self._refused(event.token)
            case e.Withdrawn():
                self._all_done(self._flow.forget(event.token))
            case e.Claimed():
                self._claimed()
            case e.SnapshotVerified():
                self._snapshot_verified(event)
            case e.SnapshotDelivered():
                self._snapshot_delivered(event)
            case e.SnapshotStopped():
                self._landed_snapshot(event.fetch)
            case e.FetchFailed():
                self._fetch_failed(event)
            case e.StatusLearnt():
                self._status_learnt(event)
            case e.NewerRev():
                self._newer_rev(event.rev)
            case e.CheckAnswered():
                self._standing.check_answered(event.mark)
            case e.BufferOverflow():
                self._overflowed(event.events)
            case e.IngesterBehind():
                self._ingester_behind(event.token)
            case e.OpenFramesRelief():
                self._relieve()
            case e.ResyncAsked():
                self._resync(event.reason)
            case e.FilterChanged():
                self._wanted = event.wanted
                self._narrowest = self._narrowest.intersect(event.wanted)
                self._narrow()
            case e.Removed():
                self._remove()
            case _:
                assert_never(event)

    # --- the stream -------------------------------------------------------------------------------------------------------

    def _frame_seen(self, frame: e.FrameSeen) -> None:
        if not self.is_known:
            self._unknown(frame)
        match self.state:
            case S.ACTIVE if self._is_raw:
                # Not proved before the identity is known, and no frame waits for a resolver: done, as the repo is stored pending.
                raw = LiveEvent(
                    seq=frame.seq,
                    is_sync=frame.kind == "sync",
                    rev=frame.rev,
                    since=None,
                    prev_data=None,
                    data=b"",
                    operations=frame.operations,
                    payload=frame.frame,
                )
                self._hear(frame.rev)
                self._done(frame.seq)
                self._put_in_buffer(raw)
            case S.SYNCED | S.ACTIVE | S.INACTIVE:
                self._proving[frame.seq] = (frame.rev, False)
                self._effects.append(e.Verify(seq=frame.seq))
            case S.DISCOVERED | S.PENDING | S.FAILED | S.DESYNCED | S.QUARANTINED:
                self._drop(frame.seq, frame.rev)
            case _:
                assert_never(self.state)

    def _unknown(self, frame: e.FrameSeen) -> None:
        """A commit or sync makes a DID known: fetched later, or followed at once when this is all that it has."""
        self.is_known = True
        self._change()
        if frame.kind == "commit" and frame.is_first:
            self.state, self.is_fresh = S.ACTIVE, True
            self._covers = ",".join(self._wanted.patterns)
            self._narrowest = self._wanted
            self._handover = Handover(self.did, self._buffer)
            self._is_raw = True
            self._standing.resolve()

    def _proved(self, event: LiveEvent) -> None:
        _, is_done = self._proving.pop(event.seq)
        self._hear(event.rev)
        match self.state:
            case S.SYNCED | S.ACTIVE if is_done and not self.is_fresh:
                pass  # seen before the claim whose fetch contains it
            case S.SYNCED if self._handover is None:
                self._live(event)
            case S.SYNCED | S.ACTIVE:
                if self.is_fresh and not event.is_sync and event.since is None:
                    event = replace(event, since=BEGINNING.rev, prev_data=BEGINNING.data)
                if not is_done and not self._will_hold():
                    self._done(event.seq)
                elif not is_done:
                    self._held.add(event.seq)
                self._put_in_buffer(event)
            case S.INACTIVE:
                self._standing.mark_check("status")
                self._done_unless(is_done, event.seq)
            case S.DISCOVERED | S.PENDING | S.FAILED | S.DESYNCED | S.QUARANTINED:
                self._count("dropped", self.state)
                self._done_unless(is_done, event.seq)
            case _:
                assert_never(self.state)

    def _live(self, event: LiveEvent) -> None:
        chain = self._flow.accepted
        verdict = Verdict.BROKEN if chain is None else check_chain(chain, event)
        match verdict:
            case Verdict.KNOWN:
                self._count("known", "known")
                self._done(event.seq)
            case Verdict.FOLLOWS:
                self._accept(event, is_open=True)
            case Verdict.BROKEN:
                self._done(event.seq)
                self._desync("chain")
            case _:
                assert_never(verdict)

    def _accept(self, event: LiveEvent, *, is_open: bool) -> None:
        """Forward an event that follows. One without wanted operations is done at once: a replay brings it again, if need be."""
        if event.operations and not self._touched:
            self._touched = True
            self._touched_version = self._change(is_urgent=True)
        if self._flow.accept(event, version=self._touched_version, is_open=is_open and event.operations > 0):
            self._change()
        if is_open and not event.operations:
            self._done(event.seq)

    def _invalid(self, event: e.Invalid) -> None:
        _, is_done = self._proving.pop(event.seq)
        self._count("invalid", event.reason)
        match self.state:
            case S.SYNCED | S.ACTIVE | S.INACTIVE:
                if self.is_fresh:
                    self._desync("invalid")
                elif event.rev > (self._flow.acknowledged.rev if self._flow.acknowledged else ""):
                    self._standing.mark_check("status" if self.state is S.INACTIVE else "commit")
            case S.DISCOVERED | S.PENDING | S.FAILED | S.DESYNCED | S.QUARANTINED:
                pass  # the fetch that comes needs no hint
            case _:
                assert_never(self.state)
        self._done_unless(is_done, event.seq)

    def _acknowledged(self, token: e.LiveToken) -> None:
        landed = self._flow.landed(token)
        if landed.telling is not None:
            self._standing.was_told(landed.telling)
        if landed.finished is not None:
            if self._handover is not None:
                self._handover.delivered(landed.finished)
            elif self.state is S.SYNCED:
                self.refetches = 0
        if landed.has_advanced:
            self._change()
        if landed.frame is not None:
            self._done(landed.frame)

    # --- buffer and drain -------------------------------------------------------------------------------------------------

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

    # --- fetching ---------------------------------------------------------------------------------------------------------

    def _claimed(self) -> None:
        """The database has stored the repo as active, whatever we thought of it; what is fetched begins now."""
        self._stop_fetch()
        self._drop_buffer()
        self._all_done(self._flow.give_up())
        self.is_known = True
        if self._reason == REJECTED:
            self._standing.tell_status_again()
        self.state, self._reason, self._again = S.ACTIVE, None, None
        self.fetch += 1
        self._fetching = True
        self._narrowest = self._wanted
        self._handover = Handover(self.did, self._buffer)
        self._change()

    def _snapshot_verified(self, event: e.SnapshotVerified) -> None:
        if not self._is_current(event.fetch):
            return
        newest = max(self._begun, *(chain.rev for chain in (self._flow.accepted, self._flow.acknowledged) if chain), "")
        if event.rev < newest:
            self._effects.append(e.RefuseSnapshot(fetch=event.fetch, reason="rollback"))
            return
        if event.rev < self._heard:
            if not event.is_last_try:
                self._effects.append(e.RefuseSnapshot(fetch=event.fetch, reason="outdated"))
                return
            self._standing.mark_check("commit")
        version = 0
        if event.sends:
            self._begun, self._touched = event.rev, True
            version = self._touched_version = self._change(is_urgent=True)
        self._snapshot = _Snapshot(event.rev, event.sends, version)

    def _send_snapshot(self) -> None:
        snapshot = self._snapshot
        if snapshot is None or snapshot.is_sent or not snapshot.sends:
            return
        if snapshot.version <= self._stored and self._flow.is_quiet and self._flying_snapshot is None:
            snapshot.is_sent = True
            self._flying_snapshot = self.fetch
            self._effects.append(e.SendSnapshot(fetch=self.fetch))

    def _snapshot_delivered(self, event: e.SnapshotDelivered) -> None:
        self._landed_snapshot(event.fetch)
        if not self._is_current(event.fetch) or self._handover is None:
            return
        self._fetching, self._snapshot = False, None
        chain = Chain(event.rev, event.data)
        self._flow.snapshot(chain)
        self._hear(event.rev)
        covers = event.covers.intersect(self._narrowest)
        self._covers = ",".join(covers.patterns)
        self._change()
        if self._again is None and not covers.covers(self._wanted):
            self._again = "filter"
        if self._again is not None:
            self._pending_again(self._again)
        else:
            self._handover.end_acknowledged(chain)

    def _pending_again(self, reason: str) -> None:
        self._drop_buffer()
        self._all_done(self._flow.give_up())
        self.state = after(after(self.state, LifeEvent.OUTDATED), LifeEvent.RETRY_DUE)
        self._reason, self._again = reason, None
        self.refetches += 1
        self._change()
        self._effects.append(e.FetchAgain(reason=reason, refetches=self.refetches))

    def _fetch_failed(self, event: e.FetchFailed) -> None:
        if not self._is_current(event.fetch):
            return
        self.state, self._reason = after(self.state, event.outcome), event.reason
        self._again = None
        self._stop_fetch()
        self._drop_buffer()
        self._change()

    def _is_current(self, fetch: int) -> bool:
        """Does an answer belong to the fetch that runs? One of a fetch that was stopped says nothing."""
        return self._fetching and fetch == self.fetch

    def _stop_fetch(self) -> None:
        if self._fetching:
            self._effects.append(e.StopSnapshot(fetch=self.fetch))
        self._fetching, self._snapshot = False, None

    def _landed_snapshot(self, fetch: int) -> None:
        if self._flying_snapshot == fetch:
            self._flying_snapshot = None

    # --- account status and identity --------------------------------------------------------------------------------------

    def _account(self, event: e.Account) -> None:
        self.account_events += 1
        if self.is_known:
            self._set_active(event.active)
            self._standing.say(event.active, event.status, event.time_us, event.seq)
        self._done(event.seq)

    def _set_active(self, active: bool) -> None:
        if active:
            if self.state is S.INACTIVE:
                self.state, self._reason = after(self.state, LifeEvent.ACTIVE_AGAIN), None
                self._change()
            return
        self._stop_fetch()
        self._drop_buffer()
        self._again = None
        self.state, self._reason = after(self.state, LifeEvent.NOT_ACTIVE), None
        self._change()

    def _status_learnt(self, event: e.StatusLearnt) -> None:
        if not self.is_known:
            return
        if event.asked_before_event:
            self._standing.mark_check("status")
            return
        self._set_active(event.active)
        self._standing.say_if_new(event.active, event.status, event.time_us)

    def _identity_seen(self, event: e.IdentitySeen) -> None:
        if self.is_known:
            self._standing.identity_seen(event)
        self._done(event.seq)

    def _identity_learnt(self, event: e.IdentityLearnt) -> None:
        self._standing.identity_learnt(event)
        if self.state is S.DISCOVERED and self.is_known:
            self.state = after(self.state, LifeEvent.RESOLVED)
            self._change()
        if self._is_raw:
            self._is_raw = False
            while (raw := self._buffer.pop(self.did)) is not None:
                self._proving[raw.seq] = (raw.rev, True)
                self._effects.append(e.Verify(seq=raw.seq, frame=raw.payload))
            self._handover = Handover(self.did, self._buffer)

    def _identity_failed(self) -> None:
        if self._is_raw:
            self._desync("identity")
        self._standing.identity_failed()

    def _refused(self, token: e.LiveToken) -> None:
        """What the ingester believes of the account is not known any more: somebody has to look."""
        telling = self._flow.landed(token).telling
        if isinstance(telling, e.OfferIdentity):
            self._standing.was_told(telling)
        elif telling is not None:
            self._stop_fetch()
            self._drop_buffer()
            self._again = None
            self.state, self._reason = after(self.state, LifeEvent.GAVE_UP), REJECTED
            self._change()

    # --- what others find out ---------------------------------------------------------------------------------------------

    def _newer_rev(self, rev: str) -> None:
        self._hear(rev)
        if rev <= (self._flow.accepted.rev if self._flow.accepted else ""):
            return
        match self.state:
            case S.SYNCED | S.ACTIVE if any(rev <= proving for proving, _ in self._proving.values()):
                self._standing.mark_check("commit")  # the stream has it already: look again when that is through
            case S.SYNCED:
                self._desync("newer_rev")
            case S.ACTIVE:
                if self._snapshot is None or self._snapshot.rev < rev:
                    self._fetch_again("newer_rev")
            case S.DISCOVERED | S.PENDING | S.FAILED | S.DESYNCED | S.QUARANTINED | S.INACTIVE:
                pass  # a fetch comes, or is of no use yet; the rev is remembered
            case _:
                assert_never(self.state)

    def _resync(self, reason: str) -> None:
        """Tell the status again first, of inactive repos too; then everything."""
        self._standing.say_all_again()
        match self.state:
            case S.SYNCED:
                self._desync(reason)
            case S.ACTIVE:
                self._fetch_again(reason)
            case S.FAILED | S.DESYNCED | S.QUARANTINED:
                self.state, self._reason = after(self.state, LifeEvent.RETRY_DUE), reason
                self._change()
            case S.DISCOVERED | S.PENDING | S.INACTIVE:
                pass
            case _:
                assert_never(self.state)

    def _narrow(self) -> None:
        """What a repo covers is its snapshot's filter and every one in force since; less than the one in force: fetch it again."""
        if self.state is not S.SYNCED and not self._will_hold() and not self.is_fresh:
            return  # its next snapshot decides
        covers = filter_of(self._covers) if self._covers is not None else None
        if covers is None or not covers.covers(self._wanted):
            self._pending_again("filter")
            return
        narrowed = ",".join(covers.intersect(self._wanted).patterns)
        if narrowed != self._covers:
            self._covers = narrowed
            self._change()

    def _ingester_behind(self, token: e.LiveToken | None) -> None:
        if token is not None:
            self._all_done(self._flow.forget_from(token))
        if self.state is S.SYNCED or self._will_hold():
            self._desync("ingester_behind")

    def _relieve(self) -> None:
        """The oldest open frame is this repo's: give way. What is on its way already and not sent is taken back."""
        match self.state:
            case S.SYNCED:
                self._desync("open_frames")
            case S.ACTIVE:
                if not self._will_hold():
                    return
                self._desync("open_frames")
            case S.INACTIVE | S.QUARANTINED:
                self._all_done(self._flow.give_up())  # a return to life begins with a fetch
            case S.DISCOVERED | S.PENDING | S.FAILED | S.DESYNCED:
                pass
            case _:
                assert_never(self.state)
        if tokens := self._flow.offers_in_flight():
            self._effects.append(e.Withdraw(tokens=tokens))

    def _remove(self) -> None:
        self._stop_fetch()
        self._drop_buffer()
        self._all_done(self._flow.give_up())
        self.is_removed = True
        if tokens := self._flow.offers_in_flight():
            self._effects.append(e.Withdraw(tokens=tokens))

    def _feed_removed(self, event: e.Event) -> None:
        """Frames pass by; what is in flight lands; nothing is stored."""
        match event:
            case e.FrameSeen() | e.Account() | e.IdentitySeen():
                self._done(event.seq)
            case e.Proved():
                self._done_unless(self._proving.pop(event.event.seq)[1], event.event.seq)
            case e.Invalid():
                self._done_unless(self._proving.pop(event.seq)[1], event.seq)
            case e.Acknowledged() | e.Refused():
                self._flow.landed(event.token)
            case e.Withdrawn():
                self._all_done(self._flow.forget(event.token))
            case e.RowStored():
                self._stored = max(self._stored, event.version)
            case e.SnapshotDelivered() | e.SnapshotStopped():
                self._landed_snapshot(event.fetch)
            case e.IdentityLearnt() | e.IdentityFailed():
                self._standing.is_resolving = False
            case _:
                pass

    # --- small change -----------------------------------------------------------------------------------------------------

    def _effect(self, effect: e.Effect) -> None:
        self._effects.append(effect)

    def _change(self, *, is_urgent: bool = False) -> int:
        """The row differs from what was put last; return the version that this event's Store will have."""
        self._dirty, self._urgent = True, self._urgent or is_urgent
        return self._version + 1

    def _hear(self, rev: str) -> None:
        if rev > self._heard:
            self._heard = rev
            # Of a synced repo it is stored with the acknowledgement: until then a replay says it again.
            if self.state is not S.SYNCED:
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
        if not self.is_removed:
            self._drain()
            if self._flying_snapshot is None:
                self._effects.extend(self._flow.release(self._stored))
            self._send_snapshot()
        effects, self._effects = self._effects, []
        if self._dirty and self.is_known and not self.is_removed:
            self._version += 1
            effects.insert(0, e.Store(facts=self.facts, version=self._version, is_urgent=self._urgent))
        self._dirty = self._urgent = False
        return tuple(effects)
