"""Table `instance`: the processes that work with this database, as they showed themselves last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from relay.store.statements import Cursor, load_statements, one

_SQL = load_statements("instances")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One process. `silent_s`: seconds since its last heartbeat, by the server's clock; addresses are `host:port`, None: not served."""

    id: int
    name: str
    command: str
    pid: int
    host: str
    version: str
    phase: str
    started_at: float
    heartbeat_at: float
    silent_s: float
    metrics_address: str | None
    grpc_address: str | None
    status: Mapping[str, Any] | None


def register(
    cur: Cursor,
    *,
    name: str,
    command: str,
    pid: int,
    host: str,
    version: str,
    phase: str,
    started_at: float,
    metrics_address: str | None = None,
    grpc_address: str | None = None,
) -> int:
    """Add this process; return its id. `command` is run, tail or backfill; `host` the machine's name."""
    cur.execute(
        _SQL["register"],
        {
            "name": name,
            "command": command,
            "pid": pid,
            "host": host,
            "version": version,
            "phase": phase,
            "started_at": started_at,
            "metrics_address": metrics_address,
            "grpc_address": grpc_address,
        },
    )
    return int(one(cur)[0])


def heartbeat(
    cur: Cursor,
    instance: int,
    phase: str,
    *,
    metrics_address: str | None = None,
    grpc_address: str | None = None,
    status: Mapping[str, Any] | None = None,
) -> bool:
    """Show that the process lives, and how it is; False: the row is gone, register again."""
    cur.execute(
        _SQL["heartbeat"],
        {
            "id": instance,
            "phase": phase,
            "metrics_address": metrics_address,
            "grpc_address": grpc_address,
            "status": None if status is None else orjson.dumps(status).decode(),
        },
    )
    return cur.rowcount == 1


def unregister(cur: Cursor, instance: int) -> None:
    """Take this process away, at its clean end."""
    cur.execute(_SQL["unregister"], {"id": instance})


def list_instances(cur: Cursor) -> list[Instance]:
    """Return all of them, oldest first; those that a kill left are silent for long."""
    cur.execute(_SQL["list_all"])
    return [
        Instance(
            id=row[0],
            name=row[1],
            command=row[2],
            pid=row[3],
            host=row[4],
            version=row[5],
            phase=row[6],
            started_at=row[7],
            heartbeat_at=row[8],
            silent_s=row[9],
            metrics_address=row[10],
            grpc_address=row[11],
            status=None if row[12] is None else orjson.loads(row[12]),
        )
        for row in cur.fetchall()
    ]


def forget_silent(cur: Cursor, seconds: float) -> int:
    """Drop the rows of processes that have not shown themselves for `seconds`; return how many."""
    cur.execute(_SQL["forget_silent"], {"seconds": seconds})
    return cur.rowcount
