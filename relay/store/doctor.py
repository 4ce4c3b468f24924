"""What the database says of itself: whether it takes writes, and how many connections it has for us."""

from __future__ import annotations

from dataclasses import dataclass

from relay.store.statements import Cursor, load_statements, one

_SQL = load_statements("doctor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """`connections_allowed` is what this account may have; `connections_of_others` are open now, and not of a relay."""

    version: str
    is_read_only: bool
    connections_allowed: int
    connections_of_others: int


def server(cur: Cursor) -> Server:
    """Describe the server of this session, in a scan of its sessions."""
    cur.execute(_SQL["server"])
    version, limit, reserved, own_limit, in_use, ours, is_recovering, is_read_only = one(cur)
    room = limit - reserved
    if own_limit is not None and own_limit >= 0:
        room = min(room, own_limit)
    return Server(
        version=version,
        is_read_only=is_recovering or is_read_only,
        connections_allowed=room,
        connections_of_others=in_use - ours,
    )


def may_create(cur: Cursor) -> bool:
    """Say whether migrations could be applied: whether this account may create tables."""
    cur.execute(_SQL["may_create"])
    return bool(one(cur)[0])
