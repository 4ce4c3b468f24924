"""What goes wrong in the network, drawn from a seed: a few kinds of faults at a time, for a few seconds each."""

from __future__ import annotations

import random
from collections.abc import Iterator

from relay.simnet.faults import EVENT_FAULTS, STREAM_FAULTS, SUBSCRIPTION_FAULTS, Fault, FaultKind

# Of an event as it enters the log; the first value is the share of events that is struck at most.
_EVENT_RATE = 0.01
_RARE_EVENTS = {FaultKind.GARBAGE_FRAME: 0.002, FaultKind.OVERSIZE_FRAME: 0.0005}
# Of an event as it is sent: most of these end the connection.
_STREAM_RATE = 0.002
_STREAM_SILENCE_S = 6.0
_AT_A_TIME = (3, 9)
_MOST_KEPT_EVENTS = 300

# Without SILENT_CURSOR: a hole that nobody tells, shorter than a minute, is no different from a quiet network. `tests/unit/tail` has it.
FIREHOSE_KINDS = tuple(sorted((EVENT_FAULTS | STREAM_FAULTS | SUBSCRIPTION_FAULTS) - {FaultKind.SILENT_CURSOR}))
_SERVERS = (
    Fault(kind=FaultKind.TOO_MANY, endpoint="getRepo", rate=0.1, seconds=1.0),
    Fault(kind=FaultKind.STATUS, endpoint="getRepo", rate=0.1),
    Fault(kind=FaultKind.RESET, endpoint="getRepo", rate=0.1),
    Fault(kind=FaultKind.CUT, endpoint="getRepo", rate=0.1, per_did=1),
    Fault(kind=FaultKind.CUT_AT_BLOCK, endpoint="getRepo", per_did=1, rate=0.2),
    Fault(kind=FaultKind.STALE_CAR, endpoint="getRepo", per_did=1, rate=0.3),
    Fault(kind=FaultKind.BAD_SIGNATURE, endpoint="getRepo", per_did=1, rate=0.2),
    Fault(kind=FaultKind.HANG, endpoint="getRepo", rate=0.3, seconds=1.5),
    Fault(kind=FaultKind.STATUS, endpoint="plc", rate=0.3),
    Fault(kind=FaultKind.STALE_DOCUMENT, endpoint="plc", rate=0.2, per_did=1),
    Fault(kind=FaultKind.HANG, endpoint="plc", rate=0.2, seconds=1.0),
    Fault(kind=FaultKind.STATUS, endpoint="listRepos", rate=0.2),
    Fault(kind=FaultKind.STATUS, endpoint="getLatestCommit", rate=0.3),
    Fault(kind=FaultKind.STATUS, endpoint="getRepoStatus", rate=0.3),
)


def fault_of(kind: FaultKind, rng: random.Random) -> Fault:
    """Return a fault of a firehose kind, as often as a relay can bear it at some hundred events a second."""
    if kind in EVENT_FAULTS:
        return Fault(kind=kind, rate=rng.uniform(0.3, 1.0) * _RARE_EVENTS.get(kind, _EVENT_RATE))
    if kind in SUBSCRIPTION_FAULTS:
        return Fault(kind=kind, endpoint="subscribeRepos", times=1, count=rng.randrange(_MOST_KEPT_EVENTS))
    seconds = _STREAM_SILENCE_S if kind is FaultKind.STREAM_SILENCE else 0.0
    times = 1 if kind is FaultKind.STREAM_SILENCE else 6
    return Fault(
        kind=kind,
        endpoint="subscribeRepos",
        rate=rng.uniform(0.3, 1.0) * _STREAM_RATE,
        times=times,
        seconds=seconds,
        count=rng.randrange(1, 30) if kind in (FaultKind.REORDER, FaultKind.REPEAT_RANGE) else 0,
    )


def episodes(rng: random.Random, *, servers: bool = True) -> Iterator[list[Fault]]:
    """Yield without end what is to be in force together; every firehose kind once before any comes again.

    `servers`: some of PDSes and PLC as well. A subscription's fault strikes when one begins, so something that cuts is with it.
    """
    waiting: list[FaultKind] = []
    while True:
        count = rng.randint(*_AT_A_TIME)
        if len(waiting) < count:
            fresh = [kind for kind in FIREHOSE_KINDS if kind not in waiting]
            rng.shuffle(fresh)
            waiting += fresh
        kinds, waiting = waiting[:count], waiting[count:]
        faults = [fault_of(kind, rng) for kind in kinds]
        if any(kind in SUBSCRIPTION_FAULTS for kind in kinds):
            faults.append(Fault(kind=FaultKind.STREAM_CUT, endpoint="subscribeRepos", rate=0.005, times=3))
        if servers:
            faults += rng.sample(_SERVERS, rng.randint(0, 3))
        yield faults
