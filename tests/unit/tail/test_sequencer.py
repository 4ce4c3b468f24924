"""The sequencer's promises, one by one; `test_sequencer_simulation` looks for what nobody thought of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from relay.model import RepoState
from relay.repos import live_events as e
from relay.tail import dispatch, refresh
from relay.tail.inhand import position_of, seq_of
from relay.tail.messages import FrameResult, FramesVerified, Outcome, to_wire
from relay.tail.reader import GiveUp, IncidentFound, IncidentKind
from relay.tail.sequencer import CURSOR_S, LOADS_AHEAD, RELIEF_S, frame_slots
from tests.unit.tail import sequencer_world
from tests.unit.tail.sequencer_world import STATUS, World, bad_frame

S = RepoState


@pytest.fixture
def world() -> Iterator[World]:
    yield from make()


def make(**how: Any) -> Iterator[World]:
    world = World(**how)
    yield world
    world.settle()
    world.check_rest()
    world.close()


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature that fails is one: the world's own rule knows of no bound."""
    monkeypatch.setattr(World, "_check_invalid", lambda self, did, event: self._note(event.seq, event.reason))


def bring(world: World, *, loads: bool = True) -> None:
    """What was published is read, and the machines are told."""
    while world.pending:
        world.batch()
    while loads and world.loads:
        world.loaded()
    world.pump()


def prove(world: World) -> None:
    """The workers answer everything that they have."""
    world.pump()
    while any(world.work(worker.seat) for worker in world.workers):
        world.pump()


def state_of(world: World, did: str) -> RepoState:
    return world.homes[did].life.facts.state


def test_a_frame_is_proved_forwarded_and_done_when_acknowledged(world: World) -> None:
    did = world.dids[0]
    seq = world.emit(did, "commit", operations=2)
    bring(world)
    prove(world)
    assert world.outcome == {seq: "proved"}
    assert [(each[0], each[2].payload, each[2].operations) for each in world.lane] == [(did, b"<%d>" % seq * 2, 2)]
    world.clock.advance(CURSOR_S)
    world.pump()
    assert world.cursors == []
    world.acknowledged()
    world.pump()
    assert [cursor.seq for cursor in world.cursors] == [seq]


def test_a_batch_waits_for_the_rows_of_its_dids_and_those_behind_it_wait_too(world: World) -> None:
    first, second = world.dids[:2]
    for did in (first, second, first):
        world.emit(did, "commit")
        world.batch()
    assert [dids for dids, _ in world.loads] == [[first], [second]]
    world.loads.rotate(1)
    world.loaded()
    world.pump()
    assert world.fed == set()
    world.loaded()
    world.pump()
    assert len(world.fed) == 3


def test_batches_that_come_while_questions_are_out_are_asked_for_together(world: World) -> None:
    dids = world.dids[: LOADS_AHEAD + 2]
    for did in dids:
        world.emit(did, "commit")
        world.batch()
    world.pump()
    assert [asked for asked, _ in world.loads] == [[did] for did in dids[:LOADS_AHEAD]]
    world.loaded()
    world.pump()
    assert world.loads[-1][0] == dids[LOADS_AHEAD:]
    bring(world)
    assert len(world.fed) == len(dids)


def test_what_is_in_hand_is_pinned_and_nothing_else(world: World) -> None:
    did = world.dids[0]
    world.emit(did, "commit")
    world.emit(did, "commit")
    bring(world)
    assert +world.holds == {did: 1}
    prove(world)
    assert not +world.holds


def test_an_account_comes_behind_earlier_results_and_before_later_frames(world: World) -> None:
    did = world.dids[0]
    before = world.emit(did, "commit")
    told = world.emit(did, "account", active=False)
    after = world.emit(did, "commit")
    bring(world)
    assert world.fed == {before}
    prove(world)
    assert list(world.outcome) == [before, told, after]
    assert state_of(world, did) is S.INACTIVE
    assert world.homes[did].life.facts.check_due == "status"  # a commit of an inactive account


