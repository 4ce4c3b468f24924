"""The order check finds what breaks a promise, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from relay.ingester.order import OrderChecker
from relay.pb import ingester_pb2 as pb

DID = "did:plc:aaa"


def op(kind: int, rev: str = "", **fields: Any) -> pb.Operation:
    return pb.Operation(type=kind, rev=rev, **{"did": DID, **fields})  # type: ignore[arg-type]


def begin(rev: str) -> pb.Operation:
    return op(pb.REPO_BEGIN, rev, source=pb.BACKFILL)


def end(rev: str) -> pb.Operation:
    return op(pb.REPO_END, rev, source=pb.BACKFILL)


def piece(rev: str) -> pb.Operation:
    return op(pb.CREATE, rev, source=pb.BACKFILL)


def live(rev: str, seq: int = 1) -> pb.Operation:
    return op(pb.UPDATE, rev, source=pb.FIREHOSE, seq=seq)


def account(time_us: int) -> pb.Operation:
    return op(pb.ACCOUNT, time_us=time_us)


def check(*operations: pb.Operation) -> OrderChecker:
    checker = OrderChecker()
    checker.observe(operations)
    return checker


@pytest.mark.parametrize(
    "run",
    [
        [begin("3ka"), piece("3ka"), piece("3ka"), end("3ka"), live("3kb", 1), live("3kb", 1), live("3kc", 2)],
        [piece("3ka"), end("3ka")],  # the stream begins in the middle
        [end("3ka"), live("3kb")],
        [begin("3ka"), piece("3ka"), begin("3kb"), piece("3kb"), end("3kb")],  # interrupted, and again
        [begin("3ka"), piece("3ka"), account(1), begin("3ka"), end("3ka"), account(2)],
        [live("3kb"), op(pb.CREATE, "3ka", did="did:plc:other", source=pb.FIREHOSE)],
        # The commit was buffered while its repo was fetched; who somebody is was told at once.
        [begin("3ka"), end("3ka"), op(pb.IDENTITY, seq=1548, source=pb.FIREHOSE, time_us=9), live("3kb", 1459)],
        [live("3ka", 5), op(pb.ACCOUNT, seq=9, source=pb.FIREHOSE, time_us=9), live("3kb", 7)],
    ],
)
def test_what_a_relay_may_do_is_no_violation(run: list[pb.Operation]) -> None:
    assert check(*run).first == ""


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ([live("3kb", 1), live("3ka", 2)], "UPDATE of did:plc:aaa: rev 3ka after 3kb"),
        ([live("3ka", 2), live("3kb", 1)], "seq 1 after 2"),
        ([begin("3kb"), end("3kb"), begin("3ka")], "rev 3ka after 3kb"),
        ([begin("3ka"), live("3kb")], "live operation inside of the snapshot 3ka"),
        ([begin("3ka"), piece("3kb")], "rev 3kb inside of the snapshot 3ka"),
        ([begin("3ka"), end("3kb")], "rev 3kb inside of the snapshot 3ka"),
        ([begin("3ka"), end("3ka"), piece("3ka")], "outside of a snapshot"),
        ([live("3ka"), piece("3kb")], "outside of a snapshot"),
        ([live("3ka"), end("3kb")], "outside of a snapshot"),
        ([account(2), account(1)], "time_us 1 after 2"),
        ([op(pb.IDENTITY, time_us=2), op(pb.IDENTITY, time_us=1)], "time_us 1 after 2"),
    ],
)
def test_each_broken_promise_is_one_violation(run: list[pb.Operation], message: str) -> None:
    checker = check(*run)
    assert checker.violations == 1
    assert message in checker.first


def test_operations_that_cannot_be_read_are_passed_over() -> None:
    checker = OrderChecker()
    checker.observe([None, live("3ka")])
    assert checker.violations == 0


def test_memory_is_bounded_by_forgetting_who_was_silent_longest() -> None:
    checker = OrderChecker(max_dids=2)
    for did in ("did:a", "did:b", "did:a", "did:c"):
        checker.observe([op(pb.UPDATE, "3kb", did=did, source=pb.FIREHOSE)])
    checker.observe([op(pb.UPDATE, "3ka", did="did:b", source=pb.FIREHOSE)])
    assert checker.violations == 0
    checker.observe([op(pb.UPDATE, "3ka", did="did:c", source=pb.FIREHOSE)])
    assert checker.violations == 1
