"""Fixtures of the backfill tests: a scene over a world, made by the test, or over the corpus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.simnet.network import SimNetwork
from tests.integration.backfill.scene import Scene
from tests.support.processes import RunRelay
from tests.support.simnet import StartNetwork

MakeScene = Callable[..., Scene]


@pytest.fixture
def make_scene(start_simnet: StartNetwork, run_relay: RunRelay, migrated_dsn: str, tmp_path: Path) -> MakeScene:
    """A function that sets a scene over a world, from the fields of a WorldSpec."""

    def make(**spec: Any) -> Scene:
        return Scene(run_relay, start_simnet(**spec), migrated_dsn, tmp_path)

    return make


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    """A scene over 12 active accounts on 3 PDSes."""
    return make_scene()


@pytest.fixture
def corpus_scene(corpus_network: SimNetwork, run_relay: RunRelay, migrated_dsn: str, tmp_path: Path) -> Scene:
    """A scene over every CAR of the data folder."""
    return Scene(run_relay, corpus_network, migrated_dsn, tmp_path)
