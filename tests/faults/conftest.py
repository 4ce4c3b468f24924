"""Options and networks of the fault tests: `--long` for twenty kills a test instead of four, `--seed` to see a failure again."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.simnet.corpus import Corpus
from relay.simnet.process import SimProcess
from relay.simnet.world import WorldSpec
from relay.store.embedded import EmbeddedPostgres
from tests.faults.stage import Expectation, Stage, corpus_expectation, world_expectation
from tests.support.data import data_root

SHORT_KILLS, LONG_KILLS = 4, 20
SHORT_S, LONG_S = 5.0, 60.0
_LONG_DEADLINE_S = 900
_LONG_ONLY = frozenset(
    {
        # The same paths as with the made-up world, which the short form kills too.
        "test_child[corpus-relay-fetch]",
        "test_postgresql[corpus-backend]",
        # Half a minute of work, and nothing in it is random.
        "test_a_repo_of_300_000_records_is_delivered_whole_through_a_spool_file",
        # Minutes by itself.
        "test_memory_stays_flat_and_the_cursor_close",
    }
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="20 kills a test instead of 4, on a larger network")
    parser.addoption("--seed", type=int, default=None, help="of all that is random in the fault tests; printed by each")
    parser.addoption("--minutes", type=float, default=None, help="how long the tests of the live half go on")
    parser.addoption("--rate", type=float, default=None, help="actions a second of the tests of the live half")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        for item in items:
            item.add_marker(pytest.mark.timeout(_LONG_DEADLINE_S))
        return
    left_out = [item for item in items if item.name in _LONG_ONLY]
    if left_out:
        items[:] = [item for item in items if item.name not in _LONG_ONLY]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what came of each test that passed, though its output is kept back."""
    told = [
        (report.nodeid.rpartition("/")[2], line)
        for report in terminalreporter.stats.get("passed", ())
        for line in report.capstdout.splitlines()
        if line.startswith("operations: ") or " MiB" in line
    ]
    if told:
        terminalreporter.section("figures")
    for test, line in told:
        terminalreporter.line(f"{test}\n    {line}")


@pytest.fixture(scope="session")
def session_seed(request: pytest.FixtureRequest) -> int:
    given: int | None = request.config.getoption("--seed")
    return random.SystemRandom().randrange(1 << 30) if given is None else given


@pytest.fixture(autouse=True)
def said_seed(session_seed: int) -> None:
    """The seed stands in the output of each test that fails."""
    print(f"seed {session_seed}: replay with --seed {session_seed}")


@pytest.fixture
def rng(session_seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test."""
    return random.Random(f"{session_seed}/{request.node.name}")


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--long"))


@pytest.fixture
def seconds(is_long: bool, request: pytest.FixtureRequest) -> float:
    """How long things go wrong, where a test says nothing else."""
    minutes: float | None = request.config.getoption("--minutes")
    if minutes is not None:
        return 60.0 * minutes
    return LONG_S if is_long else SHORT_S


@pytest.fixture
def network(session_seed: int) -> Iterator[SimProcess]:
    """The network of a test that writes: no other test sees it."""
    spec = WorldSpec(
        seed=session_seed,
        accounts=60,
        hosts=2,
        sizes=(0, 1, 900),
        median_records=40,
        max_records=400,
        inactive_share=0.1,
    )
    with SimProcess(spec) as network:
        yield network


@pytest.fixture
def kills(is_long: bool) -> int:
    """How often a test kills."""
    return LONG_KILLS if is_long else SHORT_KILLS


@pytest.fixture(scope="session")
def world_network(session_seed: int, is_long: bool) -> Iterator[SimProcess]:
    """A made-up world: repos of none, one, thousands and some dozens of records, a few inactive accounts."""
    spec = WorldSpec(
        seed=session_seed,
        accounts=400 if is_long else 140,
        hosts=4,
        sizes=(0, 1, 4000, 2500),
        median_records=40,
        max_records=1500,
        inactive_share=0.08,
    )
    with SimProcess(spec) as network:
        yield network


@pytest.fixture(scope="session")
def small_network(session_seed: int) -> Iterator[SimProcess]:
    """A world that is backfilled in a moment; one account in four is inactive."""
    spec = WorldSpec(
        seed=session_seed,
        accounts=24,
        hosts=2,
        sizes=(0, 1, 900),
        median_records=25,
        max_records=300,
        inactive_share=0.25,
    )
    with SimProcess(spec) as network:
        yield network


@pytest.fixture(scope="session")
def corpus_network_process() -> Iterator[SimProcess]:
    """The real repositories, served by a process of its own."""
    root = data_root()
    if root is None:
        pytest.skip("no test data: set RELAY_TEST_DATA, or put the folder at ../shared/data beside the repository")
    with SimProcess(corpus=root) as network:
        yield network


@pytest.fixture(params=["world", "corpus"])
def expectation(request: pytest.FixtureRequest, tmp_path: Path) -> Expectation:
    """A network, the targets, and what must be delivered in the end; for both kinds of network."""
    if request.param == "world":
        return world_expectation(request.getfixturevalue("world_network"))
    network: SimProcess = request.getfixturevalue("corpus_network_process")
    root = data_root()
    assert root is not None
    return corpus_expectation(network, Corpus(root), tmp_path)


@pytest.fixture
def world(world_network: SimProcess) -> Expectation:
    return world_expectation(world_network)


@pytest.fixture
def small_world(small_network: SimProcess) -> Expectation:
    return world_expectation(small_network)


@pytest.fixture
def dsn(database_dsn: str) -> str:
    """An empty database on a server that outlives the relay, for tests that are about neither."""
    return database_dsn


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of the test's own: the relay knows its address only, and cannot start it."""
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        server = EmbeddedPostgres(Path(folder) / "s")
        server.open()
        yield server
        server.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Where a test plays; what is left behind at its end fails it."""
    with Stage(tmp_path) as stage:
        yield stage
