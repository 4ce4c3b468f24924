"""What to enumerate, and the thread that does it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass

from relay.atproto.nsid_filter import NsidFilter
from relay.config.schema import Settings
from relay.discovery.listing import Enumeration, EnumerationResult
from relay.net.address import http_origin
from relay.observe.status import ListingView
from relay.runtime.service import ServiceThread

Then = Callable[[EnumerationResult, threading.Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What to backfill. Exactly one of them is set."""

    everything: bool = False
    collections: tuple[str, ...] = ()
    dids: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def spec(self, nsid_filter: NsidFilter) -> str:
        """Return the text by which the same command finds its unfinished batch again."""
        kind: dict[str, object] = {"filter": list(nsid_filter.patterns)}
        if self.everything:
            kind["all"] = True
        elif self.dids:
            digest = hashlib.sha256("\n".join(sorted(self.dids)).encode()).hexdigest()
            kind["dids"] = f"{len(self.dids)}:{digest}"
        else:
            kind["collections" if self.collections else "hosts"] = sorted(self.collections or self.hosts)
        return json.dumps(kind, sort_keys=True)

    def sources(self, settings: Settings) -> Sources:
        """Return who is to be asked for them."""
        if self.dids:
            return Sources(dids=self.dids)
        if self.hosts:
            return Sources(hosts=tuple(http_origin(host) for host in self.hosts))
        if self.collections:
            return Sources(collections=self.collections, origin=collection_origin(settings))
        return Sources(origin=http_origin(settings.firehose.relay_host))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Who lists the targets: `hosts`, or `origin` those that hold `collections`, or the whole network that `origin` knows.

    `dids` need nobody. All are origins `http(s)://host[:port]`.
    """

    origin: str = ""
    collections: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    dids: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """The origins that the operator named with them."""
        return (*self.hosts, *((self.origin,) if self.origin else ()))

    @property
    def network(self) -> str | None:
        """Who knows the whole network that is wanted; None: less than that is."""
        return self.origin if not (self.collections or self.hosts or self.dids) else None

    @property
    def param(self) -> str:
        """A short text that differs when something else is to be enumerated, in one order."""
        return ",".join(sorted(self.collections or self.hosts))

    def to_json(self) -> str:
        """Return them for another process. Named DIDs do not travel: they are in the table by then."""
        return json.dumps({"origin": self.origin, "collections": self.collections, "hosts": self.hosts})

    @classmethod
    def from_json(cls, text: str) -> Sources:
        found = json.loads(text)
        return cls(
            origin=found["origin"], collections=tuple(found["collections"]), hosts=tuple(found["hosts"]), dids=()
        )

    def enumerate(self, enumeration: Enumeration) -> EnumerationResult:
        """Ask them."""
        if self.dids:
            return enumeration.enumerate_dids(self.dids)
        if self.hosts:
            return enumeration.enumerate_hosts(self.hosts)
        if self.collections:
            return enumeration.enumerate_collections(self.origin, self.collections)
        return enumeration.enumerate_network(self.origin)


class Discovery(ServiceThread):
    """The enumerating thread.

    `first(stopping)` runs before anything is enumerated (it stores the firehose's cursor, or waits for it); False: it was stopped.
    `then(result, stopping)` runs when the enumeration has ended by itself.
    """

    def __init__(
        self,
        enumeration: Enumeration,
        sources: Sources,
        *,
        first: Callable[[threading.Event], bool] = lambda _stopping: True,
        then: Then = lambda _result, _stopping: None,
        on_death: Callable[[str, BaseException], None],
        name: str = "discovery",
    ) -> None:
        super().__init__(name, on_death)
        self.enumeration, self._sources, self._first, self._then = enumeration, sources, first, then
        self.result: EnumerationResult | None = None

    @property
    def is_over(self) -> bool:
        return self.result is not None

    def wake(self) -> None:
        self.enumeration.request_stop()

    def run(self) -> None:
        if not self._first(self.stopping):
            return
        result = self._sources.enumerate(self.enumeration)
        if not result.stopped:
            self._then(result, self.stopping)
        self.result = result

    def view(self) -> ListingView:
        """Return how far it is; from any thread."""
        progress = self.enumeration.snapshot()
        return ListingView(
            running=not self.is_over,
            source=progress.source,
            hosts_total=progress.hosts_total,
            hosts_done=progress.hosts_done,
            hosts_failed=progress.hosts_failed,
            repos_seen=progress.repos_seen,
        )


def collection_origin(settings: Settings) -> str:
    """Return who serves listReposByCollection."""
    return http_origin(settings.discovery.collection_host or settings.firehose.relay_host)
