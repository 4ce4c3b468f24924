"""Table `listing`: how far each enumeration came, so that it goes on at its last stored page."""

from __future__ import annotations

from dataclasses import dataclass

from relay.store.statements import Cursor, load_statements
from relay.store.text import printable

_SQL = load_statements("listings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One enumeration: `kind` (hosts, repos, collection ...) of `host` with `param`, for a batch (0: of none).

    `cursor` is where the next page begins (None: at the start, or finished). Times are wall seconds.
    """

    kind: str
    host: str
    param: str = ""
    batch: int = 0
    cursor: str | None = None
    pages: int = 0
    repos: int = 0
    started_at: float
    finished_at: float | None = None
    error: str | None = None


def load(cur: Cursor, kind: str, host: str, param: str = "", batch: int | None = None) -> Listing | None:
    """Return the enumeration as it was stored last, None if it never was."""
    cur.execute(_SQL["load"], {"kind": kind, "host": host, "param": param, "batch": batch or 0})
    row = cur.fetchone()
    if row is None:
        return None
    cursor, pages, repos, started_at, finished_at, error = row
    return Listing(
        kind=kind,
        host=host,
        param=param,
        batch=batch or 0,
        cursor=cursor,
        pages=pages,
        repos=repos,
        started_at=started_at,
        finished_at=finished_at,
        error=error,
    )


def load_batch(cur: Cursor, batch: int | None) -> list[Listing]:
    """Return all enumerations of a batch (None: of none), in order."""
    cur.execute(_SQL["load_batch"], {"batch": batch or 0})
    return [
        Listing(
            kind=kind,
            host=host,
            param=param,
            batch=batch or 0,
            cursor=cursor,
            pages=pages,
            repos=repos,
            started_at=started_at,
            finished_at=finished_at,
            error=error,
        )
        for kind, host, param, cursor, pages, repos, started_at, finished_at, error in cur.fetchall()
    ]


def save(cur: Cursor, listing: Listing) -> None:
    """Store how far it came; in the transaction that stores the page's repos."""
    cur.execute(
        _SQL["save"],
        {
            "kind": listing.kind,
            "host": listing.host,
            "param": listing.param,
            "batch": listing.batch,
            "cursor": listing.cursor,
            "pages": listing.pages,
            "repos": listing.repos,
            "started_at": listing.started_at,
            "finished_at": listing.finished_at,
            "error": None if listing.error is None else printable(listing.error, 500),
        },
    )


def forget(cur: Cursor, batch: int) -> int:
    """Drop the enumerations of a batch that is finished; return how many there were."""
    cur.execute(_SQL["forget"], {"batch": batch})
    return cur.rowcount
