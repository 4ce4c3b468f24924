"""A count that something was on its way beside is taken again soon; one in calm waters lasts half a minute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.model import RepoState
from relay.repos.keeper import Keeper
from relay.repos.tasks import StoreTasks
from relay.store.repos import UpsertResult
from relay.supervisor.census import EVERY_S, UNSETTLED_S, Census


class _Keeper:
    def __init__(self) -> None:
        self.counts: Counter[RepoState] = Counter()
        self.counts_put: Counter[RepoState] = Counter()
        self.targets: Counter[RepoState] = Counter()
        self.targets_put: Counter[RepoState] = Counter()
        self.waiting = 0


class _Stage:
    """A census with a clock and a database of its own: `found` is what a count finds, in no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("relay.supervisor.census.time", SimpleNamespace(monotonic=lambda: self.now))
        self.keeper = _Keeper()
        self.asked: list[tuple[str, Callable[[Any], Any], Callable[[Any], None]]] = []
        self.found: dict[RepoState, int] = {}
        monkeypatch.setattr("relay.supervisor.census.repos.count_by_state", lambda *_: dict(self.found))
        self.census = Census(cast(Keeper, self.keeper), cast(StoreTasks, self), 1, lambda: False)

    def submit(self, name: str, ask: Callable[[Any], Any], then: Callable[[Any], None]) -> None:
        self.asked.append((name, ask, then))

    def answer(self, found: dict[RepoState, int], *, meanwhile: Callable[[], None] = lambda: None) -> None:
        asked, self.asked, self.found = self.asked, [], found
        answers = [(then, ask(None)) for _, ask, then in asked]
        meanwhile()
        for then, answer in answers:
            then(answer)

    def asks_after(self, seconds: float) -> list[str]:
        self.now += seconds
        self.census.look()
        return [name for name, _, _ in self.asked]


PAGE = UpsertResult(transitions={(None, RepoState.DISCOVERED): 24}, new=24)


def test_a_page_that_a_count_had_already_is_counted_twice_for_two_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = _Stage(monkeypatch)
    stage.census.look()
    stage.answer({RepoState.DISCOVERED: 60})
    stage.census.page(PAGE, 0)
    assert stage.keeper.counts[RepoState.DISCOVERED] == 84
    assert stage.asks_after(UNSETTLED_S) == ["count repos"]
    stage.answer({RepoState.DISCOVERED: 60})
    assert stage.keeper.counts[RepoState.DISCOVERED] == 60
    assert stage.asks_after(UNSETTLED_S) == []


def test_a_page_that_we_hear_of_while_the_database_counts_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = _Stage(monkeypatch)
    stage.census.look()
    stage.answer({RepoState.DISCOVERED: 24}, meanwhile=lambda: stage.census.page(PAGE, 0))
    assert stage.keeper.counts == {RepoState.DISCOVERED: 24}
    assert stage.asks_after(UNSETTLED_S) == ["count repos"], "the database may have counted before it"


def test_what_is_put_while_the_database_counts_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = _Stage(monkeypatch)
    stage.keeper.counts.update({RepoState.PENDING: 11, RepoState.SYNCED: 1})

    def synced() -> None:
        for counts in (stage.keeper.counts, stage.keeper.counts_put):
            counts.update({RepoState.PENDING: -11, RepoState.SYNCED: 11})

    stage.census.look()
    stage.answer({RepoState.PENDING: 11, RepoState.SYNCED: 1, RepoState.INACTIVE: 5}, meanwhile=synced)
    assert +stage.keeper.counts == {RepoState.SYNCED: 12, RepoState.INACTIVE: 5}
    assert "count repos" in stage.asks_after(UNSETTLED_S), "it may have had some of them already"
    stage.answer({RepoState.SYNCED: 12, RepoState.INACTIVE: 5})
    assert "count repos" not in stage.asks_after(UNSETTLED_S)


def test_a_count_beside_changes_that_are_not_stored_is_taken_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = _Stage(monkeypatch)
    stage.keeper.waiting = 3
    stage.census.look()
    stage.keeper.waiting = 0
    stage.answer({})
    assert stage.asks_after(UNSETTLED_S) == ["count repos", "count targets"]
    stage.answer({})
    assert stage.asks_after(EVERY_S - 1) == []
    assert stage.asks_after(1) == ["count repos", "count targets"]
