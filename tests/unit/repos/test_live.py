"""The rules of a live repo, one by one, and every state beside every event."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from relay.atproto.nsid_filter import NsidFilter
from relay.model import AccountStatus, RepoState
from relay.repos import live_events as e
from relay.repos.buffer import LiveBuffer
from relay.repos.facts import Facts, TellIdentity, facts_of_row, put_facts
from relay.repos.handover import LiveEvent
from relay.repos.lifecycle import Event as LifeEvent
from relay.repos.live import LiveRepo
from relay.store.repos import RepoRow

S = RepoState
DID = "did:plc:a"
ALL = NsidFilter.parse([])
SOME = NsidFilter.parse(["com.a."])


def rev(number: int) -> str:
    return f"{number:013d}"


def data(number: int) -> bytes:
    return b"root%032d" % number


def commit(
    number: int, *, operations: int = 1, since: int | None = -1, seq: int | None = None, prev: int | None = None
) -> LiveEvent:
    before = number - 1 if since == -1 else since
    parent = before if prev is None else prev
    return LiveEvent(
        seq=number if seq is None else seq,
        is_sync=False,
        rev=rev(number),
        since=None if before is None else rev(before),
        prev_data=None if parent is None else data(parent),
        data=data(number),
        operations=operations,
        payload=f"operations of {number}",
    )


def sync(number: int, of: int) -> LiveEvent:
    return LiveEvent(seq=number, is_sync=True, rev=rev(number), since=None, prev_data=None, data=data(of), operations=0)


def seen(seq: int, number: int | None = None, *, is_first: bool = False) -> e.FrameSeen:
    return e.FrameSeen(seq=seq, kind="commit", rev=rev(number or seq), is_first=is_first, frame=f"frame {seq}")


class Driven:
    """A machine, and every effect that it had so far."""

    def __init__(
        self,
        state: RepoState = S.SYNCED,
        *,
        facts: Facts | None = None,
        known: bool = True,
        buffer: LiveBuffer[LiveEvent] | None = None,
        wanted: NsidFilter = ALL,
    ) -> None:
        if facts is None:
            has = state is not S.DISCOVERED
            facts = Facts(
                state=state,
                rev=rev(10) if has else None,
                data=data(10) if has else None,
                rev_heard=rev(10),
                covers="" if has else None,
                touched=True,
            )
        self.buffer = buffer or LiveBuffer(max_operations=100)
        self.repo = LiveRepo(DID, self.buffer, wanted, facts if known else None)
        self.effects: list[e.Effect] = list(self.repo.begin())

    def feed(self, *events: e.Event) -> list[e.Effect]:
        new: list[e.Effect] = []
        for event in events:
            new += self.repo.feed(event)
        self.effects += new
        return new

    def prove(self, event: LiveEvent) -> list[e.Effect]:
        number = int(event.rev)
        return self.feed(seen(event.seq, number), e.Proved(event=event))

    def of(self, kind: type) -> list[e.Effect]:
        return [each for each in self.effects if isinstance(each, kind)]

    def done(self) -> list[int]:
        return [each.seq for each in self.effects if isinstance(each, e.Done)]

    def offered(self) -> list[int]:
        return [each.seq for each in self.effects if isinstance(each, e.Offer)]

    def stored(self) -> list[e.Effect]:
        """Everything that was put is stored now."""
        versions = [each.version for each in self.effects if isinstance(each, e.Store)]
        return self.feed(e.RowStored(version=max(versions, default=0)))

    def acknowledge(self, index: int = 0) -> list[e.Effect]:
        """The oldest (by `index`) of what was offered and not acknowledged."""
        if not hasattr(self, "_acked"):
            self._acked: set[e.LiveToken] = set()
        waiting = [
            each.token
            for each in self.effects
            if isinstance(each, e.Offer | e.OfferAccount | e.OfferIdentity) and each.token not in self._acked
        ]
        self._acked.add(waiting[index])
        return self.feed(e.Acknowledged(token=waiting[index]))

    def claim(self) -> int:
        self.feed(e.Claimed())
        self.stored()
        return self.repo.fetch

    def deliver(self, number: int, covers: NsidFilter = ALL) -> list[e.Effect]:
        fetch = self.repo.fetch
        self.feed(e.SnapshotVerified(fetch=fetch, rev=rev(number), sends=True))
        self.stored()
        return self.feed(e.SnapshotDelivered(fetch=fetch, rev=rev(number), data=data(number), covers=covers))


# --- every state beside every event -----------------------------------------------------------------------------------

EVENTS: dict[type, Callable[[Driven], e.Event]] = {
    e.FrameSeen: lambda d: seen(50, 50),
    e.Proved: lambda d: e.Proved(event=commit(40)),
    e.Invalid: lambda d: e.Invalid(seq=40, rev=rev(40), reason="bad_signature"),
    e.Account: lambda d: e.Account(seq=50, active=False, status="deactivated", time_us=5),
    e.IdentitySeen: lambda d: e.IdentitySeen(seq=50, handle="h.example", time_us=5),
    e.IdentityLearnt: lambda d: e.IdentityLearnt(handle="h.example", pds="https://pds.example", time_us=5),
    e.IdentityFailed: lambda d: e.IdentityFailed(),
    e.LookupFailed: lambda d: e.LookupFailed(outcome=LifeEvent.GAVE_UP, reason="did_not_found"),
    e.ColumnsChanged: lambda d: e.ColumnsChanged(),
    e.RowStored: lambda d: e.RowStored(version=0),
    e.Acknowledged: lambda d: e.Acknowledged(token=e.LiveToken(DID, 999)),
    e.Refused: lambda d: e.Refused(token=e.LiveToken(DID, 999)),
    e.Withdrawn: lambda d: e.Withdrawn(token=e.LiveToken(DID, 999)),
    e.Claimed: lambda d: e.Claimed(),
    e.SnapshotVerified: lambda d: e.SnapshotVerified(fetch=d.repo.fetch, rev=rev(60), sends=True),
    e.SnapshotDelivered: lambda d: e.SnapshotDelivered(fetch=d.repo.fetch, rev=rev(60), data=data(60), covers=ALL),
    e.SnapshotStopped: lambda d: e.SnapshotStopped(fetch=d.repo.fetch),
    e.FetchFailed: lambda d: e.FetchFailed(fetch=d.repo.fetch, outcome=LifeEvent.ATTEMPT_FAILED, reason="timeout"),
    e.StatusLearnt: lambda d: e.StatusLearnt(active=False, status="takendown", time_us=5, asked_before_event=False),
    e.NewerRev: lambda d: e.NewerRev(rev=rev(70)),
    e.CheckAnswered: lambda d: e.CheckAnswered(mark=d.repo.check_mark),
    e.CheckUnanswerable: lambda d: e.CheckUnanswerable(reason="host_down"),
    e.BufferOverflow: lambda d: e.BufferOverflow(events=()),
    e.IngesterBehind: lambda d: e.IngesterBehind(),
    e.OpenFramesRelief: lambda d: e.OpenFramesRelief(),
    e.ResyncAsked: lambda d: e.ResyncAsked(),
    e.FilterChanged: lambda d: e.FilterChanged(wanted=SOME),
    e.Removed: lambda d: e.Removed(),
}

SITUATIONS = (
    "discovered",
    "pending",
    "fetching",
    "draining",
    "fresh",
    "synced",
    "desynced",
    "failed",
    "inactive",
    "quarantined",
)

# The state after each event, in the order of SITUATIONS; '.' is: as before. fetching, draining and fresh are all `active`.
TABLE: dict[type, str] = {
    e.FrameSeen: ". . . . . . . . . .",
    e.Proved: ". . . desynced . desynced . . . .",
    e.Invalid: ". . . . desynced . . . . .",
    e.Account: " ".join(["inactive"] * 10),
    e.IdentitySeen: ". . . . . . . . . .",
    e.IdentityLearnt: "pending . . . . . . . . .",
    e.IdentityFailed: ". . . . desynced . . . . .",
    e.LookupFailed: "quarantined . . . . . . . . .",
    e.ColumnsChanged: ". . . . . . . . . .",
    e.RowStored: ". . . . . . . . . .",
    e.Acknowledged: ". . . . . . . . . .",
    e.Refused: ". . . . . . . . . .",
    e.Withdrawn: ". . . . . . . . . .",
    e.Claimed: " ".join(["active"] * 10),
    e.SnapshotVerified: ". . . . . . . . . .",
    e.SnapshotDelivered: ". . synced . . . . . . .",
    e.SnapshotStopped: ". . . . . . . . . .",
    e.FetchFailed: ". . failed . . . . . . .",
    e.StatusLearnt: " ".join(["inactive"] * 10),
    e.NewerRev: ". . . desynced desynced desynced . . . .",
    e.CheckAnswered: ". . . . . . . . . .",
    e.CheckUnanswerable: ". . . . . desynced . . pending .",
    e.BufferOverflow: ". . . desynced desynced . . . . .",
    e.IngesterBehind: ". . . desynced . desynced . . . .",
    e.OpenFramesRelief: ". . . desynced . desynced . . . .",
    e.ResyncAsked: ". . . desynced desynced desynced pending pending . pending",
    e.FilterChanged: ". . . . . . . . . .",
    e.Removed: ". . . . . . . . . .",
}


def situation(name: str) -> Driven:
    match name:
        case "fetching":
            driven = Driven(S.PENDING)
            driven.claim()
        case "draining":
            driven = Driven(S.PENDING)
            driven.claim()
            driven.prove(commit(21, since=20))
            driven.deliver(20)
        case "fresh":
            driven = Driven(known=False)
            driven.feed(seen(1, is_first=True))
        case _:
            driven = Driven(RepoState(name))
    return driven


def unproved(driven: Driven) -> None:
    """A frame was given to verification before the repo came to its state."""
    driven.repo._proving[40] = (rev(40), False)


def test_every_event_is_in_the_table() -> None:
    assert set(EVENTS) == set(TABLE) == set(get_args(e.Event))
    states = {driven.repo.state for driven in map(situation, SITUATIONS)}
    assert states == set(S)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", SITUATIONS)
def test_each_state_answers_each_event(name: str, kind: type) -> None:
    driven = situation(name)
    if kind in (e.Proved, e.Invalid):
        unproved(driven)
    before = driven.repo.state
    driven.feed(EVENTS[kind](driven))
    expected = TABLE[kind].split()[SITUATIONS.index(name)]
    assert driven.repo.state == (before if expected == "." else expected)


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_is_stored_is_put_first(name: str) -> None:
    for kind, make in EVENTS.items():
        driven = situation(name)
        if kind in (e.Proved, e.Invalid):
            unproved(driven)
        before = driven.repo.facts
        effects = driven.feed(make(driven))
        stores = [index for index, each in enumerate(effects) if isinstance(each, e.Store)]
        assert stores in ([], [0])
        if stores:
            assert effects[0].facts == driven.repo.facts  # type: ignore[union-attr]
        elif kind is not e.Removed:
            assert driven.repo.facts == before


# --- the chain --------------------------------------------------------------------------------------------------------


def test_a_commit_follows_the_last_accepted_and_is_stored_when_acknowledged() -> None:
    driven = Driven()
    driven.prove(commit(11))
    driven.prove(commit(12))
    assert driven.offered() == [11, 12]
    assert driven.repo.facts.rev == rev(10)
    assert driven.done() == []
    driven.acknowledge()
    assert (driven.repo.facts.rev, driven.done()) == (rev(11), [11])
    driven.acknowledge()
    assert (driven.repo.facts.rev, driven.repo.facts.data, driven.done()) == (rev(12), data(12), [11, 12])


def test_an_acknowledgement_out_of_order_never_lets_the_stored_rev_pass() -> None:
    driven = Driven()
    driven.prove(commit(11))
    driven.prove(commit(12))
    driven.acknowledge(1)
    assert (driven.repo.facts.rev, driven.done()) == (rev(10), [12])


@pytest.mark.parametrize("bad", [commit(12, since=11), commit(11, prev=9), commit(11, since=None), sync(11, of=7)])
def test_a_break_of_the_chain_desyncs(bad: LiveEvent) -> None:
    driven = Driven()
    effects = driven.prove(bad)
    assert e.Desync(reason="chain", refetches=1) in effects
    assert driven.repo.facts.state is S.DESYNCED
    assert driven.repo.facts.rev_heard == bad.rev
    assert driven.done() == [bad.seq]


def test_a_known_rev_is_skipped_and_nothing_else_happens() -> None:
    driven = Driven()
    driven.prove(commit(10))
    driven.prove(commit(9))
    assert (driven.repo.state, driven.offered(), driven.done(), driven.of(e.Store)) == (S.SYNCED, [], [10, 9], [])


def test_a_sync_with_the_same_data_advances_the_rev() -> None:
    driven = Driven()
    driven.prove(sync(11, of=10))
    assert (driven.repo.facts.rev, driven.repo.facts.data, driven.done()) == (rev(11), data(10), [11])


def test_a_commit_without_wanted_operations_waits_for_those_before_it_and_its_frame_does_not() -> None:
    driven = Driven()
    driven.prove(commit(11))
    driven.prove(commit(12, operations=0))
    assert (driven.repo.facts.rev, driven.done()) == (rev(10), [12])
    driven.acknowledge()
    assert (driven.repo.facts.rev, driven.done()) == (rev(12), [12, 11])


# --- brand-new repos --------------------------------------------------------------------------------------------------


def test_a_brand_new_repo_is_stored_active_then_synced_when_its_first_commit_is_delivered() -> None:
    driven = Driven(known=False)
    driven.feed(seen(1, is_first=True))
    assert (driven.repo.facts.state, driven.done()) == (S.ACTIVE, [1])
    assert not driven.of(e.Verify)
    driven.feed(e.IdentityLearnt(handle=None, pds="https://pds.example", time_us=1))
    assert driven.of(e.Verify) == [e.Verify(seq=1, frame="frame 1")]
    driven.feed(e.Proved(event=commit(1, since=None)))
    assert driven.offered() == []  # not before its row says that something was sent
    driven.stored()
    assert driven.offered() == [1]
    assert driven.repo.facts.state is S.ACTIVE
    driven.acknowledge()
    facts = driven.repo.facts
    assert (facts.state, facts.rev, facts.covers, facts.touched) == (S.SYNCED, rev(1), "", True)
    assert driven.done() == [1]


def test_no_frame_waits_for_a_resolver() -> None:
    driven = Driven(known=False)
    driven.feed(seen(1, is_first=True), seen(2), e.IdentityFailed())
    assert driven.done() == [1, 2]
    assert (driven.repo.facts.state, driven.repo.facts.reason) == (S.DESYNCED, "identity")
    assert driven.buffer.operations == 0


def test_an_unknown_repo_with_a_past_is_discovered_and_the_rev_is_remembered() -> None:
    driven = Driven(known=False)
    driven.feed(seen(7))
    assert (driven.repo.facts.state, driven.repo.facts.rev_heard, driven.done()) == (S.DISCOVERED, rev(7), [7])


def test_account_and_identity_do_not_make_a_repo_known() -> None:
    driven = Driven(known=False)
    driven.feed(
        e.Account(seq=1, active=True, status="", time_us=1), e.IdentitySeen(seq=2, handle="h.example", time_us=1)
    )
    assert driven.effects == [e.Done(seq=1), e.Done(seq=2)]


# --- fetching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [S.DISCOVERED, S.PENDING, S.FAILED, S.DESYNCED, S.QUARANTINED])
def test_a_frame_that_a_fetch_will_contain_is_dropped_and_its_rev_stored(state: RepoState) -> None:
    driven = Driven(state)
    driven.feed(seen(12))
    assert (driven.done(), driven.of(e.Verify), driven.repo.facts.rev_heard) == ([12], [], rev(12))
    assert len(driven.of(e.Store)) == 1


def test_frames_buffered_before_end_are_done_and_late_ones_wait_for_their_acknowledgement() -> None:
    driven = Driven(S.PENDING)
    driven.claim()
    driven.prove(commit(21))
    assert driven.done() == [21]
    driven.deliver(20)
    driven.prove(commit(22))
    assert (driven.offered(), driven.done()) == ([21, 22], [21])
    assert driven.repo.facts.state is S.ACTIVE
    driven.acknowledge()
    assert (driven.repo.facts.state, driven.done()) == (S.SYNCED, [21])
    driven.acknowledge()
    assert driven.done() == [21, 22]


def test_the_drain_skips_what_the_snapshot_has() -> None:
    driven = Driven(S.PENDING)
    driven.claim()
    for number in (19, 20, 21):
        driven.prove(commit(number))
    driven.deliver(20)
    assert driven.offered() == [21]


def test_an_overflow_means_another_fetch_and_the_back_off_grows() -> None:
    driven = Driven(S.PENDING, buffer=LiveBuffer(max_operations=2, max_per_repo=2))
    for turn in (1, 2):
        driven.claim()
        for number in (21, 22, 23):
            driven.prove(commit(number, seq=turn * 100 + number))
        effects = driven.deliver(23)
        assert e.FetchAgain(reason="overflow", refetches=turn) in effects
        assert (driven.repo.facts.state, driven.repo.facts.reason) == (S.PENDING, "overflow")
    assert driven.offered() == []
    assert len(driven.done()) == 6


def test_another_repos_overflow_is_passed_on() -> None:
    buffer: LiveBuffer[LiveEvent] = LiveBuffer(max_operations=3, max_per_repo=3)
    other = commit(1, operations=2)
    buffer.add("did:plc:b", other, 2)
    driven = Driven(S.PENDING, buffer=buffer)
    driven.claim()
    driven.prove(commit(21))
    driven.prove(commit(22))
    assert driven.of(e.Overflowed) == [e.Overflowed(did="did:plc:b", events=(other,))]


def test_a_snapshot_waits_for_the_live_operations_in_flight() -> None:
    driven = Driven()
    driven.prove(commit(11))
    driven.prove(commit(13))  # a hole: desynced
    driven.stored()
    fetch = driven.claim()
    driven.feed(e.SnapshotVerified(fetch=fetch, rev=rev(13), sends=True))
    driven.stored()
    assert driven.of(e.SendSnapshot) == []
    driven.acknowledge()
    assert driven.of(e.SendSnapshot) == [e.SendSnapshot(fetch=fetch)]


def test_a_snapshot_is_stored_as_begun_before_it_is_sent() -> None:
    driven = Driven(S.PENDING)
    fetch = driven.claim()
    driven.feed(e.SnapshotVerified(fetch=fetch, rev=rev(20), sends=True))
    assert (driven.repo.facts.rev_begun, driven.of(e.SendSnapshot)) == (rev(20), [])
    driven.stored()
    assert driven.of(e.SendSnapshot) == [e.SendSnapshot(fetch=fetch)]


def test_a_snapshot_below_a_delivered_rev_is_a_rollback() -> None:
    driven = Driven(S.PENDING)
    fetch = driven.claim()
    driven.feed(e.SnapshotVerified(fetch=fetch, rev=rev(9), sends=True, is_last_try=True))
    assert driven.of(e.RefuseSnapshot) == [e.RefuseSnapshot(fetch=fetch, reason="rollback")]


def test_a_snapshot_older_than_was_heard_is_refused_and_taken_at_last_with_a_check() -> None:
    driven = Driven(S.PENDING)
    driven.feed(seen(30))
    fetch = driven.claim()
    driven.feed(e.SnapshotVerified(fetch=fetch, rev=rev(20), sends=True))
    assert driven.of(e.RefuseSnapshot) == [e.RefuseSnapshot(fetch=fetch, reason="outdated")]
    driven.feed(e.SnapshotVerified(fetch=fetch, rev=rev(20), sends=True, is_last_try=True))
    driven.stored()
    assert driven.repo.facts.check_due == "commit"
    assert driven.of(e.SendSnapshot) == [e.SendSnapshot(fetch=fetch)]


@pytest.mark.parametrize("event", [e.NewerRev(rev=rev(50)), e.ResyncAsked()])
def test_asked_again_while_active_fetches_again_after_this_one(event: e.Event) -> None:
    driven = Driven(S.PENDING)
    driven.claim()
    driven.feed(event)
    assert driven.repo.state is S.ACTIVE
    driven.deliver(50)
    assert driven.repo.facts.state is S.PENDING
    assert driven.repo.facts.rev == rev(50)


def test_a_filter_that_was_narrower_meanwhile_is_not_covered() -> None:
    driven = Driven(S.PENDING, wanted=ALL)
    driven.claim()
    driven.feed(e.FilterChanged(wanted=SOME), e.FilterChanged(wanted=ALL))
    driven.deliver(20, covers=ALL)
    assert (driven.repo.facts.state, driven.repo.facts.reason) == (S.PENDING, "filter")


def test_narrowing_is_remembered_and_widening_fetches() -> None:
    driven = Driven(wanted=ALL)
    driven.feed(e.FilterChanged(wanted=SOME))
    assert (driven.repo.facts.state, driven.repo.facts.covers) == (S.SYNCED, "com.a.")
    driven.feed(e.FilterChanged(wanted=ALL))
    assert (driven.repo.facts.state, driven.repo.facts.reason) == (S.PENDING, "filter")


# --- status and identity ----------------------------------------------------------------------------------------------


def account(seq: int, active: bool, time_us: int) -> e.Account:
    return e.Account(seq=seq, active=active, status="" if active else "deactivated", time_us=time_us)


def test_a_status_is_stored_before_it_is_told_and_its_frame_is_done_then() -> None:
    driven = Driven()
    effects = driven.feed(account(11, False, 5))
    assert isinstance(effects[0], e.Store)
    assert effects[0].is_urgent
    assert driven.done() == [11]
    assert driven.of(e.OfferAccount) == []
    driven.stored()
    assert len(driven.of(e.OfferAccount)) == 1
    assert driven.repo.facts.told is None
    driven.acknowledge()
    assert driven.repo.facts.told == AccountStatus(active=False, status="deactivated", time_us=5)


def test_a_status_follows_what_is_in_flight() -> None:
    driven = Driven()
    driven.prove(commit(11))
    driven.feed(account(12, True, 5))
    driven.stored()
    driven.prove(commit(13, since=11, prev=11))
    assert driven.of(e.OfferAccount) == []
    assert driven.offered() == [11]
    driven.acknowledge()
    assert len(driven.of(e.OfferAccount)) == 1
    assert driven.offered() == [11, 13]


def test_the_times_told_rise() -> None:
    driven = Driven()
    driven.feed(account(11, False, 100), account(12, True, 50))
    driven.stored()
    driven.acknowledge()
    told = [each.time_us for each in driven.effects if isinstance(each, e.OfferAccount)]
    assert told == [100, 101]


def test_an_untold_status_is_told_again_after_a_start() -> None:
    tell = AccountStatus(active=False, status="deleted", time_us=7)
    driven = Driven(facts=Facts(state=S.INACTIVE, tell=tell))
    (offer,) = driven.of(e.OfferAccount)
    assert isinstance(offer, e.OfferAccount)
    assert (offer.active, offer.status, offer.time_us, offer.seq) == (False, "deleted", 7, 0)


def test_an_account_that_goes_stops_the_running_snapshot_and_is_told_when_that_has_stopped() -> None:
    driven = Driven(S.PENDING)
    fetch = driven.claim()
    driven.feed(e.SnapshotVerified(fetch=fetch, rev=rev(20), sends=True))
    driven.stored()
    effects = driven.feed(account(30, False, 5))
    assert e.StopSnapshot(fetch=fetch) in effects
    driven.stored()
    assert driven.of(e.OfferAccount) == []
    driven.feed(e.SnapshotStopped(fetch=fetch))
    assert len(driven.of(e.OfferAccount)) == 1
    driven.feed(e.SnapshotDelivered(fetch=fetch, rev=rev(20), data=data(20), covers=ALL))
    assert driven.repo.facts.state is S.INACTIVE


def test_a_verified_commit_of_an_inactive_repo_queues_a_status_check() -> None:
    driven = Driven(S.INACTIVE)
    driven.prove(commit(11))
    assert (driven.repo.facts.check_due, driven.done()) == ("status", [11])
    assert driven.of(e.CheckDue) == [e.CheckDue(what="status", mark=1)]


def test_an_answer_from_before_an_account_event_is_void_and_asked_again() -> None:
    driven = Driven()
    driven.feed(e.StatusLearnt(active=False, status="takendown", time_us=5, asked_before_event=True))
    assert (driven.repo.state, driven.repo.facts.check_due) == (S.SYNCED, "status")
    driven.stored()
    assert driven.of(e.OfferAccount) == []


def test_a_check_that_was_marked_again_meanwhile_stays_due() -> None:
    driven = Driven(S.INACTIVE)
    driven.prove(commit(11))
    driven.prove(commit(12))
    driven.feed(e.CheckAnswered(mark=1))
    assert driven.repo.facts.check_due == "status"
    driven.feed(e.CheckAnswered(mark=2))
    assert driven.repo.facts.check_due is None


def test_a_mark_is_taken_up_after_a_start() -> None:
    driven = Driven(facts=Facts(state=S.INACTIVE, check_due="status"))
    assert driven.of(e.CheckDue) == [e.CheckDue(what="status", mark=1)]


def test_an_invalid_message_with_a_newer_rev_queues_a_look_at_the_newest_commit() -> None:
    driven = Driven()
    driven.feed(seen(9), e.Invalid(seq=9, rev=rev(9), reason="bad_signature"))
    assert not driven.of(e.CheckDue)
    driven.feed(seen(11), e.Invalid(seq=11, rev=rev(11), reason="bad_signature"))
    after = (driven.repo.facts.check_due, driven.repo.state.value, driven.done())
    assert after == ("commit", "synced", [9, 11])


def test_a_resync_tells_the_status_again_before_its_snapshot() -> None:
    told = AccountStatus(active=True, status="", time_us=7)
    facts = Facts(state=S.SYNCED, rev=rev(10), data=data(10), covers="", told=told, tell=told, touched=True)
    driven = Driven(facts=facts)
    driven.feed(e.ResyncAsked())
    fetch = driven.claim()
    driven.feed(e.SnapshotVerified(fetch=fetch, rev=rev(10), sends=True))
    driven.stored()
    assert len(driven.of(e.OfferAccount)) == 1
    assert driven.of(e.SendSnapshot) == []
    driven.acknowledge()
    assert driven.of(e.SendSnapshot) == [e.SendSnapshot(fetch=fetch)]


def test_a_resync_tells_an_inactive_repo_and_fetches_nothing() -> None:
    told = AccountStatus(active=False, status="deleted", time_us=7)
    driven = Driven(facts=Facts(state=S.INACTIVE, told=told, tell=told))
    driven.feed(e.ResyncAsked())
    driven.stored()
    (offer,) = driven.of(e.OfferAccount)
    assert isinstance(offer, e.OfferAccount)
    assert (offer.status, offer.time_us, driven.repo.state) == ("deleted", 8, S.INACTIVE)


def test_a_status_that_an_ingester_rejects_quarantines_and_is_told_again_at_the_next_fetch() -> None:
    driven = Driven()
    driven.feed(account(11, True, 5))
    driven.stored()
    (offer,) = driven.of(e.OfferAccount)
    assert isinstance(offer, e.OfferAccount)
    driven.feed(e.Refused(token=offer.token))
    assert (driven.repo.facts.state, driven.repo.facts.reason) == (S.QUARANTINED, "rejected")
    driven.claim()
    assert len(driven.of(e.OfferAccount)) == 2


def test_an_identity_is_told_when_its_document_was_read() -> None:
    driven = Driven()
    driven.feed(e.IdentitySeen(seq=11, handle="hint.example", time_us=5))
    driven.stored()
    assert (driven.done(), driven.of(e.OfferIdentity)) == ([11], [])
    driven.feed(e.IdentityLearnt(handle="true.example", pds="https://pds.example", time_us=6))
    driven.stored()
    (offer,) = driven.of(e.OfferIdentity)
    assert isinstance(offer, e.OfferIdentity)
    assert (offer.handle, offer.pds, offer.time_us) == ("true.example", "https://pds.example", 5)


def test_a_silent_directory_does_not_keep_an_identity_from_being_told() -> None:
    driven = Driven()
    driven.feed(e.IdentitySeen(seq=11, handle="hint.example", time_us=5))
    driven.stored()
    driven.feed(e.IdentityFailed())
    (offer,) = driven.of(e.OfferIdentity)
    assert isinstance(offer, e.OfferIdentity)
    assert offer.handle == "hint.example"


def test_an_identity_that_was_not_told_is_resolved_again_after_a_start() -> None:
    tell = TellIdentity(handle="h.example", pds=None, time_us=7)
    driven = Driven(facts=Facts(state=S.PENDING, tell_identity=tell))
    assert driven.of(e.ResolveIdentity) == [e.ResolveIdentity()]


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_relief_desyncs_frees_the_frames_and_takes_back_what_is_not_sent() -> None:
    driven = Driven()
    driven.prove(commit(11))
    driven.prove(commit(12))
    effects = driven.feed(e.OpenFramesRelief())
    assert driven.done() == [11, 12]
    assert driven.repo.facts.reason == "open_frames"
    tokens = tuple(each.token for each in driven.effects if isinstance(each, e.Offer))
    assert e.Withdraw(tokens=tokens) in effects
    driven.feed(e.Withdrawn(token=tokens[1]))
    driven.acknowledge()
    assert driven.repo.facts.rev == rev(11)


def test_an_offer_that_does_not_fit_desyncs_and_is_not_in_flight() -> None:
    driven = Driven()
    (offer,) = [each for each in driven.prove(commit(11)) if isinstance(each, e.Offer)]
    driven.feed(e.IngesterBehind(token=offer.token))
    assert (driven.repo.facts.state, driven.repo.facts.reason) == (S.DESYNCED, "ingester_behind")
    fetch = driven.claim()
    driven.feed(e.SnapshotVerified(fetch=fetch, rev=rev(11), sends=True))
    driven.stored()
    assert driven.of(e.SendSnapshot) == [e.SendSnapshot(fetch=fetch)]


def test_a_refused_offer_of_an_inactive_repo_frees_its_frame_and_what_waited_behind_it() -> None:
    driven = Driven()
    driven.prove(commit(11))
    driven.feed(account(12, True, 5))
    driven.prove(commit(13, since=11, prev=11))  # waits behind the status
    driven.feed(account(14, False, 6))
    (offer,) = [each for each in driven.effects if isinstance(each, e.Offer)]
    driven.feed(e.IngesterBehind(token=offer.token))
    driven.stored()
    driven.acknowledge(1)
    assert (driven.repo.state, sorted(driven.done()), driven.offered()) == (S.INACTIVE, [11, 12, 13, 14], [11])


def test_the_statuses_that_wait_are_bounded_and_the_newest_is_told() -> None:
    driven = Driven()
    driven.prove(commit(11))
    for seq in range(100, 200):
        driven.feed(account(seq, seq % 2 == 0, seq))
    driven.stored()
    for _ in range(17):
        driven.acknowledge()
    told = [each.time_us for each in driven.effects if isinstance(each, e.OfferAccount)]
    assert len(told) == 16
    assert told[-1] == 199
    assert driven.repo.facts.told == driven.repo.facts.tell


def test_a_newer_rev_that_the_stream_already_has_is_looked_at_again_later() -> None:
    driven = Driven()
    driven.feed(seen(11), e.NewerRev(rev=rev(11)))
    assert (driven.repo.state, driven.repo.facts.check_due) == (S.SYNCED, "commit")
    driven.feed(e.Proved(event=commit(11)), e.NewerRev(rev=rev(11)))
    assert driven.repo.state is S.SYNCED


def test_a_newer_rev_whose_frame_proves_nothing_is_news_to_the_next_check() -> None:
    driven = Driven()
    driven.feed(seen(11), e.NewerRev(rev=rev(11)), e.Invalid(seq=11, rev=rev(11), reason="invalid_proof"))
    facts = driven.repo.facts
    assert (facts.state, facts.check_due) == (S.SYNCED, "commit")
    assert rev(11) > max(facts.rev or "", facts.rev_heard or ""), "what a check takes for news"
    driven.feed(e.CheckAnswered(mark=driven.repo.check_mark), e.NewerRev(rev=rev(11)))
    assert driven.repo.state is S.DESYNCED


def test_a_removed_repo_lets_frames_pass_and_is_stored_no_more() -> None:
    driven = Driven()
    driven.prove(commit(11))
    driven.feed(seen(12), e.Removed())
    before = len(driven.of(e.Store))
    driven.feed(e.Proved(event=commit(12)), seen(13), account(14, False, 5))
    assert sorted(driven.done()) == [11, 12, 13, 14]
    driven.acknowledge()
    assert len(driven.of(e.Store)) == before


def test_a_repo_at_rest_can_be_forgotten_and_one_in_work_cannot() -> None:
    driven = Driven()
    idle = [driven.repo.is_idle]
    driven.prove(commit(11))
    idle.append(driven.repo.is_idle)
    driven.acknowledge()
    idle.append(driven.repo.is_idle)  # its rev is not stored
    driven.stored()
    idle.append(driven.repo.is_idle)
    assert idle == [True, False, False, True]


def test_facts_and_rows_say_the_same() -> None:
    facts = Facts(
        state=S.INACTIVE,
        reason="why",
        rev=rev(1),
        data=data(1),
        rev_begun=rev(1),
        rev_heard=rev(2),
        covers="com.a.",
        told=AccountStatus(active=True, status="", time_us=1),
        tell=AccountStatus(active=False, status="deleted", time_us=2),
        told_identity_us=3,
        tell_identity=TellIdentity(handle="h.example", pds="https://pds.example", time_us=4),
        check_due="commit",
        touched=True,
    )
    row = RepoRow(did=DID)
    put_facts(facts, row)
    assert facts_of_row(row) == facts
