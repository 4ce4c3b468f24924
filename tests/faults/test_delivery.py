"""`bin/relay run` under load, and ingesters that are killed, silent, late, wrong, full of refusals or gone; then the judge.

Each test prints how many operations were delivered, delivered again, lost and out of order. `--long` or `--minutes`: go on for longer.
"""

from __future__ import annotations

import json
import random
import time

import pytest

from relay.simnet.process import SimProcess
from tests.faults.stage import Stage
from tests.support.delivery_world import RESTS_S, DeliveryWorld
from tests.support.waiting import let_pass, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]


@pytest.fixture(autouse=True)
def own_database(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay's database is no part of this: one that outlives it starts sooner."""
    monkeypatch.setenv("DATABASE_DSN", dsn)


def test_an_ingester_that_is_killed_and_started_again(
    network: SimProcess, stage: Stage, seconds: float, rng: random.Random
) -> None:
    with DeliveryWorld(stage, network) as world:
        world.begin()
        ends_at = time.monotonic() + seconds
        kills = 0
        while time.monotonic() < ends_at:
            let_pass(rng.uniform(0.3, 1.5))
            world.seats[0].kill()
            let_pass(rng.uniform(0.0, 0.5))
            world.seats[0].start()
            kills += 1
        print(f"{kills} kills")
        world.end()


@pytest.mark.parametrize("ingesters", [1, 3])
def test_an_ingester_that_accepts_and_never_acknowledges(
    ingesters: int, network: SimProcess, stage: Stage, seconds: float
) -> None:
    with DeliveryWorld(stage, network, ingesters=ingesters, env={"DELIVERY_ACK_TIMEOUT_SEC": "1"}) as world:
        world.begin()
        world.seats[0].restart("never-ack=1")
        address = world.seats[0].address
        reason = "ack_timeout" if ingesters == 1 else "failed_over"
        wait_until(lambda: world.reasons().get(address) == reason, f"{address} {reason}")
        let_pass(seconds)
        if ingesters == 1:
            world.seats[0].restart()
        world.end()


@pytest.mark.parametrize("fault", ["ack-delay=0.3", "ack-stale=1", "ack-twice=1"])
def test_acknowledgements_that_are_late_or_out_of_order_or_come_twice(
    fault: str, network: SimProcess, stage: Stage, seconds: float
) -> None:
    with DeliveryWorld(stage, network, faults=(fault,)) as world:
        world.begin()
        let_pass(seconds)
        if fault == "ack-stale=1":
            assert world.seats[0].witness.streams > 1, "an acknowledgement that cannot be right ends the stream"
            world.seats[0].restart()
        world.end()


def test_retry_for_a_while(network: SimProcess, stage: Stage, seconds: float) -> None:
    with DeliveryWorld(stage, network) as world:
        world.begin()
        world.seats[0].restart(f"retry-for={max(3.0, seconds / 2):g}")  # counted from its start
        address = world.seats[0].address
        wait_until(lambda: world.reasons().get(address) == "retry", "away for answering RETRY")
        let_pass(seconds)
        world.end()
        assert world.metric("relay_dead_letters_total") == 0, "no operation is to blame"


def test_one_operation_in_a_hundred_is_rejected(network: SimProcess, stage: Stage, seconds: float) -> None:
    # Records only: to reject a REPO_END is to quarantine its repo. These letters of an rkey are a time's last digits.
    with DeliveryWorld(stage, network, faults=("reject-match=^(CREATE|UPDATE|DELETE) .*[a-j]a..$",)) as world:
        world.begin()
        let_pass(seconds)
        network.stop_writers()
        world.come_to_rest(deadline_s=RESTS_S)
        listing = stage.start("deadletter", "list", "--json", env=world.env)
        assert listing.wait() == 0, str(listing)
        letters = [json.loads(line) for line in listing.out]
        assert letters
        assert {letter["reason"] for letter in letters} == {"rejected"}
        missing = world.differences()
        assert {each.did for each in missing} <= {letter["did"] for letter in letters}
        print(f"{len(letters)} dead letters, {len(missing)} differences")
        world.seats[0].witness.assert_in_order()
        misordered = world.misordered
        world.seats[0].restart()
        requeue = stage.start("deadletter", "requeue", "--all", env=world.env)
        assert requeue.wait() == 0, str(requeue)
        wait_until(lambda: world.differences() == [], "equality", deadline_s=RESTS_S)
        # What an operator has sent again has been told before: that is no matter of order.
        print(world.figures(misordered=misordered))


def test_a_stream_that_is_closed_every_hundred_batches(
    network: SimProcess, stage: Stage, seconds: float, is_long: bool
) -> None:
    with DeliveryWorld(stage, network, faults=(f"close-every={100 if is_long else 20}",)) as world:
        world.begin()
        let_pass(seconds)
        wait_until(lambda: world.seats[0].witness.streams > 2, "closed streams")
        world.end()


def test_packets_that_are_dropped(network: SimProcess, stage: Stage, seconds: float) -> None:
    env = {"DELIVERY_ACK_TIMEOUT_SEC": "1"}
    with DeliveryWorld(stage, network, ingesters=3, with_proxy=True, env=env) as world:
        world.begin()
        far = world.seats[1]
        assert far.proxy is not None
        far.proxy.stall()
        wait_until(lambda: world.reasons().get(far.address) == "failed_over", "the others have its repos")
        let_pass(seconds / 2)
        far.proxy.resume()
        wait_until(lambda: world.reasons().get(far.address) == "", "back again")
        let_pass(seconds / 2)
        world.end()
        assert world.metric("relay_moved_repos_total") > 0


def test_all_ingesters_away_under_load(network: SimProcess, stage: Stage, seconds: float) -> None:
    with DeliveryWorld(stage, network, ingesters=3, env={"DELIVERY_QUEUE_OPERATIONS": "100"}) as world:
        world.begin()
        for seat in world.seats:
            seat.kill()
        wait_until(lambda: all(world.reasons().values()), "all away")
        let_pass(seconds)
        status = world.status()
        assert status is not None
        assert status["phase"] == "waiting"
        assert set(world.reasons().values()) != {"failed_over"}, "the last one keeps what it has"
        seen = world.operations
        for seat in world.seats:
            seat.start()
        world.end()
        assert world.operations > seen


def test_one_of_three_away_for_ever(network: SimProcess, stage: Stage, seconds: float) -> None:
    with DeliveryWorld(stage, network, ingesters=3) as world:
        world.begin()
        world.seats[2].kill()
        address = world.seats[2].address
        wait_until(lambda: world.reasons().get(address) == "failed_over", "the others have its repos")
        let_pass(seconds)
        world.end()
        assert world.reasons()[address] == "failed_over"


def test_a_rolling_restart_of_three(network: SimProcess, stage: Stage, seconds: float) -> None:
    with DeliveryWorld(stage, network, ingesters=3) as world:
        world.begin()
        ends_at = time.monotonic() + seconds
        turns = 0
        while time.monotonic() < ends_at or turns < 3:
            seat = world.seats[turns % 3]
            seat.stop()
            if turns % 2:  # longer than fail-over waits
                wait_until(lambda seat=seat: world.reasons().get(seat.address) == "failed_over", "failed over")  # type: ignore[misc]
            seat.start()
            wait_until(lambda seat=seat: world.reasons().get(seat.address) == "", "back again")  # type: ignore[misc]
            turns += 1
        print(f"{turns} restarts")
        world.end()


def test_an_ingester_more_where_each_keeps_its_own_shard(network: SimProcess, stage: Stage) -> None:
    with DeliveryWorld(stage, network, ingesters=2, env={"DELIVERY_FAILOVER_AFTER_SEC": "0"}) as world:
        world.start("tail", INGESTER_ADDRESSES=world.seats[0].address)
        world.catch_up()
        world.stop()
        world.start("backfill", "--all", INGESTER_ADDRESSES=world.seats[0].address)
        assert world.relay.wait(RESTS_S) == 0, str(world.relay)
        assert world.seats[1].witness.operations() == 0
        world.begin()
        moved = world.relay.wait_for_line(r"shards_compared repos_moved=(\d+)")
        assert int(moved[1]) > 0
        wait_until(lambda: world.seats[1].witness.operations() > 0, "the new ingester gets what is its own now")
        world.end()
