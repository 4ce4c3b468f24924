"""Another list of ingesters that each keep their own shard: the repos that moved are delivered again (DESIGN 5)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from relay.config.schema import DeliverySettings
from relay.deliver.routing import Rendezvous
from relay.observe.log import get_logger
from relay.runtime.service import ServiceThread
from relay.store import notices, partitions, repos
from relay.store.statements import Cursor

log = get_logger(__name__)

PAGE = 5000
SETTLED_EVERY_S = 0.1

Mark = Callable[[Cursor, Sequence[str], float], None]


class Store(Protocol):
    """Runs something in a fenced transaction, again if its commit broke: `Session.store`."""

    def __call__(self, name: str, act: Callable[[Cursor], Any], /) -> Any: ...


class Changing(Protocol):
    """Of the delivery: who is wanted, and whether all of them have joined, and the others left."""

    @property
    def addresses(self) -> tuple[str, ...]: ...
    @property
    def is_settled(self) -> bool: ...


def reshard(store: Store, settings: DeliverySettings, addresses: Sequence[str], now: Callable[[], float]) -> int:
    """Mark the repos whose ingester is another one than before for a resync, and return how many they are.

    To be called before anything is delivered: it takes as long as it takes to read all DIDs, only when the list has changed. Lists
    that were in force since it was last complete are all remembered, so a start that was cut short, with yet another list, misses nobody.
    With fail-over (`delivery.failover_after_sec` above 0) ingesters share one database: nothing has to move, and nothing is done.
    """
    if settings.failover_after_sec > 0:
        return 0
    earlier = store("note the shards", partial(note, wanted=sorted(addresses)))
    return _compare(store, addresses, earlier, now, _mark) if earlier else 0


def note(cursor: Cursor, *, wanted: Sequence[str]) -> list[list[str]]:
    """Store that this list is in force; return the others that were, since one was last complete."""
    lists = partitions.read_shards(cursor)
    earlier = [each for each in lists or () if each != wanted]
    partitions.store_shards(cursor, [*earlier, wanted])
    return earlier


class Resharder(ServiceThread):
    """While the relay runs: when whoever joins or leaves has done so, the repos that moved are delivered again. Beside the machine.

    `note` has to be called, and stored, before the list changes: a start after a crash then compares.
    """

    def __init__(
        self,
        store: Callable[[str, Callable[[Cursor], Any], Callable[[float], bool]], Any],
        delivery: Changing,
        now: Callable[[], float],
        on_death: Callable[[str, BaseException], None],
    ) -> None:
        """`store(name, act, stopped_within)`: None when it was told to stop."""
        super().__init__("resharder", on_death)
        self._patiently, self._delivery, self._now = store, delivery, now
        self._asked = threading.Event()

    def ask(self) -> None:
        """The list has changed. Any thread."""
        self._asked.set()

    def wake(self) -> None:
        self._asked.set()

    def run(self) -> None:
        while self._asked.wait() and not self.stopping.is_set():
            self._asked.clear()
            while not self._delivery.is_settled:
                if self.stopping.wait(SETTLED_EVERY_S):
                    return
            try:
                self._look()
            except _Stopped:
                return

    def _look(self) -> None:
        wanted = sorted(self._delivery.addresses)
        earlier = self._store("note the shards", partial(note, wanted=wanted))
        if earlier:
            _compare(self._store, wanted, earlier, self._now, _mark_beside)

    def _store(self, name: str, act: Callable[[Cursor], Any], /) -> Any:
        wrapped: list[Any] = []

        def once(cursor: Cursor) -> bool:
            wrapped[:] = [act(cursor)]
            return True

        if self._patiently(name, once, self.stopping.wait) is None or self.stopping.is_set():
            raise _Stopped
        return wrapped[0]


class _Stopped(Exception):
    """The rest is for the next start."""


def _mark(cursor: Cursor, dids: Sequence[str], now: float) -> None:
    repos.resync(cursor, now=now, dids=dids)


def _mark_beside(cursor: Cursor, dids: Sequence[str], now: float) -> None:
    """The machine has rows in memory, and is told."""
    repos.resync(cursor, now=now, dids=dids)
    notices.add(cursor, notices.Kind.RESYNC, dids)


def _compare(
    store: Store, addresses: Sequence[str], before: Sequence[Sequence[str]], now: Callable[[], float], mark: Mark
) -> int:
    wanted, earlier = sorted(addresses), [Rendezvous(each) for each in before]
    routes = Rendezvous(wanted)
    log.info(
        "shards_changed", ingesters=",".join(wanted), before=";".join(",".join(each.addresses) for each in earlier)
    )
    after: str | None = ""
    total = 0
    while after is not None:
        page = partial(_page, after=after, routes=routes, earlier=earlier, now=now(), mark=mark)
        moved, after = store("look for moved repos", page)
        total += moved

    def end(cursor: Cursor) -> None:
        partitions.store_shards(cursor, [wanted])

    store("note the shards", end)
    log.info("shards_compared", repos_moved=total)
    return total


def _page(
    cursor: Cursor, *, after: str, routes: Rendezvous, earlier: Sequence[Rendezvous], now: float, mark: Mark
) -> tuple[int, str | None]:
    dids, last = repos.selected(cursor, after=after, limit=PAGE)
    moved = []
    for did in dids:
        address = routes.address_of(did)
        if any(each.address_of(did) != address for each in earlier):
            moved.append(did)
    if moved:
        mark(cursor, moved, now)
    return len(moved), last
