"""Between the engine and delivery: pieces go out as segments, what comes back is posted to the engine's thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

from relay.backfill.snapshots import Token
from relay.deliver.delivery import Delivery
from relay.deliver.segment import Refused, Segment
from relay.model import Lane
from relay.observe.log import get_logger

log = get_logger(__name__)

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

    def discard(self, did: str) -> None:
        assert self.delivery is not None
        for segment in self.delivery.discard(did):
            if segment.copied is not None:
                segment.copied()


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
