"""Killed at each point between two durable steps, then started again: nothing is lost, and no step is done by halves."""

from __future__ import annotations

import random
import signal

import pytest

from relay.runtime.crashpoint import VARIABLE, CrashPoint
from tests.faults.stage import Expectation, Stage

pytestmark = pytest.mark.faults

# How often each is passed at least, in the small world: once a page, a claim, a repo with records, an inactive account.
_PASSED = {
    CrashPoint.DISCOVERED_STORED: 3,
    CrashPoint.CLAIM_STORED: 1,
    CrashPoint.BEGUN_STORED: 10,
    CrashPoint.END_ACKNOWLEDGED: 10,
    CrashPoint.SYNCED_STORED: 10,
    CrashPoint.STATUS_STORED: 1,
    CrashPoint.STATUS_ACKNOWLEDGED: 1,
}


@pytest.mark.parametrize("point", list(CrashPoint))
def test_a_crash_at_this_point_loses_nothing(
    point: CrashPoint, small_world: Expectation, stage: Stage, rng: random.Random, dsn: str
) -> None:
    where = {"INGESTER_ADDRESSES": stage.watched_ingester(), "DATABASE_DSN": dsn}
    count = rng.randint(1, _PASSED[point])
    print(f"{point}, passage {count}")
    program = stage.backfill(small_world, **where, **{VARIABLE: f"{point}:{count}"})
    assert program.wait() == -signal.SIGKILL, f"{point} was not passed: {program}"
    stage.judge(small_world, stage.backfill(small_world, **where))


def test_every_point_is_tested() -> None:
    assert set(_PASSED) == set(CrashPoint)
