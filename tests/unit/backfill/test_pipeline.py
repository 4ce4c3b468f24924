"""Single promises of the pipeline, each with the one interleaving that once broke it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.backfill.work import Stage
from relay.model import Identity, RepoState
from relay.repos import live_events as e
from tests.unit.backfill.rehearsal import POLICY, SLOT_BYTES, Account, Rehearsal

DID = "did:plc:" + "a" * 24
HOST = "https://one.example"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Rehearsal]:
    stage = Rehearsal(tmp_path)
    yield stage
    stage.close()


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[Rehearsal]:
    """No host has room: what is resolved waits to be claimed."""
    stage = Rehearsal(tmp_path, room=0)
    yield stage
    stage.close()


def settle(stage: Rehearsal, *, ingester: bool = True, retries: bool = True) -> None:
    """Let everybody do what can be done now, without time passing."""
    for _ in range(60):
        stage.ask_for_discovered()
        stage.ask_for_claims()
        if retries:
            stage.ask_for_retries()
        stage.run_ask()
        stage.hear(stage.answers)
        for seat in (0, 1):
            stage.fetch(seat)
            while stage.hear_child("fetch", seat) or stage.hear_child("worker", seat) or stage.work(seat):
                pass
        while stage.store() or stage.hear_stored():
            pass
        while ingester and (stage.send() or stage.acknowledge()):
            pass
        while stage.hear(stage.senders_said):
            pass
        stage.pump()


def claimed(stage: Rehearsal) -> None:
    """Claim what is due, and have it resolved and its CAR downloaded."""
    stage.ask_for_claims()
    stage.run_ask()
    stage.hear(stage.answers)
    for _ in range(3):
        stage.pump()
        for seat in (0, 1):
            stage.fetch(seat)
            stage.hear_child("fetch", seat)
    stage.pump()


def test_a_repo_goes_from_discovered_to_synced(stage: Rehearsal) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=5))
    settle(stage)
    assert stage.db[DID].state is RepoState.SYNCED
    assert (stage.db[DID].records, stage.pipeline.totals.records) == (5, 5)
    stage.run_to_the_end()


def test_a_second_verification_with_another_key_is_not_ended_by_its_first_acknowledgement(stage: Rehearsal) -> None:
    account = Account(did=DID, host=HOST, pieces=6)
    stage.add(account)
    stage.ask_for_discovered()
    stage.run_ask()
    stage.hear(stage.answers)
    stage.pump()
    stage.fetch(0)
    stage.hear_child("fetch", 0)
    stage.store()
    stage.hear_stored()
    stage.clock.advance(120.0)  # what was resolved is not fresh any more
    account.key = "zKey2"
    settle(stage)  # the promise is checked where the row is stored: synced, and the ingester does not have it all
    assert stage.db[DID].state is RepoState.SYNCED
    assert stage.db[DID].attempts == 0


def test_a_claim_that_overtakes_the_word_that_its_repo_is_stored_is_taken(crowded: Rehearsal) -> None:
    stage = crowded
    stage.add(Account(did=DID, host=HOST, pieces=1))
    stage.ask_for_discovered()
    stage.run_ask()
    stage.hear(stage.answers)
    stage.pump()
    stage.fetch(0)
    stage.hear_child("fetch", 0)
    stage.store()  # pending in the database; the engine has not heard of it
    stage.ask_for_claims()
    stage.run_ask()
    assert stage.db[DID].state is RepoState.ACTIVE
    stage.hear(stage.answers)
    assert len(stage.pipeline.works) == 1
    stage.hear_stored()
    stage.run_to_the_end()
    assert stage.db[DID].state is RepoState.SYNCED


def test_a_resolved_repo_is_claimed_at_once_where_its_host_has_room_and_fetched_when_that_is_stored(
    stage: Rehearsal,
) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=1))
    stage.ask_for_discovered()
    stage.run_ask()
    stage.hear(stage.answers)
    stage.pump()
    stage.fetch(0)
    stage.hear_child("fetch", 0)
    stage.pump()
    assert stage.waiting_for_host() == 0
    stage.store()
    assert (stage.db[DID].state, stage.db[DID].host) == (RepoState.ACTIVE, HOST)
    stage.hear_stored()
    assert stage.waiting_for_host() == 1
    stage.run_to_the_end()
    assert stage.db[DID].state is RepoState.SYNCED


def test_an_active_repo_that_nobody_works_on_is_found(stage: Rehearsal) -> None:
    other = "did:plc:" + "b" * 24
    stage.add(Account(did=DID, host=HOST, pieces=1), state=RepoState.PENDING)
    stage.ask_for_claims()
    stage.run_ask()
    assert stage.pipeline.unattended([DID, other]) == [DID, other]
    stage.hear(stage.answers)
    assert stage.pipeline.unattended([DID, other]) == [other]
    stage.run_to_the_end()


def test_a_bad_signature_costs_no_attempt_while_the_directory_has_nothing_newer_to_say(stage: Rehearsal) -> None:
    account = Account(did=DID, host=HOST, pieces=1)
    stage.add(account, state=RepoState.PENDING)
    stage.identities[DID] = Identity(
        did=DID, signing_key="zOld", pds=HOST, handle=None, resolved_at=stage.clock.now() - 1
    )
    stage.document_age_s = 10.0
    for _ in range(30):
        settle(stage)
        stage.clock.advance(6.0)
    assert stage.db[DID].state is RepoState.PENDING
    assert stage.db[DID].attempts == 0
    stage.document_age_s = 0.0
    stage.run_to_the_end()
    assert stage.db[DID].state is RepoState.SYNCED


def test_rows_that_were_read_before_they_were_stored_anew_are_left_out(crowded: Rehearsal) -> None:
    stage = crowded
    stage.add(Account(did=DID, host=HOST, pieces=1))
    stage.ask_for_discovered()
    stage.run_ask()
    stage.hear(stage.answers)
    stage.pump()
    stage.fetch(0)
    stage.hear_child("fetch", 0)
    stage.ask_for_discovered()
    stage.run_ask()  # it is still discovered here
    stage.store()
    stage.hear_stored()  # pending, and forgotten
    stage.hear(stage.answers)
    assert DID not in stage.keeper.residents
    assert stage.keeper.counts[RepoState.PENDING] == 1


def test_a_worker_without_a_free_slot_is_never_killed_for_being_slow(stage: Rehearsal) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=20))
    settle(stage, ingester=False)
    stage.clock.advance(100_000.0)
    stage.pump()
    stage.pipeline.look_for_stuck_children()
    assert stage.killed == []
    assert stage.db[DID].state is RepoState.ACTIVE
    stage.run_to_the_end()
    assert stage.db[DID].attempts == 0


def test_a_worker_that_has_slots_and_does_nothing_is_killed_and_its_repo_tried_again(stage: Rehearsal) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=2), state=RepoState.PENDING)
    claimed(stage)
    (work,) = stage.pipeline.works.values()
    assert work.stage is Stage.VERIFYING
    stage.clock.advance(59.0)
    stage.pipeline.look_for_stuck_children()
    assert stage.killed == []
    stage.clock.advance(2.0)
    stage.pipeline.look_for_stuck_children()
    assert stage.killed == [("worker", 0)]
    stage.hear_child("worker", 0)
    settle(stage, retries=False)
    assert (stage.db[DID].state, stage.db[DID].reason, stage.db[DID].attempts) == (RepoState.FAILED, "worker_died", 1)
    stage.run_to_the_end()


def test_a_car_that_kills_every_worker_is_quarantined_after_max_retries(stage: Rehearsal) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=2), state=RepoState.PENDING)
    for _ in range(POLICY.max_retries + 1):
        stage.clock.advance(100.0)
        stage.ask_for_retries()
        stage.run_ask()
        stage.hear(stage.answers)
        claimed(stage)
        stage.die("worker", 0)
        stage.hear_child("worker", 0)
        stage.restart("worker", 0)
        while stage.store() or stage.hear_stored():
            pass
    assert (stage.db[DID].state, stage.db[DID].reason) == (RepoState.QUARANTINED, "worker_died")
    stage.check_end()


def test_a_job_that_a_dead_worker_never_got_is_given_to_the_next_one(stage: Rehearsal) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=2), state=RepoState.PENDING)
    stage.die("worker", 0)
    stage.die("worker", 1)
    claimed(stage)
    (work,) = stage.pipeline.works.values()
    assert work.stage is Stage.FETCHED
    stage.run_to_the_end()
    assert stage.db[DID].state is RepoState.SYNCED
    assert stage.pipeline.totals.failures == {}


def test_operations_that_fit_into_no_slot_are_bounded_by_the_slots_all_the_same(stage: Rehearsal) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=30, large=True))
    settle(stage, ingester=False)
    (work,) = stage.pipeline.works.values()
    inline = [piece for piece in stage.queue if len(piece.payload) > SLOT_BYTES]
    assert len(work.held) + len(inline) <= 3
    assert stage.pipeline.seats.slots_in_use == 3
    stage.run_to_the_end()


def test_a_check_whose_host_is_gone_for_good_ends(stage: Rehearsal) -> None:
    stage.add(
        Account(did=DID, host=HOST, pieces=1), state=RepoState.SYNCED, check_due="commit", rev="3k0", touched=True
    )
    for _ in range(200):
        stage.ask_for_checks()
        stage.run_ask()
        stage.hear(stage.answers)
        stage.pump()
        for seat in (0, 1):
            stage.fetch(seat, outcome="down")
            stage.hear_child("fetch", seat)
        stage.store()
        stage.hear_stored()
        stage.clock.advance(1.0)
        if stage.db[DID].state is not RepoState.SYNCED:
            break
    assert (stage.db[DID].state, stage.db[DID].reason, stage.db[DID].check_due) == (
        RepoState.DESYNCED,
        "host_down",
        None,
    )


def test_an_account_that_is_deactivated_where_it_moved_from_is_asked_about_where_it_is(stage: Rehearsal) -> None:
    other = "https://two.example"
    account = Account(did=DID, host=other, pieces=1, status_at_old_host="deactivated")
    stage.add(account, state=RepoState.SYNCED, check_due="status", rev=account.rev, data=b"1" * 36)
    stage.db[DID].host = HOST
    stage.run_to_the_end()
    row = stage.db[DID]
    assert (row.state, row.host, row.check_due) == (RepoState.SYNCED, other, None)
    assert stage.ingester.get(DID) is None


def test_an_account_that_a_fetch_finds_at_another_host_has_its_identity_told(stage: Rehearsal) -> None:
    other = "https://two.example"
    account = Account(did=DID, host=other, pieces=1, status_at_old_host="deactivated")
    told = {"tell_handle": "old.test", "tell_pds": HOST, "tell_identity_us": 1, "told_identity_us": 1}
    stage.add(account, state=RepoState.PENDING, **told)
    stage.db[DID].host = HOST
    stage.run_to_the_end()
    row = stage.db[DID]
    assert (row.state, row.host, row.tell_pds) == (RepoState.SYNCED, other, other)
    assert row.told_identity_us == row.tell_identity_us != 1
    assert stage.ingester[DID].pds == other


@pytest.mark.parametrize("status", ["deactivated", ""])
def test_a_document_from_before_the_refusal_is_no_proof_that_an_account_did_not_move(
    stage: Rehearsal, status: str
) -> None:
    other = "https://two.example"
    account = Account(did=DID, host=other, pieces=1, status_at_old_host=status)
    stage.add(account, state=RepoState.PENDING)
    stage.db[DID].host = HOST
    now = stage.clock.now()
    stage.identities[DID] = Identity(did=DID, signing_key=account.key, pds=HOST, handle="a.test", resolved_at=now)
    stage.run_to_the_end()
    row = stage.db[DID]
    assert (row.state, row.host, row.told_status) == (RepoState.SYNCED, other, None)
    assert stage.ingester[DID].active is None


def test_an_account_that_was_called_deleted_and_is_found_at_another_host_is_fetched_there(stage: Rehearsal) -> None:
    other = "https://two.example"
    told = {"tell_active": False, "tell_status": "deleted", "tell_time_us": 5}
    told |= {"told_active": False, "told_status": "deleted", "told_time_us": 5}
    stage.add(Account(did=DID, host=other, pieces=1), state=RepoState.INACTIVE, reason="deleted", **told)
    stage.db[DID].host = HOST
    (resident,) = stage.keeper.take([copy.copy(stage.db[DID])])
    stage.pipeline.resolve(resident, lambda _identity: stage.keeper.release(resident))
    stage.run_to_the_end()
    row = stage.db[DID]
    assert (row.state, row.host, row.told_active) == (RepoState.SYNCED, other, True)
    assert stage.ingester[DID].active is True


def test_an_account_that_is_deactivated_where_it_lives_is_told_so(stage: Rehearsal) -> None:
    account = Account(did=DID, host=HOST, pieces=1, status="deactivated")
    stage.add(account, state=RepoState.SYNCED, check_due="status", rev=account.rev, data=b"1" * 36)
    stage.run_to_the_end()
    assert (stage.db[DID].state, stage.db[DID].reason) == (RepoState.INACTIVE, "deactivated")
    assert stage.ingester[DID].active is False


def test_a_check_leaves_a_repo_that_waits_for_its_fetch_alone(stage: Rehearsal) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=1), state=RepoState.PENDING, check_due="status")
    stage.ask_for_checks()
    stage.run_ask()
    stage.hear(stage.answers)
    assert not stage.pipeline.works
    assert not stage.keeper.residents
    stage.run_to_the_end()
    assert stage.db[DID].check_due is None


def test_an_old_copy_is_refused_while_attempts_are_left_then_taken_and_not_fetched_for_ever(stage: Rehearsal) -> None:
    account = Account(did=DID, host=HOST, pieces=1, version=3)
    stage.add(account, state=RepoState.PENDING, rev_heard="3k" + "9" * 11)
    fetched = 0
    for _ in range(300):
        settle(stage)
        stage.ask_for_checks()
        settle(stage)
        stage.clock.advance(1.0)
        fetched = stage.pipeline.totals.fetch_outcomes["ok"]
    assert fetched == POLICY.max_retries + 1
    assert (stage.db[DID].state, stage.db[DID].rev, stage.db[DID].check_due) == (RepoState.SYNCED, account.rev, None)


def test_a_rev_below_a_delivered_one_is_a_rollback_and_nothing_of_it_is_sent(stage: Rehearsal) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=2), state=RepoState.PENDING, rev_begun="3k" + "9" * 11, touched=True)
    settle(stage, retries=False)
    assert (stage.db[DID].state, stage.db[DID].reason) == (RepoState.FAILED, "rollback")
    assert stage.ingester == {}


def test_a_status_that_was_never_acknowledged_is_outdated_by_an_active_repo(stage: Rehearsal) -> None:
    stage.add(
        Account(did=DID, host=HOST, pieces=1), state=RepoState.PENDING, tell_active=False, tell_status="deactivated",
        tell_time_us=1, touched=True,
    )  # fmt: skip
    settle(stage)
    assert stage.db[DID].state is RepoState.SYNCED
    assert stage.ingester[DID].active is True


def test_a_deactivated_account_costs_no_attempt_even_when_its_identity_is_old(stage: Rehearsal) -> None:
    account = Account(did=DID, host=HOST, pieces=1)
    stage.add(account)
    stage.ask_for_discovered()
    stage.run_ask()
    stage.hear(stage.answers)
    stage.pump()
    stage.fetch(0)
    stage.hear_child("fetch", 0)
    stage.store()
    stage.hear_stored()
    stage.clock.advance(600.0)
    account.status = "deactivated"
    settle(stage)
    assert (stage.db[DID].state, stage.db[DID].reason) == (RepoState.INACTIVE, "deactivated")
    assert stage.pipeline.totals.failures == {}
    assert stage.ingester[DID].active is False


def test_a_killed_fetch_child_leaves_no_spool_file_and_blames_nobody(stage: Rehearsal, tmp_path: Path) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=1), state=RepoState.PENDING)
    stage.ask_for_claims()
    stage.run_ask()
    stage.hear(stage.answers)
    stage.pump()
    stage.fetch(0)  # the document
    stage.hear_child("fetch", 0)
    stage.pump()
    stage.die("fetch", 0)
    assert list(tmp_path.iterdir())
    stage.hear_child("fetch", 0)
    assert not list(tmp_path.iterdir())
    while stage.store() or stage.hear_stored():
        pass
    assert (stage.db[DID].state, stage.db[DID].attempts) == (RepoState.PENDING, 0)


def test_a_stop_gives_back_what_is_not_verified_and_lets_the_rest_arrive(stage: Rehearsal) -> None:
    other = "did:plc:" + "b" * 24
    stage.add(Account(did=DID, host=HOST, pieces=8), state=RepoState.PENDING)
    stage.add(Account(did=other, host=HOST, pieces=1), state=RepoState.PENDING)
    claimed(stage)
    first = next(work for work in stage.pipeline.works.values() if work.stage is Stage.VERIFYING)
    stage.stop()
    assert stage.pipeline.in_delivery >= 1
    stage.run_to_the_end()
    assert stage.db[first.did].state is RepoState.SYNCED
    assert {row.state for row in stage.db.values()} <= {RepoState.SYNCED, RepoState.PENDING}


def test_a_car_slot_is_not_given_away_while_a_worker_that_was_cancelled_still_reads_it(stage: Rehearsal) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=2), state=RepoState.PENDING, rev_begun="3k" + "9" * 11, touched=True)
    claimed(stage)
    while not stage.workers[0].said:
        stage.work(0)
    stage.hear_child("worker", 0)  # Verified: a rollback
    (work,) = stage.pipeline.works.values()
    assert work.over
    assert stage.pipeline.downloads.slots.in_use == 1
    while stage.work(0) or stage.hear_child("worker", 0):
        pass
    assert stage.pipeline.downloads.slots.in_use == 0
    assert not stage.pipeline.works
    assert stage.pipeline.seats.jobs == 0


def test_a_car_slot_is_not_given_away_while_a_download_that_was_released_still_fills_it(stage: Rehearsal) -> None:
    stage.add(Account(did=DID, host=HOST, pieces=2), state=RepoState.PENDING)
    stage.ask_for_claims()
    stage.run_ask()
    stage.hear(stage.answers)
    stage.pump()
    stage.fetch(0)  # the document
    stage.hear_child("fetch", 0)
    stage.pump()
    stage.stop()
    assert stage.pipeline.downloads.slots.in_use == 1
    stage.fetch(0)
    stage.hear_child("fetch", 0)
    assert stage.pipeline.downloads.slots.in_use == 0
    assert not stage.pipeline.works


def test_a_repo_that_is_tracked_again_is_fetched_when_what_was_on_its_way_before_has_landed(stage: Rehearsal) -> None:
    account = Account(did=DID, host=HOST, pieces=3)
    stage.add(account, state=RepoState.SYNCED, touched=True, next_attempt_at=0.0)
    (resident,) = stage.keeper.take([copy.copy(stage.db[DID])])  # held: a frame of it is in hand
    stage.keeper.others_wrote([DID])
    stage.keeper.feed(resident, e.Removed())
    stage.db[DID].state = RepoState.PENDING
    stage.keeper.moved({(RepoState.SYNCED, RepoState.PENDING): 1}, of_batch=True)
    settle(stage)
    assert not stage.pipeline.works
    assert stage.pipeline.unattended([DID]) == [DID]
    stage.keeper.release(resident)
    stage.db[DID].state = RepoState.PENDING
    stage.keeper.moved({(RepoState.ACTIVE, RepoState.PENDING): 1}, of_batch=True)
    settle(stage)
    assert stage.db[DID].state is RepoState.SYNCED
