"""What happens to accounts while they are followed, and starts and stops in between; each ends before the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from relay.simnet.keys import Curve
from relay.simnet.repo import Commit
from tests.integration.live.conftest import MakeWorld
from tests.support.live_world import LiveWorld


def note(text: str) -> Mapping[str, Any]:
    return {"$type": "com.example.note", "text": text}


def write(world: LiveWorld, did: str, rkey: str) -> Commit:
    return world.sim.world.write(did, {f"com.example.note/{rkey}": note(rkey)})


def fetched(world: LiveWorld, did: str) -> int:
    """Return how often the DID's repo was exported."""
    return world.sim.traffic.repos().get(did, 0)


def agreed(world: LiveWorld) -> None:
    world.catch_up()
    world.judge()


# Accounts of the shared world, one for each test.


def test_every_operation_of_a_followed_repo_is_delivered_and_nothing_is_fetched_again(followed: LiveWorld) -> None:
    before = followed.sim.traffic.repos()
    dids = followed.sim.dids()[:4]
    followed.sim.write(60, dids)
    agreed(followed)
    assert followed.sim.traffic.repos() == before


@pytest.mark.parametrize("status", ["deactivated", "takendown", "suspended", "deleted"])
def test_an_account_that_goes_away_is_told_and_comes_back_with_its_records(followed: LiveWorld, status: str) -> None:
    did = followed.sim.dids()[4]
    followed.sim.world.set_status(did, status)
    agreed(followed)
    assert followed.delivered()[did].status == status
    followed.sim.world.set_status(did, "")
    write(followed, did, f"after-{status}")
    agreed(followed)
    assert followed.delivered()[did].active
    assert f"com.example.note/after-{status}" in followed.delivered()[did].records


@pytest.mark.parametrize("changes", [{}, {"com.example.note/first": note("first")}], ids=["empty", "with a record"])
def test_a_new_account_is_followed_from_its_first_commit_without_a_fetch(
    followed: LiveWorld, changes: dict[str, Any]
) -> None:
    did = followed.sim.world.create_account(changes=changes)
    write(followed, did, "second")
    agreed(followed)
    assert fetched(followed, did) == 0
    assert followed.delivered()[did].records.keys() == {*changes, "com.example.note/second"}


@pytest.mark.parametrize("curve", list(Curve))
def test_a_rotated_key_is_learnt_and_nothing_is_lost(followed: LiveWorld, curve: Curve) -> None:
    did = followed.sim.dids()[5]
    write(followed, did, f"before-{curve.name}")
    followed.sim.world.rotate_key(did, curve)
    write(followed, did, f"after-{curve.name}")
    agreed(followed)


def test_an_account_that_moves_to_another_host_is_followed_there(followed: LiveWorld) -> None:
    network, did = followed.sim, followed.sim.dids()[6]
    host = (network.world.account(did).host + 1) % 3
    write(followed, did, "at-the-old-host")
    network.world.migrate(did, host)
    write(followed, did, "at-the-new-host")
    agreed(followed)
    assert followed.delivered()[did].pds == network.host_urls[host]
    network.world.import_records(did, {"com.example.note/imported": note("imported")})
    agreed(followed)
    assert fetched(followed, did) >= 2  # a backfill, and from the new host after #sync


def test_a_new_handle_is_told(followed: LiveWorld) -> None:
    did = followed.sim.dids()[7]
    followed.sim.world.set_handle(did, "somebody-else.test")
    agreed(followed)
    assert followed.delivered()[did].handle == "somebody-else.test"


def test_a_repo_that_was_replaced_is_fetched_and_what_vanished_is_deleted(followed: LiveWorld) -> None:
    did = followed.sim.dids()[8]
    write(followed, did, "vanishes")
    agreed(followed)
    before = fetched(followed, did)
    followed.sim.world.import_records(
        did, {"com.example.note/vanishes": None, "com.example.note/appears": note("appears")}
    )
    agreed(followed)
    assert fetched(followed, did) == before + 1
    assert "com.example.note/vanishes" not in followed.delivered()[did].records


# Starts and stops, in a world of their own.


def test_what_happened_between_two_runs_is_read_from_the_cursor_and_nothing_is_fetched_again(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    network = world.sim
    world.start()
    agreed(world)
    world.stop()
    before = network.traffic.repos()
    network.write(80)
    network.world.rotate_key(network.dids()[0])
    network.world.set_status(network.dids()[1], "takendown")
    newcomer = network.world.create_account(changes={"com.example.note/first": note("first")})
    world.start()
    agreed(world)
    assert network.traffic.repos() == before
    assert newcomer in world.delivered()
    assert world.told_status()["incidents"] == []


def test_only_what_is_tracked_is_followed_where_discovery_is_told_so(make_world: MakeWorld) -> None:
    world = make_world(env={"DISCOVERY_MODE": "tracked"})
    tracked = world.sim.dids()[:3]
    world.backfill("--did", *tracked)
    world.start("tail")
    world.sim.write(60)
    world.sim.world.create_account(changes={"com.example.note/first": note("first")})
    world.catch_up()
    assert world.differences(targets=tracked) == []
    assert world.delivered().keys() <= set(tracked)


def test_a_collection_that_is_not_wanted_is_never_delivered(make_world: MakeWorld) -> None:
    world = make_world(env={"NSID_FILTER": "com.example."})
    world.start()
    network = world.sim
    network.write(40)
    for number, did in enumerate(network.dids()):
        write(world, did, f"wanted-{number}")
    world.catch_up()
    assert world.differences(patterns=["com.example."]) == []
