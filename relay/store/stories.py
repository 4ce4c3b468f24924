"""Everything that is stored of one repo, for whoever asks why it is as it is: its row, and what other tables have of its DID."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import orjson

from relay.model import Identity, Incident
from relay.store import dead_letters, identities, repos
from relay.store.dead_letters import DeadLetter
from relay.store.identities import IdentityFailure
from relay.store.repos import RepoRow
from relay.store.statements import Cursor, load_statements, one

_SQL = load_statements("stories")
LETTERS_SHOWN = 10
INCIDENTS_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something out of the ordinary: the state that it led to, and why. Written by `repo_noted` (migration 0006).

    `at`, `since` are wall seconds; `times`: it came so often in a row, first at `since`. `host` and `old_host`: it moved.
    `reason` None: synced again after something else here.
    """

    at: float
    state: str
    reason: str | None = None
    attempts: int = 0
    error: str | None = None
    host: str | None = None
    old_host: str | None = None
    times: int = 1
    since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One repo. `history` newest first, at most 20; `letters` the newest ones of `letter_count`; `incidents` since it is known."""

    row: RepoRow
    history: tuple[Note, ...]
    identity: Identity | None
    lookup_failure: IdentityFailure | None
    letters: tuple[DeadLetter, ...]
    letter_count: int
    incidents: tuple[Incident, ...]


def load_story(cur: Cursor, did: str) -> Story | None:
    """Return what is stored of `did`, removed or not; None: it is not known here. Six statements, each by an index."""
    row = repos.load(cur, [did]).get(did)
    if row is None:
        return None
    cur.execute(_SQL["history"], {"did": did})
    history = tuple(_note(text) for text in one(cur)[0])
    cur.execute(_SQL["count_letters"], {"did": did})
    letter_count: int = one(cur)[0]
    cur.execute(_SQL["incidents"], {"since": row.created_at, "limit": INCIDENTS_SHOWN})
    touching = tuple(
        Incident(id=number, kind=kind, text=text, at=at, closed_at=closed)
        for number, kind, text, at, closed in cur.fetchall()
    )
    return Story(
        row=row,
        history=history,
        identity=identities.load_many(cur, [did]).get(did),
        lookup_failure=identities.load_failures(cur, [did]).get(did),
        letters=tuple(dead_letters.list_page(cur, did=did, limit=LETTERS_SHOWN)) if letter_count else (),
        letter_count=letter_count,
        incidents=touching,
    )


_NAMES = frozenset(entry.name for entry in fields(Note))


def _note(text: str) -> Note:
    """Return a note of what is stored; what a newer version has added to it is left out."""
    stored: dict[str, Any] = orjson.loads(text)
    stored["old_host"] = stored.pop("from", None)
    return Note(**{name: value for name, value in stored.items() if name in _NAMES})
