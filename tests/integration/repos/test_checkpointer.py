"""The one transaction, against a real database: nothing is told before it is stored, and a fenced instance stores nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from relay.errors import StoreAway, StoreFenced
from relay.model import Identity, RepoState
from relay.repos.checkpointer import Change, Checkpointer, Stored
from relay.store import dead_letters, identities, partitions, repos
from relay.store.dead_letters import DeadLetter
from relay.store.pool import Database
from relay.store.repos import Discovered
from relay.store.statements import Cursor
from tests.support.waiting import wait_until

DIDS = [f"did:plc:{letter * 24}" for letter in "abc"]
SOON_S = 20.0


class Harness:
    """A checkpointer with its ears: what was told, what it died of, and whether the database is away."""

    def __init__(self, database: Database, *, interval_operations: int = 1_000_000) -> None:
        self.database = database
        with database.transaction("prepare") as cursor:
            self.epoch = partitions.take(cursor, "test", 60.0)
            repos.upsert_discovered(
                cursor, [Discovered(did=did) for did in DIDS], batch=None, named=True, partitions=64, now=time.time()
            )
            self.rows = repos.load(cursor, DIDS)
        self.told: list[Stored] = []
        self.deaths: list[BaseException] = []
        self.away: list[str | None] = []
        self.checkpointer = Checkpointer(
            database,
            lambda: self.epoch,
            self.told.append,
            interval_operations=interval_operations,
            on_death=lambda _name, exc: self.deaths.append(exc),
            on_away=self.away.append,
        )

    def stored(self) -> dict[str, repos.RepoRow]:
        with self.database.transaction("look") as cursor:
            return repos.load(cursor, DIDS)


@contextmanager
def running(harness: Harness) -> Iterator[Checkpointer]:
    harness.checkpointer.start()
    try:
        yield harness.checkpointer
    finally:
        harness.checkpointer.request_stop()
        assert harness.checkpointer.join(time.monotonic() + SOON_S)


def test_an_urgent_change_is_stored_with_everything_before_it_and_then_told(no_leaks: None, database: Database) -> None:
    harness = Harness(database)
    first, second = harness.rows[DIDS[0]], harness.rows[DIDS[1]]
    first.state, first.host = RepoState.PENDING, "https://h"
    second.rev_begun, second.touched = "3kaaaaaaaaaaa", True
    letter = DeadLetter(
        at=time.time(), did=DIDS[0], collection="a.b.c", rkey="1", cid=None, rev="3k", type="CREATE", source="BACKFILL",
        reason="rejected", message="no", ingester="i:1", attempts=1, size=1, operation=b"x",
    )  # fmt: skip
    identity = Identity(did=DIDS[0], signing_key="z", pds="https://h", handle=None, resolved_at=time.time())
    with running(harness) as checkpointer:
        checkpointer.put(Change(row=first, identity=identity, dead=[letter]))
        checkpointer.put(Change(row=second, urgent=True))
        wait_until(lambda: harness.told, "stored", deadline_s=SOON_S)
    changes = [change for stored in harness.told for change in stored.changes]
    assert [change.row.did for change in changes if change.row] == DIDS[:2]
    rows = harness.stored()
    assert (rows[DIDS[0]].state, rows[DIDS[0]].host) == (RepoState.PENDING, "https://h")
    assert (rows[DIDS[1]].rev_begun, rows[DIDS[1]].touched) == ("3kaaaaaaaaaaa", True)
    with database.transaction("look") as cursor:
        assert dead_letters.count_by_reason(cursor) == {"rejected": 1}
        assert set(identities.load_many(cursor, DIDS)) == {DIDS[0]}


def test_of_several_changes_of_a_repo_in_one_batch_the_last_row_stands_and_all_are_told(database: Database) -> None:
    harness = Harness(database)
    row = harness.rows[DIDS[0]]
    for number in range(5):
        row.attempts = number
        harness.checkpointer.put(Change(row=row))
    with running(harness):
        harness.checkpointer.request_stop()
    assert sum(len(stored.changes) for stored in harness.told) == 5
    assert harness.stored()[DIDS[0]].attempts == 4


def test_what_waits_at_the_stop_is_still_stored(database: Database) -> None:
    harness = Harness(database)
    with running(harness) as checkpointer:
        harness.rows[DIDS[2]].attempts = 7
        checkpointer.put(Change(row=harness.rows[DIDS[2]]))
    assert harness.stored()[DIDS[2]].attempts == 7
    assert harness.checkpointer.waiting == 0


def test_enough_acknowledged_operations_make_a_change_urgent(database: Database) -> None:
    harness = Harness(database, interval_operations=10)
    harness.checkpointer.put(Change(operations=9))
    assert not harness.checkpointer._urgent
    harness.checkpointer.put(Change(operations=1))
    assert harness.checkpointer._urgent


def test_a_fenced_instance_stores_nothing_tells_nothing_and_ends(database: Database) -> None:
    harness = Harness(database)
    with database.transaction("another instance") as cursor:
        partitions.take(cursor, "another", 60.0)
    harness.rows[DIDS[0]].attempts = 3
    with running(harness) as checkpointer:
        checkpointer.put(Change(row=harness.rows[DIDS[0]], urgent=True))
        wait_until(lambda: harness.deaths, "its end", deadline_s=SOON_S)
    assert isinstance(harness.deaths[0], StoreFenced)
    assert harness.told == []
    assert harness.stored()[DIDS[0]].attempts == 0


def test_while_the_database_is_away_changes_wait_in_order_and_nothing_is_told(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(database)
    real, failures = database.transaction, [StoreAway("away, as a test")] * 2

    @contextmanager
    def transaction(name: str, *, epoch: int | None = None) -> Iterator[Cursor]:
        if failures:
            assert harness.told == []
            raise failures.pop()
        with real(name, epoch=epoch) as cursor:
            yield cursor

    monkeypatch.setattr(database, "transaction", transaction)
    with running(harness) as checkpointer:
        harness.rows[DIDS[0]].attempts = 1
        checkpointer.put(Change(row=harness.rows[DIDS[0]], urgent=True))
        wait_until(lambda: harness.told, "stored after all", deadline_s=SOON_S)
    assert harness.away == ["away, as a test", None]
    assert harness.stored()[DIDS[0]].attempts == 1


def test_a_repo_asked_for_again_meanwhile_is_stored_as_pending_and_that_is_told(database: Database) -> None:
    harness = Harness(database)
    row = harness.rows[DIDS[0]]
    with database.transaction("heard of a newer rev") as cursor:
        repos.upsert_discovered(
            cursor,
            [Discovered(did=row.did, rev="3kzzzzzzzzzzz")],
            batch=None,
            named=True,
            partitions=64,
            now=time.time(),
        )
    row.state, row.rev, row.host = RepoState.SYNCED, "3kaaaaaaaaaaa", "https://h"
    with running(harness) as checkpointer:
        checkpointer.put(Change(row=row, urgent=True))
        wait_until(lambda: harness.told, "stored", deadline_s=SOON_S)
    assert harness.told[0].corrected == {row.did: RepoState.PENDING}
