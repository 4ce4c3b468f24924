"""Table `host`: PDSes as listHosts names them, and how they answered us."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from relay.store.statements import Cursor, load_statements
from relay.store.text import printable

_SQL = load_statements("hosts")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRow:
    """One server, by its origin `http(s)://host[:port]`.

    `status`, `accounts`, `seq`: as listHosts says, None when it never did. `down_since`: no success since (None: it answers);
    `failures`: breaker periods in a row without a success. Times are wall seconds.
    """

    host: str
    status: str | None = None
    accounts: int | None = None
    seq: int | None = None
    last_success_at: float | None = None
    last_failure_at: float | None = None
    down_since: float | None = None
    failures: int = 0
    error: str | None = None


def upsert_listed(cur: Cursor, rows: Sequence[HostRow]) -> None:
    """Take what a page of listHosts says: status, accounts, seq. What is None leaves what was known."""
    last = {row.host: row for row in rows}
    values = [
        {"host": host, "status": last[host].status, "accounts": last[host].accounts, "seq": last[host].seq}
        for host in sorted(last)
    ]
    if values:
        cur.execute(_SQL["upsert_listed"], {"rows": orjson.dumps(values).decode()})


def note_many(cur: Cursor, rows: Sequence[HostRow]) -> None:
    """Take how hosts answered: the last success and failure (which never go back), and whether each is down."""
    last = {row.host: row for row in rows}
    values = [
        {
            "host": host,
            "last_success_at": row.last_success_at,
            "last_failure_at": row.last_failure_at,
            "down_since": row.down_since,
            "failures": row.failures,
            "error": None if row.error is None else printable(row.error, 500),
        }
        for host, row in sorted(last.items())
    ]
    if values:
        cur.execute(_SQL["note_many"], {"rows": orjson.dumps(values).decode()})


def load_many(cur: Cursor, hosts: Sequence[str]) -> dict[str, HostRow]:
    """Return those of `hosts` that are known."""
    cur.execute(_SQL["load_many"], {"hosts": list(hosts)})
    return {row[0]: _host(row) for row in cur.fetchall()}


def list_page(cur: Cursor, *, after: str = "", limit: int = 1000) -> list[HostRow]:
    """Return up to `limit` hosts above `after`, in order."""
    cur.execute(_SQL["list_page"], {"after": after, "limit": limit})
    return [_host(row) for row in cur.fetchall()]


def _host(row: tuple[Any, ...]) -> HostRow:
    host, status, accounts, seq, last_success_at, last_failure_at, down_since, failures, error = row
    return HostRow(
        host=host,
        status=status,
        accounts=accounts,
        seq=seq,
        last_success_at=last_success_at,
        last_failure_at=last_failure_at,
        down_since=down_since,
        failures=failures,
        error=error,
    )
