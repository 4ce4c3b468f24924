from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.deliver.gobackn import Batch, Span
from relay.deliver.refusals import RetryBook, isolate, locate, others_first, split_oversize, without
from relay.deliver.segment import Segment
from tests.unit.deliver.making import keys_of, payload_of, read, segment_of

Op = tuple[str, int]


def batch_of(segments: list[Segment]) -> Batch:
    spans = [Span(segment, 0, segment.operations, segment.size) for segment in segments]
    return Batch(1, spans, [segment.payload for segment in segments])


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    """Some batches of segments of three DIDs; every operation has a key of its own, rising in order."""
    sizes = draw(
        st.lists(
            st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=4), min_size=1, max_size=5
        )
    )
    made, key = [], 0
    for batch in sizes:
        segments = []
        for did, count in batch:
            segments.append(segment_of(f"did:plc:{did}", range(key, key + count)))
            key += count
        made.append(batch_of(segments))
    return made


def operations_of(batches: list[Batch]) -> list[Op]:
    return [operation for batch in batches for operation in read(batch.message(1))[1]]


def spans_of(batches: list[Batch]) -> Counter[int]:
    return Counter(id(span.segment) for batch in batches for span in batch.spans)


@given(batches(), st.data())
def test_an_operation_is_found_by_its_place_in_the_batch(made: list[Batch], data: st.DataObject) -> None:
    batch = made[0]
    index = data.draw(st.integers(0, batch.operations - 1))
    did, key = read(batch.message(1))[1][index]
    place = locate(batch, index)
    assert place.operation == payload_of(did, [key])
    assert keys_of(place.span.segment)[place.index] == key


def test_a_place_outside_of_the_batch_is_an_error() -> None:
    with pytest.raises(IndexError):
        locate(batch_of([segment_of("did:plc:a", [1])]), 1)


@given(batches(), st.data())
def test_a_refused_operation_stands_alone_in_its_place(made: list[Batch], data: st.DataObject) -> None:
    before = operations_of(made[:1])
    index = data.draw(st.integers(0, made[0].operations - 1))
    segment = locate(made[0], index).span.segment
    parts, alone = isolate(made[0], locate(made[0], index))
    assert operations_of(parts) == before
    assert operations_of([alone]) == before[index : index + 1]
    assert alone in parts
    assert segment.open_spans == spans_of(parts)[id(segment)]


@given(batches(), st.data())
def test_others_go_before_refused_operations_and_nothing_passes_them_in_their_own_repo(
    made: list[Batch], data: st.DataObject
) -> None:
    before = operations_of(made)
    suspects: set[Batch] = set()
    for did in data.draw(st.sets(st.sampled_from(sorted({did for did, _ in before})), max_size=2)):
        key = data.draw(st.sampled_from([key for name, key in before if name == did]))
        (at,) = [at for at, batch in enumerate(made) if (did, key) in operations_of([batch])]
        made[at : at + 1], alone = isolate(made[at], locate(made[at], operations_of([made[at]]).index((did, key))))
        suspects.add(alone)
    first, waits = others_first(made, suspects)
    after = operations_of([*first, *waits])
    assert sorted(after) == sorted(before)
    bad = dict(operations_of(list(suspects)))
    for name in {name for name, _ in before}:
        assert [op for op in after if op[0] == name] == [op for op in before if op[0] == name]
    assert operations_of(first) == [(did, key) for did, key in before if key < bad.get(did, key + 1)]
    assert suspects <= set(waits)
    counted = spans_of([*first, *waits])
    for batch in [*first, *waits]:
        for span in batch.spans:
            assert locate(batch, 0).operation
            assert span.segment.open_spans == counted[id(span.segment)]


@given(batches(), st.data())
def test_a_dead_letter_leaves_its_batch_and_nothing_else_does(made: list[Batch], data: st.DataObject) -> None:
    batch = made[0]
    index = data.draw(st.integers(0, batch.operations - 1))
    before = operations_of([batch])
    segment = locate(batch, index).span.segment
    rebuilt = without(batch, locate(batch, index))
    left = [] if rebuilt is None else [rebuilt]
    assert operations_of(left) == before[:index] + before[index + 1 :]
    assert segment.open_spans == spans_of(left)[id(segment)]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(40, 120))
def test_a_large_segment_is_cut_into_messages_that_fit_and_only_what_cannot_fit_is_left_out(
    pads: list[int], most_bytes: int
) -> None:
    fields = [payload_of("did:plc:a", [key], pad) for key, pad in enumerate(pads)]
    payload = b"".join(fields)
    segment = Segment(
        did="did:plc:a",
        lane=segment_of("did:plc:a", [1]).lane,
        payload=payload,
        size=len(payload),
        operations=len(pads),
        rev="3zzz",
    )
    made, oversize = split_oversize(segment, most_bytes=most_bytes)
    assert [place.index for place in oversize] == [key for key, field in enumerate(fields) if len(field) > most_bytes]
    assert [place.operation for place in oversize] == [field for field in fields if len(field) > most_bytes]
    assert [key for _, key in operations_of(made)] == [
        key for key, field in enumerate(fields) if len(field) <= most_bytes
    ]
    assert all(batch.size <= most_bytes for batch in made)
    assert segment.open_spans == len(made)
    for batch in made:
        (span,) = batch.spans
        assert read(batch.message(1))[1][0][1] == span.first


def test_attempts_are_used_up_only_by_refusals_with_an_acknowledgement_in_between() -> None:
    book = RetryBook(max_retries=2)
    segment = segment_of("did:plc:a", [1, 2])
    assert not any(book.refused(segment, 0, acknowledged=7) for _ in range(50))
    assert not book.refused(segment, 0, acknowledged=8)
    assert not book.refused(segment, 0, acknowledged=8)
    assert not book.refused(segment, 1, acknowledged=9)  # another operation
    assert book.refused(segment, 0, acknowledged=9)
    assert book.refusals(segment, 0) == 53


def test_with_no_retries_the_second_refusal_is_the_last() -> None:
    book = RetryBook(max_retries=0)
    segment = segment_of("did:plc:a", [1])
    assert not book.refused(segment, 0, acknowledged=3)
    assert not book.refused(segment, 0, acknowledged=3)
    assert book.refused(segment, 0, acknowledged=4)


def test_an_acknowledged_segment_is_forgotten() -> None:
    book = RetryBook(max_retries=1)
    segment = segment_of("did:plc:a", [1])
    book.refused(segment, 0, acknowledged=1)
    book.forget(segment)
    assert book.refusals(segment, 0) == 0
