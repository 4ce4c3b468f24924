"""Fixtures: a server without manners."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.net.rude import RudeServer, rude_server


@pytest.fixture
def server(no_leaks: None) -> Iterator[RudeServer]:
    with rude_server() as running:
        yield running
