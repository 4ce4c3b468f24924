"""Fixtures that give a test a network: `simnet` in this process, `corpus_network` over the real repositories.

Both fail the test when a handler of the network failed: that is a bug of ours, and not of what is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from relay.simnet.corpus import Corpus
from relay.simnet.network import SimNetwork
from relay.simnet.world import WorldSpec
from tests.support.data import data_path

StartNetwork = Callable[..., SimNetwork]


@pytest.fixture
def start_simnet() -> Iterator[StartNetwork]:
    """A function that starts a network from the fields of a WorldSpec; all are stopped after the test."""
    with ExitStack() as stack:

        def start(*, options: dict[str, Any] | None = None, **spec: Any) -> SimNetwork:
            defaults = {"accounts": 12, "hosts": 3, "median_records": 15, "max_records": 200, "inactive_share": 0.0}
            return stack.enter_context(SimNetwork(WorldSpec(**{**defaults, **spec}), **options or {}))

        yield start


@pytest.fixture
def simnet(start_simnet: StartNetwork) -> SimNetwork:
    """A small world: 12 active accounts of some 15 records on 3 PDSes."""
    return start_simnet()


@pytest.fixture
def corpus_network() -> Iterator[SimNetwork]:
    """Every CAR of the data folder, as accounts of two PDSes; skips where the folder is absent."""
    root = data_path("expected.json").parent
    with SimNetwork(Corpus(root)) as network:
        yield network
