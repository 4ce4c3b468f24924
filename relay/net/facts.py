"""What the headers of an answer say about the host's limits (pure)."""

from __future__ import annotations

import email.utils
import re
from dataclasses import dataclass
from typing import Any, Protocol

# A reset further away than this is a mistake or a trap (PROTOCOL 6.2: clamp a far-future RateLimit-Reset). Windows are 5 minutes.
MAX_RESET_S = 3600.0
# Retry-After is obeyed to the letter; a whole day is the longest letter that we read.
MAX_RETRY_AFTER_S = 86_400.0
# Below this a RateLimit-Reset cannot be Unix seconds (it would be 1973): some servers send a delta.
_SMALLEST_UNIX_TIME = 100_000_000

_POLICY = re.compile(r"\s*(\d{1,9})\s*;\s*w\s*=\s*(\d{1,9})", re.ASCII)
_NUMBER = re.compile(r"\s*(\d{1,15})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The rate-limit headers of one answer, checked and clamped. None: the header was absent or unreadable.

    `reset_at` is wall time, seconds since the epoch; `reset_after_s` is the same as seconds from the answer on, so that a user
    needs no wall clock. `policy` is (requests, window in seconds).
    """

    limit: int | None = None
    remaining: int | None = None
    reset_at: float | None = None
    reset_after_s: float | None = None
    policy: tuple[int, float] | None = None
    retry_after_s: float | None = None

    def to_wire(self) -> list[Any]:
        """Return a msgpack-able form, for the way between processes."""
        return [
            self.limit,
            self.remaining,
            self.reset_at,
            self.reset_after_s,
            list(self.policy) if self.policy else None,
            self.retry_after_s,
        ]

    @classmethod
    def from_wire(cls, wire: list[Any] | None) -> HostFacts:
        """Return what `to_wire` made the list from; None means no facts."""
        if wire is None:
            return NO_FACTS
        limit, remaining, reset_at, reset_after_s, policy, retry_after_s = wire
        return cls(
            limit=limit,
            remaining=remaining,
            reset_at=reset_at,
            reset_after_s=reset_after_s,
            policy=(policy[0], policy[1]) if policy else None,
            retry_after_s=retry_after_s,
        )


NO_FACTS = HostFacts()


class Headers(Protocol):
    """Headers of an answer; names compare without case."""

    def get(self, name: str, /) -> str | None: ...


def parse_facts(headers: Headers, now: float) -> HostFacts:
    """Return what `headers` (case-insensitive) say at wall time `now`; unreadable values count as absent. Raises nothing.

    Source: PROTOCOL 7; `RateLimit-Reset` is Unix seconds there, small numbers are taken as a delta.
    """
    limit = _number(headers.get("RateLimit-Limit"))
    remaining = _number(headers.get("RateLimit-Remaining"))
    reset = _number(headers.get("RateLimit-Reset"))
    retry_after = headers.get("Retry-After")
    policy = headers.get("RateLimit-Policy")
    if limit is None and remaining is None and reset is None and retry_after is None and policy is None:
        return NO_FACTS
    reset_after_s = None
    if reset is not None:
        delta = reset - now if reset >= _SMALLEST_UNIX_TIME else float(reset)
        reset_after_s = min(max(delta, 0.0), MAX_RESET_S)
    match = _POLICY.match(policy) if policy else None
    return HostFacts(
        limit=limit,
        remaining=remaining,
        reset_at=None if reset_after_s is None else now + reset_after_s,
        reset_after_s=reset_after_s,
        policy=(int(match[1]), float(match[2])) if match else None,
        retry_after_s=_retry_after_s(retry_after, now),
    )


def _number(text: str | None) -> int | None:
    match = _NUMBER.match(text) if text else None
    return int(match[1]) if match else None


def _retry_after_s(text: str | None, now: float) -> float | None:
    if not text:
        return None
    seconds = _number(text)
    if seconds is not None:
        return min(float(seconds), MAX_RETRY_AFTER_S)
    try:
        at = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(at - now, 0.0), MAX_RETRY_AFTER_S)
