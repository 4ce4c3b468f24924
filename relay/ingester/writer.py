"""The one thread that stores: takes what has been queued meanwhile, stores it in one transaction, then acknowledges it."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from relay.ingester.errors import SinkAway
from relay.ingester.operations import Prepared
from relay.ingester.sinks.base import Sink
from relay.ingester.streams import Stream
from relay.observe.log import get_logger
from relay.runtime.backoff import Backoff
from relay.runtime.service import ServiceThread

log = get_logger(__name__)

# A group is one transaction. Larger ones gain nothing more and make the oldest batch in it wait longer.
GROUP_BATCHES = 64
GROUP_BYTES = 8 << 20
# A relay has at most 32 batches of 256 KiB in flight by default; beyond this its stream is not read.
QUEUE_BATCHES_PER_STREAM = 64
QUEUE_BYTES = 32 << 20

REOPEN_FIRST_S, REOPEN_LIMIT_S = 0.25, 10.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class QueuedBatch:
    """A batch on its way to the sink. `received_at` is monotonic seconds.

    `retry_because`: not to be stored; it answers RETRY when its turn comes (faults, for tests of a relay).
    """

    stream: Stream
    batch_id: int
    prepared: Prepared
    received_at: float
    retry_because: str | None = None


class Intake:
    """A bounded queue between the streams' readers and the writer, first come first stored."""

    def __init__(self, batches_per_stream: int = QUEUE_BATCHES_PER_STREAM, total_bytes: int = QUEUE_BYTES) -> None:
        self._batches_per_stream = batches_per_stream
        self._total_bytes = total_bytes
        self._condition = threading.Condition()  # guards all below
        self._queue: deque[QueuedBatch] = deque()
        self._bytes = 0
        self._per_stream: Counter[int] = Counter()
        self._closed = False

    def put(self, batch: QueuedBatch) -> bool:
        """Wait for room. False: it was not taken, the stream has broken or the ingester stops."""
        stream = batch.stream
        with self._condition:
            while not self._closed and not stream.is_broken and not self._has_room(batch):
                self._condition.wait()
            if self._closed or stream.is_broken:
                return False
            self._queue.append(batch)
            self._bytes += batch.prepared.size_bytes
            self._per_stream[stream.number] += 1
            self._condition.notify_all()
            return True

    def _has_room(self, batch: QueuedBatch) -> bool:
        # One batch always fits, however large it is.
        return self._per_stream[batch.stream.number] < self._batches_per_stream and (
            self._bytes == 0 or self._bytes + batch.prepared.size_bytes <= self._total_bytes
        )

    def take(self, batches: int, total_bytes: int) -> list[QueuedBatch]:
        """Wait for the next group: whatever is there, up to the limits. Empty: closed, and nothing is left."""
        with self._condition:
            while not self._queue and not self._closed:
                self._condition.wait()
            group: list[QueuedBatch] = []
            size = 0
            while self._queue and len(group) < batches:
                size += self._queue[0].prepared.size_bytes
                if group and size > total_bytes:
                    break
                batch = self._queue.popleft()
                group.append(batch)
                self._bytes -= batch.prepared.size_bytes
                self._per_stream[batch.stream.number] -= 1
                if not self._per_stream[batch.stream.number]:
                    del self._per_stream[batch.stream.number]
            self._condition.notify_all()
            return group

    def wake(self) -> None:
        """Make waiting readers look again: a stream has broken."""
        with self._condition:
            self._condition.notify_all()

    def close(self) -> None:
        """Take nothing more in; what is queued is still handed out."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def oldest_received_at(self) -> float | None:
        with self._condition:
            return self._queue[0].received_at if self._queue else None

    def __len__(self) -> int:
        with self._condition:
            return len(self._queue)


class Writer(ServiceThread):
    """Owns the sink. Group commit: while one transaction runs, the next group gathers.

    When the sink is away, the batches are answered with RETRY and the sink is opened again on demand, with back-off.
    """

    def __init__(self, sink: Sink, intake: Intake, on_death: Callable[[str, BaseException], None]) -> None:
        super().__init__("ingester-writer", on_death)
        self.sink = sink
        self.intake = intake
        self.operations = 0  # stored; these four are written by this thread alone and read by HealthCheck
        self.batches = 0
        self.refused = 0
        self.transactions = 0
        self.away_because: str | None = None
        self._backoff = Backoff(REOPEN_FIRST_S, REOPEN_LIMIT_S)
        self._open_again_at = 0.0  # monotonic seconds

    def wake(self) -> None:
        self.intake.close()

    def run(self) -> None:
        """Until the intake is closed and empty."""
        try:
            while group := self.intake.take(GROUP_BATCHES, GROUP_BYTES):
                self._store_group(group)
        finally:
            self.sink.close()

    def _store_group(self, group: list[QueuedBatch]) -> None:
        """Store what has no wish for RETRY, and say RETRY when everything before is stored: it acknowledges that."""
        run: list[QueuedBatch] = []
        for batch in group:
            if batch.retry_because is not None:
                self._store(run)
                run = []
                batch.stream.retry(batch.batch_id, batch.retry_because)
                self.intake.wake()
            else:
                run.append(batch)
        self._store(run)

    def _store(self, group: list[QueuedBatch]) -> None:
        group = [batch for batch in group if not batch.stream.is_broken]
        if not group:
            return
        try:
            self._open_if_away()
            self.sink.store([batch.prepared for batch in group])
        except SinkAway as exc:
            self._retry(group, str(exc))
            return
        if self.away_because is not None:
            log.info("sink_back", sink=self.sink.name)
            self.away_because = None
            self._backoff.reset()
        self.transactions += 1
        self.batches += len(group)
        newest: dict[Stream, int] = {}
        for batch in group:
            prepared = batch.prepared
            self.operations += prepared.operations - len(prepared.refusals)
            if prepared.refusals:
                self.refused += len(prepared.refusals)
                log.warning(
                    "operations_refused",
                    peer=batch.stream.peer,
                    batch_id=batch.batch_id,
                    operations=len(prepared.refusals),
                    first=prepared.refusals[0].message,
                )
                batch.stream.stored(batch.batch_id, prepared.refusals)
                newest.pop(batch.stream, None)
            else:
                newest[batch.stream] = batch.batch_id
        for stream, batch_id in newest.items():
            stream.stored(batch_id)

    def _open_if_away(self) -> None:
        if self.away_because is None:
            return
        if time.monotonic() < self._open_again_at:
            raise SinkAway(self.away_because)
        self.sink.open()

    def _retry(self, group: list[QueuedBatch], why: str) -> None:
        now = time.monotonic()
        if self.away_because is None or now >= self._open_again_at:
            log.warning("sink_away", sink=self.sink.name, error=why, batches=len(group))
            self._open_again_at = now + self._backoff.next_delay_s()
        self.away_because = why
        for batch in group:
            batch.stream.retry(batch.batch_id, why)
        self.intake.wake()