def test_a_commit_that_was_judged_by_a_narrower_filter_than_is_in_force_follows_nothing(world: World) -> None:
    """It is told of when its turn comes, perhaps after a claim whose snapshot has the wider filter."""
    did, other = world.dids[:2]
    world.sequencer.set_wanted(["com.example.one"])
    for each in (did, other):
        world.emit(each, "account", active=True)
    narrow = world.emit(did, "commit")
    bring(world)
    world.sequencer.set_wanted(["com.example.one", "com.example.two"])
    world.narrow.add(narrow)
    wide = world.emit(other, "commit")
    bring(world)
    prove(world)
    assert {narrow, wide} <= set(world.outcome)
    assert state_of(world, did) is S.DESYNCED
    assert state_of(world, other) is S.SYNCED


def test_a_commit_that_was_judged_by_a_wider_filter_is_taken(world: World) -> None:
    did = world.dids[0]
    world.emit(did, "account", active=True)
    world.emit(did, "commit")
    bring(world)
    world.sequencer.set_wanted(["com.example.one"])
    prove(world)
    assert state_of(world, did) is S.SYNCED


def test_an_account_of_an_unknown_did_costs_nothing_and_its_first_commit_makes_it_known() -> None:
    for world in make(known=False):
        did = world.dids[0]
        world.emit(did, "identity")
        world.emit(did, "account")
        world.emit(did, "commit")
        bring(world)
        assert [seq_of(each) for each in world.fed] == [world.seq]
        assert world.homes[did].life.is_fresh
        world.looked_up()
        prove(world)
        assert world.outcome == {world.seq: "proved"}
        assert world.raw == {world.seq}


def test_a_rotated_key_is_asked_for_once_and_nothing_is_lost(world: World) -> None:
    did = world.dids[0]
    world.accounts[did].key += 1
    seqs = [world.emit(did, kind) for kind in ("commit", "commit", "account", "commit")]
    bring(world)
    prove(world)
    assert len(world.resolves) == 1
    assert world.sequencer.view(STATUS).waiting_for_key == 4
    later = world.emit(did, "commit")
    bring(world)
    prove(world)
    assert world.outcome == {}
    world.resolved()
    prove(world)
    assert list(world.outcome) == [*seqs, later]
    assert set(world.outcome.values()) == {"proved", "told"}
    assert world.sequencer.view(STATUS).key_refreshes == 1


def test_an_answer_that_comes_with_the_old_key_after_the_new_one_is_checked_again(world: World) -> None:
    did = world.dids[0]
    world.accounts[did].key += 1
    first = world.emit(did, "commit")
    bring(world)
    prove(world)
    second = world.emit(did, "commit")
    bring(world)
    world.resolved()
    prove(world)
    assert list(world.outcome.items()) == [(first, "proved"), (second, "proved")]
    assert not world.resolves


def test_a_signature_that_fails_with_a_fresh_key_is_invalid_at_once(world: World) -> None:
    did = world.dids[0]
    world.identities[did] = world.document(did, world.clock.now() - refresh.FRESH_S + 0.1)
    world.accounts[did].key += 1
    seq = world.emit(did, "commit")
    bring(world)
    prove(world)
    assert world.outcome == {seq: "bad_signature"}
    assert not world.resolves
    assert world.homes[did].life.facts.check_due == "commit"


def test_a_directory_that_is_away_is_asked_once_in_a_while_and_good_answers_stand(world: World) -> None:
    did = world.dids[0]
    good = world.emit(did, "commit")
    world.accounts[did].key += 1
    bad = [world.emit(did, "commit") for _ in range(2)]
    told = world.emit(did, "account")
    bring(world)
    prove(world)
    world.resolved(works=False)
    assert world.outcome == {good: "proved", bad[0]: "bad_signature", bad[1]: "bad_signature", told: "told"}
    world.emit(did, "commit")
    bring(world)
    prove(world)
    assert not world.resolves
    world.clock.advance(refresh.FRESH_S)
    world.emit(did, "commit")
    bring(world)
    prove(world)
    assert len(world.resolves) == 1


def test_a_key_that_is_not_known_is_read_first(world: World) -> None:
    did = world.dids[0]
    del world.identities[did]
    seq = world.emit(did, "commit")
    bring(world)
    prove(world)
    world.resolved()
    prove(world)
    assert world.outcome == {seq: "proved"}


@pytest.mark.usefixtures("bounded")
def test_what_waits_for_a_key_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "HELD_FRAMES_OF_ONE", 3)
    did = world.dids[0]
    world.accounts[did].key += 1
    seqs = [world.emit(did, "commit") for _ in range(4)]
    bring(world)
    prove(world)
    assert world.outcome == dict.fromkeys(seqs, "bad_signature")
    assert world.homes[did].life.facts.check_due == "commit"
    assert world.sequencer.view(STATUS).waiting_for_key == 0
    world.resolved()  # late: nobody waits any longer
    assert world.outcome == dict.fromkeys(seqs, "bad_signature")


