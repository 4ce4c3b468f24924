"""The outbox against a simulated ingester, under any schedule of writing, storing, answering, breaking and refusing."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.deliver.errors import IngesterProtocolError
from relay.deliver.outbox import LINGER_S, REJECT, RETRY, Complaint, Outbox, Outcome
from relay.deliver.segment import Refused, Segment
from relay.model import Lane
from tests.unit.deliver.making import keys_of, read, segment_of

Op = tuple[str, int]


def outbox(
    *, batch_bytes: int = 300, most_batches: int = 4, max_message_bytes: int = 10_000, max_retries: int = 2
) -> Outbox:
    return Outbox(
        "a:1",
        batch_bytes=batch_bytes,
        max_message_bytes=max_message_bytes,
        most_batches=most_batches,
        queue_operations=100_000,
        backfill_share=0.2,
        max_retries=max_retries,
        repo_operations=1000,
    )


class Ingester:
    """Stores what a stream brings, in order; refuses what it is told to refuse. Checks the order within each stream."""

    def __init__(self, rejects: set[int], retries: set[int]) -> None:
        self.rejects, self.retries = rejects, retries
        self.stored: list[Op] = []
        self.inbox: list[tuple[int, list[Op]]] = []
        self.newest: dict[str, int] = {}
        self.stored_batch = 0

    def new_stream(self) -> None:
        self.inbox.clear()
        self.newest.clear()
        self.stored_batch = 0

    def receive(self, message: bytes) -> None:
        number, operations = read(message)
        expected = (self.inbox[-1][0] if self.inbox else self.stored_batch) + 1
        assert number == expected, "batches of a stream are numbered 1, 2, 3..."
        for did, key in operations:
            assert key > self.newest.get(did, -1), "one DID's operations are in order within a stream"
            self.newest[did] = key
        self.inbox.append((number, operations))

    def store(self) -> tuple[int, list[Complaint]] | None:
        """Store the next batch; return the answer to it."""
        number, operations = self.inbox.pop(0)
        self.stored_batch = number
        bad = [Complaint(place, RETRY, "later") for place, (_, key) in enumerate(operations) if key in self.retries]
        if bad:
            self.inbox.clear()  # nothing more of this stream is stored
            return number, bad[:1]
        bad = [Complaint(place, REJECT, "never") for place, (_, key) in enumerate(operations) if key in self.rejects]
        self.stored += [operation for operation in operations if operation[1] not in self.rejects]
        return number, bad


class World:
    """An outbox, its ingester, and the books of the owner."""

    def __init__(self, box: Outbox, rejects: set[int], retries: set[int]) -> None:
        self.box, self.ingester = box, Ingester(rejects, retries)
        self.now = 0.0
        self.offered: list[Segment] = []
        self.acknowledged: list[Segment] = []
        self.copied: list[int] = []
        self.refused: list[Refused] = []
        self.next_key = 0

    def offer(self, did: str, count: int, lane: Lane, pad: int = 0) -> None:
        place = len(self.offered)
        keys = range(self.next_key, self.next_key + count)
        self.next_key += count
        segment = segment_of(did, keys, lane=lane, pad=pad, copied=lambda: self.copied.append(place))
        assert self.box.offer(segment, self.now)
        self.offered.append(segment)

    def take(self, outcome: Outcome) -> None:
        for copied in outcome.copied:
            copied()
        self.refused += outcome.refused
        known = set(self.ingester.stored) | {self.op_of(refused) for refused in self.refused}
        for segment in outcome.acknowledged:
            assert segment not in self.acknowledged, "a segment is acknowledged once"
            assert {(segment.did, key) for key in keys_of(segment)} <= known, (
                "an acknowledged operation is stored or refused"
            )
            self.acknowledged.append(segment)
        if outcome.message is not None:
            self.ingester.receive(outcome.message)

    def op_of(self, refused: Refused) -> Op:
        return refused.segment.did, keys_of(refused.segment)[refused.index]

    def open(self) -> None:
        if not self.box.is_open:
            self.ingester.new_stream()
            self.box.stream_opened()

    def lose(self) -> None:
        self.box.stream_lost()

    def write(self) -> bool:
        outcome = self.box.next_message(self.now)
        self.take(outcome)
        return outcome.message is not None

    def answer(self, *, silently: bool = False) -> None:
        """Store a batch and answer, or only store it: the next answer then speaks for both."""
        if not self.ingester.inbox:
            return
        number, complaints = self.ingester.store() or (0, [])
        if silently and not complaints:
            return
        self.take(self.box.answer(number, complaints, self.now))

    def finish(self) -> None:
        """Let everything through; new operations of other DIDs keep coming, as they do in a network."""
        for _ in range(2000):
            if self.box.is_idle:
                return
            self.now += 1
            self.open()
            if (
                self.box.is_open
                and self.ingester.inbox == []
                and self.ingester.stored_batch
                and self.box.in_flight.written
            ):
                self.take(self.box.answer(self.ingester.stored_batch, [], self.now))
            while self.write():
                pass
            self.answer()
            dead = {self.op_of(refused)[1] for refused in self.refused}
            if self.ingester.retries - dead and self.box.lanes.operations < 200:
                self.offer(f"did:plc:other{self.next_key}", 1, Lane.LIVE)
        raise AssertionError("does not come to an end")

    def check(self) -> None:
        assert sorted(map(id, self.acknowledged)) == sorted(map(id, self.offered))
        assert sorted(self.copied) == list(range(len(self.offered)))
        dead = [self.op_of(refused) for refused in self.refused]
        assert len(set(dead)) == len(dead), "a dead letter is told once"
        bad = self.ingester.rejects | self.ingester.retries
        expected: dict[str, list[int]] = defaultdict(list)
        for segment in self.offered:
            expected[segment.did] += [key for key in keys_of(segment) if key not in bad]
        for did, keys in expected.items():
            first_seen = list(dict.fromkeys(key for name, key in self.ingester.stored if name == did))
            assert first_seen == keys, "each DID's operations are first stored in the order of offer"
        assert {key for _, key in dead} == {key for key in bad if key < self.next_key}
        for segment in self.offered:
            assert not any(self.box.book.refusals(segment, index) for index in range(segment.operations)), "forgotten"
        for refused in self.refused:
            assert refused.reason == ("retries" if self.op_of(refused)[1] in self.ingester.retries else "rejected")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(0, 3), st.integers(1, 5)),
        st.tuples(st.sampled_from(["write", "answer", "store", "break", "open", "wait"]), st.just(0), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(STEPS, st.sets(st.integers(0, 60), max_size=4), st.sets(st.integers(0, 60), max_size=2))
def test_whatever_happens_everything_is_stored_or_refused_in_order_and_acknowledged_once(
    steps: list[tuple[str, int, int]], rejects: set[int], retries: set[int]
) -> None:
    world = World(outbox(), rejects - retries, retries)
    for step, did, count in steps:
        match step:
            case "offer":
                world.offer(f"did:plc:{did}", count, Lane.LIVE if did % 2 else Lane.BACKFILL)
            case "write":
                world.write()
            case "answer":
                world.answer()
            case "store":
                world.answer(silently=True)
            case "break":
                world.lose()
            case "open":
                world.open()
            case "wait":
                world.now += 1
    world.finish()
    world.check()


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_without_a_fault_every_operation_is_sent_once(steps: list[tuple[str, int, int]]) -> None:
    world = World(outbox(), set(), set())
    world.open()
    for step, did, count in steps:
        if step == "offer":
            world.offer(f"did:plc:{did}", count, Lane.LIVE if did % 2 else Lane.BACKFILL)
        elif step == "write":
            world.write()
        elif step in ("answer", "store"):
            world.answer(silently=step == "store")
        world.now += 0.001
    world.finish()
    world.check()
    assert len(world.ingester.stored) == len(set(world.ingester.stored)) == world.next_key
    assert (world.box.counters.sent, world.box.counters.resent) == (world.next_key, 0)
    assert world.box.counters.delivered == world.next_key


def waiting_since(box: Outbox) -> float | None:
    return box.waiting_since


def written(box: Outbox, now: float = 1.0) -> list[Op]:
    message = box.next_message(now).message
    assert message is not None
    return read(message)[1]


def test_the_first_live_operation_leaves_at_once_and_the_next_waits_for_more() -> None:
    box = outbox(batch_bytes=1000)
    box.stream_opened()
    box.offer(segment_of("did:plc:a", [1], lane=Lane.LIVE), 0.0)
    assert written(box, 0.0) == [("did:plc:a", 1)]
    box.offer(segment_of("did:plc:a", [2]), 0.0)
    assert box.next_message(LINGER_S / 2).message is None
    assert box.wait_s(LINGER_S / 2) == pytest.approx(LINGER_S / 2)
    box.offer(segment_of("did:plc:b", [3]), LINGER_S / 2)
    assert written(box, LINGER_S) == [("did:plc:a", 2), ("did:plc:b", 3)]


def test_backfill_waits_for_more_even_when_nothing_is_in_flight() -> None:
    box = outbox(batch_bytes=1000)
    box.stream_opened()
    box.offer(segment_of("did:plc:a", [1]), 0.0)
    assert box.next_message(LINGER_S / 2).message is None
    assert box.wait_s(LINGER_S / 2) == pytest.approx(LINGER_S / 2)
    assert written(box, LINGER_S) == [("did:plc:a", 1)]


def test_a_full_batch_and_a_flush_do_not_wait() -> None:
    box = outbox(batch_bytes=100)
    box.stream_opened()
    box.offer(segment_of("did:plc:a", [1]), 0.0)
    written(box)
    box.offer(segment_of("did:plc:a", [2, 3, 4]), 0.0)
    assert box.is_ready(0.0)
    written(box)
    box.offer(segment_of("did:plc:a", [5]), 0.0)
    assert not box.is_ready(0.0)
    box.flushing = True
    assert written(box) == [("did:plc:a", 5)]


def test_a_closed_window_holds_everything_back_until_an_acknowledgement() -> None:
    box = outbox(most_batches=2, batch_bytes=50)
    box.stream_opened()
    for key in range(5):
        box.offer(segment_of("did:plc:a", [key], pad=60), 0.0)
    written(box)
    assert (
        box.next_message(9.0).message is None
    )  # two batches of bytes are under way: the operation is larger than a batch
    assert box.wait_s(9.0) is None
    box.answer(1, [], 9.0)
    assert box.next_message(9.0).message is not None


def test_nothing_is_written_without_a_stream() -> None:
    box = outbox()
    box.offer(segment_of("did:plc:a", [1]), 0.0)
    assert box.next_message(1.0).message is None
    assert box.wait_s(1.0) is None


def test_what_an_acknowledgement_is_waited_for_is_known() -> None:
    box = outbox(batch_bytes=50)
    box.stream_opened()
    assert waiting_since(box) is None
    for key in range(3):
        box.offer(segment_of("did:plc:a", [key]), 0.0)
    box.next_message(1.0)
    box.next_message(2.0)
    assert waiting_since(box) == 1.0
    box.answer(1, [], 3.0)
    assert waiting_since(box) == 3.0
    box.answer(2, [], 4.0)
    assert waiting_since(box) is None


def test_an_oversize_operation_is_a_dead_letter_by_itself_and_the_rest_is_split_to_fit() -> None:
    world = World(outbox(max_message_bytes=400), set(), set())
    world.open()
    small = segment_of("did:plc:a", [0, 1, 2, 3])
    big = segment_of("did:plc:a", [4], pad=1000)
    rest = segment_of("did:plc:a", range(5, 20))
    payload = bytes(small.payload) + bytes(big.payload) + bytes(rest.payload)
    segment = Segment(
        did="did:plc:a", lane=Lane.LIVE, payload=memoryview(payload), size=len(payload), operations=20, rev="3z",
        token=tuple(range(20)), copied=lambda: world.copied.append(0),
    )  # fmt: skip
    world.offered.append(segment)
    assert world.box.offer(segment, 0.0)
    world.finish()
    (refused,) = world.refused
    assert (refused.reason, refused.index, refused.attempts) == ("oversize", 4, 0)
    assert refused.operation == big.payload
    assert "grpc.max_message_size (400 bytes)" in refused.message
    assert [key for _, key in world.ingester.stored] == [key for key in range(20) if key != 4]
    assert world.acknowledged == [segment]
    assert world.copied == [0]


def test_a_segment_of_nothing_but_oversize_is_acknowledged_after_its_dead_letters() -> None:
    box = outbox(max_message_bytes=400)
    box.stream_opened()
    segment = segment_of("did:plc:a", [1], pad=1000)
    box.offer(segment, 0.0)
    outcome = box.next_message(0.0)
    assert outcome.message is None
    assert [refused.reason for refused in outcome.refused] == ["oversize"]
    assert outcome.acknowledged == [segment]
    assert box.is_idle


def test_an_operation_always_refused_becomes_a_dead_letter_after_max_retries_and_others_pass_it() -> None:
    world = World(outbox(max_retries=3), set(), {0})
    world.offer("did:plc:bad", 3, Lane.BACKFILL)
    for _ in range(10):
        world.offer("did:plc:good", 3, Lane.BACKFILL)
    world.finish()
    world.check()
    (refused,) = world.refused
    assert refused.attempts == 4
    assert refused.message == "later"
    assert [key for did, key in world.ingester.stored if did == "did:plc:bad"] == [1, 2]


def test_two_operations_always_refused_do_not_hold_each_other_and_nothing_passes_them_in_their_own_repos() -> None:
    world = World(outbox(batch_bytes=20), set(), {0, 1})
    for did in ("did:plc:bad", "did:plc:worse"):
        world.offer(did, 1, Lane.BACKFILL)
    for _ in range(2):  # both are refused, one after the other, while nothing else is there
        world.open()
        while world.write():
            world.now += 1
        world.answer()
    world.offer("did:plc:worse", 2, Lane.BACKFILL)
    world.offer("did:plc:bad", 2, Lane.BACKFILL)
    world.offer("did:plc:good", 2, Lane.BACKFILL)
    world.open()
    assert world.write()
    assert world.ingester.inbox == [(1, [("did:plc:good", 6), ("did:plc:good", 7)])]
    world.finish()
    world.check()


def test_an_ingester_that_answers_nothing_but_retry_costs_no_operation() -> None:
    box = outbox(max_retries=1)
    for did in range(5):
        box.offer(segment_of(f"did:plc:{did}", [did, did + 10]), 0.0)
    for _ in range(50):
        box.stream_opened()
        box.next_message(1.0)
        outcome = box.answer(1, [Complaint(0, RETRY, "database away")], 1.0)
        assert outcome.retry == "database away"
        assert not outcome.refused
    world = World(box, set(), set())
    world.finish()
    assert sorted(world.ingester.stored) == sorted(
        (f"did:plc:{did}", key) for did in range(5) for key in (did, did + 10)
    )


def test_retry_acknowledges_what_was_before_it_and_counts_no_reject_of_the_same_answer() -> None:
    box = outbox(batch_bytes=20)
    box.stream_opened()
    first, second = segment_of("did:plc:a", [1]), segment_of("did:plc:a", [2])
    box.offer(first, 0.0)
    box.offer(second, 0.0)
    box.next_message(1.0)
    box.next_message(1.0)
    outcome = box.answer(2, [Complaint(0, REJECT, "never"), Complaint(0, RETRY, "later")], 1.0)
    assert outcome.acknowledged == [first]
    assert outcome.refused == []
    assert outcome.retry == "later"
    assert not box.is_open


@pytest.mark.parametrize(
    ("number", "complaints"),
    [
        (2, []),
        (0, [Complaint(0, REJECT, "")]),
        (2, [Complaint(0, REJECT, "")]),
        (1, [Complaint(1, REJECT, "")]),
        (1, [Complaint(0, 0, "")]),
        (1, [Complaint(0, 3, "")]),
        (1, [Complaint(0, REJECT, ""), Complaint(7, RETRY, "")]),
    ],
)
def test_an_answer_that_cannot_be_right_changes_nothing(number: int, complaints: list[Complaint]) -> None:
    box = outbox()
    box.stream_opened()
    box.offer(segment_of("did:plc:a", [1]), 0.0)
    box.next_message(0.0)
    with pytest.raises(IngesterProtocolError):
        box.answer(number, complaints, 1.0)
    box.stream_lost()
    box.stream_opened()
    assert written(box) == [("did:plc:a", 1)]


def test_a_duplicate_acknowledgement_is_harmless_and_a_falling_one_is_not() -> None:
    box = outbox(batch_bytes=20)
    box.stream_opened()
    for key in range(3):
        box.offer(segment_of("did:plc:a", [key]), 0.0)
        box.next_message(1.0)
    assert len(box.answer(2, [], 1.0).acknowledged) == 2
    assert box.answer(2, [], 1.0).acknowledged == []
    with pytest.raises(IngesterProtocolError, match="acknowledged batch 1 after batch 2"):
        box.answer(1, [], 1.0)


def test_a_payload_is_let_go_once_it_is_copied() -> None:
    slot = bytearray(segment_of("did:plc:a", [1]).payload)
    freed: list[bool] = []
    segment = Segment(
        did="did:plc:a", lane=Lane.LIVE, payload=memoryview(slot), size=len(slot), operations=1, rev="3z",
        copied=lambda: freed.append(True),
    )  # fmt: skip
    box = outbox()
    box.stream_opened()
    box.offer(segment, 0.0)
    outcome = box.next_message(0.0)
    for copied in outcome.copied:
        copied()
    slot.extend(b"x")  # BufferError while a view of it is held
    slot[:] = b"\xff" * len(slot)
    box.stream_lost()
    box.stream_opened()
    assert written(box) == [("did:plc:a", 1)]
    assert freed == [True]


def test_a_segment_whose_figures_are_wrong_is_not_taken() -> None:
    segment = segment_of("did:plc:a", [1])
    segment.size += 1
    with pytest.raises(ValueError, match="bytes named"):
        outbox().offer(segment, 0.0)
