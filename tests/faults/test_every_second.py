"""`bin/relay run` under load, and its processes killed again and again: children each second, itself many times in a row; then the judge.

Faults of the stream make repos come back to the fetchers all the time, so that backfill and stream are both under way.
"""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from relay.simnet.faults import Fault, FaultKind
from relay.simnet.process import SimProcess
from tests.faults.stage import Stage, kill
from tests.support.delivery_world import DeliveryWorld
from tests.support.live_world import CHILDREN
from tests.support.waiting import let_pass, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

KILLS, LONG_KILLS = 5, 50  # of a supervisor
EACH_S = 1.0
_HOLES = Fault(kind=FaultKind.DROP_EVENT, rate=0.02)
_SLOW = Fault(kind=FaultKind.SLOW, endpoint="getRepo", bytes=200_000)


def test_children_killed_each_second(network: SimProcess, stage: Stage, seconds: float, rng: random.Random) -> None:
    with DeliveryWorld(stage, network) as world:
        world.set_faults([_HOLES, _SLOW])
        world.begin()
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            for child in CHILDREN:
                found = stage.named(child)
                world.kills[child] += bool(found) and kill(rng.choice(found).pid)
            let_pass(EACH_S)
        assert all(world.kills[child] for child in CHILDREN), world.kills
        print(world.summary().splitlines()[0])
        world.end()


def test_supervisor_killed_many_times_in_a_row(
    network: SimProcess, stage: Stage, rng: random.Random, is_long: bool
) -> None:
    # Every download of more than a few records goes through a spool file: a kill leaves some behind.
    with DeliveryWorld(stage, network, env={"BACKFILLER_SLOT_BYTES": str(64 << 10)}) as world:
        world.set_faults([_HOLES, _SLOW])
        world.begin()
        left: set[Path] = set()
        kills = LONG_KILLS if is_long else KILLS
        for number in range(kills):
            # One in three while it starts, the others at work.
            if number % 3:
                wait_until(lambda: world.status() is not None, "it has started", deadline_s=60.0)
                let_pass(rng.uniform(0.0, 1.5))
            else:
                let_pass(rng.uniform(0.0, 1.5))
            assert world.relay.is_running(), str(world.relay)
            world.kill("supervisor", rng)
            left.update((stage.data / "spool").glob("*"))
        world.relay.wait_for_line("^metrics: ", deadline_s=60.0)
        assert not [path for path in left if path.exists()], "what a killed one left behind is still there"
        told = "\n".join(line for relay in world.relays for line in relay.err)
        assert not re.search(r"^Traceback", told, re.MULTILINE), told[-20_000:]
        print(f"{kills} kills, {len(left)} spool files left behind by them")
        world.end()
