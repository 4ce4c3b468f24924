"""What is named is what is fetched: hosts, collections, filters."""

from __future__ import annotations

from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene

FOLLOW = "app.bsky.graph.follow"


def _without_filter(scene: Scene) -> None:
    """Let the environment say nothing of a filter, so that a command may."""
    scene.env.pop("NSID_FILTER", None)


def test_a_filter_that_matches_nothing_sends_nothing_and_a_wider_one_fetches_again(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=15)
    scene.backfill("--all", env={"NSID_FILTER": "com.example.nothing"})
    assert scene.counts() == {"synced": 15}
    assert not scene.delivered()
    assert not any(row.touched for row in scene.rows().values())

    # Only the targets of this run are fetched with the wider filter.
    url = scene.network.host_urls[0]
    here = {account.did for account in scene.network.world.on_host(0)}
    assert 0 < len(here) < 15
    scene.network.traffic.reset()
    scene.backfill("--host", url)
    assert set(scene.network.traffic.repos()) == here
    assert not scene.differences(leaving_out=[did for did in scene.network.dids() if did not in here])


def test_a_collection_names_the_repos_that_hold_it_and_filters_their_records(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=15, median_records=12)
    _without_filter(scene)
    holders = {
        account.did
        for account in scene.network.truth()
        if any(path.startswith(f"{FOLLOW}/") for path in account.records)
    }
    assert 0 < len(holders) < 15, f"{len(holders)} of 15 hold it: this proves nothing"
    scene.backfill("--collection", FOLLOW)
    assert set(scene.rows()) == holders
    others = [did for did in scene.network.dids() if did not in holders]
    assert not scene.differences(patterns=[FOLLOW], leaving_out=others)

    # A filter that the operator sets stands.
    scene.backfill("--collection", FOLLOW, "--nsid-filter", "app.bsky.")
    assert not scene.differences(patterns=["app.bsky."], leaving_out=others)
