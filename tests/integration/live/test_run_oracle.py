"""`bin/relay run` beside writers, with faults and a kill: in the end the ingester's database equals the network."""

from __future__ import annotations

import random
import threading

from relay.simnet.faults import Fault, FaultKind
from tests.integration.live.conftest import MakeWorld
from tests.support.waiting import wait_until

_FAULTS = (
    Fault(kind=FaultKind.HANG, endpoint="getRepo", seconds=0.3, rate=0.5),
    Fault(kind=FaultKind.DROP_EVENT, rate=0.01),
    Fault(kind=FaultKind.EVENT_BAD_SIGNATURE, rate=0.01),
    Fault(kind=FaultKind.EVENT_MISSING_NODE, rate=0.01),
    Fault(kind=FaultKind.EVENT_ROLLBACK, rate=0.01),
    Fault(kind=FaultKind.EVENT_TOO_BIG, rate=0.01),
    Fault(kind=FaultKind.REPEAT_RANGE, endpoint="subscribeRepos", rate=0.01, times=3),
    Fault(kind=FaultKind.REORDER, endpoint="subscribeRepos", rate=0.005, times=3, count=5),
    Fault(kind=FaultKind.STREAM_CUT, endpoint="subscribeRepos", rate=0.002, times=3),
)
_RATE, _SEED = 100.0, 3


def test_after_writers_faults_and_a_kill_the_database_equals_the_network(make_world: MakeWorld) -> None:
    world = make_world(accounts=60, median_records=30, max_records=500, inactive_share=0.05, seed=_SEED)
    world.set_faults(_FAULTS, seed=_SEED)
    world.network.start_writers(_RATE, seed=_SEED)
    world.start()
    threading.Event().wait(3.0)  # writers write
    world.kill("supervisor", random.Random(_SEED))
    written = sum(world.network.written().values())
    wait_until(lambda: sum(world.network.written().values()) > written + 3 * _RATE, "more commits")
    world.come_to_rest()
    world.judge()
    assert world.fired["stream_cut"] + world.fired["drop_event"] > 0
