"""A service whose configuration changes while it runs: SIGHUP, and the call that does the same for ingesters."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import grpc
import pytest

from relay.pb import admin_pb2 as pb
from relay.pb.admin_pb2_grpc import RelayAdminStub
from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene
from tests.integration.service.conftest import end, status, until_equal
from tests.integration.service.test_grpc import channel_to
from tests.support.processes import Program
from tests.support.waiting import wait_until


class File:
    """The configuration file of a scene, and what is told of it."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.path = scene.folder / "relay.yaml"
        scene.env.pop("INGESTER_ADDRESSES", None)

    def write(self, ingesters: Sequence[str], *more: str) -> None:
        lines = ["ingesters:", *(f"  - {each}" for each in ingesters), *more]
        self.path.write_text("\n".join([*lines, ""]))

    def start(self) -> Program:
        program = self._scene.start("run", "--config", str(self.path))
        program.wait_for_line("^metrics: ")
        return program

    def reread(self, program: Program, ending: str) -> None:
        """SIGHUP, and wait for the line that tells its end."""
        before = len(program.err)
        program.signal(signal.SIGHUP)
        wait_until(lambda: any(ending in line for line in program.err[before:]), f"{ending} of {program}")


def healthy(scene: Scene) -> set[str]:
    return {each["address"] for each in status(scene)["ingesters"] if each["healthy"]}


def test_sighup_adds_and_removes_ingesters_and_a_bad_file_changes_nothing(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=12, inactive_share=0.0)
    sink = f"sqlite://{scene.folder / 'ingester.sqlite'}"
    first, second = scene.ingester(sink), scene.ingester(sink)
    file = File(scene)
    file.write([first])
    program = file.start()
    until_equal(scene, program, "all of it")
    file.write([first, second], "log_level: debug", "http:", "  contact: ops@example.org")
    file.reread(program, "configuration_reread")
    text = "\n".join(program.err)
    assert "applied=ingesters,log_level" in text
    assert "restart_needed key=http.contact" in text
    wait_until(lambda: healthy(scene) == {first, second}, "both")
    scene.network.write(60)
    until_equal(scene, program, "what was written since")
    for bad in ("ingesters: [no-port]", "ingesters: ["):
        file.path.write_text(bad)
        file.reread(program, "configuration_not_reread")
    file.path.write_text("")
    file.reread(program, "setting_not_applied")
    assert healthy(scene) == {first, second}
    file.write([second])
    file.reread(program, "ingester_left")
    wait_until(lambda: [each["address"] for each in status(scene)["ingesters"]] == [second], "one is left")
    scene.network.write(60)
    until_equal(scene, program, "what was written since")
    end(program)


def test_a_call_sets_the_ingesters_and_sighup_changes_only_what_the_file_says_anew(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, inactive_share=0.0)
    sink = f"sqlite://{scene.folder / 'ingester.sqlite'}"
    first, second = scene.ingester(sink), scene.ingester(sink)
    file = File(scene)
    file.write([first])
    program = file.start()
    with channel_to(scene, program) as channel:
        admin = RelayAdminStub(channel)  # type: ignore[no-untyped-call]
        for bad in ([], ["no-port"], [first, first]):
            with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
                admin.SetIngesters(pb.SetIngestersRequest(addresses=bad))
        answer = admin.SetIngesters(pb.SetIngestersRequest(addresses=[first, second]))
        assert (list(answer.joining), list(answer.leaving)) == ([second], [])
        wait_until(lambda: healthy(scene) == {first, second}, "both")
        file.reread(program, "configuration_reread changed=0 applied=nothing")
        answer = admin.SetIngesters(pb.SetIngestersRequest(addresses=[second]))
        assert (list(answer.joining), list(answer.leaving)) == ([], [first])
        wait_until(lambda: healthy(scene) == {second}, "the other is gone")
        scene.network.write(20)
        until_equal(scene, program, "all of it")
    end(program)


def test_the_relays_own_ingester_is_not_replaced_while_it_runs(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=3, inactive_share=0.0)
    program = scene.start("run")
    with channel_to(scene, program) as channel:
        admin = RelayAdminStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError, match="FAILED_PRECONDITION"):
            admin.SetIngesters(pb.SetIngestersRequest(addresses=["127.0.0.1:9"]))
    until_equal(scene, program, "all of it")
    end(program)


def test_ingesters_with_shards_of_their_own_get_the_repos_that_move_to_them_whole(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=12, inactive_share=0.0)
    scene.env["DELIVERY_FAILOVER_AFTER_SEC"] = "0"
    first = scene.ingester(f"sqlite://{scene.folder / 'first.sqlite'}")
    second = scene.ingester(f"sqlite://{scene.folder / 'second.sqlite'}")
    file = File(scene)
    file.write([first])
    scene.sink = f"sqlite://{scene.folder / 'first.sqlite'}"
    program = file.start()
    until_equal(scene, program, "all of it, in the only shard")
    file.write([second])
    file.reread(program, "shards_compared")
    scene.sink = f"sqlite://{scene.folder / 'second.sqlite'}"
    until_equal(scene, program, "all of it, in the shard that has come instead")
    end(program)
