"""The live buffer is bounded, keeps order, and says what it throws away."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.repos.buffer import LiveBuffer

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc"), st.integers(0, 6)),
        st.tuples(st.just("pop"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("drop"), st.sampled_from("abc"), st.just(0)),
    ),
    max_size=80,
)


@given(actions=ACTIONS)
def test_everything_that_was_added_comes_out_in_order_or_is_told_as_thrown_away(
    actions: list[tuple[str, str, int]],
) -> None:
    buffer: LiveBuffer[int] = LiveBuffer(max_operations=20, max_per_repo=9)
    plain: dict[str, list[tuple[int, int]]] = defaultdict(list)
    added = 0
    for number, (action, did, operations) in enumerate(actions):
        if action == "add":
            added += max(1, operations)
            plain[did].append((number, max(1, operations)))
            for overflow in buffer.add(did, number, operations):
                lost = plain.pop(overflow.did)
                assert overflow.events == tuple(event for event, _ in lost)
                assert overflow.operations == sum(size for _, size in lost)
        elif action == "pop":
            assert buffer.pop(did) == (plain[did].pop(0)[0] if plain[did] else None)
        else:
            assert buffer.drop(did) == tuple(event for event, _ in plain.pop(did, []))
        held = {each: sum(size for _, size in events) for each, events in plain.items() if events}
        assert dict(buffer.sizes()) == held
        assert buffer.operations == sum(held.values()) <= 20
        assert buffer.added == added
        assert max(held.values(), default=0) <= 9
        assert all(buffer.count(each) == len(plain[each]) for each in "abc")
        assert buffer.repos == len(held)


def test_a_repo_over_its_share_loses_its_own_buffer_and_nobody_elses() -> None:
    buffer: LiveBuffer[str] = LiveBuffer(max_operations=100, max_per_repo=3)
    buffer.add("quiet", "q", 1)
    buffer.add("busy", "b1", 2)
    (overflow,) = buffer.add("busy", "b2", 2)
    assert (overflow.did, overflow.events, overflow.operations) == ("busy", ("b1", "b2"), 4)
    assert buffer.overflows == 1
    assert buffer.pop("quiet") == "q"


def test_when_all_is_full_the_largest_pays_and_not_the_one_who_came_last() -> None:
    buffer: LiveBuffer[str] = LiveBuffer(max_operations=10, max_per_repo=9)
    buffer.add("busy", "b", 9)
    assert buffer.add("quiet", "q1", 1) == ()
    (overflow,) = buffer.add("quiet", "q2", 1)
    assert overflow.did == "busy"
    assert buffer.operations == 2


def test_events_without_operations_are_bounded_too() -> None:
    buffer: LiveBuffer[int] = LiveBuffer(max_operations=10, max_per_repo=5)
    assert [len(buffer.add("a", number, 0)) for number in range(6)] == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(("total", "share"), [(0, 1), (5, 6), (5, 0)])
def test_limits_that_make_no_sense_are_refused(total: int, share: int) -> None:
    with pytest.raises(ValueError, match="operations"):
        LiveBuffer[int](max_operations=total, max_per_repo=share)


def test_the_share_follows_from_the_whole() -> None:
    assert LiveBuffer[int](max_operations=50_000).max_per_repo == 12_500
    assert LiveBuffer[int](max_operations=1).max_per_repo == 1
