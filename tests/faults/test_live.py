"""`bin/relay run` beside a network that does not stand still, while everything goes wrong and anything is killed; then the judge.

`--long`: ten minutes at the issue's size. `--minutes` and `--rate` set another length and pace.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from relay.simnet.process import SimProcess
from relay.simnet.upstream import UPSTREAM
from relay.simnet.world import WorldSpec
from tests.faults.chaos import FIREHOSE_KINDS, episodes
from tests.faults.stage import Stage
from tests.support.live_world import VICTIMS, LiveWorld

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

_EPISODE_S = (3.0, 9.0)
_BETWEEN_KILLS_S = (2.0, 10.0)
_AWAY_SHARE = 0.1  # of the episodes: a server is away for a part of them
_RESTS_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    accounts: int
    rate: float  # writers' actions a second
    seconds: float


@pytest.fixture
def size(is_long: bool, request: pytest.FixtureRequest) -> Size:
    minutes, rate = request.config.getoption("--minutes"), request.config.getoption("--rate")
    return Size(
        accounts=500 if is_long else 120,
        rate=rate or (500.0 if is_long else 150.0),
        seconds=60.0 * (minutes or (10.0 if is_long else 0.5)),
    )


@pytest.fixture
def network(size: Size, session_seed: int) -> Iterator[SimProcess]:
    spec = WorldSpec(
        seed=session_seed,
        accounts=size.accounts,
        hosts=5,
        sizes=(0, 1, 3000, 1500),
        median_records=60,
        max_records=1500,
        inactive_share=0.05,
    )
    with SimProcess(spec) as network:
        yield network


def test_whatever_goes_wrong_and_whoever_is_killed_the_database_equals_the_network(
    network: SimProcess, stage: Stage, rng: random.Random, size: Size, is_long: bool
) -> None:
    with LiveWorld(stage, network) as world:
        network.start_writers(size.rate, threads=2, seed=rng.randrange(1000))
        world.launch()
        _spoil(world, rng, size.seconds)
        written = network.stop_writers()
        began = time.monotonic()
        world.come_to_rest(deadline_s=_RESTS_S)
        rest_s = time.monotonic() - began
        world.judge()
        assert world.witness is not None
        print(
            f"{sum(written.values())} actions, {sum(written.values()) / size.seconds:.0f}/s; at rest after {rest_s:.1f} s"
        )
        print(f"{world.witness.operations()} operations over {world.witness.streams} streams")
        print(world.summary())
        if is_long:
            missing = [kind for kind in FIREHOSE_KINDS if not world.fired[kind.value]]
            assert not missing, f"never fired: {missing}"
            assert all(world.kills[victim] for victim in VICTIMS), world.kills


def _spoil(world: LiveWorld, rng: random.Random, seconds: float) -> None:
    """Let faults come and go, and kill, for so long."""
    network = world.network
    plan, pause = episodes(rng), threading.Event()
    victims: list[str] = []
    away: int | None = None
    now = time.monotonic()
    ends_at = now + seconds
    episode_at, kill_at = now, now + rng.uniform(*_BETWEEN_KILLS_S)
    while (now := time.monotonic()) < ends_at:
        if now >= episode_at:
            if away is not None:
                network.restore(away)
                away = None
            world.set_faults(next(plan), seed=rng.randrange(1 << 30))
            if rng.random() < _AWAY_SHARE:
                away = rng.randrange(UPSTREAM, len(network.host_urls))
                network.silence(away)
            episode_at = now + rng.uniform(*_EPISODE_S)
        if now >= kill_at:
            if not victims:
                victims = list(VICTIMS)
                rng.shuffle(victims)
            world.kill(victims.pop(), rng)
            kill_at = time.monotonic() + rng.uniform(*_BETWEEN_KILLS_S)
        pause.wait(max(0.0, min(episode_at, kill_at, ends_at) - time.monotonic()))
    if away is not None:
        network.restore(away)
