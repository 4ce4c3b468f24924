"""`bin/relay run` under load while ingesters are added and removed; then the judge."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest

from relay.simnet.process import SimProcess
from tests.faults.stage import Stage
from tests.support.delivery_world import DeliveryWorld
from tests.support.waiting import let_pass, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]


def test_ingesters_that_are_added_and_removed_one_after_the_other(
    network: SimProcess, stage: Stage, seconds: float, dsn: str
) -> None:
    """SIGHUP after SIGHUP; one of those that are removed is dead by then."""
    with DeliveryWorld(stage, network, ingesters=3, env={"DATABASE_DSN": dsn}) as world:
        first, second, third = (seat.address for seat in world.seats)
        del world.env["INGESTER_ADDRESSES"]
        file = stage.folder / "config" / "config.yaml"
        file.parent.mkdir()

        def wanted(*addresses: str) -> None:
            file.write_text("\n".join(["ingesters:", *(f"  - {each}" for each in addresses), ""]))

        def change(*addresses: str) -> None:
            wanted(*addresses)
            world.relay.signal(signal.SIGHUP)
            await_ingesters(world, addresses)
            let_pass(seconds / 5)

        wanted(first, second)
        world.begin()
        change(first, second, third)
        change(second, third)
        world.seats[2].kill()
        change(first, second)
        change(first)
        world.seats[2].start()
        change(second, third)
        world.end()
        assert all(seat.witness.operations() > 0 for seat in world.seats)


def await_ingesters(world: DeliveryWorld, addresses: Sequence[str]) -> None:
    wait_until(lambda: world.reasons() == dict.fromkeys(addresses, ""), f"these and no others: {addresses}")
