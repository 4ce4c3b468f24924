"""The values that cross the border of this room: what is handed in, what is told, what is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from relay.model import Lane


@dataclass(slots=True, eq=False, kw_only=True)
class Segment:
    """Encoded operations of one DID, in order: the smallest thing that is queued, acknowledged or discarded.

    `payload` holds whole `operations` fields of ingester.v1.OperationRequest (tag 0x12, length, Operation), `operations` of
    them in `size` bytes. A memoryview (into a shared-memory slot) is read once, when its batch is built; after that
    `payload` is empty and `copied` is called exactly once, from a thread of the sender, so that the slot can be freed.
    A segment that is discarded before that keeps its payload, and `copied` is not called: it is the owner's again.

    `token` is the owner's own. `received_at` is monotonic seconds; `rev` and `received_at` are only carried along.
    """

    did: str
    lane: Lane
    payload: bytes | memoryview
    size: int
    operations: int
    rev: str
    token: object = None
    received_at: float = 0.0
    copied: Callable[[], None] | None = None
    queued_at: float = field(default=0.0, init=False)  # set by the outbox: since when it waits, monotonic seconds
    open_spans: int = field(default=1, init=False)  # set by the outbox: pieces of it that are not acknowledged yet
    refused_operations: int = field(default=0, init=False)  # set by the outbox
    is_pinned: bool = field(
        default=False, init=False
    )  # set by the router: counted, because it is not at its DID's home
    is_adopted: bool = field(default=False, init=False)  # set by the lanes: moved there, and beyond their bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """One operation that its ingester will not get: a dead letter. The rest of its segment goes on.

    `index` is its place in the segment, from 0; `operation` its bytes, a whole `operations` field; `reason` one of `rejected`
    (REJECT), `retries` (RETRY more than `relay.max_retries` times while others were taken) and `oversize` (larger than
    `grpc.max_message_size` by itself); `message` what the ingester said; `attempts` how often it was refused (oversize: 0).
    """

    segment: Segment
    index: int
    operation: bytes
    reason: str
    message: str
    ingester: str
    attempts: int


class DeliveryEvents(Protocol):
    """What the owner hears, from the threads of this room: it must not block, and calls of one ingester come in order."""

    def acknowledged(self, address: str, segments: list[Segment]) -> None:
        """Every operation of these segments is stored by the ingester, or was told by `refused` before."""

    def refused(self, refused: Refused) -> None:
        """One operation is a dead letter; its segment is acknowledged later all the same."""

    def ingester_changed(self, address: str, healthy: bool, reason: str) -> None:
        """`reason` is a word of `health.Away` while not healthy, else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngesterStatus:
    """One ingester at one moment, for status and metrics. Counters run since the start of this process."""

    address: str
    healthy: bool
    reason: str
    detail: str  # what was last said of it, for people; empty when healthy
    window_batches: int  # how many batches may be in flight at the moment
    in_flight_batches: int
    in_flight_bytes: int
    queued_live: int  # operations
    queued_backfill: int  # operations
    queued_bytes: int
    oldest_unacked_s: float | None  # age of the oldest operation that is queued or in flight; None: there is none
    rtt_ms: float | None  # smoothed time from a batch's writing to its acknowledgement; None: none seen yet
    sent_operations: int  # written to a stream, again ones included
    resent_operations: int  # of them written again
    delivered_operations: int  # acknowledged as stored
    refused_operations: int  # dead letters
    sent_bytes: int
    sent_batches: int
    moved_repos: int = 0  # whose unacknowledged operations others took over from it
    streams: int  # opened so far
    reconnects: int  # streams that ended without our asking

    @property
    def queued_operations(self) -> int:
        return self.queued_live + self.queued_backfill
