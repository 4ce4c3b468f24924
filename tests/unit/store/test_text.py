"""What text columns refuse."""

from __future__ import annotations

from hypothesis import given
from hypothesis.strategies import characters, text

from relay.store.text import printable


@given(text(alphabet=characters(codec=None), max_size=200))  # lone surrogates and NUL among them
def test_any_text_becomes_one_that_postgres_takes(given_text: str) -> None:
    stored = printable(given_text, 100)
    assert "\0" not in stored
    assert len(stored) <= 100
    stored.encode("utf-8")


@given(text(alphabet=characters(codec="utf-8", exclude_characters="\0"), max_size=100))
def test_ordinary_text_is_left_alone(given_text: str) -> None:
    assert printable(given_text, 100) == given_text
