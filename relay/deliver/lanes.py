"""What waits for one ingester: the live lane goes first, backfill keeps its share (pure)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from relay.deliver.segment import Segment
from relay.model import Lane

BYTES_PER_OPERATION = 1024  # an average operation is a third of this; bounds the bytes of a queue of large records
BACKFILL_SHARE_OF_QUEUE = 0.5  # backfill always has something to send; it must not take the room of live operations
RELIEF = 0.75
BEHIND_SHARE_OF_QUEUE = 0.125


class Lanes:
    """Two first-in-first-out queues of segments, bounded in operations and bytes.

    Order: within a lane, segments leave in the order in which they were offered. Bounds: both lanes together take segments
    while they hold less than `limit_operations` and 1 KiB times that, backfill only half of each; the last segment may pass the
    bound by its own size, and an empty lane always takes one, so a segment larger than any bound is not stuck outside.
    What another ingester held (`adopt`) comes on top of that and takes no room from anybody.

    While both lanes have something, backfill leaves with `backfill_share` of the bytes, give or take a segment: each live
    byte earns it credit, and it goes as soon as its head fits the credit. A lane that is empty earns nothing.
    """

    def __init__(self, *, limit_operations: int, backfill_share: float) -> None:
        self.limit_operations = limit_operations
        self.limit_bytes = limit_operations * BYTES_PER_OPERATION
        self.bytes = 0
        self.live_operations = 0
        self.backfill_operations = 0
        self._backfill_bytes = 0
        self.adopted_operations = 0
        self._adopted_backfill_operations = 0
        self._adopted_backfill_bytes = 0
        self._adopted_bytes = 0
        self._live: deque[Segment] = deque()
        self._backfill: deque[Segment] = deque()
        self._segments_of: dict[str, int] = {}
        self._share = backfill_share
        self._credit = 0.0

    @property
    def operations(self) -> int:
        return self.live_operations + self.backfill_operations

    def has_room(self, lane: Lane) -> bool:
        if lane is Lane.BACKFILL:
            own = self._own_backfill_operations
            if not own:
                return True
            if (
                own >= self.limit_operations * BACKFILL_SHARE_OF_QUEUE
                or self._backfill_bytes - self._adopted_backfill_bytes >= self.limit_bytes * BACKFILL_SHARE_OF_QUEUE
            ):
                return False
        elif self._own_operations == self._own_backfill_operations:
            return True
        return self._own_operations < self.limit_operations and self.bytes - self._adopted_bytes < self.limit_bytes

    @property
    def is_behind(self) -> bool:
        """Does so much of the backfill wait that no more should be begun? What is in work by then has to find room as well."""
        return (
            self.backfill_operations >= self.limit_operations * BEHIND_SHARE_OF_QUEUE
            or self._backfill_bytes >= self.limit_bytes * BEHIND_SHARE_OF_QUEUE
        )

    def is_relieved(self, lane: Lane) -> bool:
        """Is there room for more than one segment? Whoever was refused is told then, and not for each piece that leaves."""
        if not self.has_room(lane):
            return False
        if lane is Lane.BACKFILL:
            return self._own_backfill_operations <= self.limit_operations * BACKFILL_SHARE_OF_QUEUE * RELIEF
        return self._own_operations <= self.limit_operations * RELIEF

    def offer(self, segment: Segment) -> bool:
        """Queue a segment; False: no room, it is still the caller's."""
        if not self.has_room(segment.lane):
            return False
        self._append(segment)
        return True

    def adopt(self, segment: Segment) -> None:
        """Queue a segment that another ingester's lanes held, whatever room there is."""
        segment.is_adopted = True
        self.adopted_operations += segment.operations
        self._adopted_bytes += segment.size
        if segment.lane is Lane.BACKFILL:
            self._adopted_backfill_operations += segment.operations
            self._adopted_backfill_bytes += segment.size
        self._append(segment)

    def take_all(self) -> list[Segment]:
        """Take everything out, in order, live first: another ingester adopts it."""
        gone = []
        for queue in (self._live, self._backfill):
            while queue:
                gone.append(self._pop(queue))
        self._credit = 0.0
        return gone

    def segments(self) -> list[Segment]:
        """Return everything that is here."""
        return [*self._live, *self._backfill]

    @property
    def _own_operations(self) -> int:
        return self.operations - self.adopted_operations

    @property
    def _own_backfill_operations(self) -> int:
        return self.backfill_operations - self._adopted_backfill_operations

    def _append(self, segment: Segment) -> None:
        if segment.lane is Lane.LIVE:
            self._live.append(segment)
            self.live_operations += segment.operations
        else:
            self._backfill.append(segment)
            self.backfill_operations += segment.operations
            self._backfill_bytes += segment.size
        self.bytes += segment.size
        self._segments_of[segment.did] = self._segments_of.get(segment.did, 0) + 1

    def heads(self) -> tuple[Segment | None, Segment | None]:
        """Return the oldest segment of the live and of the backfill lane."""
        return (self._live[0] if self._live else None, self._backfill[0] if self._backfill else None)

    def take(self, *, most_bytes: int, most_repo_operations: int) -> list[Segment]:
        """Take what goes into one batch: at least one segment if there is any, else as many as fit.

        `most_repo_operations` limits the operations of one DID where several of its segments would meet.
        """
        taken: list[Segment] = []
        size = 0
        operations_of: dict[str, int] = {}
        while (queue := self._next_queue()) is not None:
            head = queue[0]
            of_did = operations_of.get(head.did, 0)
            if taken and (
                size + head.size > most_bytes or (of_did and of_did + head.operations > most_repo_operations)
            ):
                break
            operations_of[head.did] = of_did + head.operations
            size += head.size
            taken.append(self._pop(queue))
        return taken

    def take_others(self, dids: Collection[str], *, most_bytes: int) -> list[Segment]:
        """Like `take`, but passes over the segments of some DIDs, which stay; empty when nothing else waits."""
        if self._segments_of.keys() <= set(dids):
            return []
        taken: list[Segment] = []
        size = 0
        for queue in (self._live, self._backfill):
            stays: deque[Segment] = deque()
            while queue:
                if queue[0].did in dids:
                    stays.append(queue.popleft())
                elif not taken or size + queue[0].size <= most_bytes:
                    size += queue[0].size
                    taken.append(self._pop(queue))
                else:
                    break
            queue.extendleft(reversed(stays))
        return taken

    def discard(self, did: str, lane: Lane, chosen: Callable[[Segment], bool] | None = None) -> list[Segment]:
        """Take out and return what one DID has in a lane, in order; with `chosen` only what it says yes to."""
        gone: list[Segment] = []
        if did in self._segments_of:
            queue = self._live if lane is Lane.LIVE else self._backfill
            for _ in range(len(queue)):
                if queue[0].did == did and (chosen is None or chosen(queue[0])):
                    gone.append(self._pop(queue))
                else:
                    queue.append(queue.popleft())
        return gone

    def _next_queue(self) -> deque[Segment] | None:
        if not self._live:
            return self._backfill or None
        if self._backfill and (self._share >= 1 or self._credit >= self._backfill[0].size):
            return self._backfill
        return self._live

    def _pop(self, queue: deque[Segment]) -> Segment:
        segment = queue.popleft()
        if queue is self._live:
            self.live_operations -= segment.operations
            if self._backfill and self._share < 1:
                self._credit += segment.size * self._share / (1 - self._share)
        else:
            self.backfill_operations -= segment.operations
            self._backfill_bytes -= segment.size
            if not self._backfill:
                self._credit = 0.0
            elif self._live:
                self._credit -= segment.size
        self.bytes -= segment.size
        if segment.is_adopted:
            self._let_go(segment)
        left = self._segments_of[segment.did] - 1
        if left:
            self._segments_of[segment.did] = left
        else:
            del self._segments_of[segment.did]
        return segment

    def _let_go(self, segment: Segment) -> None:
        segment.is_adopted = False
        self.adopted_operations -= segment.operations
        self._adopted_bytes -= segment.size
        if segment.lane is Lane.BACKFILL:
            self._adopted_backfill_operations -= segment.operations
            self._adopted_backfill_bytes -= segment.size
