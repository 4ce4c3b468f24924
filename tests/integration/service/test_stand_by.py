"""A second service stands by, is seen to, and takes over."""

from __future__ import annotations

import socket

from tests.integration.backfill.conftest import MakeScene
from tests.integration.service.conftest import address_of, end, get, holder, loads, status, until_equal
from tests.support.waiting import wait_until


def test_a_second_one_says_that_it_stands_by_and_takes_over_at_once_after_a_kill(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=10, inactive_share=0.0)
    scene.ingester(options=["--check-order"])
    first = scene.start("run")
    until_equal(scene, first, "all of it")
    second = scene.start("tail", "--no-progress")
    second.wait_for_line("waiting: another instance is at work")
    address = address_of(second, scene)
    code, text = get(address, "/health")
    assert (code, text.startswith("standby: another instance is at work")) == (200, True), text
    assert get(address, "/ready")[0] == 503
    assert loads(get(address, "/status.json")[1])["phase"] == "standby"
    assert get(address, "/metrics")[0] == 200
    assert status(scene)["command"] == "run", "status is that of the one that works"
    shown = [("run", "running"), ("tail", "standby")]
    wait_until(lambda: sorted(scene.select("SELECT command, phase FROM instance")) == shown, "both are shown")

    first.kill()
    wait_until(lambda: holder(scene).startswith("tail"), f"taken over: {second}", deadline_s=10)
    scene.network.write(20)
    until_equal(scene, second, "what was written after the kill")
    wait_until(lambda: get(address, "/ready")[0] == 200, "ready, at the same address")
    end(second)


def test_on_one_port_the_stand_by_is_without_http_until_it_works(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=4)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    scene.env["METRICS_PORT"] = str(port)
    first = scene.start("run")
    until_equal(scene, first, "all of it")
    second = scene.start("run", "--log-level", "info")
    second.wait_for_line("http_not_served")
    end(first)
    wait_until(lambda: holder(scene).startswith(f"run, process {second.pid} "), f"taken over: {second}")
    assert address_of(second, scene) == f"127.0.0.1:{port}"
    wait_until(lambda: get(f"127.0.0.1:{port}", "/ready")[0] == 200, "ready")
    end(second)


def test_a_stand_by_that_is_told_to_stop_ends_with_0_and_leaves_nothing(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=3)
    first = scene.start("run")
    until_equal(scene, first, "all of it")
    second = scene.start("run")
    second.wait_for_line("waiting: another instance is at work")
    address_of(second, scene)
    end(second)
    assert [command for (command,) in scene.select("SELECT command FROM instance")] == ["run"]
    assert holder(scene).startswith(f"run, process {first.pid} ")
    end(first)
