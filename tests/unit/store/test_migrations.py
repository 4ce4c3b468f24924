"""The migration files themselves."""

from __future__ import annotations

import re

from relay.model import RepoState
from relay.store.migrate import load_migrations


def test_migrations_are_numbered_from_one_without_holes() -> None:
    assert [migration.number for migration in load_migrations()] == list(range(1, len(load_migrations()) + 1))


def test_the_states_that_the_table_takes_are_those_of_the_model() -> None:
    text = load_migrations()[0].text
    listed = re.search(r"repo_state CHECK \(state IN\s*\(([^)]*)\)", text)
    assert listed is not None
    assert set(re.findall(r"'(\w+)'", listed[1])) == {state.value for state in RepoState}
