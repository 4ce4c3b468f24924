"""What to backfill, and the thread that enumerates it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from relay.atproto.nsid_filter import NsidFilter
from relay.config.schema import Settings
from relay.discovery.listing import Enumeration, EnumerationResult
from relay.net.address import http_origin
from relay.runtime.service import ServiceThread


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


class Discovery(ServiceThread):
    """The enumerating thread. `first` runs before anything is enumerated (it stores the firehose's cursor)."""

    def __init__(
        self,
        enumeration: Enumeration,
        targets: Targets,
        settings: Settings,
        *,
        first: Callable[[], None],
        on_death: Callable[[str, BaseException], None],
    ) -> None:
        super().__init__("discovery", on_death)
        self.enumeration, self._targets, self._settings, self._first = enumeration, targets, settings, first
        self.result: EnumerationResult | None = None

    @property
    def is_over(self) -> bool:
        return self.result is not None

    def wake(self) -> None:
        self.enumeration.request_stop()

    def run(self) -> None:
        self._first()
        targets, enumeration = self._targets, self.enumeration
        upstream = self._settings.firehose.relay_host
        if targets.dids:
            self.result = enumeration.enumerate_dids(targets.dids)
        elif targets.hosts:
            self.result = enumeration.enumerate_hosts([http_origin(host) for host in targets.hosts])
        elif targets.collections:
            origin = http_origin(self._settings.discovery.collection_host or upstream)
            self.result = enumeration.enumerate_collections(origin, targets.collections)
        else:
            self.result = enumeration.enumerate_network(http_origin(upstream))
