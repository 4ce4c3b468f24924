"""Between the engine and delivery: pieces go out as segments, what comes back is posted to the engine's thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from relay.backfill.snapshots import Token
from relay.deliver.delivery import Delivery
from relay.deliver.segment import Refused, Segment
from relay.model import Lane
from relay.repos.keeper import Keeper, LivePiece
from relay.repos.live_events import LiveToken

Post = Callable[[Callable[[], None]], None]


class DeliveryOutlet:
    """Implements the `Outlet` that the backfill declares."""

    def __init__(self) -> None:
        self.delivery: Delivery | None = None

    def offer(
        self,
        *,
        did: str,
        rev: str,
        lane: Lane,
        payload: bytes | memoryview,
        operations: int,
        token: Token,
        copied: Callable[[], None] | None,
    ) -> bool:
        assert self.delivery is not None
        return self.delivery.offer(
            Segment(
                did=did,
                lane=lane,
                payload=payload,
                size=len(payload),
                operations=operations,
                rev=rev,
                token=token,
                received_at=time.monotonic(),
                copied=copied,
            )
        )

    def discard(self, did: str) -> int:
        assert self.delivery is not None
        gone = self.delivery.discard(did, Lane.BACKFILL)
        for segment in gone:
            if segment.copied is not None:
                segment.copied()
        return len(gone)


class LiveLane:
    """Implements the keeper's `LiveOutlet`. Lives in the engine's thread.

    Operations for an ingester whose queue is full are refused while others have room: one that is slow slows its own DIDs only.
    When none has room nobody is to blame: they wait here, in order, and `is_blocked` says that no more may be read. What waits is
    bounded by the frames that are in work.
    """

    def __init__(self, keeper: Keeper, delivery: Delivery) -> None:
        self._keeper, self._delivery = keeper, delivery
        self._waiting: dict[str, deque[Segment]] = {}  # by ingester
        self.is_stopping = False  # delivery ends: what it refuses now is not an ingester's slowness

    @property
    def is_blocked(self) -> bool:
        return bool(self._waiting)

    @property
    def waiting(self) -> int:
        """Segments that wait here."""
        return sum(len(queue) for queue in self._waiting.values())

    def offer(self, did: str, payload: Any, operations: int, token: LiveToken, received_at: float) -> bool:
        segment = self._segment(did, payload, operations, token, received_at)
        if self._is_taken(segment):
            return True
        if self.is_stopping or self._delivery.is_full():
            self._wait(segment)
            return True
        return False

    def tell(self, did: str, payload: bytes, token: LiveToken) -> None:
        segment = self._segment(did, payload, 1, token, time.monotonic())
        if not self._is_taken(segment):
            self._wait(segment)

    def withdraw(self, did: str, tokens: Sequence[LiveToken]) -> list[LiveToken]:
        wanted = frozenset(tokens)

        def is_wanted(segment: Segment) -> bool:
            return segment.did == did and cast(LivePiece, segment.token).token in wanted

        gone = self._delivery.discard(did, Lane.LIVE, is_wanted)
        address = self._delivery.address_of(did)
        if (queue := self._waiting.get(address)) is not None:
            gone += [segment for segment in queue if is_wanted(segment)]
            kept = deque(segment for segment in queue if not is_wanted(segment))
            if kept:
                self._waiting[address] = kept
            else:
                del self._waiting[address]
        return [cast(LivePiece, segment.token).token for segment in gone]

    def pump(self) -> None:
        """Hand on what waits and finds room now."""
        for address in list(self._waiting):
            queue = self._waiting[address]
            while queue and self._delivery.offer(queue[0]):
                queue.popleft()
            if not queue:
                del self._waiting[address]

    def _segment(self, did: str, payload: Any, operations: int, token: LiveToken, received_at: float) -> Segment:
        return Segment(
            did=did,
            lane=Lane.LIVE,
            payload=payload,
            size=len(payload),
            operations=operations,
            rev="",
            token=LivePiece(self._keeper, did, token),
            received_at=received_at,
        )

    def _is_taken(self, segment: Segment) -> bool:
        return self._delivery.address_of(segment.did) not in self._waiting and self._delivery.offer(segment)

    def _wait(self, segment: Segment) -> None:
        self._waiting.setdefault(self._delivery.address_of(segment.did), deque()).append(segment)


class DeliveryReports:
    """Implements `DeliveryEvents`: called from the senders' threads, hands everything to the engine in order."""

    def __init__(self, post: Post, on_change: Callable[[str, bool, str], None]) -> None:
        self._post, self._on_change = post, on_change

    def acknowledged(self, address: str, segments: list[Segment]) -> None:
        self._post(lambda: _acknowledged(segments))

    def refused(self, refused: Refused) -> None:
        self._post(lambda: cast(Token, refused.segment.token).refused(refused))

    def ingester_changed(self, address: str, healthy: bool, reason: str) -> None:
        self._post(lambda: self._on_change(address, healthy, reason))


def _acknowledged(segments: list[Segment]) -> None:
    for segment in segments:
        cast(Token, segment.token).acknowledged()
