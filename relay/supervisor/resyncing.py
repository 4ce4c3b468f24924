"""Repos that hold a collection are delivered again: a listing is asked who they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relay.config.schema import Settings
from relay.discovery.listing import Enumeration
from relay.discovery.pages import PagePolicy
from relay.net.gate import HostGate
from relay.net.guard import Guard
from relay.net.hosts import HostPolicy, HostTable
from relay.net.http import Fetcher, user_agent
from relay.net.xrpc import Xrpc
from relay.supervisor.commands import RepoCommands, Resynced, ResyncSink
from relay.supervisor.discovery import collection_origin


def resync_collections(
    settings: Settings,
    commands: RepoCommands,
    collections: Sequence[str],
    *,
    gate: HostGate | None = None,
    on_begin: Callable[[Callable[[], None]], None] = lambda _stop: None,
) -> tuple[Resynced, list[str]]:
    """Return what will be delivered again, and the listings without a complete answer, in words.

    `gate`: of the running service, whose limits the questions keep; None: one for this alone. `on_begin(stop)` is given what ends it, from any
    thread. What was listed before the end, or a failure, is delivered again. Raises StoreAway and StoreError.
    """
    origin = collection_origin(settings)
    fetcher = Fetcher(
        Guard(allow_private=settings.security.allow_private_hosts, exempt=(origin,)),
        user_agent=user_agent(settings.http.contact),
    )
    sink = ResyncSink(commands)
    enumeration = Enumeration(
        Xrpc(fetcher),
        gate or HostGate(HostTable(HostPolicy.from_settings(settings.backfiller))),
        sink,
        batch=None,
        policy=PagePolicy.from_settings(settings.relay),
        on_stop=fetcher.abort,
    )
    on_begin(enumeration.request_stop)
    result = enumeration.enumerate_collections(origin, tuple(collections))
    failed = [f"{each.host}: {each.text}" for each in result.failed]
    if result.stopped:
        failed.append(f"{origin}: ended before its last page")
    return Resynced(states=sink.states), failed
