"""Everything of one ingester between "accepted" and "acknowledged", without threads, sockets or clocks (pure)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from relay.deliver.errors import IngesterProtocolError
from relay.deliver.gobackn import Batch, GoBackN, Span
from relay.deliver.lanes import Lanes
from relay.deliver.refusals import Place, RetryBook, isolate, locate, others_first, split_oversize, without
from relay.deliver.segment import Refused, Segment
from relay.deliver.window import Window

MAX_HEADER_BYTES = 11  # batch_id: a tag and a 64-bit varint
LINGER_S = 0.005  # how long a batch that is not full waits for more
RETRY = 1  # ingester.v1.OperationError.Code
REJECT = 2


@dataclass(frozen=True, slots=True)
class Complaint:
    """One error of an answer: the operation's place in the batch, the code, the ingester's words."""

    index: int
    code: int
    message: str


@dataclass(slots=True)
class Outcome:
    """What the thread has to tell after a step: `copied` and `refused` first, then `acknowledged`."""

    message: bytes | None = None  # to be written
    sent_operations: int = 0  # in the message
    is_resent: bool = False  # the message was written to an earlier stream
    copied: list[Callable[[], None]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    acknowledged: list[Segment] = field(default_factory=list)
    retry: str | None = None  # the stream is over: RETRY, and what the ingester said


@dataclass(slots=True)
class Counters:
    """Since the start, operations unless said otherwise."""

    sent: int = 0
    resent: int = 0
    delivered: int = 0
    refused: int = 0
    sent_bytes: int = 0
    sent_batches: int = 0


class Outbox:
    """Lanes, window, go-back-N and refusals of one ingester, joined.

    Promise: a segment that `offer` took is acknowledged exactly once, or discarded exactly once; each of its operations was by
    then stored by the ingester or told as refused. Operations of one DID and lane are first written in the order in which they
    were offered, and within one stream they are never out of that order. Memory: what the lanes and the window allow.
    """

    def __init__(
        self,
        address: str,
        *,
        batch_bytes: int,
        max_message_bytes: int,
        most_batches: int,
        queue_operations: int,
        backfill_share: float,
        max_retries: int,
        repo_operations: int,
    ) -> None:
        self.address = address
        self.max_body_bytes = max_message_bytes - MAX_HEADER_BYTES
        self.batch_bytes = min(batch_bytes, self.max_body_bytes)
        self.repo_operations = repo_operations
        self.lanes = Lanes(limit_operations=queue_operations, backfill_share=backfill_share)
        self.window = Window(most_batches=most_batches, batch_bytes=self.batch_bytes)
        self.in_flight = GoBackN()
        self.book = RetryBook(max_retries)
        self.counters = Counters()
        self.flushing = False  # drain: a batch that is not full does not wait for more
        self.is_frozen = False  # about to be removed: nothing more is written, what is in flight may be acknowledged
        self.is_open = False  # there is a stream
        self.has_progressed = False  # the stream, or the last one, acknowledged something
        self.waiting_since: float | None = None  # for an acknowledgement of this stream; None: nothing is due
        self.acknowledged_batches = 0  # since the start
        self._window_was_limit = False
        self._suspects: set[Batch] = set()  # isolated operations that were refused with RETRY and are in flight

    # -- what the owner does

    def offer(self, segment: Segment, now: float) -> bool:
        """Queue a segment; False: no room in its lane."""
        if segment.operations < 1 or segment.size != len(segment.payload):
            raise ValueError(
                f"{segment.did}: a segment of {segment.operations} operations, {segment.size:,} bytes named, {len(segment.payload):,} given"
            )
        if not self.lanes.offer(segment):
            return False
        segment.queued_at = now
        segment.open_spans = 1
        return True

    @property
    def operations(self) -> int:
        """How many are queued or unacknowledged."""
        return self.lanes.operations + sum(batch.operations for batch in self.in_flight.batches)

    @property
    def is_idle(self) -> bool:
        """Nothing queued, nothing unacknowledged."""
        return not self.lanes.operations and not len(self.in_flight)

    # -- what the writer does

    def next_message(self, now: float) -> Outcome:
        """Return the next message to write; without one there may still be something to tell."""
        outcome = Outcome()
        flight = self.in_flight
        while self.is_open and not self.is_frozen:
            if not flight.has_unwritten and not self.lanes.operations:
                break
            if not self.window.is_open(flight.written, flight.written_bytes):
                self._window_was_limit = True
                break
            if flight.has_unwritten:
                self._put_others_first(outcome)
            elif self.is_ready(now):
                for batch in self._build(self._take(), outcome):
                    flight.append(batch)
                if not flight.has_unwritten:
                    continue  # all of it was oversize
            else:
                break
            self._write(now, outcome)
            break
        return outcome

    def is_ready(self, now: float) -> bool:
        """Would the lanes give a batch now, or should it wait for more?

        A live operation leaves at once when nothing is in flight: the way there and back is the time in which the next batch
        gathers. Backfill always waits for LINGER_S: fuller batches, a third less CPU.
        """
        if self.lanes.bytes >= self.batch_bytes or self.flushing or now >= self._due_at():
            return True
        return not len(self.in_flight) and self.lanes.live_operations > 0

    def wait_s(self, now: float) -> float | None:
        """After `next_message` gave nothing: how long until it may by itself; None: only a change helps."""
        flight = self.in_flight
        if (
            not self.is_open
            or self.is_frozen
            or flight.has_unwritten
            or not self.lanes.operations
            or not self.window.is_open(flight.written, flight.written_bytes)
        ):
            return None
        return max(0.0, self._due_at() - now)

    # -- what the reader does

    def stream_opened(self) -> None:
        self.is_open = True
        self.has_progressed = False
        self.window.new_stream()

    def stream_lost(self) -> None:
        """The stream is gone: what is unacknowledged goes out again on the next one."""
        self.is_open = False
        self.waiting_since = None
        self.in_flight.new_stream()

    def answer(self, number: int, complaints: Sequence[Complaint], now: float) -> Outcome:
        """Take in an OperationResponse. Raises IngesterProtocolError, before anything has changed, when it cannot be right.

        With `retry` in the outcome the stream is over: nothing more is written until `stream_opened`.
        """
        if not self.is_open:
            return Outcome()  # an answer of a stream that is lost already
        outcome = Outcome()
        if not complaints:
            self._acknowledge(number, now, outcome)
            return outcome
        batch = self.in_flight.unacknowledged(number)
        for complaint in complaints:
            if complaint.index >= batch.operations or complaint.code not in (RETRY, REJECT):
                raise IngesterProtocolError(
                    f"batch {number} of {batch.operations} operations: error with index {complaint.index}, code {complaint.code}"
                )
        retries = [complaint for complaint in complaints if complaint.code == RETRY]
        if retries:
            self._acknowledge(number - 1, now, outcome)
            self._retry(batch, min(retries, key=lambda complaint: complaint.index), outcome)
            return outcome
        words = {complaint.index: complaint.message for complaint in complaints}
        for index in sorted(words):
            place = locate(batch, index)
            before = self.book.refusals(place.span.segment, place.index)
            self._refuse(place, "rejected", words[index], before + 1, outcome)
        self.counters.delivered -= len(words)
        self._acknowledge(number, now, outcome)
        return outcome

    # -- what fail-over does, and who joins or leaves

    def segments(self) -> list[Segment]:
        """Return everything that is not acknowledged; one that is in several batches comes more than once."""
        return [*(span.segment for batch in self.in_flight.batches for span in batch.spans), *self.lanes.segments()]

    def surrender(self) -> tuple[list[Batch], list[Segment]]:
        """Give everything away, in order: first what was built into batches, then what is queued. The stream must be lost.

        What is in the batches may have been stored: its acknowledgement did not come, or will not be heard any more.
        """
        if self.is_open:
            raise AssertionError("an open stream: its acknowledgements would be of what is no longer here")
        batches = self.in_flight.batches
        self.in_flight.rearrange([])
        for batch in batches:
            for span in batch.spans:
                self.book.forget(span.segment)
        self._suspects.clear()
        return batches, self.lanes.take_all()

    def adopt(self, batches: Sequence[Batch], segments: Sequence[Segment]) -> None:
        """Take over what another ingester had to surrender. Nothing of these DIDs may be here; there is no bound."""
        for batch in batches:
            self.in_flight.append(batch)
        for segment in segments:
            self.lanes.adopt(segment)

    @property
    def is_burdened(self) -> bool:
        """Does it still have so much of what it adopted that more would be no good?"""
        unwritten = len(self.in_flight) - self.in_flight.written
        return self.lanes.adopted_operations > self.lanes.limit_operations or unwritten > 2 * self.window.most

    def oldest_received_at(self) -> float | None:
        """Monotonic time at which the oldest operation here was received; None: there is none."""
        times = [segment.received_at for segment in self.lanes.heads() if segment is not None]
        times += [span.segment.received_at for batch in self.in_flight.batches for span in batch.spans]
        return min(times, default=None)

    # -- inside

    def _due_at(self) -> float:
        return min((head.queued_at for head in self.lanes.heads() if head is not None), default=0.0) + LINGER_S

    def _take(self) -> list[Segment]:
        return self.lanes.take(most_bytes=self.batch_bytes, most_repo_operations=self.repo_operations)

    def _build(self, segments: list[Segment], outcome: Outcome) -> list[Batch]:
        """Turn segments into batches, as a rule one. Their payloads are copied here, and let go."""
        batches: list[Batch] = []
        if len(segments) == 1 and segments[0].size > self.max_body_bytes:
            (segment,) = segments
            batches, oversize = split_oversize(segment, most_bytes=self.max_body_bytes)
            limit = f"larger than grpc.max_message_size ({self.max_body_bytes + MAX_HEADER_BYTES:,} bytes)"
            for place in oversize:
                self._refuse(place, "oversize", f"{len(place.operation):,} bytes: {limit}", 0, outcome)
            if not batches:
                outcome.acknowledged.append(segment)
        elif segments:
            spans = [Span(segment, 0, segment.operations, segment.size) for segment in segments]
            batches = [Batch(self.in_flight.next_number, spans, [segment.payload for segment in segments])]
        for segment in segments:
            segment.payload = b""
            if segment.copied is not None:
                outcome.copied.append(segment.copied)
        return batches

    def _put_others_first(self, outcome: Outcome) -> None:
        """At the head of a new stream a refused operation would prove nothing: let something else be acknowledged first."""
        flight = self.in_flight
        if not self._suspects or flight.next_number != 1:
            return
        first, waits = others_first(flight.batches, self._suspects)
        if not first:
            dids = {span.segment.did for batch in waits for span in batch.spans}
            first = self._build(self.lanes.take_others(dids, most_bytes=self.batch_bytes), outcome)
        flight.rearrange([*first, *waits])

    def _write(self, now: float, outcome: Outcome) -> None:
        batch, outcome.message = self.in_flight.write_next(now)
        if self.waiting_since is None:
            self.waiting_since = now
        outcome.sent_operations, outcome.is_resent = batch.operations, batch.sends > 1
        counters = self.counters
        counters.sent += batch.operations
        if outcome.is_resent:
            counters.resent += batch.operations
        counters.sent_bytes += len(outcome.message)
        counters.sent_batches += 1

    def _acknowledge(self, number: int, now: float, outcome: Outcome) -> None:
        freed = self.in_flight.acknowledge(number)
        if not freed:
            return
        self.acknowledged_batches += len(freed)
        self.has_progressed = True
        self.window.acknowledged(
            sent_at=freed[0].sent_at, now=now, batches=len(freed), was_limit=self._window_was_limit
        )
        self._window_was_limit = False
        self.waiting_since = now if self.in_flight.written else None
        for batch in freed:
            self.counters.delivered += batch.operations
            self._suspects.discard(batch)
            for span in batch.spans:
                span.segment.open_spans -= 1
                if not span.segment.open_spans:
                    self._finish(span.segment, outcome)

    def _finish(self, segment: Segment, outcome: Outcome) -> None:
        self.book.forget(segment)
        outcome.acknowledged.append(segment)

    def _retry(self, batch: Batch, complaint: Complaint, outcome: Outcome) -> None:
        outcome.retry = complaint.message or "RETRY"
        self.stream_lost()
        place = locate(batch, complaint.index)
        segment = place.span.segment
        order = self.in_flight.batches
        at = order.index(batch)
        if self.book.refused(segment, place.index, self.acknowledged_batches):
            self._refuse(place, "retries", complaint.message, self.book.refusals(segment, place.index), outcome)
            self._suspects.discard(batch)
            rebuilt = without(batch, place)
            order[at : at + 1] = [] if rebuilt is None else [rebuilt]
        else:
            order[at : at + 1], alone = isolate(batch, place)
            self._suspects.add(alone)
        self.in_flight.rearrange(order)
        if not segment.open_spans:
            self._finish(segment, outcome)

    def _refuse(self, place: Place, reason: str, message: str, attempts: int, outcome: Outcome) -> None:
        self.counters.refused += 1
        place.span.segment.refused_operations += 1
        outcome.refused.append(
            Refused(
                segment=place.span.segment,
                index=place.index,
                operation=place.operation,
                reason=reason,
                message=message,
                ingester=self.address,
                attempts=attempts,
            )
        )
