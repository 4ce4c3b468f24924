"""`tail`: follows, fetches what is pending, enumerates nothing; what it cannot know is compared."""

from __future__ import annotations

from collections.abc import Sequence

from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene
from tests.integration.service.conftest import address_of, end, get, status, until_equal
from tests.support.processes import Program
from tests.support.waiting import wait_until


def test_it_goes_on_behind_a_backfill_and_enumerates_nothing(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=10, inactive_share=0.0)
    scene.ingester(options=["--check-order"])
    scene.network.start_writers(20)
    scene.backfill("--all")
    scene.network.stop_writers()
    scene.network.traffic.reset()
    program = scene.start("tail")
    until_equal(scene, program, "what the backfill did not bring")
    assert not [name for name in scene.network.traffic.requests() if "listRepos" in name]
    end(program)


def test_without_a_cursor_it_starts_live_and_compares(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=10, inactive_share=0.0)
    scene.backfill("--all")
    scene.change("UPDATE partition SET cursor = NULL, upstream = NULL")
    missed, *others = scene.network.dids()
    scene.network.write(5, [missed])
    scene.network.traffic.reset()
    program = scene.start("tail", "--log-level", "info")
    _let_time_pass_until_closed(scene, program, "no_cursor", others)
    until_equal(scene, program, "what only a comparison can find")
    fetched = set(scene.network.traffic.repos())
    assert missed in fetched
    assert len(fetched) < 5, "what has not changed is not fetched (writers have repos fetched too: #sync, migrations)"
    (incident,) = status(scene)["incidents"]
    assert (incident["kind"], bool(incident["at"]), bool(incident["text"])) == ("no_cursor", True, True)
    page = get(address_of(program, scene), "/metrics")[1]
    assert 'relay_incidents_total{kind="no_cursor"} 1.0\n' in page
    end(program)


def test_live_passes_over_what_was_and_compares_and_a_named_cursor_replays(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, inactive_share=0.0)
    scene.backfill("--all")
    program = scene.start("tail")
    scene.network.write(10)
    until_equal(scene, program, "what was written")
    end(program)
    ((cursor,),) = scene.select("SELECT cursor FROM partition")

    missed, *others = scene.network.dids()
    scene.network.write(10, [missed])
    program = scene.start("tail", "--live", "--log-level", "info")
    _let_time_pass_until_closed(scene, program, "started_live", others)
    until_equal(scene, program, "what a comparison finds")
    end(program)

    program = scene.start("tail", "--cursor", str(cursor), "--log-level", "info")
    program.wait_for_line(rf"stream_resumed.*cursor={cursor}")
    scene.network.write(5)
    until_equal(scene, program, "what came after the replay")
    end(program)


def _let_time_pass_until_closed(scene: Scene, program: Program, kind: str, dids: Sequence[str]) -> None:
    """Let others write until an incident is answered: a reconcile looks again once the stream has passed its first look."""
    program.wait_for_line("firehose_connected")
    scene.network.start_writers(10, dids=dids)
    try:
        closed = f"SELECT 1 FROM incident WHERE kind = '{kind}' AND closed_at IS NOT NULL"
        wait_until(lambda: scene.select(closed) or not program.is_running(), f"{kind} is closed: {program}")
    finally:
        scene.network.stop_writers()
