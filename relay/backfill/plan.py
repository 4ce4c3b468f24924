"""Which hosts to claim repos of, and how many (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def wanted_claims(
    due_hosts: Iterable[str],
    *,
    room: int,
    per_host: int,
    queued_of: Callable[[str], int],
    is_ready: Callable[[str], bool],
) -> list[tuple[str, int]]:
    """Return (host, number of repos to claim), at most `room` repos in all and `per_host` queued at one host.

    Every ready host gets one before any gets a second, so that a host of a million accounts does not take all the room. A host
    that is not ready (its limits, its breaker) gets nothing: its repos stay in the database, where they cost nothing.
    """
    ready = [(host, per_host - queued_of(host)) for host in due_hosts if is_ready(host)]
    ready = [(host, free) for host, free in ready if free > 0]
    wants = dict.fromkeys((host for host, _ in ready), 0)
    while room > 0 and ready:
        share = max(1, room // len(ready))
        still: list[tuple[str, int]] = []
        for host, free in ready:
            take = min(share, free, room)
            wants[host] += take
            room -= take
            if free > take:
                still.append((host, free - take))
            if room == 0:
                break
        ready = still
    return [(host, count) for host, count in wants.items() if count]
