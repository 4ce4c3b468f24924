"""The life of a tracked repo beside the stream: what each event means in each state (pure; DESIGN 3 and 4).

One thread owns a `LiveRepo` for each DID in work, feeds it what happens, and executes the effects in order. Without threads,
sockets, clocks and database, so that the interleavings can be tried by the thousand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, assert_never

from relay.atproto.nsid_filter import NsidFilter
from relay.model import RepoState
from relay.repos import live_events as e
from relay.repos.handover import Chain, Handover, LiveEvent, Verdict, check_chain
from relay.repos.lifecycle import Event as LifeEvent
from relay.repos.lifecycle import after
from relay.repos.live_core import BEGINNING, LiveCore, Snapshot

S = RepoState


REJECTED: Final = "rejected"  # the reason of a repo whose status an ingester did not take


def filter_of(covers: str) -> NsidFilter:
    """Return the filter that a stored `covers` names; '' is every collection."""
    return NsidFilter.parse(covers.split(","))


class LiveRepo(LiveCore):
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

    # --- the owner's side -------------------------------------------------------------------------------------------------

    def begin(self, *, narrows: bool = True) -> tuple[e.Effect, ...]:
        """Take up what the loaded row has left to do: untold status and identity, a check, a filter that it does not cover.

        `narrows` False: nobody follows the stream, so the filter in force says nothing about what this repo covers.
        """
        self._standing.begin()
        if narrows:
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
            case e.LookupFailed():
                self._lookup_failed(event)
            case e.ColumnsChanged():
                self._change()
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
            case e.CheckUnanswerable():
                self._check_unanswerable(event.reason)
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
                # Not proved before the identity is known, and no frame waits for a resolver: done, as a start fetches what is stored active.
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
        if self.state is S.SYNCED and self._handover is None and not is_done:
            self._live(event)
            return
        self._hear(event.rev)
        match self.state:
            case S.SYNCED | S.ACTIVE if is_done and not self.is_fresh:
                pass  # seen before the claim whose fetch contains it
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
        """Nothing is stored yet of one that follows: the row changes when it is acknowledged, and a replay would bring it again."""
        self._heard = max(self._heard, event.rev)
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
                self._hear(event.rev)  # as of a frame dropped unproved: the fetch that comes may find an old copy
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

    # --- fetching ---------------------------------------------------------------------------------------------------------

    def _claimed(self) -> None:
        """The database has stored the repo as active, whatever we thought of it; what is fetched begins now."""
        self._stop_fetch()
        self._drop_buffer()
        self._all_done(self._flow.give_up())
        self.is_known = True
        if self._reason == REJECTED:
            self._standing.tell_status_again()
        if self._draft.version or self.state is not S.ACTIVE:  # else it was loaded by the claim itself
            self._change()
        self.state, self._reason, self._again = S.ACTIVE, None, None
        self.fetch += 1
        self._fetching = True
        self._narrowest = self._wanted
        self._handover = Handover(self.did, self._buffer)

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
        self._snapshot = Snapshot(event.rev, event.sends, version)

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

    def _landed_snapshot(self, fetch: int) -> None:
        if self._flying_snapshot == fetch:
            self._flying_snapshot = None

    # --- account status and identity --------------------------------------------------------------------------------------

    def _account(self, event: e.Account) -> None:
        self.account_events += 1
        if self.is_known:
            self._set_active(event.active, event.status)
            self._standing.say(event.active, event.status, event.time_us, event.seq)
        self._done(event.seq)

    def _set_active(self, active: bool, status: str) -> None:
        if active:
            if self.state is S.INACTIVE:
                self.state, self._reason = after(self.state, LifeEvent.ACTIVE_AGAIN), None
                self._change()
            return
        self._stop_fetch()
        self._drop_buffer()
        self._again = None
        self.state, self._reason = after(self.state, LifeEvent.NOT_ACTIVE), status or "inactive"
        self._change()

    def _status_learnt(self, event: e.StatusLearnt) -> None:
        if not self.is_known:
            return
        if event.asked_before_event:
            self._standing.mark_check("status")
            return
        self._set_active(event.active, event.status)
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

    def _lookup_failed(self, event: e.LookupFailed) -> None:
        if self.state is S.DISCOVERED:
            self.state, self._reason = after(self.state, event.outcome), event.reason
            self._change()

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
        if self.state in (S.SYNCED, S.ACTIVE) and any(rev <= proving for proving, _ in self._proving.values()):
            # The stream has it already: look again when that is through. It is not heard yet: if that proves nothing, the next answer
            # names the same rev, and must be news.
            if rev > (self._flow.accepted.rev if self._flow.accepted else ""):
                self._standing.mark_check("commit")
            return
        self._hear(rev)
        if rev <= (self._flow.accepted.rev if self._flow.accepted else ""):
            return
        match self.state:
            case S.SYNCED:
                self._desync("newer_rev")
            case S.ACTIVE:
                if self._snapshot is None or self._snapshot.rev < rev:
                    self._fetch_again("newer_rev")
            case S.DISCOVERED | S.PENDING | S.FAILED | S.DESYNCED | S.QUARANTINED | S.INACTIVE:
                pass  # a fetch comes, or is of no use yet; the rev is remembered
            case _:
                assert_never(self.state)

    def _check_unanswerable(self, reason: str) -> None:
        match self.state:
            case S.SYNCED:
                self._desync(reason)
            case S.INACTIVE:
                self.state, self._reason = after(self.state, LifeEvent.ACTIVE_AGAIN), reason
                self._change()
            case S.ACTIVE | S.DISCOVERED | S.PENDING | S.FAILED | S.DESYNCED | S.QUARANTINED:
                pass  # a fetch runs or comes, or is of no use
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
