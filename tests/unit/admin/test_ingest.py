"""The answers of a chained stream: in order, cumulative, and an error never speaks of another batch than its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.admin.ingest import MOST_OPEN_BATCHES, MOST_OPEN_BYTES, Batch, PassedStream


def _batch(stream: PassedStream, number: int, *, size: int = 10) -> Batch:
    return Batch(stream=stream, batch_id=number, size=size, operations=[])


@given(data=st.data(), count=st.integers(1, 12))
def test_every_batch_is_answered_once_in_order_however_they_finish(data: st.DataObject, count: int) -> None:
    stream = PassedStream()
    batches = [_batch(stream, number) for number in range(1, count + 1)]
    refused = data.draw(st.sets(st.integers(1, count)))
    for batch in batches:
        assert stream.take(batch)
    stream.read_to_end()
    finishing = data.draw(st.permutations(batches))
    answers: list[tuple[int, list[int]]] = []
    done: set[int] = set()
    for batch in finishing:
        if batch.batch_id in refused:
            batch.errors.append((batch.batch_id, "no"))
        stream.finished(batch)
        done.add(batch.batch_id)
        while (answers[-1][0] if answers else 0) + 1 in done:
            answer = stream.next_answer()
            assert answer is not None
            answers.append((answer.batch_id, [error.index for error in answer.errors]))
            covered = range(1, answer.batch_id + 1)
            assert set(covered) <= done, "nothing is acknowledged before its time"
    assert stream.next_answer() is None
    assert [number for number, _ in answers] == sorted({number for number, _ in answers})
    assert answers[-1][0] == count
    assert {number for number, errors in answers if errors} == refused
    assert all(errors in ([], [number]) for number, errors in answers)


def test_a_stream_takes_no_more_than_its_bounds_and_a_cut_ends_the_wait() -> None:
    by_count, by_bytes = PassedStream(), PassedStream()
    for number in range(1, MOST_OPEN_BATCHES + 1):
        assert by_count.take(_batch(by_count, number))
    assert by_bytes.take(_batch(by_bytes, 1, size=2 * MOST_OPEN_BYTES)), "alone, any size"
    for stream, number in ((by_count, MOST_OPEN_BATCHES + 1), (by_bytes, 2)):
        stream.cut()
        assert not stream.take(_batch(stream, number))
        assert stream.next_answer() is None