@pytest.mark.usefixtures("bounded")
def test_what_waits_for_keys_of_all_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "HELD_FRAMES", 2)
    for did in world.dids:
        world.accounts[did].key += 1
        world.emit(did, "commit")
        world.emit(did, "commit")
    bring(world)
    prove(world)
    assert world.sequencer.view(STATUS).waiting_for_key <= 3
    assert "bad_signature" in world.outcome.values()


def test_a_worker_that_dies_costs_nothing_but_time(world: World) -> None:
    seqs = [world.emit(did, "commit") for did in world.dids for _ in range(3)]
    bring(world)
    world.work(0, 2)
    world.kill_worker(0)
    world.kill_worker(1)
    for seat in (0, 1):
        world.start_worker(seat)
    prove(world)
    assert sorted(world.outcome) == seqs
    assert set(world.outcome.values()) == {"proved"}


def test_a_frame_that_kills_workers_is_given_up_and_its_neighbours_are_not() -> None:
    for world in make(verifiers=1):
        before = world.emit(world.dids[0], "commit")
        killer = world.emit(world.dids[0], "commit", fate="kills")
        after = world.emit(world.dids[1], "commit")
        bring(world)
        while killer not in world.outcome:
            if not world.workers[0].is_alive:
                world.start_worker(0)
            prove(world)
        assert world.deaths == dispatch.DEATHS + 1  # the first one does not say whose fault it was
        world.start_worker(0)
        prove(world)
        assert world.outcome == {before: "proved", killer: "worker_died", after: "proved"}
        (letter,) = world.letters
        assert (letter.did, letter.reason, letter.type) == (world.dids[0], "worker_died", "FRAME")
        assert msgpack.unpackb(letter.operation or b"")["seq"] == killer


@pytest.mark.parametrize(("fate", "reason"), [("bad_frame", "invalid_frame"), ("internal", "internal_error")])
@pytest.mark.parametrize("kind", ["commit", "account"])
def test_a_frame_of_which_nobody_knows_what_it_says_is_kept(world: World, fate: str, reason: str, kind: str) -> None:
    seq = world.emit(world.dids[0], kind, fate=fate)
    bring(world)
    prove(world)
    (letter,) = world.letters
    assert (letter.did, letter.reason, letter.rkey, letter.source) == (world.dids[0], reason, str(seq), "FIREHOSE")
    assert msgpack.unpackb(letter.operation or b"")["seq"] == seq
    assert world.sequencer.view(STATUS).invalid == {reason: 1}


def test_operations_that_are_left_out_are_kept_and_the_others_go_on(world: World) -> None:
    refused = ["com.x.y", "rkey", "bafy", "operation_too_large", 7_000_000]
    world.emit(world.dids[0], "commit", refused=[refused], operations=1)
    bring(world)
    prove(world)
    (letter,) = world.letters
    assert (letter.collection, letter.rkey, letter.cid, letter.reason, letter.size) == tuple(refused)
    assert len(world.lane) == 1


def test_a_rev_from_the_future_is_not_remembered(world: World) -> None:
    did = world.dids[0]
    heard = world.homes[did].life.facts.rev_heard if did in world.homes else world.rows[did].rev_heard
    world.emit(did, "commit", fate="future")
    bring(world)
    prove(world)
    assert world.sequencer.view(STATUS).invalid == {"future_rev": 1}
    assert world.homes[did].life.facts.rev_heard == heard


def test_tracked_mode_lets_pass_what_has_no_row() -> None:
    for world in make(known=False, mode="tracked"):
        for kind in ("commit", "sync", "account", "identity"):
            world.emit(world.dids[0], kind)
        bring(world)
        assert (world.fed, world.sequencer.view(STATUS).outcomes) == (set(), {"untracked": 4})


def test_collection_mode_looks_for_a_wanted_record_before_it_tracks() -> None:
    for world in make(known=False, mode="collection"):
        did = world.dids[0]
        world.emit(did, "commit", collection="com.other.thing")
        wanted = world.emit(did, "commit", collection="com.sought.thing")
        behind = [world.emit(did, "commit", collection="com.other.thing"), world.emit(did, "sync")]
        told = world.emit(did, "account")
        bring(world)
        assert world.fed == set()
        prove(world)
        assert world.fed == {wanted, *behind, told}
        assert state_of(world, did) is S.DISCOVERED


