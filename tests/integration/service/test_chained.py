"""Two relays in a row: the first one's ingester is the second relay, whose ingesters have everything in the end."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest

from relay.pb import ingester_pb2 as pb
from relay.pb.ingester_pb2_grpc import IngesterServiceStub
from relay.simnet.delivered import read_sink
from relay.simnet.oracle import compare, report
from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene
from tests.integration.service.conftest import end
from tests.support.postgres import TEMPLATE, Server
from tests.support.processes import Program
from tests.support.waiting import wait_until


class Second:
    """The second relay: it follows no stream, has a database of its own, and an ingester that checks the order."""

    def __init__(self, scene: Scene, dsn: str, *faults: str, env: Mapping[str, str] | None = None) -> None:
        self._scene = scene
        self.sink = f"sqlite://{scene.folder / 'behind.sqlite'}"
        words = [word for fault in faults for word in ("--fault", fault)]
        self.ingester = scene.start("ingester", "--listen", "127.0.0.1:0", "--sink", self.sink, "--check-order", *words)
        self._env = {
            "FIREHOSE_HOST": "",
            "DATABASE_DSN": dsn,
            "DATA_DIR": str(Path(scene.folder) / "second"),
            "INGESTER_ADDRESSES": self.ingester.wait_for_line(r"^listening on (\S+)")[1],
            "RELAY_NAME": "second",
            "GRPC_PORT": "0",
            **dict(env or {}),
        }
        self.program = self.start()
        self.address = self._address()
        scene.env["INGESTER_ADDRESSES"] = self.address

    def start(self) -> Program:
        return self._scene.start("tail", "--log-level", "info", env=self._env)

    def start_again(self) -> None:
        """Where it was before."""
        self._env["GRPC_PORT"] = self.address.rpartition(":")[2]
        self.program = self.start()

    def _address(self) -> str:
        return str(self.program.wait_for_line(r"grpc_served address=(\S+)")[1])

    def differences(self) -> str:
        found = compare(self._scene.network.truth(), read_sink(self.sink), targets=set(self._scene.network.dids()))
        return report(found) if found else ""

    def order_violations(self) -> int:
        with grpc.insecure_channel(self._env["INGESTER_ADDRESSES"], options=[("grpc.enable_http_proxy", 0)]) as channel:
            answer = IngesterServiceStub(channel).HealthCheck(pb.HealthCheckRequest())  # type: ignore[no-untyped-call]
        return int(answer.details["order_violations"])


@pytest.fixture
def second_dsn(postgres_server: Server) -> Iterator[str]:
    name = postgres_server.create(TEMPLATE)
    yield postgres_server.dsn(name)
    postgres_server.drop(name)


def test_what_the_first_fetches_and_follows_arrives_behind_the_second_in_order(
    make_scene: MakeScene, second_dsn: str
) -> None:
    scene = make_scene(accounts=10, inactive_share=0.2)
    second = Second(scene, second_dsn)
    first = scene.start("run", "--log-level", "info")
    wait_until(lambda: not second.differences(), f"the repos: {first} {second.program}", deadline_s=60)
    scene.network.write(100)
    wait_until(lambda: not second.differences(), f"what was written: {first} {second.program}", deadline_s=60)

    # The second one dies in the middle of it; what it had not acknowledged comes again.
    scene.network.start_writers(100)
    second.program.process.kill()
    second.program.wait()
    second.start_again()
    wait_until(lambda: sum(scene.network.written().values()) > 300, "enough is written")
    scene.network.stop_writers()
    wait_until(lambda: not second.differences(), f"all of it: {first} {second.program}", deadline_s=90)
    assert second.order_violations() == 0
    end(first)
    end(second.program)


def test_what_the_last_ingester_refuses_is_the_first_relays_dead_letter(make_scene: MakeScene, second_dsn: str) -> None:
    scene = make_scene(accounts=4, inactive_share=0.0)
    second = Second(scene, second_dsn, r"reject-match=CREATE .*feed\.post")
    posts = {
        (account.did, path)
        for account in scene.network.truth()
        for path in account.records
        if path.startswith("app.bsky.feed.post/")
    }
    scene.backfill("--all")
    letters = scene.letters()
    assert {(letter.did, letter.path) for letter in letters} == posts
    assert "reject-match" in letters[0].message
    end(second.program)


def test_operations_of_a_repo_that_the_second_tracks_itself_are_refused(make_scene: MakeScene, second_dsn: str) -> None:
    scene = make_scene(accounts=2, inactive_share=0.0)
    second = Second(scene, second_dsn)
    ours, other = scene.network.dids()
    added = scene.start("repos", "add", ours, env={"DATABASE_DSN": second_dsn, "FIREHOSE_HOST": ""})
    assert added.wait() == 0, str(added)
    with grpc.insecure_channel(second.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ingest = IngesterServiceStub(channel)  # type: ignore[no-untyped-call]
        answer = ingest.Ingest(
            pb.OperationRequest(
                operations=[
                    pb.Operation(type=pb.ACCOUNT, did=did, account=pb.AccountStatus(active=True), time_us=1)
                    for did in (ours, other)
                ]
            ),
            timeout=30,
        )
    assert [(error.index, error.code) for error in answer.errors] == [(0, pb.OperationError.REJECT)]
    assert "tracked by this relay itself" in answer.errors[0].message
    wait_until(lambda: other in read_sink(second.sink), "the other one's is there")
    end(second.program)


def test_sighup_does_not_end_it(make_scene: MakeScene, second_dsn: str) -> None:

    scene = make_scene(accounts=1, inactive_share=0.0)
    second = Second(scene, second_dsn)
    second.program.signal(signal.SIGHUP)
    second.program.wait_for_line("grpc_files_renewed")
    assert second.program.is_running()
    end(second.program)


def test_the_second_asks_the_first_for_its_token(make_scene: MakeScene, second_dsn: str) -> None:
    scene = make_scene(accounts=3, inactive_share=0.0)
    token = scene.folder / "token"
    token.write_text("correct-horse-battery\n")
    second = Second(scene, second_dsn, env={"GRPC_TOKEN_FILE": str(token)})
    # Without it the first one's ingester is away: nothing is delivered, and nothing is given up.
    first = scene.start("run", "--log-level", "info", env={"RELAY_SHUTDOWN_TIMEOUT_SEC": "1"})
    first.wait_for_line(r"ingester_away.*token")
    end(first)
    assert not read_sink(second.sink)
    scene.backfill("--all", env={"DELIVERY_TOKEN_FILE": str(token)})
    assert not second.differences()
    end(second.program)


def test_off_loopback_without_a_token_it_does_not_start(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=1)
    program = scene.start("run", env={"GRPC_HOST": "0.0.0.0"})
    assert program.wait() == 2, str(program)
    assert "grpc.token_file" in "\n".join(program.err)
    assert "Traceback" not in str(program)
