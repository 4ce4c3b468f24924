"""Fixtures: a rude server, and a fetcher that may talk to loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from relay.net.guard import Guard
from relay.net.http import Fetcher
from tests.integration.net.rude import RudeServer, rude_server


@pytest.fixture
def server() -> Iterator[RudeServer]:
    with rude_server() as running:
        yield running


@pytest.fixture
def opened() -> Iterator[Callable[..., Fetcher]]:
    """Make fetchers that are closed when the test ends: `opened(guard, **options)`."""
    all_of_them: list[Fetcher] = []

    def make(guard: Guard, **options: Any) -> Fetcher:
        made = Fetcher(guard, user_agent="test/1 (+mail@example.com)", **options)
        all_of_them.append(made)
        return made

    yield make
    for each in all_of_them:
        each.abort()


@pytest.fixture
def fetcher(opened: Callable[..., Fetcher]) -> Fetcher:
    return opened(Guard(allow_private=True))
