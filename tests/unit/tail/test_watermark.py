"""The cursor never passes an open frame, and never waits for a finished one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists, permutations, sets

from relay.tail.watermark import SeqNotOpen, SeqNotRising, SeqWatermark


@given(order=permutations(range(1, 40)), crash_after=integers(0, 39))
def test_cursor_is_just_below_the_first_unfinished_frame(order: list[int], crash_after: int) -> None:
    mark = SeqWatermark(cursor=0)
    for seq in range(1, 40):
        mark.open(seq, seq * 10)
    for seq in order[:crash_after]:
        mark.finish(seq)
    left = order[crash_after:]
    assert mark.cursor == min(left, default=40) - 1  # nothing lost, and nothing replayed in vain
    assert mark.cursor_time_us == (mark.cursor * 10 if mark.cursor else None)
    assert mark.oldest_open == min(left, default=None)
    assert mark.distance == (40 - min(left) if left else 0)
    assert mark.open_frames == len(left)


@given(seqs=sets(integers(1, 10**15), min_size=1, max_size=40), data=lists(integers(0, 2), min_size=40, max_size=40))
def test_any_interleaving_of_reading_and_finishing_keeps_the_cursor_right(seqs: set[int], data: list[int]) -> None:
    mark = SeqWatermark(cursor=None)
    open_now: set[int] = set()
    read: list[int] = []
    for seq, choice in zip(sorted(seqs), data, strict=False):
        read.append(seq)
        if choice == 0:
            mark.open_done(seq)
        else:
            mark.open(seq)
            open_now.add(seq)
        if choice == 2:
            done = max(open_now)  # the newest first: the worst order
            open_now.remove(done)
            mark.finish(done)
        safe = [each for each in read if not open_now or each < min(open_now)]
        assert mark.cursor == (safe[-1] if safe else None)
        assert mark.distance == len(read) - len(safe)
        assert mark.newest == seq


@pytest.mark.parametrize("seq", [4, 5])
def test_a_frame_at_or_below_an_earlier_one_is_our_own_mistake(seq: int) -> None:
    mark = SeqWatermark(cursor=1)
    mark.open(5)
    with pytest.raises(SeqNotRising):
        mark.open(seq)
    with pytest.raises(SeqNotRising):
        mark.open_done(seq)


def test_the_stored_cursors_own_frame_is_not_opened_again() -> None:
    with pytest.raises(SeqNotRising):
        SeqWatermark(cursor=7).open(7)


def test_a_frame_is_finished_once() -> None:
    mark = SeqWatermark(cursor=0)
    mark.open(1)
    mark.open(2)
    mark.finish(2)
    for seq in (2, 3):
        with pytest.raises(SeqNotOpen):
            mark.finish(seq)
    assert mark.cursor == 0
    assert mark.is_open(1)
    assert not mark.is_open(2)


def test_gaps_in_seq_cost_no_distance() -> None:
    mark = SeqWatermark(cursor=10)
    mark.open(11)
    mark.open(20_000_000_000)
    assert mark.distance == 2
