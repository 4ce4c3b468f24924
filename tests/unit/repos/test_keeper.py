"""The keeper: repos in memory, counts that add up, rows that came late, effects in their order."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from relay.atproto.nsid_filter import NsidFilter
from relay.model import Identity
from relay.model import RepoState as S
from relay.repos import live_events as e
from relay.repos.checkpointer import Change, Checkpointer, CursorChange, Stored
from relay.repos.failures import RetryPolicy
from relay.repos.handover import LiveEvent
from relay.repos.keeper import Keeper
from relay.repos.lifecycle import Event
from relay.repos.resident import Resident
from relay.runtime.clock import ManualClock
from relay.store.repos import RepoRow

WANTED = NsidFilter.parse(("app.bsky.",))
POLICY = RetryPolicy(max_retries=2, first_delay_s=1.0, breaker_s=5.0, give_up_on_silent_hosts=False)
DID = "did:plc:a"


class Shelf:
    """Takes changes as the checkpointer does, and stores when told."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def put(self, change: Change) -> None:
        change.row = copy.copy(change.row)
        self.changes.append(change)

    def store(self, corrected: dict[str, S] | None = None) -> Stored:
        changes, self.changes = self.changes, []
        return Stored(changes, corrected or {})


class Hands:
    """Stream, outlet and fetching: notes what is asked for; takes offers as long as there is `room`."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.room = 1000

    def verify(self, did: str, seq: int, frame: Any) -> None:
        self.asked.append(("verify", did, seq))

    def done(self, seq: int) -> None:
        self.asked.append(("done", seq))

    def offer(self, did: str, payload: Any, operations: int, token: e.LiveToken, received_at: float) -> bool:
        self.room -= 1
        if self.room >= 0:
            self.asked.append(("offer", payload, token))
        return self.room >= 0

    def tell(self, did: str, payload: bytes, token: e.LiveToken) -> None:
        self.asked.append(("tell", did, token))

    def withdraw(self, did: str, tokens: Sequence[e.LiveToken]) -> list[e.LiveToken]:
        return []

    def send_snapshot(self, resident: Resident, fetch: int) -> None:
        self.asked.append(("send", resident.did, fetch))

    def refuse_snapshot(self, resident: Resident, fetch: int, reason: str) -> None:
        self.asked.append(("refuse", resident.did, fetch, reason))

    def stop_snapshot(self, resident: Resident, fetch: int) -> None:
        self.asked.append(("stop", resident.did, fetch))

    def look_up(self, resident: Resident) -> None:
        self.asked.append(("look up", resident.did))

    def done_seqs(self) -> list[int]:
        return [asked[1] for asked in self.asked if asked[0] == "done"]


def made(batch: int | None = 1, *, follows: bool = False, resting_kept: int = 10) -> tuple[Keeper, Shelf, Hands]:
    shelf, hands = Shelf(), Hands()
    keeper = Keeper(
        cast(Checkpointer, shelf), ManualClock(), batch=batch, wanted=WANTED, policy=POLICY, buffer_operations=100,
        follows=follows, resting_kept=resting_kept,
    )  # fmt: skip
    keeper.stream = keeper.outlet = keeper.fetching = hands
    return keeper, shelf, hands


def a_row(state: S = S.DISCOVERED, **columns: Any) -> RepoRow:
    values: dict[str, Any] = {"did": DID, "state": state, "batch": 1} | columns
    return RepoRow(**values)


def a_synced_row(**columns: Any) -> RepoRow:
    return a_row(S.SYNCED, **{"rev": "3k1", "data": b"1" * 36, "covers": "app.bsky.", "touched": True} | columns)


def a_commit(seq: int, rev: str, since: str, *, before: bytes, after: bytes, operations: int = 1) -> LiveEvent:
    return LiveEvent(
        seq=seq, is_sync=False, rev=rev, since=since, prev_data=before * 36, data=after * 36, operations=operations,
        payload=f"ops of {rev}",
    )  # fmt: skip


def seen(keeper: Keeper, resident: Resident, event: LiveEvent) -> None:
    keeper.feed(resident, e.FrameSeen(seq=event.seq, kind="commit", rev=event.rev, is_first=False))
    keeper.feed(resident, e.Proved(event=event))


def test_counts_follow_a_repo_from_its_discovery_to_synced() -> None:
    keeper, shelf, _ = made()
    keeper.counts[S.DISCOVERED] = keeper.targets[S.DISCOVERED] = 1
    (resident,) = keeper.take([a_row()])
    keeper.feed(resident, e.IdentityLearnt(handle=None, pds="https://h", time_us=1))
    assert +keeper.counts == +keeper.targets == Counter({S.PENDING: 1})
    keeper.feed(resident, e.Claimed())
    assert +keeper.counts == +keeper.targets == Counter({S.ACTIVE: 1})
    keeper.feed(resident, e.SnapshotVerified(fetch=1, rev="3k1", sends=False))
    keeper.feed(resident, e.SnapshotDelivered(fetch=1, rev="3k1", data=b"1" * 36, covers=WANTED))
    assert +keeper.counts == +keeper.targets == Counter({S.SYNCED: 1})
    assert +keeper.counts_put == +keeper.targets_put, "of a target"
    assert keeper.counts_put[S.SYNCED] == 1, "counted before it is stored"
    keeper.stored(shelf.store())
    keeper.release(resident)
    assert not keeper.residents


def test_repos_of_another_batch_are_no_targets() -> None:
    keeper, _, _ = made(batch=2)
    (resident,) = keeper.take([a_row()])
    keeper.feed(resident, e.IdentityLearnt(handle=None, pds="https://h", time_us=1))
    assert keeper.counts[S.PENDING] == 1
    assert not +keeper.targets


def test_a_row_changed_after_it_was_put_is_stored_as_it_was() -> None:
    keeper, shelf, _ = made()
    (resident,) = keeper.take([a_row()])
    keeper.feed(resident, e.IdentityLearnt(handle=None, pds="https://h", time_us=1))
    resident.row.host = "later"
    (change,) = shelf.changes
    assert change.row is not None
    assert change.row.host is None


def test_what_waited_for_a_change_runs_when_it_is_stored_and_hears_another_state() -> None:
    keeper, shelf, _ = made()
    keeper.counts[S.PENDING] = keeper.targets[S.PENDING] = 1
    (resident,) = keeper.claimed([a_row(S.ACTIVE)], {})
    keeper.feed(resident, e.SnapshotVerified(fetch=1, rev="3k1", sends=False))
    heard: list[S | None] = []
    delivered = e.SnapshotDelivered(fetch=1, rev="3k1", data=b"1" * 36, covers=WANTED)
    keeper.feed(resident, delivered, then=heard.append)
    assert heard == []
    keeper.stored(shelf.store({DID: S.PENDING}))
    assert (heard, keeper.waiting) == ([S.PENDING], 0)
    assert +keeper.counts == +keeper.targets == Counter({S.PENDING: 1})


def test_what_goes_with_an_event_that_changes_nothing_is_stored_alone() -> None:
    keeper, shelf, _ = made()
    (resident,) = keeper.take([a_synced_row()])
    heard: list[S | None] = []
    failed = e.FetchFailed(fetch=7, outcome=Event.RELEASED, reason=None)
    identity = Identity(did=DID, signing_key="z", pds="https://h", handle=None, resolved_at=1.0)
    keeper.feed(resident, failed, identity=identity, then=heard.append)
    (change,) = shelf.changes
    assert (change.row, change.identity) == (None, identity)
    keeper.stored(shelf.store())
    assert heard == [None]


def test_a_claim_of_a_repo_that_is_busy_begins_its_fetch_anew() -> None:
    keeper, shelf, hands = made()
    keeper.counts[S.PENDING] = 1
    (resident,) = keeper.claimed([a_row(S.ACTIVE)], {})
    assert keeper.claimed([a_row(S.ACTIVE)], {}) == [resident]
    assert hands.asked == [("stop", DID, 1)]
    assert resident.life.fetch == 2
    keeper.stored(shelf.store())
    assert keeper.residents


def test_an_answer_that_is_older_than_what_was_stored_since_is_left_out() -> None:
    keeper, shelf, _ = made()
    (resident,) = keeper.take([a_row()])
    first = keeper.begin_look()
    keeper.feed(resident, e.IdentityLearnt(handle=None, pds="https://h", time_us=1))
    keeper.stored(shelf.store())
    second = keeper.begin_look()
    other = RepoRow(did="did:plc:b")
    assert keeper.end_look(first, [a_row(), other]) == [other]
    row = a_row(S.PENDING)
    assert keeper.end_look(second, [row, other]) == [row, other]


def test_a_repo_at_rest_stays_for_the_stream_and_gives_way_to_a_newer_row() -> None:
    keeper, _, _ = made(follows=True)
    (resident,) = keeper.take([a_synced_row()])
    keeper.release(resident)
    assert keeper.residents == {DID: resident}
    assert keeper.busy == 0
    (again,) = keeper.take([a_synced_row(rev="3k2")])
    assert again is not resident
    assert again.row.rev == "3k2"


def test_rows_that_others_wrote_are_forgotten_at_rest_and_told_to_those_in_work() -> None:
    keeper, _, _ = made(follows=True)
    rests, works = "did:plc:rests", "did:plc:works"
    (resting,) = keeper.take([a_synced_row(did=rests)])
    keeper.release(resting)
    (working,) = keeper.take([a_synced_row(did=works)])
    look = keeper.begin_look()
    assert keeper.others_wrote([rests, works, "did:plc:unknown"]) == [working]
    assert keeper.residents == {works: working}
    late = [a_synced_row(did=rests), a_synced_row(did="did:plc:other")]
    assert [row.did for row in keeper.end_look(look, late)] == ["did:plc:other"], "the answer may be from before"


def test_another_filter_reaches_those_in_work_at_once_and_those_at_rest_when_they_are_loaded() -> None:
    keeper, _, _ = made(follows=True)
    rests, works = "did:plc:rests", "did:plc:works"
    covers = ",".join(WANTED.patterns)
    (resting,) = keeper.take([a_synced_row(did=rests, covers=covers)])
    keeper.release(resting)
    (working,) = keeper.take([a_synced_row(did=works, covers=covers)])
    keeper.change_filter(NsidFilter.parse(("app.bsky.feed.",)))
    assert (working.row.state, working.row.covers) == (S.SYNCED, "app.bsky.feed.")
    keeper.change_filter(NsidFilter(()))
    assert (working.row.state, working.row.reason) == (S.PENDING, "filter")
    (loaded,) = keeper.take([a_synced_row(did=rests, covers=covers)])
    assert (loaded.row.state, loaded.row.reason) == (S.PENDING, "filter")


def test_as_many_stay_at_rest_as_may_and_not_for_long() -> None:
    keeper, _, _ = made(follows=True, resting_kept=2)
    for number in range(4):
        (resident,) = keeper.take([a_synced_row(did=f"did:plc:{number}")])
        keeper.release(resident)
    assert sorted(keeper.residents) == ["did:plc:2", "did:plc:3"]
    clock = cast(ManualClock, keeper._clock)
    clock.advance(61.0)
    keeper.look_after_resting()
    assert not keeper.residents


def test_operations_that_do_not_fit_end_the_offers_and_the_repo_is_fetched_later() -> None:
    keeper, _, hands = made(follows=True)
    (resident,) = keeper.take([a_synced_row()])
    hands.room = 1
    seen(keeper, resident, a_commit(1, "3k2", "3k1", before=b"1", after=b"2"))
    seen(keeper, resident, a_commit(2, "3k3", "3k2", before=b"2", after=b"3"))
    assert [asked[1] for asked in hands.asked if asked[0] == "offer"] == ["ops of 3k2"]
    assert (resident.row.state, resident.row.reason) == (S.DESYNCED, "ingester_behind")
    assert sorted(hands.done_seqs()) == [1, 2]


def test_a_repo_that_does_not_hold_is_fetched_after_longer_and_longer() -> None:
    keeper, _, _ = made(follows=True)
    (resident,) = keeper.take([a_synced_row()])
    waits = []
    for _ in range(4):
        keeper.feed(resident, e.ResyncAsked())
        waits.append(resident.row.next_attempt_at - keeper._clock.now())
        keeper.feed(resident, e.Claimed())
        fetch = resident.life.fetch
        keeper.feed(resident, e.SnapshotVerified(fetch=fetch, rev="3k1", sends=False))
        delivered = e.SnapshotDelivered(fetch=fetch, rev="3k1", data=b"1" * 36, covers=WANTED)
        keeper.feed(resident, delivered)
    assert waits == [0.0, 1.0, 2.0, 4.0]


def test_a_repo_that_the_stream_made_known_gets_a_row() -> None:
    keeper, shelf, hands = made(follows=True, batch=None)
    resident = keeper.take_unknown(DID, 3)
    keeper.feed(resident, e.FrameSeen(seq=1, kind="commit", rev="3k1", is_first=False))
    (change,) = shelf.changes
    assert change.is_new
    assert change.row is not None
    assert (change.row.state, change.row.partition) == (S.DISCOVERED, 3)
    assert keeper.counts[S.DISCOVERED] == 1
    assert hands.done_seqs() == [1]
    keeper.feed(resident, e.FrameSeen(seq=2, kind="commit", rev="3k2", is_first=False))
    assert not shelf.changes[-1].is_new


def test_no_claim_can_take_a_brand_new_repo_while_its_own_first_commits_are_on_their_way() -> None:
    keeper, shelf, _ = made(follows=True, batch=None)
    resident = keeper.take_unknown(DID, 3)
    keeper.feed(resident, e.FrameSeen(seq=1, kind="commit", rev="3k1", is_first=True))
    (change,) = shelf.changes
    assert change.row is not None
    assert change.row.state is S.ACTIVE  # claims take what is pending, and a start fetches what was active
    assert keeper.counts[S.ACTIVE] == 1
    keeper.feed(resident, e.IdentityFailed())
    row = shelf.changes[-1].row
    assert row is not None
    assert row.state is S.DESYNCED


def test_a_did_without_a_row_leaves_nothing_behind() -> None:
    keeper, shelf, hands = made(follows=True)
    resident = keeper.take_unknown(DID, 3)
    keeper.feed(resident, e.Account(seq=1, active=False, status="deleted", time_us=1))
    keeper.release(resident)
    assert hands.done_seqs() == [1]
    assert not shelf.changes
    assert not keeper.residents


def test_a_removed_repo_lets_its_frames_pass() -> None:
    keeper, shelf, hands = made(follows=True)
    (resident,) = keeper.take([a_synced_row(tracked=False)])
    keeper.feed(resident, e.FrameSeen(seq=1, kind="commit", rev="3k2", is_first=False))
    assert hands.done_seqs() == [1]
    assert not shelf.changes


def test_a_cursor_is_put_behind_what_was_put_before() -> None:
    keeper, shelf, _ = made(follows=True)
    resident = keeper.take_unknown(DID, 3)
    keeper.feed(resident, e.FrameSeen(seq=9, kind="commit", rev="3k1", is_first=False))
    keeper.checkpoint(CursorChange(upstream="wss://u", seq=9, time_us=5))
    assert [change.cursor.seq if change.cursor else None for change in shelf.changes] == [None, 9]
