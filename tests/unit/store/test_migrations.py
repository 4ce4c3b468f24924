"""The migration files themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.model import RepoState
from relay.store.migrate import load_migrations


def test_migrations_have_rising_numbers_each_its_own() -> None:
    numbers = [migration.number for migration in load_migrations()]
    assert numbers[0] == 1
    assert numbers == sorted(set(numbers))


def test_two_migrations_with_one_number_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "migrations").mkdir()
    for name in ("0001_one.sql", "0001_other.sql"):
        (tmp_path / "migrations" / name).write_text("SELECT 1;")
    monkeypatch.setattr("relay.store.migrate.resources.files", lambda _package: tmp_path)
    with pytest.raises(ValueError, match="two migrations have one number"):
        load_migrations()


def test_the_states_that_the_table_takes_are_those_of_the_model() -> None:
    text = load_migrations()[0].text
    listed = re.search(r"repo_state CHECK \(state IN\s*\(([^)]*)\)", text)
    assert listed is not None
    assert set(re.findall(r"'(\w+)'", listed[1])) == {state.value for state in RepoState}
