"""At a start with another list of ingesters that each keep their own shard: the repos that moved are delivered again (DESIGN 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from relay.config.schema import DeliverySettings
from relay.deliver.routing import Rendezvous
from relay.observe.log import get_logger
from relay.store import partitions, repos
from relay.store.statements import Cursor

log = get_logger(__name__)

PAGE = 5000


class Store(Protocol):
    """Runs something in a fenced transaction, again if its commit broke: `Session.store`."""

    def __call__(self, name: str, act: Callable[[Cursor], Any], /) -> Any: ...


def reshard(store: Store, settings: DeliverySettings, addresses: Sequence[str], now: Callable[[], float]) -> int:
    """Mark the repos whose ingester is another one than before for a resync, and return how many they are.

    To be called before anything is delivered: it takes as long as it takes to read all DIDs, only when the list has changed. Lists
    that were in force since it was last complete are all remembered, so a start that was cut short, with yet another list, misses nobody.
    With fail-over (`delivery.failover_after_sec` above 0) ingesters share one database: nothing has to move, and nothing is done.
    """
    wanted = sorted(addresses)
    if settings.failover_after_sec > 0:
        return 0

    def begin(cursor: Cursor) -> list[list[str]]:
        lists = partitions.read_shards(cursor)
        earlier = [each for each in lists or () if each != wanted]
        partitions.store_shards(cursor, [*earlier, wanted])
        return earlier

    earlier = [Rendezvous(each) for each in store("note the shards", begin)]
    if not earlier:
        return 0
    routes = Rendezvous(wanted)
    log.info(
        "shards_changed", ingesters=",".join(wanted), before=";".join(",".join(each.addresses) for each in earlier)
    )
    after: str | None = ""
    total = 0
    while after is not None:
        page = partial(_page, after=after, routes=routes, earlier=earlier, now=now())
        moved, after = store("look for moved repos", page)
        total += moved

    def end(cursor: Cursor) -> None:
        partitions.store_shards(cursor, [wanted])

    store("note the shards", end)
    log.info("shards_compared", repos_moved=total)
    return total


def _page(
    cursor: Cursor, *, after: str, routes: Rendezvous, earlier: Sequence[Rendezvous], now: float
) -> tuple[int, str | None]:
    dids, last = repos.selected(cursor, after=after, limit=PAGE)
    moved = []
    for did in dids:
        address = routes.address_of(did)
        if any(each.address_of(did) != address for each in earlier):
            moved.append(did)
    if moved:
        repos.resync(cursor, now=now, dids=moved)
    return len(moved), last