def test_a_commit_that_was_only_looked_at_is_proved_if_its_repo_became_tracked_meanwhile() -> None:
    for world in make(known=False, mode="collection"):
        did = world.dids[0]
        world.emit(did, "commit", collection="com.other.thing")
        bring(world)
        prove(world)
        before = world.accounts[did].rev
        assert before is not None
        looked = world.emit(did, "commit", collection="com.other.thing")
        bring(world)
        world.identities[did] = world.homes[did].identity = world.document(did)
        world.feed(did, e.Claimed())
        data = sequencer_world.data_of(did, before)
        fetch = world.homes[did].life.fetch
        world.feed(did, e.SnapshotVerified(fetch=fetch, rev=before, sends=False))
        world.feed(did, e.SnapshotDelivered(fetch=fetch, rev=before, data=data, covers=sequencer_world.ALL))
        prove(world)
        assert world.outcome == {looked: "proved"}


def test_an_incident_is_told_at_once_and_so_is_giving_up(world: World) -> None:
    world.sequencer.tell(IncidentFound(IncidentKind.HOLE, "a hole"))
    world.sequencer.tell(GiveUp("ten times"))
    assert (world.incidents, world.given_up) == ([("hole", "a hole")], ["ten times"])


def test_a_frame_that_nobody_can_read_is_kept_with_its_place(world: World) -> None:
    world.sequencer.tell(bad_frame(41))
    world.sequencer.tell(bad_frame(None))
    first, second = world.letters
    assert (first.reason, first.rkey, first.did, first.operation) == ("undecodable", "41", "", b"junk")
    assert (second.rkey, second.size) == (None, 4)


def test_frames_of_an_earlier_numbering_finish_without_moving_the_cursor_of_the_present_one(world: World) -> None:
    did = world.dids[0]
    old = world.emit(did, "commit")
    bring(world)
    world.begin_era(old - 1)
    new = world.emit(did, "commit")
    assert new == old
    bring(world)
    prove(world)
    assert list(world.outcome) == [old, position_of(1, new)]
    world.acknowledged()
    world.clock.advance(1)
    world.pump()
    assert world.cursors == []
    world.acknowledged()
    world.pump()
    assert [cursor.seq for cursor in world.cursors] == [new]


def test_the_repo_of_the_oldest_open_frame_gives_way_when_there_are_too_many() -> None:
    for world in make(max_open=5):
        slow, fast = world.dids[:2]
        world.emit(slow, "commit")
        for _ in range(8):
            world.emit(fast, "commit", operations=0)
        bring(world)
        prove(world)
        for _ in range(3):
            world.pump()
            prove(world)
        assert state_of(world, slow) is S.DESYNCED
        assert len(world.fed) == 9
        assert world.sequencer.view(STATUS).reliefs >= 1


def test_at_the_bound_nothing_more_is_sequenced_and_relief_does_not_loop() -> None:
    for world in make(max_open=3):
        for _ in range(6):
            world.emit(world.dids[0], "commit")
        bring(world)
        for _ in range(20):
            world.pump()
        # All are being proved, and so is the one that the relief was for: nothing can be done but wait.
        assert len(world.fed) == 3
        assert world.sequencer.view(STATUS).reliefs == 1


def test_nothing_is_sequenced_while_nobody_takes_operations(world: World) -> None:
    world.is_blocked = True
    world.emit(world.dids[0], "commit")
    bring(world)
    assert world.fed == set()
    world.is_blocked = False
    world.pump()
    assert len(world.fed) == 1


def test_stopping_forgets_what_is_not_sequenced_and_finishes_the_rest(world: World) -> None:
    first = world.emit(world.dids[0], "commit")
    bring(world)
    world.is_blocked = True
    world.emit(world.dids[1], "commit")
    world.batch()
    world.sequencer.stop_taking()
    world.emit(world.dids[2], "commit")
    world.batch()
    quiet = [world.sequencer.is_quiet]
    prove(world)
    quiet.append(world.sequencer.is_quiet)
    assert quiet == [False, True]
    assert world.fed == {first}
    while world.loads:
        world.loaded()
    world.newest_sent = first


