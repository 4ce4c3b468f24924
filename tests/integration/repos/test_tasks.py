"""Questions to a real database: in order, fenced, asked again while it is away, answered in the engine's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from relay.errors import StoreAway, StoreFenced
from relay.repos.tasks import StoreTasks
from relay.store import partitions
from relay.store.pool import Database
from relay.store.statements import Cursor, one
from tests.support.waiting import wait_until


class Harness:
    def __init__(self, database: Database) -> None:
        with database.transaction("prepare") as cursor:
            self.epoch = partitions.take(cursor, "test", 60.0)
        self.posted: list[Callable[[], None]] = []
        self.deaths: list[BaseException] = []
        self.away: list[str | None] = []
        self.tasks = StoreTasks(
            database,
            lambda: self.epoch,
            self.posted.append,
            on_death=lambda _name, exc: self.deaths.append(exc),
            on_away=self.away.append,
        )


@contextmanager
def running(harness: Harness) -> Iterator[StoreTasks]:
    harness.tasks.start()
    try:
        yield harness.tasks
    finally:
        harness.tasks.request_stop()
        assert harness.tasks.join(time.monotonic() + 20.0)


def number(value: int) -> Callable[[Cursor], int]:
    def ask(cursor: Cursor) -> int:
        cursor.execute("SELECT %s", (value,))
        found: int = one(cursor)[0]
        return found

    return ask


def test_questions_are_answered_in_order_by_posting(no_leaks: None, database: Database) -> None:
    harness = Harness(database)
    heard: list[int] = []
    with running(harness) as tasks:
        for value in range(10):
            tasks.submit("ask", number(value), heard.append)
        wait_until(lambda: len(harness.posted) == 10, "ten answers")
        assert heard == []
        assert tasks.outstanding == 10
        for call in harness.posted:
            call()
    assert heard == list(range(10))
    assert tasks.outstanding == 0


def test_a_question_is_asked_again_while_the_database_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(database)
    real, failures = database.transaction, [StoreAway("away, as a test")] * 2

    @contextmanager
    def transaction(name: str, *, epoch: int | None = None) -> Iterator[Cursor]:
        if failures:
            raise failures.pop()
        with real(name, epoch=epoch) as cursor:
            yield cursor

    monkeypatch.setattr(database, "transaction", transaction)
    heard: list[int] = []
    with running(harness) as tasks:
        tasks.submit("ask", number(1), heard.append)
        wait_until(lambda: harness.posted, "the answer")
    harness.posted[0]()
    assert heard == [1]
    assert harness.away == ["away, as a test", None]


def test_a_fenced_instance_claims_nothing_and_ends(database: Database) -> None:
    harness = Harness(database)
    with database.transaction("another instance") as cursor:
        partitions.take(cursor, "another", 60.0)
    with running(harness) as tasks:
        tasks.submit("claim", number(1), lambda _: None)
        wait_until(lambda: harness.deaths, "its end")
    assert isinstance(harness.deaths[0], StoreFenced)
    assert harness.posted == []
