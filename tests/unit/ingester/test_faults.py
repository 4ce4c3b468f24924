"""Misbehaviour on purpose must itself behave: reproducible, and never so that nothing gets through."""

from __future__ import annotations

import pytest

from relay.ingester.errors import BadFault
from relay.ingester.faults import StreamFaults, parse_faults
from relay.pb import ingester_pb2 as pb


def op(number: int, kind: pb.OperationType = pb.CREATE) -> pb.Operation:
    return pb.Operation(type=kind, did="did:plc:aaa", collection="a.b.c", rkey=f"r{number}", rev="3ka")


def ack(batch_id: int) -> pb.OperationResponse:
    return pb.OperationResponse(batch_id=batch_id)


def test_the_same_operations_are_refused_again_and_others_by_another_seed() -> None:
    first, other = parse_faults(["reject-rate=0.3", "seed=1"]), parse_faults(["reject-rate=0.3", "seed=2"])
    refused = [number for number in range(200) if first.refuse(op(number))]
    assert 30 < len(refused) < 90
    assert refused == [number for number in range(200) if first.refuse(op(number))]
    assert refused != [number for number in range(200) if other.refuse(op(number))]


def test_reject_match_looks_at_type_did_and_path() -> None:
    plan = parse_faults([r"reject-match=^REPO_END |c/r7$"])
    assert [number for number in range(20) if plan.refuse(op(number))] == [7]
    assert plan.refuse(op(1, pb.REPO_END)) == "fault: reject-match"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("explode=1", "no fault 'explode'; there are seed, reject-rate"),
        ("reject-rate=2", "from 0 to 1"),
        ("reject-rate=x", "could not convert"),
        ("reject-match=(", "unterminated"),
        ("retry-every=1", "a number from 2"),
        ("retry-for=-1", "seconds from 0"),
        ("never-ack=yes", "0 or 1"),
    ],
)
def test_a_fault_that_cannot_be_understood_is_named(spec: str, message: str) -> None:
    with pytest.raises(BadFault, match=message):
        parse_faults([spec])


def test_a_stream_is_cut_at_its_nth_batch_which_stays_unacknowledged() -> None:
    faults = StreamFaults(parse_faults(["close-every=5"]), 1)
    assert faults.answer(ack(4)).responses == (ack(4),)
    assert not faults.answer(ack(4)).cut
    answer = faults.answer(ack(9))
    assert answer.responses == (ack(4),)
    assert answer.cut


def test_acknowledgements_come_twice_or_stale_but_never_too_far() -> None:
    assert StreamFaults(parse_faults(["ack-twice=1"]), 1).answer(ack(3)).responses == (ack(3), ack(3))
    faults = StreamFaults(parse_faults(["ack-stale=1"]), 1)
    for newest in range(2, 50):
        first, second = faults.answer(ack(newest)).responses
        assert first.batch_id == newest > second.batch_id >= 1


def test_refusals_are_told_whatever_the_fault_but_silence() -> None:
    response = ack(9)
    response.errors.add(index=1, code=pb.OperationError.REJECT)
    answer = StreamFaults(parse_faults(["close-every=5", "ack-twice=1"]), 1).answer(response)
    assert answer.responses == (response,)
    assert answer.cut
    assert StreamFaults(parse_faults(["never-ack=1"]), 1).answer(response).responses == ()
