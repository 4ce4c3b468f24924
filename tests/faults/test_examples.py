"""docs/examples behind a real relay: an ingester that is killed again and again while writers write equals the network in the end."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.simnet.network import SimNetwork
from relay.simnet.world import WorldSpec
from tests.faults.stage import MARK, Stage
from tests.support.examples import LANGUAGES, Example, example, url_of
from tests.support.live_world import LiveWorld
from tests.support.postgres import TEMPLATE, Server
from tests.support.processes import Program
from tests.support.waiting import wait_until

_KILLS = 3


@dataclass(slots=True, kw_only=True)
class ExampleStage(Stage):
    """A stage whose ingester is one of the examples."""

    built: Example
    records_dsn: str = ""

    @property
    def sink(self) -> str:
        return self.records_dsn if self.built.takes_dsn else f"sqlite://{self.data}/records.sqlite"

    def ingester(self, port: int, *_faults: str) -> Program:
        store = self.records_dsn if self.built.takes_dsn else str(self.data / "records.sqlite")
        program = self.built.start(f"127.0.0.1:{port}", store, env={MARK: self.mark})
        self.programs.append(program)
        return program

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for program in self.programs:
            if program.command[: len(self.built.command)] == [*self.built.command] and program.is_running():
                program.signal(signal.SIGTERM)
                code = program.wait(30.0)
                assert code == 0 or kind is not None, program
        Stage.__exit__(self, kind, *exc)


@pytest.mark.parametrize("language", LANGUAGES)
def test_behind_a_relay_an_example_that_is_killed_again_and_again_equals_the_network(
    language: str, postgres_server: Server, tmp_path: Path, is_long: bool
) -> None:
    if language != "python" and not is_long:
        pytest.skip("another language than Python: with --long only")
    built = example(language)
    stage = ExampleStage(tmp_path, built=built)
    databases = [postgres_server.create(TEMPLATE), postgres_server.create()]
    stage.records_dsn = url_of(postgres_server.dsn(databases[1]))
    rng = random.Random(5)
    spec = WorldSpec(accounts=30, hosts=2, median_records=30, max_records=400, inactive_share=0.05, seed=5)
    with SimNetwork(spec) as network, stage:
        world = LiveWorld(stage, network, env={"DATABASE_DSN": postgres_server.dsn(databases[0])})
        with world:
            network.start_writers(60.0, seed=5)
            world.start()
            for _ in range(_KILLS):
                told = sum(network.written().values())
                wait_until(lambda told=told: sum(network.written().values()) > told + 40, "more commits")  # type: ignore[misc]
                world.kill("ingester", rng)
            world.come_to_rest()
            world.judge()
        assert world.kills["ingester"] == _KILLS
    for name in databases:
        postgres_server.drop(name)
