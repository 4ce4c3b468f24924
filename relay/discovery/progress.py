"""How far an enumeration or a reconcile is, for `status` and the terminal."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryProgress:
    """`source`: what is being enumerated, in words. Hosts count listings; `repos_seen` counts entries, duplicates included."""

    running: bool = False
    source: str = ""
    hosts_total: int = 0
    hosts_done: int = 0
    hosts_failed: int = 0
    pages: int = 0
    repos_seen: int = 0
    repos_new: int = 0
    malformed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileView:
    """How far a reconcile is, or how the last one ended (`running` False).

    `compared`: tracked repos that their host has listed; `differed`: those of them whose rev or status still differed at a second look;
    `queued`: newly marked for a fetch or a question to their host; `found`: DIDs without a row that were discovered. Times are wall seconds.
    """

    running: bool = False
    hosts_total: int = 0
    hosts_done: int = 0
    hosts_failed: int = 0
    compared: int = 0
    differed: int = 0
    queued: int = 0
    found: int = 0
    last_completed_at: float | None = None


class ProgressCounter:
    """The current DiscoveryProgress, added to by the listing threads, read by anybody. The lock guards `_now`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = DiscoveryProgress()

    def snapshot(self) -> DiscoveryProgress:
        with self._lock:
            return self._now

    def say(self, *, running: bool | None = None, source: str | None = None) -> None:
        with self._lock:
            if running is not None:
                self._now = replace(self._now, running=running)
            if source is not None:
                self._now = replace(self._now, source=source)

    def add(
        self,
        *,
        hosts_total: int = 0,
        hosts_done: int = 0,
        hosts_failed: int = 0,
        pages: int = 0,
        repos_seen: int = 0,
        repos_new: int = 0,
        malformed: int = 0,
    ) -> None:
        with self._lock:
            now = self._now
            self._now = replace(
                now,
                hosts_total=now.hosts_total + hosts_total,
                hosts_done=now.hosts_done + hosts_done,
                hosts_failed=now.hosts_failed + hosts_failed,
                pages=now.pages + pages,
                repos_seen=now.repos_seen + repos_seen,
                repos_new=now.repos_new + repos_new,
                malformed=now.malformed + malformed,
            )
