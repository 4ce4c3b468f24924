"""`run` and `tail` as a user starts them."""

from __future__ import annotations

import signal

from tests.integration.backfill.conftest import MakeScene
from tests.support.waiting import wait_until


def test_it_enumerates_fetches_and_follows_and_ends_with_0(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=20)
    scene.ingester(options=["--check-order"])
    program = scene.start("run")
    wait_until(lambda: len(scene.rows()) == 20 and not scene.differences(), f"all of it: {program}", deadline_s=60)
    scene.network.write(50)
    wait_until(lambda: not scene.differences(), f"what was written meanwhile: {program}", deadline_s=60)
    program.signal(signal.SIGTERM)
    assert program.wait(40) == 0, str(program)
    assert "Traceback" not in "\n".join(program.err)
