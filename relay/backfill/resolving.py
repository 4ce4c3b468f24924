"""DIDs that wait for their document: each asked for once at a time, at the rate that the directory tolerates.

The lookups run in the fetch children; this keeps the order, the rate and who waits for what. Lives in the engine's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.backfill.messages import Resolve, Resolved
from relay.net.bucket import TokenBucket


@dataclass(slots=True)
class _Lookup:
    force: bool
    waiting: list[Callable[[Resolved], None]] = field(default_factory=list)
    sent: bool = False
    seat: int = -1
    again: list[Callable[[Resolved], None]] = field(
        default_factory=list
    )  # asked past every cache while this was on its way


class ResolveQueue:
    """Asks `send(message) -> seat | None` (None: no child has room) for at most `in_flight` documents at a time.

    `ask(did, force, then)`: `then` gets the answer, failures included. Bounded by the number of repos in work and the
    number of discovered ones that the owner asks for at a time.
    """

    def __init__(self, send: Callable[[Resolve], int | None], bucket: TokenBucket, *, in_flight: int) -> None:
        self._send, self._bucket, self._limit = send, bucket, in_flight
        self._lookups: dict[str, _Lookup] = {}
        self._queue: deque[str] = deque()
        self._in_flight = 0
        self._silent_until = 0.0
        self.limited_total, self.limited_s = 0, 0.0  # how often the directory asked us to wait, and seconds in sum

    def __len__(self) -> int:
        return len(self._lookups)

    def __contains__(self, did: str) -> bool:
        return did in self._lookups

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def ask(self, did: str, *, force: bool, then: Callable[[Resolved], None]) -> None:
        """`force`: past every cache, and not with an answer to an earlier question."""
        lookup = self._lookups.get(did)
        if lookup is None:
            lookup = self._lookups[did] = _Lookup(force)
            self._queue.append(did)
        elif not lookup.sent:
            lookup.force |= force
        elif force:
            lookup.again.append(then)
            return
        lookup.waiting.append(then)

    def pump(self, now: float) -> float | None:
        """Send what may be sent at `now` (monotonic); return when more could be, or None."""
        while self._queue and self._in_flight < self._limit:
            did = self._queue[0]
            if _asks_directory(did):
                if now < self._silent_until:
                    return self._silent_until
                if not self._bucket.try_take(now):
                    return self._bucket.ready_at(now)
            lookup = self._lookups[did]
            seat = self._send(Resolve(did, lookup.force))
            if seat is None:
                return None
            self._queue.popleft()
            lookup.sent, lookup.seat = True, seat
            self._in_flight += 1
        return None

    def answered(self, message: Resolved, now: float) -> None:
        """Hand an answer to everybody who waits for it; a 429 of the directory silences it for as long as it says."""
        lookup = self._lookups.get(message.did)
        if lookup is None or not lookup.sent:
            return
        del self._lookups[message.did]
        self._in_flight -= 1
        if message.retry_after_s is not None and _asks_directory(message.did):
            until = max(self._silent_until, now + message.retry_after_s)
            self.limited_total += 1
            self.limited_s += until - max(self._silent_until, now)
            self._silent_until = until
        if lookup.again:
            self._lookups[message.did] = _Lookup(force=True, waiting=lookup.again)
            self._queue.append(message.did)
        for then in lookup.waiting:
            then(message)

    def child_died(self, seat: int) -> None:
        """Ask again what the child of `seat` had been asked."""
        for did, lookup in self._lookups.items():
            if lookup.sent and lookup.seat == seat:
                lookup.sent = False
                self._in_flight -= 1
                self._queue.appendleft(did)


def _asks_directory(did: str) -> bool:
    """The documents of did:web are other hosts', one each: their limits say nothing about the directory."""
    return not did.startswith("did:web:")
