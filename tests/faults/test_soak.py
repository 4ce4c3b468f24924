"""`bin/relay run` for long, under load: memory stays flat after the warm-up, and the cursor stays close. Figures are printed.

`--long`: two minutes, `--minutes 30` for more. Only gross growth fails: the figures are for people.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.simnet.process import SimProcess
from relay.simnet.world import WorldSpec
from tests.faults.stage import Stage
from tests.support.live_world import LiveWorld

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

_SAMPLE_S = 1.0
_WARM_UP_SHARE = 1 / 3  # of the time
_GROSS_MIB, _GROSS_SHARE = 64.0, 0.5


@pytest.fixture
def network(session_seed: int) -> Iterator[SimProcess]:
    with SimProcess(
        WorldSpec(seed=session_seed, accounts=500, hosts=5, median_records=60, max_records=1500)
    ) as network:
        yield network


def test_memory_stays_flat_and_the_cursor_close(
    network: SimProcess, stage: Stage, request: pytest.FixtureRequest
) -> None:
    minutes = request.config.getoption("--minutes") or 2.0
    rate = request.config.getoption("--rate") or 300.0
    memory: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)  # name -> (seconds, MiB)
    lags: list[float] = []
    with LiveWorld(stage, network, judge=False) as world:
        network.start_writers(rate, threads=2)
        world.start()
        began, pause = time.monotonic(), threading.Event()
        while (at := time.monotonic() - began) < 60.0 * minutes:
            for name, mib in _anonymous_mib(world).items():
                memory[name].append((at, mib))
            status = world.status()
            if at > 60.0 * minutes * _WARM_UP_SHARE and status is not None:
                lags.append((network.newest_seq() - status["firehose"]["cursor"]) / rate)
            pause.wait(_SAMPLE_S)
        written = sum(network.stop_writers().values())
        world.come_to_rest()
        world.judge()
    print(f"{minutes:g} minutes at {written / 60 / minutes:.0f} actions a second")
    lags.sort()
    print(
        f"cursor behind the newest event: median {statistics.median(lags):.2f} s, p99 {lags[int(len(lags) * 0.99)]:.2f} s"
    )
    grown = []
    for name, samples in sorted(memory.items()):
        warm = [(seconds, mib) for seconds, mib in samples if seconds > 60.0 * minutes * _WARM_UP_SHARE]
        if len(warm) < 10:
            continue  # it lived for a moment
        slope = statistics.linear_regression(*zip(*warm, strict=True)).slope * 60
        first, last = warm[0][1], warm[-1][1]
        print(f"{name:24} {first:6.1f} MiB after the warm-up, {last:6.1f} at the end, {slope:+.2f} MiB a minute")
        if last - first > max(_GROSS_MIB, first * _GROSS_SHARE):
            grown.append(name)
    assert not grown


def _anonymous_mib(world: LiveWorld) -> dict[str, float]:
    """Return the private memory of each process of the relay; shared slots and the database's buffers are bounded elsewhere."""
    found: dict[str, float] = {}
    processes = [(world.relay.pid, "supervisor")]
    processes += [
        (info.pid, f"{info.name} {info.pid}") for info in world.relay.children() if "postgres" not in info.name
    ]
    for pid, name in processes:
        with contextlib.suppress(OSError):  # gone meanwhile
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            (line,) = [line for line in lines if line.startswith("RssAnon:")]
            found[name] = int(line.split()[1]) / 1024
    return found
