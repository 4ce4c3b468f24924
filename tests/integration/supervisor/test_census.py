"""The last count of a machine that has ended, against a real database: exact, and nobody waits long for it."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from types import SimpleNamespace
from typing import cast

import pytest

from relay.model import RepoState
from relay.repos.keeper import Keeper
from relay.repos.tasks import StoreTasks
from relay.store import batches, repos
from relay.store.pool import Database
from relay.store.repos import Discovered
from relay.supervisor import census
from relay.supervisor.census import Census

NOW = 1_700_000_000.0
WRONG = 99


def wrong_census(batch: int) -> tuple[Census, SimpleNamespace]:
    keeper = SimpleNamespace(
        counts=Counter({RepoState.DISCOVERED: WRONG, RepoState.SYNCED: WRONG}),
        counts_put=Counter(),
        targets=Counter({RepoState.SYNCED: WRONG}),
        targets_put=Counter(),
    )
    return Census(cast(Keeper, keeper), cast(StoreTasks, None), batch, lambda: False), keeper


def three_of_which_one_is_a_target(database: Database) -> int:
    with database.transaction("put") as cur:
        batch, _ = batches.open_batch(cur, "the first", NOW)
        repos.upsert_discovered(cur, [Discovered(did="did:plc:1")], batch=batch, named=True, partitions=64, now=NOW)
        others = [Discovered(did="did:plc:2"), Discovered(did="did:plc:3")]
        repos.upsert_discovered(cur, others, batch=None, named=False, partitions=64, now=NOW)
    return batch


def test_the_last_count_replaces_whatever_was_counted(database: Database) -> None:
    last, keeper = wrong_census(three_of_which_one_is_a_target(database))
    last.close(database)
    assert sum(keeper.counts.values()) == 3
    assert sum(keeper.targets.values()) == 1
    assert keeper.counts[RepoState.SYNCED] == keeper.targets[RepoState.SYNCED] == 0


def test_a_last_count_that_takes_too_long_is_left(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    last, keeper = wrong_census(three_of_which_one_is_a_target(database))
    monkeypatch.setattr(census, "LAST_MS", 50)
    with closing(database.session("in the way")) as held, held.transaction("lock") as cur:
        cur.execute("LOCK TABLE repo IN ACCESS EXCLUSIVE MODE")
        last.close(database)
    assert keeper.counts == {RepoState.DISCOVERED: WRONG, RepoState.SYNCED: WRONG}
    last.close(database)
    assert sum(keeper.counts.values()) == 3, "the time limit was that transaction's"
