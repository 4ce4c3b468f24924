"""Fixtures of the tests of the live half: `make_world` for a test of its own, `followed` for those that share a relay."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.simnet.network import SimNetwork
from relay.simnet.world import WorldSpec
from tests.faults.stage import Stage
from tests.support.live_world import LiveWorld
from tests.support.postgres import TEMPLATE, Server

MakeWorld = Callable[..., LiveWorld]
_WORLD = {"accounts": 12, "hosts": 3, "median_records": 15, "max_records": 200, "inactive_share": 0.0}


@contextlib.contextmanager
def live_world(server: Server, *, env: dict[str, str] | None = None, **spec: Any) -> Iterator[LiveWorld]:
    """A network in this process, a stage in a folder of its own, and a database on a server that is there already."""
    name = server.create(TEMPLATE)
    with contextlib.ExitStack() as stack:
        stack.callback(server.drop, name)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="live")))
        network = stack.enter_context(SimNetwork(WorldSpec(**{**_WORLD, **spec})))
        stage = stack.enter_context(Stage(folder))
        yield stack.enter_context(LiveWorld(stage, network, env={"DATABASE_DSN": server.dsn(name), **(env or {})}))


@pytest.fixture
def make_world(postgres_server: Server) -> Iterator[MakeWorld]:
    """A function that makes a world from the fields of a WorldSpec and `env`; nothing of the relay is started."""
    with contextlib.ExitStack() as stack:
        yield lambda **given: stack.enter_context(live_world(postgres_server, **given))


@pytest.fixture(scope="module")
def followed(postgres_server: Server) -> Iterator[LiveWorld]:
    """A world of 24 accounts that was backfilled, and that `tail` follows."""
    with live_world(postgres_server, accounts=24) as world:
        world.backfill()
        world.start("tail")
        world.catch_up()
        yield world
        world.catch_up()
        world.judge()
