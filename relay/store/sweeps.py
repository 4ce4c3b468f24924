"""What a service does now and then with all repos of a kind: quarantined ones again, synced ones compared with a filter."""

from __future__ import annotations

from collections import Counter

from relay.model import RepoState
from relay.store.repos import Transitions
from relay.store.statements import Cursor, load_statements, one

_SQL = load_statements("sweeps")


def retry_quarantined(cur: Cursor, now: float, limit: int) -> Transitions:
    """Make quarantined repos whose time has come pending, with all their attempts; return the transitions.

    Each waits an hour, then two, four … up to seven days; after it was synced an hour again. For a service, about once a minute.
    """
    cur.execute(_SQL["schedule_quarantined"], {"now": now, "limit": limit})
    cur.execute(_SQL["retry_quarantined"], {"now": now, "limit": limit})
    return Counter((RepoState(old), RepoState(new)) for old, new in cur.fetchall())


def is_any_repo(cur: Cursor) -> bool:
    """Say whether there is any repo, removed ones included."""
    cur.execute(_SQL["is_any_repo"])
    return bool(one(cur)[0])


def covers_above(cur: Cursor, after: str, limit: int) -> list[tuple[str, str | None]]:
    """Return (DID, what it covers) of synced repos above `after`, in DID order."""
    cur.execute(_SQL["covers_above"], {"after": after, "limit": limit})
    return cur.fetchall()
