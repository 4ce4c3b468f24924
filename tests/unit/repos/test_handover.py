"""The hand-over, attacked with random interleavings beside a plain transcription of the design's model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.repos.buffer import LiveBuffer
from relay.repos.handover import Chain, Handover, LiveEvent, NotDraining, Verdict, check_chain

DID = "did:plc:a"


def rev(number: int) -> str:
    return f"{number:013d}"


def data(number: int) -> bytes:
    return b"root%d" % number


def commit(number: int, *, operations: int = 1, seq: int | None = None, since: int | None = None) -> LiveEvent:
    before = number - 1 if since is None else since
    return LiveEvent(
        seq=number if seq is None else seq,
        is_sync=False,
        rev=rev(number),
        since=rev(before),
        prev_data=data(before),
        data=data(number),
        operations=operations,
    )


def sync(number: int, of: int, seq: int | None = None) -> LiveEvent:
    return LiveEvent(
        seq=number if seq is None else seq,
        is_sync=True,
        rev=rev(number),
        since=None,
        prev_data=None,
        data=data(of),
        operations=0,
    )


@dataclass
class Entry:
    rev: str
    left: int


@dataclass
class Model:
    """`buffer`, `snapshot_acknowledged`, `drain`, `live`, `advance`, `finish_drain` of the model, for one repo."""

    state: str = "active"
    accepted: tuple[str, bytes] | None = None
    buffer: deque[LiveEvent] = field(default_factory=deque)
    entries: deque[Entry] = field(default_factory=deque)
    by_seq: dict[int, Entry] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    drained: list[Entry] = field(default_factory=list)
    before_end: int = 0
    draining: bool = False
    sent: list[int] = field(default_factory=list)

    def add(self, event: LiveEvent) -> None:
        self.buffer.append(event)
        if not self.draining:
            self.before_end += 1
        else:
            self.open.add(event.seq)

    def snapshot_acknowledged(self, number: int) -> None:
        self.accepted = (rev(number), data(number))
        self.draining = True
        self.finish_drain()

    def drain(self) -> None:
        event = self.buffer.popleft()
        self.open.discard(event.seq)
        late = not self.before_end
        if not late:
            self.before_end -= 1
        self.live(event, holds_cursor=late)
        if self.state == "desynced":
            return
        if not late:
            self.drained = list(self.entries)
        if self.draining:
            self.finish_drain()

    def live(self, event: LiveEvent, *, holds_cursor: bool) -> None:
        assert self.accepted is not None
        if event.rev <= self.accepted[0]:
            return
        if event.is_sync:
            chained = event.data == self.accepted[1]
        else:
            chained = (event.since, event.prev_data) == self.accepted
        if not chained:
            self.state = "desynced"
            return
        self.accepted = (event.rev, event.data)
        entry = Entry(event.rev, event.operations)
        self.entries.append(entry)
        if event.operations:
            self.by_seq[event.seq] = entry
            self.sent.append(event.seq)
            if holds_cursor:
                self.open.add(event.seq)
        self.advance()

    def acknowledge(self, seq: int) -> None:
        self.by_seq.pop(seq).left = 0
        self.open.discard(seq)
        self.advance()
        if self.draining:
            self.finish_drain()

    def advance(self) -> None:
        while self.entries and not self.entries[0].left:
            self.entries.popleft()

    def finish_drain(self) -> None:
        if not self.before_end and not any(entry.left for entry in self.drained):
            self.state, self.drained = "synced", []
        if self.state == "synced" and not self.buffer:
            self.draining = False


class Both:
    """The code and the model side by side."""

    def __init__(self) -> None:
        self.model = Model()
        self.handover = Handover(DID, LiveBuffer(max_operations=1000))
        self.open: set[int] = set()
        self.in_flight: list[int] = []
        self.sent: list[int] = []

    def arrive(self, event: LiveEvent) -> None:
        self.model.add(event)
        buffered = self.handover.live(event)
        assert buffered.overflows == ()
        if buffered.holds_cursor:
            self.open.add(event.seq)

    def end(self, number: int) -> None:
        self.model.snapshot_acknowledged(number)
        self.handover.end_acknowledged(Chain(rev(number), data(number)))

    def drain(self) -> None:
        step = self.handover.drain()
        assert (step is None) == (not self.model.buffer)
        if step is None:
            return
        self.model.drain()
        event = step.event
        assert step.held_cursor == (event.seq in self.open)
        if step.verdict is Verdict.FOLLOWS and event.operations:
            self.in_flight.append(event.seq)
            self.sent.append(event.seq)
        else:
            self.open.discard(event.seq)

    def acknowledge(self, at: int) -> None:
        if self.in_flight:
            seq = self.in_flight.pop(at % len(self.in_flight))
            self.open.discard(seq)
            self.handover.delivered(seq)
            self.model.acknowledge(seq)

    def compare(self) -> None:
        assert self.handover.is_lost == (self.model.state == "desynced")
        if self.handover.is_lost:
            return
        assert self.handover.is_synced == (self.model.state == "synced")
        assert self.handover.is_over == (self.model.state == "synced" and not self.model.draining)
        assert self.open == self.model.open
        assert self.sent == self.model.sent
        if self.handover.chain is not None:
            assert (self.handover.chain.rev, self.handover.chain.data) == self.model.accepted


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["commit", "commit", "commit", "sync", "replay", "hole", "end", "drain", "drain", "acknowledge"]
        ),
        st.integers(0, 5),
    ),
    max_size=40,
)


@given(steps=STEPS, snapshot=st.integers(0, 6))
def test_it_does_what_the_model_does(steps: list[tuple[str, int]], snapshot: int) -> None:
    both = Both()
    newest = tree = 0
    for seq, (step, number) in enumerate(steps, 1):
        if both.handover.is_lost or both.handover.is_over:
            break
        if step == "commit":
            newest += 1
            before = newest - 1
            both.arrive(
                LiveEvent(
                    seq=seq,
                    is_sync=False,
                    rev=rev(newest),
                    since=rev(before),
                    prev_data=data(tree),
                    data=data(newest),
                    operations=number % 3,
                )
            )
            tree = newest
        elif step == "sync":
            newest += 1
            both.arrive(sync(newest, tree, seq))
        elif step == "replay":
            both.arrive(commit(max(1, newest - number), seq=seq))
        elif step == "hole":
            newest += 2
            tree = newest
            both.arrive(commit(newest, seq=seq))
        elif step == "end" and not both.handover.is_draining:
            both.end(snapshot)
        elif step == "drain" and both.handover.is_draining:
            both.drain()
        elif step == "acknowledge":
            both.acknowledge(number)
        both.compare()


@given(before=st.integers(0, 8), late=st.integers(0, 8), snapshot=st.integers(0, 8))
def test_nothing_is_missing_between_the_snapshot_and_the_stream(before: int, late: int, snapshot: int) -> None:
    snapshot = min(snapshot, before)
    both = Both()
    for number in range(1, before + 1):
        both.arrive(commit(number))
    both.end(snapshot)
    for number in range(before + 1, before + late + 1):
        both.arrive(commit(number))
    for _ in range(before + late):
        both.drain()
    assert both.sent == list(range(snapshot + 1, before + late + 1))
    for _ in range(before + late):
        both.acknowledge(0)
    assert both.handover.is_over


def test_drain_skips_commits_at_or_below_the_snapshot_rev() -> None:
    both = Both()
    for number in (1, 2, 3):
        both.arrive(commit(number))
    both.end(2)
    verdicts = [step.verdict for step in (both.handover.drain() for _ in range(3)) if step is not None]
    assert verdicts == [Verdict.KNOWN, Verdict.KNOWN, Verdict.FOLLOWS]


def test_synced_waits_for_what_was_buffered_before_the_end_and_not_for_late_events() -> None:
    handover = Handover(DID, LiveBuffer(max_operations=100))
    handover.live(commit(2))
    handover.end_acknowledged(Chain(rev(1), data(1)))
    assert handover.live(commit(3)).holds_cursor
    seen = [(handover.is_synced, handover.is_over)]
    handover.drain()
    seen.append((handover.is_synced, handover.is_over))  # forwarded, not delivered
    handover.delivered(2)
    seen.append((handover.is_synced, handover.is_over))  # a live event would overtake commit 3
    step = handover.drain()
    assert step is not None
    assert step.held_cursor
    seen.append((handover.is_synced, handover.is_over))
    assert seen == [(False, False), (False, False), (True, False), (True, True)]


def test_a_break_in_the_chain_loses_the_rest() -> None:
    handover = Handover(DID, LiveBuffer(max_operations=100))
    handover.end_acknowledged(Chain(rev(1), data(1)))
    handover.live(commit(3))
    handover.live(commit(4))
    step = handover.drain()
    assert step is not None
    assert step.verdict is Verdict.BROKEN
    assert handover.is_lost
    assert not handover.is_synced
    assert [event.seq for event in handover.give_up()] == [4]
    assert handover.drain() is None


def test_an_overflow_ends_the_hand_over_and_later_events_are_dropped() -> None:
    handover = Handover(DID, LiveBuffer(max_operations=2))
    handover.live(commit(1, operations=0))
    buffered = handover.live(commit(2, operations=2))
    assert [event.seq for event in buffered.overflows[0].events] == [1, 2]
    assert handover.is_lost
    assert handover.live(commit(3)).overflows == ()
    handover.end_acknowledged(Chain(rev(9), data(9)))
    assert not handover.is_synced


def test_a_sync_with_the_same_tree_moves_the_rev_only() -> None:
    chain = Chain(rev(5), data(5))
    assert check_chain(chain, sync(6, 5)) is Verdict.FOLLOWS
    assert check_chain(chain, sync(6, 6)) is Verdict.BROKEN
    assert check_chain(chain, sync(5, 6)) is Verdict.KNOWN


@pytest.mark.parametrize("wrong", ["since", "prev_data"])
def test_a_commit_must_name_both_the_rev_and_the_tree_before_it(wrong: str) -> None:
    good = commit(6)
    broken = LiveEvent(
        seq=good.seq,
        is_sync=False,
        rev=good.rev,
        since=rev(4) if wrong == "since" else good.since,
        prev_data=data(4) if wrong == "prev_data" else good.prev_data,
        data=good.data,
        operations=1,
    )
    assert check_chain(Chain(rev(5), data(5)), good) is Verdict.FOLLOWS
    assert check_chain(Chain(rev(5), data(5)), broken) is Verdict.BROKEN


def test_a_drain_before_the_end_is_our_own_mistake() -> None:
    handover = Handover(DID, LiveBuffer(max_operations=2))
    with pytest.raises(NotDraining):
        handover.drain()
    handover.end_acknowledged(Chain(rev(1), data(1)))
    with pytest.raises(NotDraining):
        handover.end_acknowledged(Chain(rev(2), data(2)))
