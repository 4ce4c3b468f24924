"""psycopg2's exceptions at the door."""

from __future__ import annotations

import psycopg2
import psycopg2.errors
import pytest

from relay.errors import Blame, StoreAway, StoreError
from relay.store.translate import StoreUnusable, first_line, translate


class Failed(psycopg2.Error):
    """An error with a SQLSTATE, as the server would give it (psycopg2's own attribute cannot be set)."""

    pgcode = None

    def __init__(self, state: str | None, text: str = "text") -> None:
        super().__init__(text)
        self.pgcode = state


@pytest.mark.parametrize(
    "state",
    [
        "08006",
        "53100",
        "53200",
        "53300",
        "57P01",
        "57P02",
        "57P03",
        "40001",
        "40P01",
        "55P03",
        "57014",
        "25P03",
        "58030",
    ],
)
def test_what_passes_by_itself_is_away(state: str) -> None:
    assert type(translate(Failed(state), "checkpoint", "db:5432/x")) is StoreAway


@pytest.mark.parametrize("state", ["42P01", "23505", "22P02", "42501"])
def test_a_wrong_statement_is_an_error_that_names_step_place_and_state(state: str) -> None:
    error = translate(Failed(state, "relation does not exist"), "checkpoint", "db:5432/x")
    assert type(error) is StoreError
    assert str(error) == f"checkpoint: PostgreSQL at db:5432/x: {state}: relation does not exist"


def test_a_full_disk_says_what_to_do() -> None:
    error = translate(Failed("53100", "could not extend file"), "checkpoint", "db:5432/x")
    assert isinstance(error, StoreAway)
    assert "disk of PostgreSQL at db:5432/x is full; free some space" in str(error)


def test_a_broken_connection_is_away() -> None:
    assert (
        type(translate(psycopg2.OperationalError("server closed the connection unexpectedly"), "x", "p")) is StoreAway
    )
    assert type(translate(psycopg2.InterfaceError("connection already closed"), "x", "p")) is StoreAway
    # What psycopg2 makes of a server that was killed in the middle of an answer.
    assert type(translate(psycopg2.DatabaseError("server closed the connection unexpectedly"), "x", "p")) is StoreAway


def test_a_mistake_of_ours_on_this_side_is_no_broken_connection() -> None:
    assert type(translate(psycopg2.ProgrammingError("can't execute an empty query"), "x", "p")) is StoreError


@pytest.mark.parametrize(
    "text",
    ['password authentication failed for user "relay"', 'database "nope" does not exist', 'role "x" does not exist'],
)
def test_a_refused_connection_is_for_the_operator(text: str) -> None:
    error = translate(
        psycopg2.OperationalError(f'connection to server at "db" (10.0.0.1), port 5432 failed: FATAL:  {text}'),
        "x",
        "p",
    )
    assert isinstance(error, StoreUnusable)
    assert error.blame is Blame.OPERATOR


@pytest.mark.parametrize(
    "text", ["FATAL:  the database system is starting up", "FATAL:  sorry, too many clients already"]
)
def test_a_server_that_cannot_take_us_now_is_away(text: str) -> None:
    assert type(translate(psycopg2.OperationalError(text), "connect", "p")) is StoreAway


def test_a_password_never_stands_in_a_message() -> None:
    error = translate(psycopg2.OperationalError("connecting with hunter2 failed"), "connect", "p", "hunter2")
    assert "hunter2" not in str(error)


def test_a_message_is_one_line_of_bounded_length() -> None:
    text = first_line(psycopg2.OperationalError("a" * 1000 + "\nDETAIL: more"))
    assert len(text) == 300
    assert "\n" not in text
