"""Ingesters that each keep their own shard: when their list changes, the repos that moved are delivered again, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from relay.config.schema import DeliverySettings
from relay.deliver.routing import Rendezvous
from relay.model import RepoState
from relay.store import partitions, repos
from relay.store.pool import Database
from relay.store.repos import Discovered
from relay.store.statements import Cursor
from relay.supervisor import resharding

NOW = 1_700_000_000.0
DIDS = tuple(f"did:plc:{number:024d}" for number in range(60))
ONE, TWO, OTHER = ("a:1", "b:1"), ("a:1", "b:1", "c:1"), ("b:1", "c:1")
SHARDS = DeliverySettings(failover_after_sec=0)


class PowerCut(Exception):
    """The process ends here."""


class Start:
    """A start of the relay with a list of ingesters; with `transactions` it ends after so many."""

    def __init__(self, database: Database, transactions: int | None = None) -> None:
        self._database, self._left = database, transactions

    def store(self, name: str, act: Callable[[Cursor], Any]) -> Any:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise PowerCut
        with self._database.transaction(name) as cursor:
            return act(cursor)

    def run(self, addresses: Sequence[str], settings: DeliverySettings = SHARDS) -> int:
        return resharding.reshard(self.store, settings, addresses, lambda: NOW)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resharding, "PAGE", 7)


@pytest.fixture
def world(database: Database) -> Database:
    """Sixty repos that are synced."""
    with database.transaction("put") as cursor:
        found = [Discovered(did=did) for did in DIDS]
        repos.upsert_discovered(cursor, found, batch=None, named=True, partitions=64, now=NOW)
    sync_all(database)
    return database


def sync_all(database: Database) -> None:
    with database.transaction("put") as cursor:
        cursor.execute("UPDATE repo SET host = 'https://pds.example', state = 'synced', reason = NULL, rev = '3aaa'")


def to_resync(database: Database) -> set[str]:
    with database.transaction("look") as cursor:
        rows = repos.load(cursor, list(DIDS)).values()
    assert all(row.reason == "resync" for row in rows if row.state is RepoState.PENDING)
    return {row.did for row in rows if row.state is RepoState.PENDING}


def moved(*lists: Sequence[str]) -> set[str]:
    """Return the DIDs that these lists do not all give to the same ingester."""
    routes = [Rendezvous(each) for each in lists]
    return {did for did in DIDS if len({each.address_of(did) for each in routes}) > 1}


def test_the_first_list_moves_nothing_and_the_same_one_in_another_order_neither(world: Database) -> None:
    assert Start(world).run(ONE) == 0
    assert Start(world).run(tuple(reversed(ONE))) == 0
    assert to_resync(world) == set()


def test_a_longer_and_a_shorter_list_move_their_repos_and_no_others(world: Database) -> None:
    Start(world).run(ONE)
    assert Start(world).run(TWO) == len(moved(ONE, TWO)) > 0
    assert to_resync(world) == moved(ONE, TWO) != set(DIDS)
    sync_all(world)
    assert Start(world).run(TWO) == 0
    Start(world).run(OTHER)
    assert to_resync(world) == moved(TWO, OTHER)


@pytest.mark.parametrize("transactions", [1, 2, 5, 10])
def test_a_start_that_was_cut_short_and_yet_another_list_miss_nobody(world: Database, transactions: int) -> None:
    Start(world).run(ONE)
    with pytest.raises(PowerCut):
        Start(world, transactions).run(TWO)
    found = to_resync(world)
    sync_all(world)  # with the second list: these are at its ingesters now
    Start(world).run(ONE)
    assert to_resync(world) == moved(ONE, TWO), "at one of them at some time"
    assert found <= moved(ONE, TWO)
    with world.transaction("look") as cursor:
        assert partitions.read_shards(cursor) == [sorted(ONE)]


def test_with_fail_over_nothing_moves_and_nothing_is_remembered(world: Database) -> None:
    for addresses in (ONE, TWO):
        assert Start(world).run(addresses, DeliverySettings(failover_after_sec=30)) == 0
    assert to_resync(world) == set()
    with world.transaction("look") as cursor:
        assert partitions.read_shards(cursor) is None
