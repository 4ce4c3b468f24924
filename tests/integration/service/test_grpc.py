"""grpc.port of a running service, as a stranger's program and an operator's see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from relay.pb import admin_pb2 as pb
from relay.pb.admin_pb2_grpc import RelayAdminStub
from relay.simnet.upstream import UPSTREAM
from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene
from tests.integration.service.conftest import end, status, until_equal
from tests.support.processes import Program
from tests.support.waiting import wait_until

TRACKED = {"DISCOVERY_MODE": "tracked"}


def grpc_address(scene: Scene, program: Program) -> str:
    """Return where it is served, as the program's row says."""
    found: list[str] = []

    def is_there() -> bool:
        assert program.is_running(), str(program)
        rows = scene.select("SELECT pid, grpc_address FROM instance")
        found[:] = [address for pid, address in rows if pid == program.pid and address]
        return bool(found)

    wait_until(is_there, f"the address of {program}")
    return found[0]


@contextmanager
def channel_to(scene: Scene, program: Program) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(grpc_address(scene, program), options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


def test_a_stranger_finds_the_services_by_reflection_and_calls_them(make_scene: MakeScene) -> None:
    """What grpcurl does: no file of ours is used, only what the server says of itself."""
    scene = make_scene(accounts=3, inactive_share=0.0)
    program = scene.start("run")
    until_equal(scene, program, "all of it")
    with channel_to(scene, program) as channel:
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel)

        def ask(**request: Any) -> Any:
            (answer,) = reflected.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**request)]))
            return answer

        services = {each.name for each in ask(list_services="").list_services_response.service}
        assert services >= {"ingester.v1.IngesterService", "relay.v1.RelayAdmin", "grpc.health.v1.Health"}
        pool = descriptor_pool.DescriptorPool()
        for symbol in ("ingester.v1.IngesterService", "relay.v1.RelayAdmin", "grpc.health.v1.Health"):
            for raw in ask(file_containing_symbol=symbol).file_descriptor_response.file_descriptor_proto:
                pool.Add(descriptor_pb2.FileDescriptorProto.FromString(raw))

        def call(service: str, method: str, **fields: Any) -> Any:
            described = pool.FindServiceByName(service).FindMethodByName(method)
            request = message_factory.GetMessageClass(described.input_type)(**fields)
            answer = message_factory.GetMessageClass(described.output_type)
            return channel.unary_unary(
                f"/{service}/{method}", request_serializer=lambda each: each.SerializeToString(), response_deserializer=answer.FromString
            )(request, timeout=10)  # fmt: skip

        def is_serving() -> bool:
            return int(call("grpc.health.v1.Health", "Check").status) == 1

        wait_until(is_serving, "grpc.health.v1 says SERVING")
        health = call("ingester.v1.IngesterService", "HealthCheck")
        assert (health.status, health.message) == (1, "running")
        assert {"version", "phase", "repos", "healthy_ingesters", "cursor"} <= set(health.details)
        shown = call("relay.v1.RelayAdmin", "ShowRepo", did=scene.network.dids()[0])
        assert (shown.repo.state, shown.tracked) == ("synced", True)
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            call("relay.v1.RelayAdmin", "ShowRepo", did="did:plc:nobody")
    end(program)


def test_repos_are_added_removed_resynced_and_listed(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=5, inactive_share=0.0)
    scene.ingester(options=["--check-order"])
    first, second, *others = sorted(scene.network.dids())
    program = scene.start("tail", "--live", "--log-level", "info", env=TRACKED)
    with channel_to(scene, program) as channel:
        admin = RelayAdminStub(channel)  # type: ignore[no-untyped-call]
        added = admin.AddRepos(pb.AddReposRequest(dids=[first, second]))
        assert (added.added, added.again, added.known) == (2, 0, 0)
        wait_until(lambda: not scene.differences(leaving_out=others), f"both are fetched: {program}")
        wait_until(lambda: scene.counts() == {"synced": 2}, "both are synced")
        assert [repo.did for repo in admin.ListRepos(pb.ListReposRequest(states=["synced"]))] == [first, second]
        assert [repo.did for repo in admin.ListRepos(pb.ListReposRequest(limit=1))] == [first]
        removed = admin.RemoveRepos(pb.RemoveReposRequest(dids=[second, others[0]]))
        assert (removed.removed, list(removed.not_tracked)) == (1, [others[0]])
        assert admin.ResyncRepos(pb.ResyncReposRequest(all=True)).repos == 1
        shown = json.loads(admin.ShowRepo(pb.ShowRepoRequest(did=second)).json)
        assert shown["tracked"] is False
        for call in (
            lambda: admin.AddRepos(pb.AddReposRequest(dids=["did:nonsense"])),
            lambda: admin.AddRepos(pb.AddReposRequest()),
            lambda: admin.ResyncRepos(pb.ResyncReposRequest(all=True, dids=[first])),
            lambda: list(admin.ListRepos(pb.ListReposRequest(states=["happy"]))),
            lambda: admin.SetFilter(pb.SetFilterRequest(patterns=["!"])),
            lambda: admin.SetHostLimits(pb.SetHostLimitsRequest(host="https://pds.example", requests_per_sec=0)),
        ):
            with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
                call()
    end(program)


