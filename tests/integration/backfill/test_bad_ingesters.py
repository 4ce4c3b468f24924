"""Ingesters that are not there, ask for patience, or refuse: nothing is lost, and nothing else waits for it."""

from __future__ import annotations

import json
import socket
from contextlib import closing

from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene
from tests.support.processes import json_of
from tests.support.waiting import wait_until


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_without_its_ingester_it_waits_and_says_so_and_goes_on_when_it_comes(scene: Scene) -> None:
    address = f"127.0.0.1:{_free_port()}"
    scene.env["INGESTER_ADDRESSES"] = address
    program = scene.start("backfill", "--all")
    program.wait_for_line(r"^waiting \(no ingester answers\).*1 of 1 ingesters away")
    wait_until(lambda: len(scene.rows()) == 12, "everything is discovered meanwhile")

    asked = scene.start("status", "--json")
    assert asked.wait() == 0
    status = json_of(asked)
    assert status["phase"] == "waiting"
    assert [(each["address"], each["healthy"]) for each in status["ingesters"]] == [(address, False)]
    assert status["records_delivered"] == 0
    assert scene.counts().get("synced", 0) == 0

    scene.ingester(listen=address)
    assert program.wait(60) == 0, str(program)
    assert not scene.differences()


def test_an_ingester_that_asks_to_retry_gets_everything_in_order_and_no_operation_is_given_up(scene: Scene) -> None:
    scene.env["DELIVERY_BATCH_BYTES"] = "4096"
    scene.env["RELAY_MAX_RETRIES"] = "20"  # chance strikes the same operation more than once
    scene.ingester(None, "retry-for=1.5", "retry-every=9", options=["--check-order"])
    scene.backfill("--all")
    assert not scene.letters()
    assert not scene.differences()
    assert scene.counts() == {"synced": 12}


def test_what_an_ingester_rejects_becomes_a_dead_letter_or_quarantines_its_repo_and_the_rest_is_delivered(
    make_scene: MakeScene,
) -> None:
    scene = make_scene(sizes=(40,) * 12)
    no_end, no_begin, no_account, no_likes, *_ = scene.network.dids()
    scene.network.world.set_status(no_account, "deactivated")
    match = f"REPO_END {no_end}|REPO_BEGIN {no_begin}|ACCOUNT {no_account}|CREATE {no_likes} app.bsky.feed.like/"
    scene.ingester(None, f"reject-match={match}")
    out = scene.backfill("--all", code=3)

    rows = scene.rows()
    for did in (no_end, no_begin, no_account):
        assert (rows[did].state, rows[did].reason) == ("quarantined", "rejected"), rows[did]
        assert did in out
    assert {row.state for did, row in rows.items() if did not in (no_end, no_begin, no_account)} == {"synced"}

    truth = {account.did: account for account in scene.network.truth()}
    likes = {path for path in truth[no_likes].records if path.startswith("app.bsky.feed.like/")}
    assert likes, "this world has no likes there: the test proves nothing"
    letters = scene.letters()
    assert {each.path for each in letters if each.did == no_likes} == likes
    assert {(each.did, each.type) for each in letters if each.did != no_likes} == {
        (no_end, "REPO_END"),
        (no_begin, "REPO_BEGIN"),
        (no_account, "ACCOUNT"),
    }
    assert len({(each.did, each.type, each.path) for each in letters}) == len(letters), "a letter came twice"
    assert {each.reason for each in letters} == {"rejected"}

    delivered = scene.delivered()
    assert delivered[no_likes].records == {
        path: cid for path, cid in truth[no_likes].records.items() if path not in likes
    }
    for did in set(truth) - {no_end, no_begin, no_account, no_likes}:
        assert delivered[did].records == truth[did].records

    listed = scene.start("repos", "list", "--json", "--state", "quarantined")
    assert listed.wait() == 0
    assert {json.loads(line)["did"] for line in listed.out} == {no_end, no_begin, no_account}
