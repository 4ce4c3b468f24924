"""A `backfill` beside a service: the service does the work, the backfill shows it and ends as it would alone."""

from __future__ import annotations

from pathlib import Path

from relay.simnet.faults import Fault, FaultKind
from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene
from tests.integration.service.conftest import end, holder
from tests.support.processes import Program
from tests.support.waiting import wait_until


def _service(scene: Scene, *, mode: str = "tracked", **env: str) -> Program:
    """Start a service that tracks nothing by itself."""
    program = scene.start("run", "--log-level", "info", env={"DISCOVERY_MODE": mode, **env})
    wait_until(lambda: scene.select("SELECT 1 FROM partition WHERE filter IS NOT NULL"), f"it works: {program}")
    return program


def test_every_kind_of_target_is_handed_over_and_ends_with_0(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=15, inactive_share=0.0)
    scene.ingester(options=["--check-order"])
    service = _service(scene)
    one, *others = scene.network.dids()
    file = Path(scene.folder / "dids.txt")
    file.write_text("\n".join(others[:3]))
    assert "handed over to run, process" in scene.backfill("--dids-file", str(file))
    assert scene.counts() == {"synced": 3}
    here = {account.did for account in scene.network.world.on_host(1)}
    scene.backfill("--host", scene.network.host_urls[1])
    assert set(scene.rows()) == {*others[:3], *here}
    out = scene.backfill("--all")
    assert "15 synced" in out
    assert not scene.differences()
    assert holder(scene).startswith(f"run, process {service.pid} ")
    assert scene.select("SELECT count(*) FROM batch WHERE finished_at IS NULL") == [(0,)]

    scene.network.traffic.reset()
    assert "0 repos synced" in scene.backfill("--did", one), "without news nothing is fetched again"
    assert not scene.network.traffic.repos()
    end(service)


def test_a_service_without_a_firehose_takes_targets_too(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=5, inactive_share=0.0)
    service = _service(scene, FIREHOSE_HOST="")
    assert "handed over to run, process" in scene.backfill("--all"), "whom the backfill names lists the network"
    assert not scene.differences()
    end(service)


def test_what_was_given_up_is_listed_and_ends_with_3(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, inactive_share=0.0)
    service = _service(scene)
    did = scene.network.dids()[0]
    scene.network.set_faults([Fault(kind=FaultKind.BAD_SIGNATURE, endpoint="getRepo", did=did)])
    out = scene.backfill("--all", code=3)
    assert did in out
    assert "5 synced" in out
    end(service)


def test_a_filter_beyond_the_services_is_refused_and_one_within_it_is_served(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, inactive_share=0.0)
    service = _service(scene, NSID_FILTER="app.bsky.")
    del scene.env["NSID_FILTER"]
    said = scene.backfill("--collection", "com.example.thing", code=2)
    assert "com.example.thing goes beyond it" in said
    assert not scene.rows()
    scene.backfill("--collection", "app.bsky.graph.follow")
    assert set(scene.counts()) == {"synced"}
    assert scene.select("SELECT DISTINCT covers FROM repo") == [("app.bsky.",)], "the service's filter stands"
    end(service)


def test_if_the_service_goes_the_backfill_takes_over(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=40, inactive_share=0.0)
    scene.ingester(options=["--check-order"])
    scene.network.set_faults([Fault(kind=FaultKind.HANG, endpoint="getRepo", seconds=0.3)])
    service = _service(scene, PARALLEL_BACKFILLS="2")
    backfill = scene.start("backfill", "--all", env={"PARALLEL_BACKFILLS": "10"})
    wait_until(lambda: scene.counts().get("synced", 0) >= 3, f"the service works on it: {service}")
    service.kill()
    wait_until(lambda: holder(scene).startswith("backfill"), f"taken over: {backfill}", deadline_s=10)
    assert scene.counts().get("synced", 0) < 40, "not in the middle: this proves nothing"
    assert backfill.wait(60) == 0, str(backfill)
    assert not scene.differences()


def test_interrupted_it_leaves_the_work_to_the_service(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=20, inactive_share=0.0)
    scene.network.set_faults([Fault(kind=FaultKind.HANG, endpoint="getRepo", seconds=0.3)])
    service = _service(scene, PARALLEL_BACKFILLS="2")
    backfill = scene.start("backfill", "--all")
    wait_until(lambda: scene.counts().get("synced", 0) >= 2, f"the service works on it: {service}")
    backfill.interrupt()
    assert backfill.wait(30) == 130, str(backfill)
    scene.network.set_faults()
    wait_until(lambda: scene.counts() == {"synced": 20}, f"the service finishes it: {service}")
    wait_until(lambda: scene.select("SELECT 1 FROM batch WHERE finished_at IS NOT NULL"), "the batch too")
    end(service)


def test_what_was_handed_over_is_enumerated_by_the_next_service_too(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=12, inactive_share=0.0)
    scene.network.set_faults([Fault(kind=FaultKind.HANG, endpoint="listRepos", seconds=0.5)])
    service = _service(scene)
    backfill = scene.start("backfill", "--all")
    service.wait_for_line("batch_taken_over")
    service.kill()
    next_one = scene.start("run", env={"DISCOVERY_MODE": "tracked"})
    scene.network.set_faults()
    # Whoever of the two has the lease now, it is the same batch, and its targets are the same.
    assert backfill.wait(60) == 0, str(backfill)
    assert scene.counts() == {"synced": 12}
    wait_until(lambda: holder(scene).startswith("run"), f"the service works: {next_one}")
    end(next_one)
