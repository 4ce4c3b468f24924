from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.deliver.lanes import BYTES_PER_OPERATION, Lanes
from relay.deliver.segment import Segment
from relay.model import Lane
from tests.unit.deliver.making import sized

MANY = 1_000_000


def fill(lanes: Lanes, lane: Lane, sizes: list[int], did: str = "") -> list[Segment]:
    made = [sized(did or f"did:plc:{lane}{number}", size, lane=lane) for number, size in enumerate(sizes)]
    for segment in made:
        assert lanes.offer(segment)
    return made


def take_all(lanes: Lanes, most_bytes: int = 100) -> list[Segment]:
    taken: list[Segment] = []
    while batch := lanes.take(most_bytes=most_bytes, most_repo_operations=MANY):
        taken += batch
    return taken


@given(st.lists(st.tuples(st.sampled_from(list(Lane)), st.integers(1, 300)), max_size=60), st.integers(1, 400))
def test_each_lane_leaves_in_the_order_of_offer_and_nothing_is_lost(
    pieces: list[tuple[Lane, int]], most_bytes: int
) -> None:
    lanes = Lanes(limit_operations=MANY, backfill_share=0.2)
    offered: dict[Lane, list[Segment]] = defaultdict(list)
    for lane, size in pieces:
        segment = sized("did:plc:a", size, lane=lane)
        assert lanes.offer(segment)
        offered[lane].append(segment)
    left: dict[Lane, list[Segment]] = defaultdict(list)
    for segment in take_all(lanes, most_bytes):
        left[segment.lane].append(segment)
    assert left == offered
    assert (lanes.bytes, lanes.operations) == (0, 0)


@given(
    st.lists(st.integers(1, 300), min_size=200, max_size=300),
    st.lists(st.integers(1, 300), min_size=200, max_size=300),
    st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.8, 1.0]),
)
def test_backfill_gets_its_share_of_the_bytes_and_no_more_while_both_lanes_wait(
    live: list[int], backfill: list[int], share: float
) -> None:
    lanes = Lanes(limit_operations=MANY, backfill_share=share)
    fill(lanes, Lane.LIVE, live)
    fill(lanes, Lane.BACKFILL, backfill)
    sent = {Lane.LIVE: 0, Lane.BACKFILL: 0}
    while all(head is not None for head in lanes.heads()):
        for segment in lanes.take(most_bytes=1, most_repo_operations=MANY):
            sent[segment.lane] += segment.size
        total = sum(sent.values())
        # A segment is not cut: at any moment a lane is off by one of its own, scaled by the other's share of the stream.
        slack = 300 / max(1 - share, 0.01) if share < 1 else total
        assert sent[Lane.BACKFILL] <= share * total + 300
        assert sent[Lane.BACKFILL] >= share * total - slack
    if share == 0:
        assert sent[Lane.BACKFILL] == 0
    if share == 1:
        assert sent[Lane.LIVE] == 0


def test_live_goes_first_when_backfill_has_no_credit() -> None:
    lanes = Lanes(limit_operations=MANY, backfill_share=0.2)
    backfill = fill(lanes, Lane.BACKFILL, [100, 100])
    live = fill(lanes, Lane.LIVE, [100, 100])
    assert lanes.take(most_bytes=250, most_repo_operations=MANY) == live
    assert lanes.take(most_bytes=250, most_repo_operations=MANY) == backfill


def test_an_empty_backfill_lane_earns_no_credit() -> None:
    lanes = Lanes(limit_operations=MANY, backfill_share=0.5)
    fill(lanes, Lane.LIVE, [100] * 50)
    for _ in range(40):
        lanes.take(most_bytes=1, most_repo_operations=MANY)
    fill(lanes, Lane.BACKFILL, [100] * 10)
    first = [lanes.take(most_bytes=1, most_repo_operations=MANY)[0].lane for _ in range(6)]
    assert first.count(Lane.BACKFILL) == 3


def test_a_full_lane_refuses_and_takes_again_once_something_left() -> None:
    lanes = Lanes(limit_operations=10, backfill_share=0.2)
    assert lanes.offer(sized("did:plc:a", 10, operations=5))
    refused = sized("did:plc:b", 10)
    assert not lanes.offer(refused)  # backfill may fill half of it
    assert not lanes.has_room(Lane.BACKFILL)
    assert not lanes.is_relieved(Lane.BACKFILL)
    lanes.take(most_bytes=10, most_repo_operations=MANY)
    assert lanes.is_relieved(Lane.BACKFILL)
    assert lanes.offer(refused)


