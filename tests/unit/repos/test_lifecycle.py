"""The state table, cell by cell: a new state or event must be decided everywhere."""

from __future__ import annotations

import itertools

import pytest

from relay.model import RepoState as S
from relay.repos.lifecycle import TABLE, Event, ImpossibleEvent, after

E = Event

# What moves, written a second time, by event; everything else either stays or cannot happen.
MOVES: dict[Event, dict[S, S]] = {
    E.RESOLVED: {S.DISCOVERED: S.PENDING},
    E.CLAIMED: {S.PENDING: S.ACTIVE},
    E.RELEASED: {S.ACTIVE: S.PENDING},
    E.SNAPSHOT_DELIVERED: {S.ACTIVE: S.SYNCED},
    E.ATTEMPT_FAILED: {S.ACTIVE: S.FAILED},
    E.GAVE_UP: {state: S.QUARANTINED for state in S if state is not S.QUARANTINED},
    E.NOT_ACTIVE: {state: S.INACTIVE for state in S if state is not S.INACTIVE},
    E.ACTIVE_AGAIN: {S.INACTIVE: S.PENDING},
    E.OUTDATED: {S.ACTIVE: S.DESYNCED, S.SYNCED: S.DESYNCED},
    E.RETRY_DUE: {S.DESYNCED: S.PENDING, S.FAILED: S.PENDING, S.QUARANTINED: S.PENDING},
}
IMPOSSIBLE = {
    *((state, E.CLAIMED) for state in S if state is not S.PENDING),
    *((state, E.SNAPSHOT_DELIVERED) for state in S if state is not S.ACTIVE),
    *((state, E.ATTEMPT_FAILED) for state in S if state not in (S.ACTIVE, S.DISCOVERED)),
    (S.ACTIVE, E.RETRY_DUE),
    (S.SYNCED, E.RETRY_DUE),
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(S, E)))
def test_every_event_is_decided_in_every_state(state: S, event: Event) -> None:
    if (state, event) in IMPOSSIBLE:
        with pytest.raises(ImpossibleEvent) as caught:
            after(state, event)
        assert (caught.value.state, caught.value.event) == (state, event)
    else:
        assert after(state, event) is MOVES[event].get(state, state)


def test_the_table_has_every_state() -> None:
    assert set(TABLE) == set(S)


@pytest.mark.parametrize("state", list(S))
def test_nothing_but_a_delivered_snapshot_makes_a_repo_synced(state: S) -> None:
    reaching = {event for event, new in TABLE[state].items() if new is S.SYNCED}
    assert reaching <= {E.SNAPSHOT_DELIVERED}


@pytest.mark.parametrize("state", list(S))
def test_every_state_has_a_way_back_to_synced(state: S) -> None:
    reached, before = {state}, set[S]()
    while reached != before:
        before = set(reached)
        reached |= {new for each in before for new in TABLE[each].values() if new is not None}
    assert S.SYNCED in reached
