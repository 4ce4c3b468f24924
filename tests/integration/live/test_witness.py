"""The witness itself: it finds every disorder that it promises to find, and nothing in what is right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.ingester.order import OrderChecker
from relay.pb import ingester_pb2 as pb
from tests.support.witness import StreamJudge

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


def live(rev: str, seq: int, kind: pb.OperationType = pb.CREATE) -> pb.Operation:
    return pb.Operation(type=kind, did=DID, rev=rev, seq=seq, source=pb.FIREHOSE)


def snapshot(rev: str, records: int = 1, *, told: int | None = None) -> list[pb.Operation]:
    return [
        pb.Operation(type=pb.REPO_BEGIN, did=DID, rev=rev, source=pb.BACKFILL),
        *[pb.Operation(type=pb.CREATE, did=DID, rev=rev, source=pb.BACKFILL) for _ in range(records)],
        pb.Operation(
            type=pb.REPO_END, did=DID, rev=rev, source=pb.BACKFILL, record_count=records if told is None else told
        ),
    ]


def status(time_us: int, *, active: bool = False) -> pb.Operation:
    return pb.Operation(type=pb.ACCOUNT, did=DID, time_us=time_us, account=pb.AccountStatus(active=active))


def problems(*operations: pb.Operation) -> list[str]:
    judge = StreamJudge()
    return [problem for op in operations if (problem := judge.watch(op))]


@pytest.mark.parametrize(
    "operations",
    [
        [*snapshot("b", 3), live("c", 1), live("c", 1), live("d", 2), *snapshot("d"), live("e", 9)],
        [*snapshot("b")[1:], live("c", 1)],  # the stream begins within a snapshot
        [*snapshot("b")[:2], status(5), status(6, active=True), *snapshot("b", 2)],  # a snapshot that a status ended
        [*snapshot("b", 2)[:2], *snapshot("c", 3)],  # one that was begun anew
        [live("c", 4), status(5), live("d", 7)],
    ],
)
def test_what_is_allowed_is_no_violation(operations: list[pb.Operation]) -> None:
    assert problems(*operations) == []


@pytest.mark.parametrize(
    ("operations", "why"),
    [
        ([live("c", 1), live("b", 2)], "rev b after c"),
        ([live("c", 4), live("d", 3)], "seq 3 after 4"),
        ([live("c", 4), live("c", 5)], "rev c is told a second time, as seq 5"),
        ([*snapshot("c"), live("c", 5)], "rev c is told a second time, as seq 5"),
        ([live("c", 1), *snapshot("b", 0)], "rev b after c"),
        ([*snapshot("b", 2)[:2], live("c", 1)], "a live operation inside of the snapshot b"),
        ([*snapshot("b", 1)[:1], *snapshot("c")[1:]], "inside of the snapshot b"),
        ([*snapshot("b"), *snapshot("b")[1:]], "outside of a snapshot"),
        ([live("a", 1), *snapshot("b")[1:]], "outside of a snapshot"),
        (snapshot("b", 2, told=3), "REPO_END tells of 3 records, and 2 came"),
        ([status(5), status(4)], "time 4 after 5"),
        ([live("", 1)], "no rev"),
        ([live("b", 0)], "a live operation without a seq"),
    ],
)
def test_each_disorder_is_told(operations: list[pb.Operation], why: str) -> None:
    assert problems(*operations)[0] == why


def of_snapshot(kind: pb.OperationType, rev: str) -> pb.Operation:
    return pb.Operation(type=kind, did=DID, rev=rev, source=pb.BACKFILL)


REVS = st.sampled_from("abcd")
OPERATIONS = st.one_of(
    st.builds(live, REVS, st.integers(1, 5), st.sampled_from([pb.CREATE, pb.UPDATE, pb.DELETE])),
    st.builds(of_snapshot, st.sampled_from([pb.REPO_BEGIN, pb.CREATE, pb.CREATE, pb.REPO_END]), REVS),
    st.builds(
        lambda kind, time_us, seq, active: pb.Operation(
            type=kind, did=DID, time_us=time_us, seq=seq, source=pb.FIREHOSE, account=pb.AccountStatus(active=active)
        ),
        st.sampled_from([pb.ACCOUNT, pb.IDENTITY]),
        st.integers(1, 3),
        st.integers(0, 5),
        st.booleans(),
    ),
)


@given(st.lists(OPERATIONS, max_size=12))
def test_the_checker_of_the_reference_ingester_finds_the_same_disorder_at_the_same_operation(
    operations: list[pb.Operation],
) -> None:
    judge, checker = StreamJudge(), OrderChecker()
    for op in operations:
        told = judge.watch(op)
        checker.observe([op])
        if told.startswith("REPO_END tells") or "a second time" in told:
            return  # only the witness counts, and remembers which seq a rev had
        assert bool(told) == bool(checker.violations), f"witness: {told!r}, checker: {checker.first!r}"
        if told:
            return
