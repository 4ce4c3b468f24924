"""Hosts that are gone, ask for patience, or lie where nobody may look: obeyed, given up, or refused, and nothing else suffers."""

from __future__ import annotations

from relay.simnet.faults import Fault, FaultKind
from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene


def _of_host(scene: Scene, host: int) -> set[str]:
    return {account.did for account in scene.network.world.on_host(host)}


def test_a_host_that_is_gone_is_given_up_with_its_repos_and_a_later_run_takes_them(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=18)
    gone = _of_host(scene, 1)
    assert gone, "nobody lives on host 1"
    scene.network.silence(1)
    out = scene.backfill("--all", code=3)
    rows = scene.rows()
    assert {did for did, row in rows.items() if row.state == "quarantined"} == gone
    assert {(row.reason, row.attempts) for did, row in rows.items() if did in gone} == {("host_down", 0)}
    assert not scene.differences(leaving_out=list(gone))
    assert f"{len(gone)}  quarantined: host_down" in out

    scene.network.restore(1)
    scene.backfill("--all")
    assert not scene.differences()
    assert scene.counts() == {"synced": 18}


def test_a_rate_limit_is_obeyed_costs_no_attempt_and_the_batch_ends(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=18, hosts=1)
    scene.network.set_rate_limit(0, limit=12, window_s=3.0)
    out = scene.backfill("--did", *scene.network.dids())
    rows = scene.rows()
    assert {(row.state, row.attempts) for row in rows.values()} == {("synced", 0)}
    assert not scene.differences()
    # 18 repos in windows of 12: what is asked beyond the limit was on its way when the limit was told.
    asked = scene.network.traffic.requests()["pds0/getRepo"]
    assert 18 <= asked <= 18 + 4 * 2, f"{asked} requests for 18 repos: the pause is not kept\n{out}"


def test_retry_after_silences_a_host_for_as_long_as_it_says(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=12, hosts=1)
    scene.env["BACKFILLER_HOST_CONNECTIONS"] = "1"
    plan = scene.network.set_faults([Fault(kind=FaultKind.TOO_MANY, endpoint="getRepo", seconds=2.0, times=1, after=3)])
    scene.backfill("--did", *scene.network.dids())
    assert plan.fired() == {"too_many": 1}
    assert {(row.state, row.attempts) for row in scene.rows().values()} == {("synced", 0)}
    [(paused_s,)] = scene.select(
        "SELECT max(gap) FROM (SELECT extract(epoch FROM synced_at - lag(synced_at) OVER (ORDER BY synced_at))::float8 AS gap"
        " FROM repo) AS gaps"
    )
    # Measured by what the relay stored: acknowledged before the pause and after it.
    assert isinstance(paused_s, float)
    assert paused_s >= 1.5
    assert not scene.differences()


def test_addresses_that_are_not_public_are_refused_unless_the_operator_names_them(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=18)
    scene.env["ALLOW_PRIVATE_HOSTS"] = "false"
    out = scene.backfill("--did", *scene.network.dids(), code=3)
    rows = scene.rows()
    assert {(row.state, row.reason) for row in rows.values()} == {("quarantined", "private_address")}
    assert not [name for name in scene.network.traffic.requests() if name.startswith("pds")], "a host was asked"
    assert "security.allow_private_hosts" in out
    assert not scene.delivered()

    lying, *_ = named = sorted(_of_host(scene, 0))
    plan = scene.network.set_faults(
        [Fault(kind=FaultKind.REDIRECT, endpoint="getRepo", did=lying, text=scene.network.host_urls[1])]
    )
    scene.backfill("--host", scene.network.host_urls[0], code=3)
    rows = scene.rows()
    assert plan.fired() == {"redirect": 1}
    assert (rows[lying].state, rows[lying].reason) == ("quarantined", "private_address")
    assert {rows[did].state for did in named if did != lying} == {"synced"}
    assert not scene.differences(leaving_out=[did for did in scene.network.dids() if did not in named or did == lying])


def test_an_old_copy_is_fetched_again_then_taken_and_a_later_run_brings_the_newest(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, sizes=(12,) * 6)
    old, older, *_ = scene.network.dids()
    scene.backfill("--did", older)
    plan = scene.network.set_faults(
        [Fault(kind=FaultKind.STALE_CAR, endpoint="getRepo", did=did) for did in (old, older)]
    )
    scene.network.write(3, [older])  # its old copy is not older than what was delivered: no rollback
    scene.backfill("--all", code=0)
    rows = scene.rows()
    assert rows[old].state == "synced"
    assert (rows[old].rev or "") < scene.network.world.account(old).rev
    assert plan.fired() == {"stale_car": 4}, "each is asked once more before an old copy is believed, and then no more"
    delivered = scene.delivered()
    assert len(delivered[old].records) == 11

    scene.network.set_faults()
    scene.backfill("--all")
    assert not scene.differences()