def test_the_repos_that_hold_a_collection_are_delivered_again(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=8, inactive_share=0.0)
    block = "app.bsky.graph.block"
    holders = {
        account.did
        for account in scene.network.truth()
        if any(path.startswith(f"{block}/") for path in account.records)
    }
    program = scene.start("run")
    until_equal(scene, program, "all of it")
    wait_until(lambda: scene.counts() == {"synced": 8}, "all are synced")
    with channel_to(scene, program) as channel:
        admin = RelayAdminStub(channel)  # type: ignore[no-untyped-call]
        admin.Pause(pb.PauseRequest(parts=[pb.BACKFILL]))
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            admin.ResyncRepos(pb.ResyncReposRequest(collections=["no nsid"]))
        answer = admin.ResyncRepos(pb.ResyncReposRequest(collections=[block]))
        assert (answer.repos, list(answer.failed)) == (len(holders), [])
        assert {did for did, row in scene.rows().items() if row.reason == "resync"} == holders
        scene.network.silence(UPSTREAM)
        answer = admin.ResyncRepos(pb.ResyncReposRequest(collections=[block]))
        assert answer.repos == 0
        assert len(answer.failed) == 1
        scene.network.restore(UPSTREAM)
        admin.Resume(pb.ResumeRequest())
        wait_until(lambda: scene.counts() == {"synced": 8}, "delivered again")
    end(program)


def test_what_is_paused_stands_still_until_it_is_resumed(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, inactive_share=0.0)
    program = scene.start("run", "--log-level", "info")
    until_equal(scene, program, "all of it")
    wait_until(lambda: scene.counts() == {"synced": 6}, "the last is told so")
    with channel_to(scene, program) as channel:
        admin = RelayAdminStub(channel)  # type: ignore[no-untyped-call]
        answers = admin.Status(pb.StatusRequest(interval_sec=0.5))
        assert next(answers).phase in ("running", "starting")
        assert list(admin.Pause(pb.PauseRequest(parts=[pb.TAIL])).paused) == [pb.TAIL]
        admin.Pause(pb.PauseRequest(parts=[pb.BACKFILL]))
        shown = next(each for each in answers if each.phase == "paused")
        assert list(shown.paused) == [pb.BACKFILL, pb.TAIL]
        assert shown.repos["synced"] == 6
        assert json.loads(shown.json)["reason"] == "paused by an operator: backfill, tail"
        seq = status(scene)["firehose"]["seq"]
        wait_until(lambda: scene.select("SELECT max(cursor) FROM partition") == [(seq,)], "all that was read is stored")
        before = scene.select("SELECT max(cursor) FROM partition")
        scene.network.write(20)
        admin.ResyncRepos(pb.ResyncReposRequest(dids=scene.network.dids()[:1]))
        wait_until(lambda: scene.counts().get("synced") == 5, "one waits to be fetched")
        wait_until(lambda: status(scene)["repos"]["synced"] == 5, "the census has seen it")
        assert scene.select("SELECT max(cursor) FROM partition") == before
        assert scene.counts()["synced"] == 5
        assert list(admin.Resume(pb.ResumeRequest()).paused) == []
        until_equal(scene, program, "what was written meanwhile")
        wait_until(lambda: scene.counts() == {"synced": 6}, "and the resync is done")
        answers.cancel()
    end(program)


def test_a_filter_narrows_at_once_and_widened_again_brings_what_was_left_out(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, inactive_share=0.0)
    program = scene.start("run", "--log-level", "info")
    until_equal(scene, program, "all of it")
    with channel_to(scene, program) as channel:
        admin = RelayAdminStub(channel)  # type: ignore[no-untyped-call]
        narrowed = admin.SetFilter(pb.SetFilterRequest(patterns=["app.bsky.feed.post"]))
        assert (list(narrowed.patterns), narrowed.widened) == (["app.bsky.feed.post"], False)
        scene.network.traffic.reset()
        moved = scene.network.dids()[:3]
        scene.network.write(30, moved)
        posts = ("app.bsky.feed.post",)
        wait_until(lambda: not _lacking(scene, posts), f"posts go on: {program}")
        assert scene.select("SELECT filter FROM partition") == [("app.bsky.feed.post",)]
        assert not scene.network.traffic.repos(), "nothing is fetched"
        widened = admin.SetFilter(pb.SetFilterRequest())
        assert (list(widened.patterns), widened.widened) == ([], True)
        until_equal(scene, program, "what was left out is fetched")
    end(program)


def test_a_hosts_limits_hold_until_they_are_taken_back(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=2, inactive_share=0.0)
    program = scene.start("tail", env={"BACKFILLER_HOST_REQUESTS_PER_SEC": "50"})
    with channel_to(scene, program) as channel:
        admin = RelayAdminStub(channel)  # type: ignore[no-untyped-call]
        limits = admin.SetHostLimits(pb.SetHostLimitsRequest(host="https://PDS.example/", requests_per_sec=0.5))
        assert (limits.requests_per_sec, limits.connections) == (0.5, 4)
        limits = admin.SetHostLimits(pb.SetHostLimitsRequest(host="https://pds.example"))
        assert (limits.requests_per_sec, limits.connections) == (50, 4)
    end(program)


def _lacking(scene: Scene, patterns: tuple[str, ...]) -> bool:
    """Does the ingester lack anything of the wanted collections?"""
    delivered = scene.delivered()
    for account in scene.network.truth():
        there = delivered[account.did].records
        for path, cid in account.records.items():
            if path.startswith(patterns) and there.get(path) != cid:
                return True
    return False
