"""psycopg2's exceptions as ours, at the door: is PostgreSQL away (wait, try again), or was the statement wrong?

StoreError
├── StoreAway       a broken connection, a restart, too many clients, a full disk, a lock or statement timeout, a deadlock
├── StoreFenced     another instance holds the lease
└── StoreUnusable   waiting does not help: wrong password, no such database, too old a server, a folder that is not ours
"""

from __future__ import annotations

import psycopg2

from relay.errors import Blame, StoreAway, StoreError

AWAY_CLASSES = ("08", "53", "58")
"""SQLSTATE classes after which trying again helps: connection, insufficient resources (disk, memory, connections), I/O errors."""

AWAY_STATES = {
    "25006": "the server is read-only (a standby?)",
    "25P03": "a transaction was idle for too long",
    "25P04": "a transaction took too long",
    "40001": "transactions got into each other's way",
    "40P01": "transactions got into each other's way (deadlock)",
    "55P03": "a lock was not to be had in time",
    "57014": "a statement took too long, or was cancelled",
    "57P01": "the connection was ended by an administrator or a shutdown",
    "57P02": "the server crashed and recovers",
    "57P03": "the server is starting up or shutting down",
    "57P05": "the session was idle for too long",
}

UNUSABLE_TEXTS = (
    "authentication failed",
    "no pg_hba.conf entry",
    "does not exist",
    "permission denied for database",
    "no password supplied",
    "invalid connection option",
    "invalid port number",
    "is not permitted to log in",
)
"""Parts of libpq's messages for a refused connection, which carry no SQLSTATE: somebody has to change something."""


class StoreUnusable(StoreError):
    """The database cannot be used as it is, and waiting does not change that: the message says what would."""

    blame = Blame.OPERATOR


def translate(exc: psycopg2.Error, what: str, place: str, secret: str = "") -> StoreError:
    """Return the StoreError for `exc`: `what` names the statement or step, `place` the server; `secret` is cut out of the text.

    A broken commit is StoreAway too: whether it took place is not known, so what is repeated must be harmless when repeated.
    """
    state = exc.pgcode or ""
    text = first_line(exc, secret)
    if state == "53100":
        return StoreAway(f"{what}: the disk of PostgreSQL at {place} is full; free some space ({text})")
    if state in AWAY_STATES:
        return StoreAway(f"{what}: PostgreSQL at {place}: {AWAY_STATES[state]} ({text})")
    if state[:2] in AWAY_CLASSES:
        return StoreAway(f"{what}: PostgreSQL at {place}: {text}")
    # A server that was killed in the middle of an answer: psycopg2 raises the bare DatabaseError, with libpq's words and no SQLSTATE.
    is_cut = type(exc) is psycopg2.DatabaseError
    if not state and (is_cut or isinstance(exc, psycopg2.OperationalError | psycopg2.InterfaceError)):
        if any(part in text for part in UNUSABLE_TEXTS):
            return StoreUnusable(f"{what}: PostgreSQL at {place} refuses us: {text}")
        return StoreAway(f"{what}: PostgreSQL at {place} does not answer: {text}")
    if isinstance(exc, psycopg2.OperationalError | psycopg2.InterfaceError) and state[:2] == "XX":
        return StoreAway(f"{what}: PostgreSQL at {place}: {text}")
    return StoreError(f"{what}: PostgreSQL at {place}: {state or type(exc).__name__}: {text}")


def first_line(exc: psycopg2.Error, secret: str = "") -> str:
    """Return the first line of the server's or libpq's message, at most 300 characters, without `secret`."""
    text = " ".join(str(exc).split("\n")[0].split()) or type(exc).__name__
    if secret:
        text = text.replace(secret, "***")
    return text[:300]
