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
from relay.pb.encode import count_records
from relay.repos.keeper import Keeper, LivePiece
from relay.repos.live_events import LiveToken

MOST_TOLD = 10_000
LOOK_AGAIN_S = 1.0

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
        if copied is not None and self.delivery.is_behind(did):
            # What waits for a slow ingester must not hold the slots that others need: its queue bounds these copies.
            if not self.delivery.has_room(did):
                return False
            payload, free = bytes(payload), copied
            if not self.offer(
                did=did, rev=rev, lane=lane, payload=payload, operations=operations, token=token, copied=None
            ):
                return False
            free()
            return True
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
    When none has room, or none is there, nobody is to blame: they wait here, each DID's in order, and `is_blocked` says that no more may
    be read. What waits is bounded by the frames that are in work. What is told of an account (`tell`) waits in any case, and stops reading
    only when there are MOST_TOLD of them: a shard that is away for a day is no reason for the others to stand still.
    """

    def __init__(self, keeper: Keeper, delivery: Delivery) -> None:
        self._keeper, self._delivery = keeper, delivery
        self._waiting: dict[str, deque[Segment]] = {}  # by DID: where it goes may change meanwhile
        self._owing: set[str] = set()  # DIDs in `_waiting` whose operations found no room anywhere
        self._owed_by: set[str] = set()  # the ingesters of these, when that was last looked at
        self._count = 0
        self._is_stirred = False
        self._look_again_at = 0.0
        self.is_stopping = False  # delivery ends: what it refuses now is not an ingester's slowness

    @property
    def is_blocked(self) -> bool:
        """Shall no more be read: is no ingester there, or does something wait for one that is?"""
        if not self._delivery.is_anybody_there():
            return True  # whatever were read would only wait, and repos that are being fetched would lose their places in the buffer
        if not self._owing:
            return self._count >= MOST_TOLD
        return self._delivery.is_full() or any(self._delivery.is_healthy(address) for address in self._owed_by)

    @property
    def waiting(self) -> int:
        """Segments that wait here."""
        return self._count

    def offer(self, did: str, payload: Any, operations: int, token: LiveToken, received_at: float) -> bool:
        segment = self._segment(did, payload, operations, token, received_at)
        if self._is_taken(segment):
            return True
        if self.is_stopping or self._delivery.is_full():
            self._owing.add(did)
            self._owed_by.add(self._delivery.address_of(did))
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
        if (queue := self._waiting.pop(did, None)) is not None:
            gone += [segment for segment in queue if is_wanted(segment)]
            self._count -= len(queue)
            for segment in queue:
                if not is_wanted(segment):
                    self._wait(segment)
            if did not in self._waiting:
                self._owing.discard(did)
        return [cast(LivePiece, segment.token).token for segment in gone]

    def stir(self) -> None:
        """A queue has room again, or the routes have changed. Any thread."""
        self._is_stirred = True

    def pump(self) -> None:
        """Hand on what waits and finds room now."""
        if not self._waiting or not (self._is_stirred or time.monotonic() >= self._look_again_at):
            return
        self._is_stirred = False
        self._look_again_at = time.monotonic() + LOOK_AGAIN_S
        full: set[str] = set()
        self._owed_by.clear()
        for did in list(self._waiting):
            address = self._delivery.address_of(did)
            queue = self._waiting[did]
            while address not in full and queue and self._delivery.offer(queue[0]):
                queue.popleft()
                self._count -= 1
            if not queue:
                del self._waiting[did]
                self._owing.discard(did)
                continue
            full.add(address)
            if did in self._owing:
                self._owed_by.add(address)

    def _segment(self, did: str, payload: Any, operations: int, token: LiveToken, received_at: float) -> Segment:
        return Segment(
            did=did,
            lane=Lane.LIVE,
            payload=payload,
            size=len(payload),
            operations=operations,
            rev="",
            token=LivePiece(self._keeper, did, token, count_records(payload)),
            received_at=received_at,
        )

    def _is_taken(self, segment: Segment) -> bool:
        return segment.did not in self._waiting and self._delivery.offer(segment)

    def _wait(self, segment: Segment) -> None:
        self._waiting.setdefault(segment.did, deque()).append(segment)
        self._count += 1


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
