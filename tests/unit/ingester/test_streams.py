"""What a stream takes in, and what it has to say."""

from __future__ import annotations

import threading

import pytest

from relay.ingester.errors import BadBatch
from relay.ingester.operations import Prepared, Refusal
from relay.ingester.streams import Stream
from relay.ingester.writer import Intake, QueuedBatch
from relay.pb import ingester_pb2 as pb


def responses(stream: Stream) -> list[tuple[int, list[tuple[int, int]]]]:
    """Everything that is still to be said, until the end."""
    said = []
    while (response := stream.next_response()) is not None:
        said.append((response.batch_id, [(error.index, int(error.code)) for error in response.errors]))
    return said


def received(count: int) -> Stream:
    stream = Stream(1)
    for batch_id in range(1, count + 1):
        assert stream.receive(batch_id)
    return stream


@pytest.mark.parametrize("batch_id", [0, 1, 2, 4])
def test_only_the_next_batch_id_is_taken(batch_id: int) -> None:
    stream = received(2)
    with pytest.raises(BadBatch, match=f"batch_id {batch_id} is not the next one of this stream: expected 3"):
        stream.receive(batch_id)


def test_acknowledgements_that_nobody_took_yet_become_one() -> None:
    stream = received(3)
    for batch_id in (1, 2, 3):
        stream.stored(batch_id)
    stream.read_to_end()
    assert responses(stream) == [(3, [])]


def test_a_response_with_refusals_keeps_its_place() -> None:
    stream = received(5)
    stream.stored(1)
    stream.stored(2, [Refusal(index=4, message="no"), Refusal(index=6, message="no")])
    for batch_id in (3, 4, 5):
        stream.stored(batch_id)
    stream.read_to_end()
    reject = int(pb.OperationError.REJECT)
    assert responses(stream) == [(1, []), (2, [(4, reject), (6, reject)]), (5, [])]


def test_after_retry_nothing_more_is_taken_or_acknowledged() -> None:
    stream = received(4)
    stream.stored(1)
    stream.retry(2, "away")
    stream.stored(3)
    stream.retry(4, "away")
    assert not stream.receive(5)
    assert stream.is_broken
    assert responses(stream) == [(1, []), (2, [(0, int(pb.OperationError.RETRY))])]


def test_a_stream_that_was_read_to_its_end_waits_for_its_last_acknowledgement() -> None:
    stream = received(2)
    stream.read_to_end()
    stream.stored(1)
    said: list[tuple[int, list[tuple[int, int]]]] = []
    thread = threading.Thread(target=lambda: said.extend(responses(stream)))
    thread.start()
    stream.stored(2)
    thread.join(10)
    assert said[-1] == (2, [])


def test_a_batch_that_was_not_queued_is_not_waited_for() -> None:
    stream = received(2)
    stream.stored(1)
    stream.not_queued()
    assert responses(stream) == [(1, [])]
    assert not stream.receive(2)


# The intake


def batch(stream: Stream, batch_id: int, size: int = 10) -> QueuedBatch:
    prepared = Prepared(operations=1, size_bytes=size)
    return QueuedBatch(stream=stream, batch_id=batch_id, prepared=prepared, received_at=0.0)


def test_a_group_is_what_came_first_up_to_the_limits() -> None:
    intake, stream = Intake(), Stream(1)
    for batch_id in range(1, 8):
        assert intake.put(batch(stream, batch_id))
    assert [queued.batch_id for queued in intake.take(3, 1000)] == [1, 2, 3]
    assert [queued.batch_id for queued in intake.take(9, 25)] == [4, 5]
    assert [queued.batch_id for queued in intake.take(9, 5)] == [6]
    intake.close()
    assert [queued.batch_id for queued in intake.take(9, 1000)] == [7]
    assert intake.take(9, 1000) == []


@pytest.mark.parametrize(
    ("intake", "size"), [(Intake(batches_per_stream=2), 1), (Intake(total_bytes=250), 100)], ids=["batches", "bytes"]
)
def test_a_full_queue_holds_its_stream_until_there_is_room(intake: Intake, size: int) -> None:
    stream = Stream(1)
    taken: list[bool] = []
    assert intake.put(batch(stream, 1, size))
    assert intake.put(batch(stream, 2, size))
    thread = threading.Thread(target=lambda: taken.append(intake.put(batch(stream, 3, size))))
    thread.start()
    assert len(intake) == 2
    assert not taken
    intake.take(1, 1000)
    thread.join(10)
    assert taken == [True]
    assert len(intake) == 2


def test_a_batch_larger_than_the_whole_queue_still_goes_through() -> None:
    intake = Intake(total_bytes=100)
    assert intake.put(batch(Stream(1), 1, 5000))
    assert len(intake.take(9, 10)) == 1


def test_a_held_stream_is_let_go_when_it_breaks_or_the_ingester_stops() -> None:
    for let_go in ("break", "stop"):
        intake, stream = Intake(batches_per_stream=1), Stream(1)
        taken: list[bool] = []
        intake.put(batch(stream, 1))
        thread = threading.Thread(target=lambda: taken.append(intake.put(batch(stream, 2))))  # noqa: B023
        thread.start()
        if let_go == "break":
            stream.end()
            intake.wake()
        else:
            intake.close()
        thread.join(10)
        assert taken == [False]
