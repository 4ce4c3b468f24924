"""An enumeration plugged into a running machine: its pages go into the database, and are told to who counts and who claims."""

from __future__ import annotations

from relay.atproto.nsid_filter import NsidFilter
from relay.discovery.listing import Enumeration
from relay.discovery.pages import PagePolicy
from relay.discovery.sink import StoreSink
from relay.net.guard import Guard
from relay.net.http import Fetcher, user_agent
from relay.net.xrpc import Xrpc
from relay.store.repos import UpsertResult
from relay.supervisor.census import Census
from relay.supervisor.covering import insufficient_for
from relay.supervisor.session import Session
from relay.supervisor.wiring import Machine


def enumeration_into(
    session: Session,
    machine: Machine,
    census: Census,
    *,
    batch: int | None,
    wanted: NsidFilter,
    origins: tuple[str, ...],
) -> Enumeration:
    """Return an enumeration whose pages go into the database, and are told to a running machine. `origins` may be private."""
    settings = session.settings
    fetcher = Fetcher(
        Guard(allow_private=settings.security.allow_private_hosts, exempt=origins),
        user_agent=user_agent(settings.http.contact),
    )

    def page(result: UpsertResult, uncovered: int) -> None:
        census.page(result, uncovered)
        machine.scheduler.something_changed()

    sink = StoreSink(
        session.database,
        epoch=session.epoch,
        batch=batch,
        partitions=settings.relay.partitions,
        clock=session.clock,
        insufficient=insufficient_for(wanted),
        took=lambda result, uncovered: machine.engine.post(lambda: page(result, uncovered)),
    )
    return Enumeration(
        Xrpc(fetcher),
        machine.gate,
        sink,
        batch=batch,
        policy=PagePolicy.from_settings(settings.relay),
        on_stop=fetcher.abort,
        may_go=session.may_enumerate,
    )