def test_a_full_backfill_lane_leaves_room_for_live() -> None:
    lanes = Lanes(limit_operations=10, backfill_share=0.2)
    while lanes.has_room(Lane.BACKFILL):
        lanes.offer(sized("did:plc:a", 10))
    taken = 0
    while lanes.offer(sized("did:plc:b", 10, lane=Lane.LIVE)):
        taken += 1
    assert taken == 5


def test_bytes_are_bounded_too_and_one_huge_segment_still_gets_in() -> None:
    lanes = Lanes(limit_operations=100, backfill_share=0.2)
    assert lanes.offer(sized("did:plc:a", 1000 * BYTES_PER_OPERATION))
    assert not lanes.offer(sized("did:plc:b", 1))
    assert lanes.offer(sized("did:plc:c", 1000 * BYTES_PER_OPERATION, lane=Lane.LIVE))
    assert not lanes.offer(sized("did:plc:d", 1, lane=Lane.LIVE))


def test_a_batch_holds_no_more_bytes_than_asked_unless_one_segment_does() -> None:
    lanes = Lanes(limit_operations=MANY, backfill_share=0.2)
    fill(lanes, Lane.BACKFILL, [40, 40, 40, 500, 10])
    sizes = []
    while batch := lanes.take(most_bytes=100, most_repo_operations=MANY):
        sizes.append([segment.size for segment in batch])
    assert sizes == [[40, 40], [40], [500], [10]]


def test_segments_of_one_repo_share_a_batch_up_to_the_limit_of_operations() -> None:
    lanes = Lanes(limit_operations=MANY, backfill_share=0.2)
    for operations in (400, 400, 400, 2000, 10):
        lanes.offer(sized("did:plc:a", 10, operations=operations))
    found = []
    while batch := lanes.take(most_bytes=1000, most_repo_operations=1000):
        found.append([segment.operations for segment in batch])
    assert found == [[400, 400], [400], [2000], [10]]


@given(st.lists(st.tuples(st.sampled_from(list(Lane)), st.integers(0, 3)), max_size=40), st.integers(1, 200))
def test_others_are_taken_around_a_did_which_stays_in_order(pieces: list[tuple[Lane, int]], most_bytes: int) -> None:
    lanes = Lanes(limit_operations=MANY, backfill_share=0.2)
    offered = [sized(f"did:plc:{number}", 30, lane=lane) for lane, number in pieces]
    for segment in offered:
        lanes.offer(segment)
    mine = [segment for segment in offered if segment.did == "did:plc:0"]
    others: list[Segment] = []
    while taken := lanes.take_others({"did:plc:0"}, most_bytes=most_bytes):
        others += taken
    assert {id(segment) for segment in others} == {id(segment) for segment in offered} - {
        id(segment) for segment in mine
    }
    for lane in Lane:
        for did in ("did:plc:1", "did:plc:2", "did:plc:3"):
            assert [s for s in others if (s.did, s.lane) == (did, lane)] == [
                s for s in offered if (s.did, s.lane) == (did, lane)
            ]
    kept = take_all(lanes)
    for lane in Lane:
        assert [s for s in kept if s.lane is lane] == [s for s in mine if s.lane is lane]


def test_discard_returns_what_one_did_has_in_a_lane_and_nothing_else() -> None:
    lanes = Lanes(limit_operations=MANY, backfill_share=0.2)
    first = sized("did:plc:a", 10)
    other = sized("did:plc:b", 20)
    second = sized("did:plc:a", 30, operations=7)
    live = sized("did:plc:a", 40, lane=Lane.LIVE)
    for segment in (first, other, second, live):
        lanes.offer(segment)
    assert lanes.discard("did:plc:a", Lane.BACKFILL, lambda segment: segment is second) == [second]
    assert lanes.discard("did:plc:a", Lane.BACKFILL) == [first]
    assert lanes.discard("did:plc:a", Lane.BACKFILL) == []
    assert lanes.discard("did:plc:a", Lane.LIVE) == [live]
    assert (lanes.operations, lanes.bytes) == (1, 20)
    assert take_all(lanes) == [other]


@pytest.mark.parametrize("lane", list(Lane))
def test_an_empty_lane_always_has_room(lane: Lane) -> None:
    lanes = Lanes(limit_operations=1, backfill_share=0.2)
    assert lanes.has_room(lane)
