"""The keeper: rows in work, counts that add up, and rows that came late."""

from __future__ import annotations

import copy
from collections import Counter
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from relay.model import RepoState as S
from relay.repos.checkpointer import Change, Checkpointer, Stored
from relay.repos.keeper import Keeper
from relay.repos.lifecycle import TABLE, Event
from relay.runtime.clock import ManualClock
from relay.store.repos import RepoRow


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


def made(batch: int | None = 1) -> tuple[Keeper, Shelf]:
    shelf = Shelf()
    return Keeper(cast(Checkpointer, shelf), ManualClock(), batch=batch), shelf


@given(data=st.data(), start=st.sampled_from(S))
def test_counts_follow_every_transition(data: st.DataObject, start: S) -> None:
    keeper, _ = made()
    row = RepoRow(did="did:plc:a", state=start, batch=1)
    keeper.counts[start] = keeper.targets[start] = 1
    for _ in range(data.draw(st.integers(0, 8))):
        keeper.apply(row, data.draw(st.sampled_from(sorted(TABLE[row.state]))))
    assert +keeper.counts == +keeper.targets == Counter({row.state: 1})


def test_repos_of_another_batch_are_no_targets() -> None:
    keeper, _ = made(batch=2)
    keeper.apply(RepoRow(did="did:plc:a", state=S.DISCOVERED, batch=1), Event.RESOLVED)
    assert keeper.counts[S.PENDING] == 1
    assert not +keeper.targets


def test_a_row_changed_after_it_was_put_is_stored_as_it_was() -> None:
    keeper, shelf = made()
    row = RepoRow(did="did:plc:a", state=S.DISCOVERED)
    keeper.apply(row, Event.RESOLVED)
    keeper.store(row)
    row.rev = "later"
    (change,) = shelf.changes
    assert change.row is not None
    assert change.row.rev is None


def test_what_waited_for_a_change_runs_when_it_is_stored_and_hears_another_state() -> None:
    keeper, shelf = made()
    row = RepoRow(did="did:plc:a", state=S.ACTIVE, batch=1)
    keeper.apply(row, Event.SNAPSHOT_DELIVERED)
    heard: list[S | None] = []
    keeper.store(row, then=heard.append)
    assert (heard, keeper.waiting) == ([], 1)
    keeper.stored(shelf.store({row.did: S.PENDING}))
    assert (heard, keeper.waiting) == ([S.PENDING], 0)
    assert keeper.counts[S.PENDING] == keeper.targets[S.PENDING] == 1


def test_a_claim_of_a_repo_in_work_is_given_back_when_it_is_forgotten() -> None:
    keeper, shelf = made()
    row = RepoRow(did="did:plc:a", state=S.PENDING, host="h", batch=1)
    keeper.adopt([row])
    keeper.counts[S.PENDING] = 1
    assert keeper.claimed([RepoRow(did=row.did, state=S.ACTIVE, host="h", batch=1)]) == []
    keeper.forget(row)
    (change,) = shelf.changes
    assert change.row is not None
    assert change.row.state is S.PENDING
    assert row.did in keeper.rows
    keeper.stored(shelf.store())
    assert not keeper.rows
    assert +keeper.counts == Counter({S.PENDING: 1})


def test_forgetting_an_earlier_row_does_not_forget_the_one_in_work() -> None:
    keeper, _ = made()
    earlier, later = RepoRow(did="did:plc:a"), RepoRow(did="did:plc:a")
    keeper.adopt([earlier])
    keeper.forget(earlier)
    keeper.adopt([later])
    keeper.forget(earlier)
    assert keeper.rows == {later.did: later}


def test_an_answer_that_is_older_than_what_was_forgotten_meanwhile_is_left_out() -> None:
    keeper, _ = made()
    row = RepoRow(did="did:plc:a")
    keeper.adopt([row])
    first = keeper.begin_look()
    keeper.forget(row)
    second = keeper.begin_look()
    other = RepoRow(did="did:plc:b")
    assert keeper.end_look(first, [row, other]) == [other]
    assert keeper.end_look(second, [row, other]) == [row, other]
