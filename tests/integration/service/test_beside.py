"""`repos` and `deadletter requeue` beside a running service: it follows what they do."""

from __future__ import annotations

from relay.simnet.oracle import compare
from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene
from tests.integration.service.conftest import end, until_equal
from tests.support.processes import Program
from tests.support.waiting import let_pass, wait_until

TRACKED = {"DISCOVERY_MODE": "tracked"}


def _do(scene: Scene, *words: str, code: int = 0) -> str:
    program = scene.start(*words)
    assert program.wait() == code, str(program)
    return "\n".join(program.out)


def _until_synced(scene: Scene, dids: list[str], program: Program) -> None:
    def is_synced() -> bool:
        rows = scene.rows()
        return all(did in rows and rows[did].state == "synced" for did in dids)

    wait_until(is_synced, f"{len(dids)} synced by {program}")


def _ingester(scene: Scene, listen: str, *words: str) -> tuple[Program, str]:
    scene.sink = f"sqlite://{scene.folder / 'ingester.sqlite'}"
    program = scene.start("ingester", "--listen", listen, "--sink", scene.sink, *words)
    scene.env["INGESTER_ADDRESSES"] = program.wait_for_line(r"^listening on (\S+)")[1]
    return program, scene.env["INGESTER_ADDRESSES"]


def _taken(scene: Scene) -> None:
    wait_until(lambda: not scene.select("SELECT 1 FROM notice"), "the service has taken its notices")


def test_it_fetches_what_is_added_and_forgets_what_is_removed_although_it_is_busy(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, inactive_share=0.0)
    scene.ingester(options=["--check-order"])
    first, second, *others = scene.network.dids()
    program = scene.start("tail", "--live", "--log-level", "info", env=TRACKED)
    program.wait_for_line("firehose_connected")
    assert "2 added" in _do(scene, "repos", "add", first, second)
    _until_synced(scene, [first, second], program)
    assert set(scene.delivered()) == {first, second}

    # It is written to all the time, so it never rests in memory.
    scene.network.start_writers(50, dids=[first])
    program.wait_for_line("firehose_connected")
    before = scene.select(f"SELECT rev FROM repo WHERE did = '{first}'")
    wait_until(lambda: scene.select(f"SELECT rev FROM repo WHERE did = '{first}'") != before, "it is followed")
    assert "1 removed" in _do(scene, "repos", "remove", first)
    _taken(scene)
    program.wait_for_line(r"rows_changed_beside_us.*removed")
    scene.network.write(20, [second])
    truth = [account for account in scene.network.truth() if account.did == second]
    wait_until(lambda: not compare(truth, {second: scene.delivered()[second]}), "the other one is followed")

    def is_left_alone() -> bool:
        before = scene.select(f"SELECT rev, tracked FROM repo WHERE did = '{first}'")
        let_pass(2.5)
        return scene.select(f"SELECT rev, tracked FROM repo WHERE did = '{first}'") == before

    # What was under way is still acknowledged, and stored with the next checkpoint. Followed, it would rise for ever.
    wait_until(is_left_alone, "the removed one is not followed any more")
    assert scene.select(f"SELECT tracked FROM repo WHERE did = '{first}'") == [(False,)]
    scene.network.stop_writers()

    assert "tracked or tried again" in _do(scene, "repos", "add", first)
    _until_synced(scene, [first, second], program)
    wait_until(lambda: not scene.differences(leaving_out=others), "both are whole again")
    end(program)


def test_a_resync_reaches_busy_and_resting_repos_and_an_emptied_ingester_is_whole_again(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=8, inactive_share=0.25)
    program = scene.start("run", "--log-level", "info")
    wait_until(lambda: len(scene.rows()) == 8, f"the enumeration by {program}")
    until_equal(scene, program, "all of it")
    end(program)
    # The ingester was lost: its rows, what it knows of the accounts, and how far each repo was.
    for file in scene.data_dir.glob("records.sqlite*"):
        file.unlink()
    program = scene.start("tail", "--log-level", "info")
    program.wait_for_line("firehose_connected")
    scene.network.start_writers(20, dids=scene.network.dids()[:2])
    assert "8 will be delivered again" in _do(scene, "repos", "resync", "--all")
    wait_until(lambda: not scene.select("SELECT 1 FROM repo WHERE reason = 'resync'"), "all are fetched")
    scene.network.stop_writers()
    until_equal(scene, program, "everything is there again")
    end(program)


def test_resync_by_collection_asks_who_holds_it(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=8, inactive_share=0.0)
    scene.backfill("--all")
    holders = {
        account.did
        for account in scene.network.truth()
        if any(path.startswith("app.bsky.graph.block/") for path in account.records)
    }
    said = _do(scene, "repos", "resync", "--collection", "app.bsky.graph.block")
    assert f"{len(holders)} will be delivered again" in said
    assert {did for did, row in scene.rows().items() if row.reason == "resync"} == holders


def test_a_requeued_operation_reaches_the_ingester_and_never_overwrites_a_newer_one(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, inactive_share=0.0)
    refusing, address = _ingester(scene, "127.0.0.1:0", "--fault", r"reject-match=CREATE .*feed\.post")
    scene.backfill("--all")
    assert len(scene.letters()) > 3, "the fault fired"
    refusing.process.terminate()
    assert refusing.wait() == 0
    _ingester(scene, address, "--check-order")
    program = scene.start("tail", "--log-level", "info")
    program.wait_for_line("firehose_connected")
    # Half of the repos move on: what was refused of them is old now.
    moved = {letter.did for letter in scene.letters()} & set(scene.network.dids()[:3])
    before = {did: scene.rows()[did].rev for did in moved}
    for did in moved:
        scene.network.write(10, [did])
    wait_until(lambda: all(scene.rows()[did].rev != before[did] for did in moved), "what was written")
    said = _do(scene, "deadletter", "requeue", "--all")
    assert "which will be delivered again" in said
    wait_until(lambda: not scene.letters(), f"no letter is left: {scene.letters()}")
    until_equal(scene, program, "what was refused is there, and nothing older than what came after it")
    end(program)


def test_what_is_refused_again_is_a_letter_again_and_is_not_sent_for_ever(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=3, inactive_share=0.0)
    _ingester(scene, "127.0.0.1:0", "--fault", r"reject-match=CREATE .*feed\.post")
    scene.backfill("--all")
    count = len(scene.letters())
    assert count, "the fault fired"
    program = scene.start("tail", "--log-level", "info")
    program.wait_for_line("firehose_connected")
    assert f"{count} to be sent again" in _do(scene, "deadletter", "requeue", "--all")
    attempts = "SELECT attempts, requeued_at IS NULL FROM dead_letter"
    wait_until(lambda: scene.select(attempts) == [(2, True)] * count, "each is refused once more")
    end(program)
    assert scene.select(attempts) == [(2, True)] * count
