"""`run` as a user starts it: enumerate and fetch beside the stream, go on after a stop, stop as asked."""

from __future__ import annotations

import re
import signal

from relay.simnet.upstream import UPSTREAM
from tests.integration.backfill.conftest import MakeScene
from tests.integration.service.conftest import address_of, end, get, status, until_equal
from tests.support.waiting import wait_until


def test_it_enumerates_fetches_and_follows_and_goes_on_where_it_was(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=20, inactive_share=0.0)
    scene.ingester(options=["--check-order"])
    program = scene.start("run", "--log-level", "info")
    wait_until(lambda: len(scene.rows()) == 20, "the enumeration")
    until_equal(scene, program, "all of it")
    scene.network.write(50)
    until_equal(scene, program, "what was written meanwhile")
    wait_until(lambda: status(scene)["firehose"]["connected"], "connected, as status has it")
    shown = status(scene)
    assert (shown["phase"], shown["command"]) == ("running", "run")
    address = address_of(program, scene)
    assert get(address, "/health")[1].strip() == "running"
    assert get(address, "/ready")[0] == 200
    wait_until(
        lambda: scene.select("SELECT 1 FROM listing WHERE kind = 'whole' AND finished_at IS NOT NULL"),
        "the enumeration is noted as complete",
    )
    end(program)
    assert scene.select("SELECT owner FROM partition") == [(None,)]
    assert not scene.select("SELECT 1 FROM instance")
    assert "active" not in scene.counts()

    # What happens while it is away comes from the stream: nothing is listed or fetched again.
    scene.network.write(30)
    scene.network.traffic.reset()
    program = scene.start("run", "--log-level", "info")
    until_equal(scene, program, "what was written while it was away")
    said = end(program)
    assert not scene.network.traffic.repos(), "the stream brought it"
    assert not [name for name in scene.network.traffic.requests() if "listRepos" in name], "it was enumerated before"
    assert "position_unknown" not in said
    assert not scene.select("SELECT kind FROM incident")


def test_without_a_command_it_is_run_and_a_second_signal_ends_it_at_once(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6)
    program = scene.start("--no-progress")
    wait_until(lambda: len(scene.rows()) == 6, f"the enumeration by {program}")
    until_equal(scene, program, "all of it")
    program.signal(signal.SIGINT)
    assert program.wait(40) == 0, str(program)


def test_an_upstream_that_is_away_is_waited_for_and_only_then_enumerated(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=8, inactive_share=0.0)
    scene.network.silence(UPSTREAM)
    program = scene.start("run", "--log-level", "info", env={"FIREHOSE_RECONNECT_DELAY_MS": "100"})
    program.wait_for_line("enumeration_waits_for_cursor")
    assert not scene.rows()
    scene.network.restore(UPSTREAM)
    wait_until(lambda: status(scene)["firehose"]["connected"], f"connected: {program}")
    assert status(scene)["firehose"]["last_error"] is None, "it is over"
    scene.network.write(3)
    until_equal(scene, program, "all of it")
    end(program)


def test_a_stop_does_not_wait_for_an_ingester_that_is_away(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=8, inactive_share=0.0)
    nobody = {"INGESTER_ADDRESSES": "127.0.0.1:9", "RELAY_SHUTDOWN_TIMEOUT_SEC": "3600"}
    program = scene.start("run", "--log-level", "info", env=nobody)
    wait_until(
        lambda: any(each["queued_operations"] for each in status(scene)["ingesters"]),
        f"something waits for it: {program}",
    )
    said = end(program)
    assert re.search(r"stopped_unacknowledged .*operations=[1-9]", said), said
    program = scene.start("run")
    until_equal(scene, program, "all of it")
    end(program)


def test_a_wider_filter_fetches_again_what_does_not_cover_it(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=8, inactive_share=0.0)
    program = scene.start("run", env={"NSID_FILTER": "app.bsky.graph."})
    wait_until(lambda: scene.counts() == {"synced": 8}, f"all of it, narrow: {program}")
    end(program)
    assert scene.differences(), "the narrow filter left something out"
    program = scene.start("run")
    until_equal(scene, program, "the rest")
    wait_until(lambda: scene.counts() == {"synced": 8}, "all at rest")
    assert scene.select("SELECT DISTINCT covers FROM repo") == [("",)]
    end(program)
    scene.network.traffic.reset()
    program = scene.start("run", env={"NSID_FILTER": "app.bsky."})
    wait_until(lambda: scene.select("SELECT filter_compared FROM partition") == [("app.bsky.",)], "compared")
    end(program)
    assert not scene.network.traffic.repos(), "a narrower one fetches nothing"


def test_what_a_narrow_backfill_fetched_in_between_is_fetched_again(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, inactive_share=0.0)
    program = scene.start("run")
    until_equal(scene, program, "all of it")
    wait_until(lambda: scene.select("SELECT filter_compared FROM partition") == [("",)], "compared")
    end(program)
    changed = scene.network.dids()[:2]
    scene.network.write(8, changed)
    scene.backfill("--did", *changed, env={"NSID_FILTER": "com.example."})
    assert scene.select("SELECT count(*) FROM repo WHERE covers = 'com.example.'") == [(2,)]
    program = scene.start("run", env={"FIREHOSE_HOST": ""})  # no stream that would load these repos by itself
    until_equal(scene, program, "what the narrow one left out")
    end(program)


def test_a_quarantined_repo_is_tried_again_by_itself(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, inactive_share=0.0)
    scene.backfill("--all")
    did = scene.network.dids()[0]
    scene.change(
        f"UPDATE repo SET state = 'quarantined', reason = 'bad_car', retry_at = now() - interval '1 second' WHERE did = '{did}'"
    )
    program = scene.start("tail")  # `run` lists it, and that alone has it tried again
    wait_until(lambda: scene.rows()[did].state == "synced", f"tried again: {program}")
    end(program)
    assert scene.select(f"SELECT retries FROM repo WHERE did = '{did}'") == [(1,)]


def test_it_ends_with_1_when_its_attempts_to_connect_are_used_up(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=3)
    scene.network.silence(UPSTREAM)
    few = {"FIREHOSE_MAX_RECONNECT_ATTEMPTS": "2", "FIREHOSE_RECONNECT_DELAY_MS": "100"}
    program = scene.start("tail", env=few)
    assert program.wait(60) == 1, str(program)
    assert "cannot go on" in "\n".join(program.err)


def test_without_a_firehose_it_fetches_what_is_pending_and_follows_nothing(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=5, inactive_share=0.0)
    scene.backfill("--all")
    scene.network.write(20)
    scene.change("UPDATE repo SET state = 'pending', next_attempt_at = now()")
    program = scene.start("run", "--log-level", "info", env={"FIREHOSE_HOST": ""})
    program.wait_for_line("no_firehose")
    until_equal(scene, program, "what was pending")
    assert not status(scene)["firehose"]["connected"]
    end(program)
