"""The same command again: after Ctrl-C it continues, without news it fetches nothing, after news it fetches what changed."""

from __future__ import annotations

import json
import os
from typing import Any

from relay.simnet.faults import Fault, FaultKind
from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene
from tests.support.processes import is_alive, json_of
from tests.support.waiting import wait_until


def _fetched(scene: Scene) -> dict[str, int]:
    """Return how often each repo was downloaded since this was asked last."""
    fetched = scene.network.traffic.repos()
    scene.network.traffic.reset()
    return fetched


def _status(scene: Scene) -> Any:
    """Return what `status --json` says."""
    asked = scene.start("status", "--json")
    assert asked.wait() == 0
    return json_of(asked)


def test_interrupted_in_the_middle_the_same_command_continues_and_nothing_is_lost_or_left_behind(
    make_scene: MakeScene,
) -> None:
    scene = make_scene(accounts=60)
    scene.ingester(options=["--check-order"])
    shared = set(os.listdir("/dev/shm"))
    # Slow enough that it is in the middle when the signal comes, and that downloads are running.
    scene.network.set_faults([Fault(kind=FaultKind.HANG, endpoint="getRepo", seconds=0.3)])
    scene.env["PARALLEL_BACKFILLS"] = "4"
    program = scene.start("backfill", "--all")
    wait_until(lambda: scene.counts().get("synced", 0) >= 5, "some repos are synced")

    status = _status(scene)
    # It is a look every half second: the database was ahead of it, and perhaps its hosts are still listed.
    while not status["records_delivered"] or sum(status["repos"].values()) < 60:
        assert status["phase"] == "running"
        status = _status(scene)
    assert status["bytes_fetched"] > 0
    assert sum(status["repos"].values()) == 60
    assert [each["healthy"] for each in status["ingesters"]] == [True]
    assert set(status["rates"]) == {"repos_per_s", "records_per_s", "bytes_per_s"}

    children = [info.pid for info in program.children()]
    program.interrupt()
    assert program.wait(40) == 130, str(program)
    text = "\n".join(program.err)
    assert "interrupted after" in text
    assert "the same command continues" in text
    assert "Traceback" not in text, text
    # One that watches for us notices our end by itself, a moment later.
    wait_until(lambda: not [pid for pid in children if is_alive(pid)], "no child is left", deadline_s=5)
    assert not {name for name in set(os.listdir("/dev/shm")) - shared if not name.startswith("PostgreSQL.")}
    assert not list(scene.data_dir.glob("spool/*"))

    stopped = scene.rows()
    synced = {did for did, row in stopped.items() if row.state == "synced"}
    assert 5 <= len(synced) < 60, "not interrupted in the middle: this proves nothing"
    assert "active" not in scene.counts()
    assert all(row.attempts == 0 for row in stopped.values()), "an interruption costs no attempt"
    _fetched(scene)

    scene.network.set_faults()
    del scene.env["PARALLEL_BACKFILLS"]
    scene.backfill("--all")
    assert not scene.differences()
    assert set(_fetched(scene)) == set(stopped) - synced, "what was synced is not fetched again"


def test_without_news_it_fetches_nothing_and_after_news_only_what_changed(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=20, inactive_share=0.0)
    network = scene.network
    first, *others = network.dids()
    scene.backfill("--all")
    assert set(_fetched(scene)) == set(network.dids())

    out = scene.backfill("--all")
    assert "0 repos synced, 0 records, 0 B fetched" in out
    assert "20 synced" in out
    assert not _fetched(scene)

    # A listing tells the new revs; where there is none, as with --did, each host is asked for its newest commit.
    for targets in (["--all"], ["--did", *network.dids()]):
        changed = others[:4] if targets == ["--all"] else others[4:7]
        network.write(12, changed)
        written = {did for did in changed if (scene.rows()[did].rev or "") < network.world.account(did).rev}
        scene.backfill(*targets)
        assert set(_fetched(scene)) == written, targets
        assert not scene.differences()

    # A key that is stale is resolved again, once: that costs no attempt. The stored identity is made an hour old, as after a pause.
    network.world.rotate_key(first)
    scene.change("UPDATE identity SET resolved_at = resolved_at - interval '1 hour'")
    network.traffic.reset()
    out = scene.backfill("--all", "--log-level", "info")
    assert scene.rows()[first].state == "synced"
    assert "repo_attempt_failed" not in out
    assert network.traffic.requests().get("plc/plc", 0) == 1
    assert not scene.differences()

    listed = scene.start("repos", "list", "--json")
    assert listed.wait() == 0
    objects = {each["did"]: each for each in map(json.loads, listed.out)}
    assert set(objects) == set(network.dids())
    for account in network.truth():
        assert objects[account.did] == {
            "did": account.did,
            "state": "synced",
            "reason": None,
            "rev": account.rev,
            "host": account.pds,
            "attempts": 0,
            "records": len(account.records),
        }

    status = _status(scene)
    assert status["phase"] == "stopped"
    assert status["repos"]["synced"] == 20
    assert status["records_delivered"] == sum(len(account.records) for account in network.truth())
