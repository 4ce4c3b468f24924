"""Away for longer than upstream remembers: an incident is shown, a reconcile repairs everything, and only what changed is fetched."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import psycopg2
import pytest

from relay.simnet.faults import Fault, FaultKind
from relay.simnet.network import SimNetwork
from relay.simnet.world import WorldSpec
from tests.faults.stage import Stage
from tests.support.live_world import LiveWorld
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

_WINDOW = 150  # events
_ACCOUNTS, _WRITTEN, _COMMITS = 60, 12, 600
_RESTS_S = 120.0


@pytest.fixture
def network(session_seed: int) -> Iterator[SimNetwork]:
    spec = WorldSpec(
        seed=session_seed, accounts=_ACCOUNTS, hosts=3, replay_window=_WINDOW, median_records=20, inactive_share=0.05
    )
    with SimNetwork(spec) as network:
        yield network


@pytest.mark.parametrize("command", ["run", "tail"])
def test_after_an_absence_beyond_the_window_only_what_changed_is_fetched(
    command: str, network: SimNetwork, stage: Stage, rng: random.Random
) -> None:
    with LiveWorld(stage, network) as world:
        world.backfill()
        world.start(command)
        world.catch_up()
        world.judge()
        world.relay.kill()
        network.traffic.reset()
        active = [account.did for account in network.world.accounts if account.is_active]
        written = rng.sample(active, _WRITTEN)
        network.write(_COMMITS, written)
        gone, deleted, back = rng.sample([did for did in active if did not in written], 3)
        network.world.set_status(gone, "takendown")
        network.world.set_status(deleted, "deleted")
        network.world.set_status(back, "deactivated")
        network.world.set_status(back, "")
        newcomer = network.world.create_account()
        network.write(_COMMITS, written)  # what happened to the others is not in the window any more
        world.start(command)
        wait_until(lambda: world.incidents(), "an incident that is shown", deadline_s=30)
        assert [each["kind"] for each in world.told_status()["incidents"]] == ["outdated_cursor"]
        world.catch_up(deadline_s=_RESTS_S)
        world.judge()
        (incident,) = world.told_status()["incidents"]
        assert incident["closed_at"] is not None
        fetched = network.traffic.repos()
        print(
            f"{sum(fetched.values())} fetches of {len(fetched)} repos; {_WRITTEN} were written to, of {len(active)} active ones"
        )
        assert fetched.keys() <= {*written, gone, deleted, back, newcomer}
        assert fetched.keys() >= set(written)


def test_a_hole_that_upstream_does_not_tell_is_seen_by_the_times_of_its_events(
    network: SimNetwork, stage: Stage, rng: random.Random, dsn: str
) -> None:
    with LiveWorld(stage, network, env={"DATABASE_DSN": dsn}) as world:
        world.backfill()
        world.start("tail")
        world.catch_up()
        world.relay.kill()
        network.traffic.reset()
        network.set_faults([Fault(kind=FaultKind.SILENT_CURSOR)])
        written = rng.sample([account.did for account in network.world.accounts if account.is_active], _WRITTEN)
        network.write(_COMMITS, written)
        with contextlib.closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
            # The absence took an hour. (The next start waits for the lease of the one that was killed, as always.)
            cursor.execute("UPDATE partition SET cursor_time_us = cursor_time_us - 3600 * 1000000::bigint")
            assert cursor.rowcount
        world.start("tail")
        wait_until(lambda: world.incidents(), "an incident that is shown", deadline_s=30)
        assert [each["kind"] for each in world.told_status()["incidents"]] == ["hole"]
        world.catch_up(deadline_s=_RESTS_S)
        world.judge()
        fetched = network.traffic.repos()
        print(f"{sum(fetched.values())} fetches of {len(fetched)} repos; {_WRITTEN} were written to")
        assert fetched.keys() == set(written)


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "silent"])
def test_a_relay_that_lost_its_log_and_counts_anew_is_followed_after_a_reconcile(
    is_told: bool, is_long: bool, network: SimNetwork, stage: Stage, rng: random.Random
) -> None:
    if not is_told and not is_long:
        pytest.skip("takes half a minute of silence: run it with --long")
    with LiveWorld(stage, network) as world:
        if not is_told:
            network.set_faults([Fault(kind=FaultKind.SILENT_CURSOR)])
        world.backfill()
        world.start("tail")
        world.catch_up()
        world.relay.kill()
        network.traffic.reset()
        written = rng.sample([account.did for account in network.world.accounts if account.is_active], _WRITTEN)
        network.write(_COMMITS, written)
        network.renumber(10)
        world.start("tail")
        if not is_told:
            network.start_writers(30, dids=written)  # nothing shows that the numbers are others before some have come
        wait_until(lambda: world.incidents(), "an incident that is shown", deadline_s=60)
        network.stop_writers()
        kind = "future_cursor" if is_told else "silent_future_cursor"
        assert [each["kind"] for each in world.told_status()["incidents"]] == [kind]
        network.write(_COMMITS // 10, written)
        world.catch_up(deadline_s=_RESTS_S)
        world.judge()
        fetched = network.traffic.repos()
        print(f"{sum(fetched.values())} fetches of {len(fetched)} repos; {_WRITTEN} were written to")
        assert fetched.keys() <= set(written)
