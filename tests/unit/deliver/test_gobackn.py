from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.deliver.errors import IngesterProtocolError
from relay.deliver.gobackn import Batch, GoBackN, Span
from tests.unit.deliver.making import read, segment_of


def batch_of(number: int, *keys: int) -> Batch:
    segment = segment_of("did:plc:a", keys)
    return Batch(number, [Span(segment, 0, segment.operations, segment.size)], [segment.payload])


@given(st.integers(1, 2**64 - 1), st.integers(1, 2**64 - 1))
def test_a_message_is_the_same_under_any_number_but_for_the_number(first: int, second: int) -> None:
    batch = batch_of(first, 1, 2, 3)
    operations = [("did:plc:a", 1), ("did:plc:a", 2), ("did:plc:a", 3)]
    assert read(batch.message(first)) == (first, operations)
    assert read(batch.message(second)) == (second, operations)
    assert read(batch.message(first)) == (first, operations)
    assert bytes(batch.body) == segment_of("did:plc:a", (1, 2, 3)).payload


def test_a_message_that_keeps_its_number_is_not_copied_again() -> None:
    batch = batch_of(7, 1)
    assert batch.message(7) is batch.message(7)


def test_sizes_that_do_not_fit_the_bytes_stop_us() -> None:
    segment = segment_of("did:plc:a", (1, 2))
    with pytest.raises(ValueError, match="a batch of"):
        Batch(1, [Span(segment, 0, 2, segment.size - 1)], [segment.payload])


class Streams(RuleBasedStateMachine):
    """Against the plain rule: what is unacknowledged is sent from number 1 on a new stream, in order, and nothing is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.flight = GoBackN()
        self.made = 0
        self.waiting: list[int] = []  # keys of unacknowledged batches, oldest first
        self.written = 0
        self.base = 0  # acknowledged on this stream

    @rule()
    def append(self) -> None:
        self.flight.append(batch_of(self.flight.next_number, self.made))
        self.waiting.append(self.made)
        self.made += 1

    @precondition(lambda self: self.flight.has_unwritten)
    @rule()
    def write(self) -> None:
        batch, message = self.flight.write_next(0.0)
        assert read(message) == (self.base + self.written + 1, [("did:plc:a", self.waiting[self.written])])
        assert batch.number == self.base + self.written + 1
        self.written += 1

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, self.written))
        freed = self.flight.acknowledge(self.base + count)
        assert [read(batch.message(1))[1][0][1] for batch in freed] == self.waiting[:count]
        del self.waiting[:count]
        self.base += count
        self.written -= count

    @rule(ahead=st.integers(1, 5))
    def acknowledge_the_future(self, ahead: int) -> None:
        with pytest.raises(IngesterProtocolError, match="the last one sent"):
            self.flight.acknowledge(self.base + self.written + ahead)

    @precondition(lambda self: self.base > 0)
    @rule(data=st.data())
    def acknowledge_the_past(self, data: st.DataObject) -> None:
        with pytest.raises(IngesterProtocolError, match="after batch"):
            self.flight.acknowledge(data.draw(st.integers(0, self.base - 1)))

    @rule()
    def break_stream(self) -> None:
        self.flight.new_stream()
        self.written = self.base = 0

    @invariant()
    def agrees(self) -> None:
        assert len(self.flight) == len(self.waiting)
        assert self.flight.written == self.written
        assert self.flight.written_bytes == sum(batch.size for batch in self.flight.batches[: self.written])
        assert self.flight.next_number == self.base + self.written + 1


TestStreams = Streams.TestCase


def test_an_answer_with_errors_speaks_only_of_a_batch_in_flight() -> None:
    flight = GoBackN()
    for key in range(3):
        flight.append(batch_of(key + 1, key))
    flight.write_next(0.0)
    flight.write_next(0.0)
    flight.acknowledge(1)
    assert read(flight.unacknowledged(2).message(2)) == (2, [("did:plc:a", 1)])
    for number in (0, 1, 3):
        with pytest.raises(IngesterProtocolError):
            flight.unacknowledged(number)


def test_the_order_of_what_is_written_stands() -> None:
    flight = GoBackN()
    flight.append(batch_of(1, 1))
    flight.write_next(0.0)
    with pytest.raises(AssertionError, match="their order stands"):
        flight.rearrange([])
