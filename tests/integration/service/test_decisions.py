"""Why is this repo fetched again, and which ingester has it: told at debug with the DID, and kept for `repos show`."""

from __future__ import annotations

import re
from typing import Any

from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene
from tests.integration.service.conftest import end, until_equal
from tests.support.processes import json_of
from tests.support.waiting import wait_until

_LINE = re.compile(r"20\d\d-\d\d-\d\dT\S+Z (debug|info|warning|error) +[a-z_]+( [a-z_]+=\S.*)?")


def test_a_resync_and_the_way_of_its_operations_are_told_and_kept(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=3, inactive_share=0.0)
    program = scene.start("run", "--log-level", "debug")
    until_equal(scene, program, "all of it")
    did = scene.network.dids()[0]
    assert scene.start("repos", "resync", did).wait() == 0
    wait_until(lambda: _states(scene, did) == ["synced", "pending"], f"synced again by {program}")
    told = _story(scene, did)
    assert [note["reason"] for note in told["history"]] == [None, "resync"]
    assert told["acknowledged"]["lane"] == "backfill"
    assert told["identity"]["signing_key"].startswith("z")
    err = end(program).splitlines()
    logged = [line for line in err if line.startswith("20")]
    assert [line for line in logged if not _LINE.fullmatch(line)] == []
    ours = [line for line in logged if f"did={did}" in line]
    assert any("repo_claimed" in line and "reason=resync" in line for line in ours)
    assert any("segment_routed" in line and "reason=home" in line and "ingester=127.0.0.1:" in line for line in ours)


def _states(scene: Scene, did: str) -> list[str]:
    notes = scene.select(f"SELECT unnest(history)::json ->> 'state' FROM repo WHERE did = '{did}'")
    return [state for (state,) in notes]


def _story(scene: Scene, did: str) -> Any:
    asked = scene.start("repos", "show", did, "--json")
    assert asked.wait() == 0, str(asked)
    return json_of(asked)
