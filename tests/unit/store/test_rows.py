"""The row of a repo in memory (the table itself: tests/integration/store/test_repos.py)."""

from __future__ import annotations

import copy
from dataclasses import fields, replace

from relay.store.repos import RepoRow


def test_a_copy_has_every_column() -> None:
    row = RepoRow(did="did:plc:a")
    for number, field in enumerate(fields(RepoRow)):
        setattr(row, field.name, object())
        assert copy.copy(row) == row, f"column {number}, {field.name}"


def test_a_copy_is_another_row() -> None:
    row = RepoRow(did="did:plc:a", rev="3l")
    copied = copy.copy(row)
    row.rev = "3m"
    assert copied == replace(row, rev="3l")
