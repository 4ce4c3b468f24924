"""All ingesters away under full load: the memory of the supervisor stays under a bound that its limits make up; then the judge.

`--long`: ten minutes, with figures at the start, after 1, 5 and 10 of them.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from relay.simnet.process import SimProcess
from tests.faults.stage import Stage
from tests.support.delivery_world import DeliveryWorld
from tests.support.waiting import let_pass, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

MIB = 1 << 20
SHORT_S, LONG_S = 20.0, 600.0
RATE = 400.0
INGESTERS = 3
QUEUE, BUFFER, OPEN_FRAMES = 5_000, 5_000, 20_000
BATCHES, BATCH_BYTES = 32, 256 << 10
QUEUED_BYTES = 1 << 10
"""What is kept of an operation that waits, at most: a share of a segment, or of a buffered event."""
FRAME_BYTES = 1 << 10
"""What is kept of an open frame, and of its repo."""
SLACK_BYTES = 32 * MIB
"""What an interpreter and its allocators take or give back meanwhile."""
BOUND_BYTES = (
    INGESTERS * (BATCHES * BATCH_BYTES + QUEUE * QUEUED_BYTES)
    + BUFFER * QUEUED_BYTES
    + OPEN_FRAMES * FRAME_BYTES
    + SLACK_BYTES
)
"""How much the supervisor's private memory may grow: windows, queues, the live buffer, open frames, and slack. Slots are shared memory."""


def anonymous_bytes(pid: int) -> int:
    """Return a process's private memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def test_memory_while_all_ingesters_are_away(
    network: SimProcess, stage: Stage, dsn: str, is_long: bool, request: pytest.FixtureRequest
) -> None:
    minutes = request.config.getoption("--minutes")
    ends_after = 60.0 * minutes if minutes else LONG_S if is_long else SHORT_S
    env = {
        "DATABASE_DSN": dsn,
        "DELIVERY_QUEUE_OPERATIONS": str(QUEUE),
        "DELIVERY_BATCH_BYTES": str(BATCH_BYTES),
        "DELIVERY_MAX_IN_FLIGHT_BATCHES": str(BATCHES),
        "BUFFER_SIZE": str(BUFFER),
        "FIREHOSE_MAX_OPEN_FRAMES": str(OPEN_FRAMES),
    }
    with DeliveryWorld(stage, network, ingesters=INGESTERS, env=env) as world:
        world.begin(RATE)
        wait_until(lambda: anonymous_bytes(world.relay.pid) > 0 and world.operations > 1000, "work under way")
        for seat in world.seats:
            seat.kill()
        wait_until(lambda: all(world.reasons().values()), "all away")
        began, first = time.monotonic(), anonymous_bytes(world.relay.pid)
        most = first
        print(f"at the start: {first / MIB:.1f} MiB; it may grow by {BOUND_BYTES / MIB:.1f} MiB")
        told = [mark for mark in (60.0, 300.0, 600.0) if mark <= ends_after]
        while (passed := time.monotonic() - began) < ends_after:
            now = anonymous_bytes(world.relay.pid)
            most = max(most, now)
            if told and passed >= told[0]:
                print(f"after {told.pop(0) / 60:g} minutes: {now / MIB:.1f} MiB, {_held(world)}")
            let_pass(0.5)
        print(f"after {ends_after:g} s: {anonymous_bytes(world.relay.pid) / MIB:.1f} MiB, {_held(world)}")
        print(f"at most: {most / MIB:.1f} MiB")
        assert most - first <= BOUND_BYTES
        for seat in world.seats:
            seat.start()
        world.end(deadline_s=300.0)


def _held(world: DeliveryWorld) -> str:
    """Say what the relay holds."""
    status = world.status()
    assert status is not None
    firehose, network = status["firehose"], world.network
    assert isinstance(network, SimProcess)
    queued = sum(each["queued_operations"] or 0 for each in status["ingesters"])
    return (
        f"{queued:,} operations queued, {firehose['buffered_operations']} buffered, {firehose['open_frames']} frames open;"
        f" read to {firehose['seq']} of {network.newest_seq()}"
    )