def test_the_cursor_is_put_now_and_then_and_on_demand(world: World) -> None:
    for _ in range(5):
        world.emit(world.dids[0], "commit", operations=0)
        bring(world)
        prove(world)
        assert len(world.cursors) == 1
    world.sequencer.store_cursor()
    assert [cursor.seq for cursor in world.cursors] == [101, 105]
    world.sequencer.store_cursor()
    assert len(world.cursors) == 2


def test_a_worker_that_does_not_move_is_told_of() -> None:
    for world in make(verifiers=1):
        assert world.sequencer.overdue(world.clock.monotonic() + 1000) == []
        world.emit(world.dids[0], "commit")
        world.emit(world.dids[0], "commit")
        bring(world)
        now = world.clock.monotonic()
        assert world.sequencer.overdue(now + dispatch.JOB_S) == []
        assert world.sequencer.overdue(now + dispatch.JOB_S + 0.1) == [0]
        world.clock.advance(50)
        world.work(0, 1)
        assert world.sequencer.overdue(now + dispatch.JOB_S + 0.1) == []


def test_operations_that_fit_no_slot_come_by_the_pipe() -> None:
    for world in make(verifiers=1):
        did = world.dids[0]
        seq = world.emit(did, "commit")
        bring(world)
        job = world.workers[0].jobs.popleft()
        slot = world.workers[0].free.pop()
        frame = world.truth[0, seq]
        payload = sequencer_world.payload_of(frame)
        result = FrameResult(
            seq, Outcome.COMMIT, None, None, frame["rev"], frame["since"], frame["prev_data"], frame["data"],
            frame["prev_data"], operations=1, length=len(payload),
        )  # fmt: skip
        world.sequencer.answered(0, FramesVerified(job.job, slot, len(payload), payload, [result], True, 0.0))
        assert world.outcome == {seq: "proved"}


def test_what_is_on_its_way_to_a_worker_fits_the_socket_whatever_the_dids() -> None:
    for world in make(verifiers=1):
        for number in range(112):
            did = f"did:web:{number}.{'x' * 2000}"
            world.accounts[did] = sequencer_world.AccountThere(did)
            world.track(did)
            world.emit(did, "sync")
            if number % 28 == 27:
                assert world.batch()
        bring(world)
        for _ in range(10):
            world.pump()
        # Nobody reads: the send buffer of a socket takes 208 KB, and all of it together are 240.
        sent = sum(len(msgpack.packb(to_wire(job))) for job in world.workers[0].jobs)
        assert 50_000 < sent < 110_000


def test_an_answer_for_a_job_that_it_does_not_have_is_a_broken_account(world: World) -> None:
    with pytest.raises(RuntimeError, match="does not have"):
        world.sequencer.answered(0, FramesVerified(7, None, 0, None, [], True, 0.0))


def test_the_slots_of_the_tailer_and_our_own_are_apart() -> None:
    for verifiers in (1, 4):
        theirs, ours = frame_slots(verifiers)
        assert theirs.stop == ours.start
        assert len(ours) >= 2


def test_commits_before_the_identity_is_known_are_proved_in_order_when_it_is() -> None:
    for world in make(known=False):
        did = world.dids[0]
        seqs = [world.emit(did, "commit") for _ in range(3)]
        bring(world)
        prove(world)
        assert world.outcome == {}
        assert world.slots.in_use == 0  # nothing waits in a slot
        world.looked_up()
        prove(world)
        assert list(world.outcome.items()) == [(seq, "proved") for seq in seqs]
        while world.changes:
            world.stored()
        assert [each[2].payload for each in world.lane] == [b"<%d>" % seq for seq in seqs]


def test_a_repo_whose_frames_wait_for_a_key_gives_way_like_any_other() -> None:
    for world in make(max_open=5):
        slow, fast = world.dids[:2]
        world.accounts[slow].key += 1
        rotated = world.emit(slow, "commit")
        for _ in range(8):
            world.emit(fast, "commit", operations=0)
        bring(world)
        for _ in range(3):
            world.clock.advance(RELIEF_S)
            prove(world)
        assert len(world.resolves) == 1, "the directory has not answered"
        assert len(world.fed) == 9
        assert world.sequencer.view(STATUS).waiting_for_key == 0
        assert (state_of(world, slow), world.outcome[rotated]) == (S.DESYNCED, "bad_signature")
