"""The thread of one ingester: connects, keeps one stream open, reads its answers, and starts over when it breaks."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import grpc

from relay.deliver.channel import (
    NOBODY_TO_ASK,
    Connector,
    HealthCall,
    HealthWay,
    Requests,
    ask_health,
    code_of,
    refuses,
    stream_method,
    words_of,
)
from relay.deliver.errors import IngesterProtocolError
from relay.deliver.gobackn import Batch
from relay.deliver.health import Away, Health
from relay.deliver.outbox import Complaint, Outbox, Outcome
from relay.deliver.segment import DeliveryEvents, IngesterStatus, Segment
from relay.errors import ConfigError
from relay.model import Lane
from relay.observe.log import get_logger
from relay.observe.metrics import Metrics
from relay.pb.ingester_pb2 import OperationResponse
from relay.runtime.backoff import Backoff
from relay.runtime.clock import Clock
from relay.runtime.service import ServiceThread

log = get_logger(__name__)

RETRY_LIMIT_S = 60.0
CONNECT_FIRST_S = 0.25
CONNECT_LIMIT_S = 5.0  # longest pause between attempts; each costs the ingester one connection
PROBE_TIMEOUT_S = 10.0  # of an answer to HealthCheck; connecting ends sooner (channel.CONNECT_TIMEOUT_MS)
HEALTH_INTERVAL_S = 5.0
STOP_GRACE_S = 1.0  # an idle stream is closed, and not cut, when the ingester ends it within this


class _Call(Protocol):
    """A call of gRPC's that waits."""

    def cancel(self) -> object: ...


class Sender(ServiceThread):
    """One ingester's stream. Three threads meet in here: the owner (`offer`, `discard`, `status`), gRPC's writer, which pulls
    requests, and this one, which reads answers; `tick` is called by the watch thread of `Delivery`. The outbox decides all.
    """

    def __init__(
        self,
        outbox: Outbox,
        connector: Connector,
        events: DeliveryEvents,
        *,
        retry_backoff_s: float,
        ack_timeout_s: float,
        clock: Clock,
        rng: random.Random,
        on_change: Callable[[], None],
        on_room: Callable[[str], None] | None,
        metrics: Metrics | None,
        on_death: Callable[[str, BaseException], None] | None,
    ) -> None:
        super().__init__(f"deliver-{outbox.address}", on_death)
        self.address = outbox.address
        self._outbox = outbox
        self._connector = connector
        self._events = events
        self._ack_timeout_s = ack_timeout_s
        self._clock = clock
        self._on_change = on_change
        self._on_room = on_room
        self._metrics = metrics
        self._retry_backoff = Backoff(retry_backoff_s, RETRY_LIMIT_S, rng)
        self._connect_backoff = Backoff(min(CONNECT_FIRST_S, retry_backoff_s), CONNECT_LIMIT_S, rng)
        # Guards everything below, and the outbox. Held for microseconds, while a batch is joined for its copying; never
        # during a call of gRPC's that can wait, or of an event.
        self._lock = threading.Lock()
        self._writer = threading.Condition(
            self._lock
        )  # notified: there may be something to write, or the stream is over
        self._idle = threading.Condition(self._lock)  # notified: nothing is left, or this thread ends
        self._health = Health()
        self._epoch = 0  # odd while a stream is open; a writer of an older one gets nothing more
        self._call: _Call | None = None  # what this thread waits for
        self._cancelled_for: Away | None = None
        self._channel: grpc.Channel | None = None  # of the open stream
        self._poll: HealthCall | None = None
        self._poll_at = 0.0
        self._acknowledged_at_poll = 0
        self._way: HealthWay | None = None  # to ask for its health; None: there is none
        self._wants_room: set[Lane] = set()  # lanes that refused a segment
        self._writer_death: Exception | None = None
        self._stop_at: float | None = None
        self._streams = 0
        self._reconnects = 0
        self._detail = ""
        self._untold = 0  # steps whose events are being told

    # -- the owner's thread

    def offer(self, segment: Segment) -> bool:
        """Queue a segment; False: no room (`on_room` tells when there is), or stopping."""
        now = self._clock.monotonic()
        with self._lock:
            if self.stopping.is_set():
                return False
            outbox = self._outbox
            was_empty = not outbox.lanes.operations
            if not outbox.offer(segment, now):
                self._wants_room.add(segment.lane)
                return False
            # A writer that waits for more is not woken for each piece: 2,000 wake-ups a second cost more than the sending.
            if was_empty or outbox.is_ready(now):
                self._writer.notify()
        return True

    @property
    def is_behind(self) -> bool:
        """Should nothing more of the backfill be begun for it?"""
        with self._lock:
            return self._outbox.lanes.is_behind

    def has_room(self, lane: Lane) -> bool:
        with self._lock:
            if self._outbox.lanes.has_room(lane):
                return True
            self._wants_room.add(lane)
            return False

    def discard(self, did: str, lane: Lane, chosen: Callable[[Segment], bool] | None = None) -> list[Segment]:
        with self._lock:
            gone = self._outbox.lanes.discard(did, lane, chosen)
            if self._outbox.is_idle:
                self._idle.notify_all()
        self._tell_room()
        return gone

    def surrender(self) -> tuple[list[Batch], list[Segment]]:
        """End the stream, and give away everything that is here: see `Outbox.surrender`. Nothing may be offered meanwhile.

        While stopping, a stream without anything to acknowledge is ended in good order, and not cut.
        """
        with self._lock:
            call = None
            if self._epoch % 2:
                # The writer gets nothing more, and no answer of this stream counts any more. A batch may still be stored there: a late copy.
                self._epoch += 1
                if self._outbox.in_flight.written or not self.stopping.is_set():
                    call, self._cancelled_for = self._call, Away(self._health.reason or Away.FAILED_OVER)
                self._outbox.stream_lost()
            given = self._outbox.surrender()
            self._idle.notify_all()
        if call is not None:
            call.cancel()
        return given

    def adopt(self, batches: Sequence[Batch], segments: Sequence[Segment]) -> None:
        """Take over what another ingester had to surrender."""
        with self._lock:
            self._outbox.adopt(batches, segments)
            self._writer.notify()

    def pin(self, keep: Callable[[str, list[Segment]], None]) -> None:
        """Call `keep(address, segments)` with everything that is here, while nothing of it can be acknowledged. Nothing may be offered meanwhile."""
        with self._lock:
            keep(self.address, self._outbox.segments())

    def freeze(self, *, is_frozen: bool) -> bool:
        """Write nothing more; return whether anything that was written is not acknowledged."""
        with self._lock:
            if self._outbox.is_frozen != is_frozen:
                self._outbox.is_frozen = is_frozen
                self._writer.notify()
            return self._outbox.in_flight.written > 0

    def look(self) -> tuple[bool, int, bool]:
        """Return whether it is healthy, how many batches it has acknowledged, and whether it has enough of what it adopted."""
        with self._lock:
            return self._health.is_healthy, self._outbox.acknowledged_batches, self._outbox.is_burdened

    @property
    def operations(self) -> int:
        """How many are queued or unacknowledged."""
        with self._lock:
            return self._outbox.operations

    @property
    def is_idle(self) -> bool:
        """Nothing queued, nothing unacknowledged, nothing untold."""
        with self._lock:
            return self._outbox.is_idle and not self._untold

    def tell_room(self) -> None:
        """Whoever was refused may try again: the routes have changed."""
        with self._lock:
            self._wants_room.clear()
        if self._on_room is not None:
            self._on_room(self.address)

    def flush(self, *, flushing: bool) -> None:
        """While flushing, a batch does not wait to be full."""
        with self._lock:
            self._outbox.flushing = flushing
            self._writer.notify()

    def wait_idle(self, deadline: float) -> bool:
        """Wait until nothing is queued or unacknowledged; False: at `deadline` (monotonic) there is, or this thread died."""
        with self._lock:
            while not self._outbox.is_idle or self._untold:
                left = deadline - time.monotonic()
                if left <= 0 or self.stopping.is_set() or self.death is not None:
                    return False
                self._idle.wait(min(left, 1.0))
            return True

    def status(self) -> IngesterStatus:
        now = self._clock.monotonic()
        with self._lock:
            outbox, counters = self._outbox, self._outbox.counters
            oldest = outbox.oldest_received_at()
            smoothed_s = outbox.window.smoothed_s
            return IngesterStatus(
                address=self.address,
                healthy=self._health.is_healthy,
                reason=self._health.reason,
                detail="" if self._health.is_healthy else self._detail,
                window_batches=outbox.window.batches,
                in_flight_batches=len(outbox.in_flight),
                in_flight_bytes=outbox.in_flight.held_bytes,
                queued_live=outbox.lanes.live_operations,
                queued_backfill=outbox.lanes.backfill_operations,
                queued_bytes=outbox.lanes.bytes,
                oldest_unacked_s=None if oldest is None else max(0.0, now - oldest),
                rtt_ms=None if smoothed_s is None else smoothed_s * 1000,
                sent_operations=counters.sent,
                resent_operations=counters.resent,
                delivered_operations=counters.delivered,
                refused_operations=counters.refused,
                sent_bytes=counters.sent_bytes,
                sent_batches=counters.sent_batches,
                streams=self._streams,
                reconnects=self._reconnects,
            )

    def wake(self) -> None:
        """Stopping: an idle stream is ended in good order, anything else is cut; what is unacknowledged comes again anyway."""
        with self._lock:
            self._writer.notify_all()
            self._idle.notify_all()
            if self._stop_at is None:
                self._stop_at = self._clock.monotonic() + STOP_GRACE_S
            call = self._call
            if self._epoch % 2 and not self._outbox.in_flight.written:
                call = None  # the writer ends the stream now; `tick` cuts it when the ingester takes too long
        if call is not None:
            call.cancel()

    # -- the watch thread

    def tick(self, now: float) -> None:
        """Called a few times a second: acknowledgement timeout, HealthCheck, the end of a slow stop."""
        poll, way = None, self._way
        with self._lock:
            outbox, call = self._outbox, self._call
            if self._stop_at is not None:
                if now < self._stop_at:
                    call = None
            elif not self._epoch % 2:
                call = None  # connecting: it has timeouts of its own
            else:
                self._health.settle(now, in_flight=len(outbox.in_flight) > 0)
                since = outbox.waiting_since
                if since is None or now - since < self._ack_timeout_s:
                    call = None
                else:
                    self._cancelled_for = Away.ACK_TIMEOUT
                if self._is_poll_due(now):
                    poll = self._channel
        if call is not None:
            call.cancel()
        if poll is not None and way is not None:
            try:
                self._watch_poll(ask_health(poll, way, PROBE_TIMEOUT_S))
            except ValueError:
                log.debug("health_check_skipped", ingester=self.address, reason="channel closed")

    def _is_poll_due(self, now: float) -> bool:
        """While acknowledgements come, nobody needs to ask."""
        if now < self._poll_at or self._poll is not None or self._way is None:
            return False
        self._poll_at = now + HEALTH_INTERVAL_S
        progressed = self._outbox.acknowledged_batches != self._acknowledged_at_poll
        self._acknowledged_at_poll = self._outbox.acknowledged_batches
        return not progressed

    def _watch_poll(self, poll: HealthCall) -> None:
        with self._lock:
            self._poll = poll
            epoch = self._epoch
        poll.add_done_callback(lambda done: self._polled(poll, epoch))

    def _polled(self, poll: HealthCall, epoch: int) -> None:
        code = poll.code()
        is_serving = code is not grpc.StatusCode.OK or not refuses(poll.result())
        with self._lock:
            self._poll = None
            if epoch != self._epoch:
                return
            if code in NOBODY_TO_ASK:
                self._way = None  # the next stream asks anew
            # No answer to it proves nothing: the stream and its acknowledgements decide.
            if code is grpc.StatusCode.OK:
                self._health.told(is_serving=is_serving)
        self._on_change()

    # -- this thread

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                delay_s = self._one_stream()
                if self._writer_death is not None:
                    raise self._writer_death
                self.stopping.wait(delay_s)
        finally:
            with self._lock:
                self._health.absent(Away.STOPPED)
                self._idle.notify_all()
            self._on_change()

    def _one_stream(self) -> float:
        """Connect, stream until it ends; return how long to wait before the next attempt, seconds."""
        try:
            channel = self._connector.open(self.address)
        except ConfigError as exc:
            return self._absent(Away.CREDENTIALS, str(exc))
        try:
            absent = self._probe(channel)
            if absent is not None or self.stopping.is_set():
                return self._absent(*absent) if absent else 0.0
            self._connect_backoff.reset()
            return self._stream(channel)
        finally:
            channel.close()

    def _probe(self, channel: grpc.Channel) -> tuple[Away, str] | None:
        """Ask for its health, in the way that it knows; any answer shows that somebody is there. None: go on."""
        self._way = None
        for way in HealthWay:
            call = ask_health(channel, way, PROBE_TIMEOUT_S)
            if not self._set_call(call):
                return None
            try:
                answer = call.result()
            except grpc.FutureCancelledError:
                return None  # stopping
            except grpc.RpcError as exc:
                code = code_of(exc)
                if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return Away.UNREACHABLE, words_of(exc)
                if code in NOBODY_TO_ASK:
                    continue
                self._way = way  # it proves nothing; perhaps later
                return None
            finally:
                with self._lock:
                    self._call = None
            self._way = way
            if refuses(answer):
                return Away.NOT_SERVING, getattr(answer, "message", "")
            break
        # Who cannot be asked serves.
        with self._lock:
            self._health.told(is_serving=True)
        return None

    def _set_call(self, call: _Call) -> bool:
        """Make a call known to `wake` and `tick`; False: too late, it is cancelled."""
        with self._lock:
            self._call = call
            if not self.stopping.is_set():
                return True
            self._call = None
        call.cancel()
        return False

    def _absent(self, why: Away, detail: str) -> float:
        with self._lock:
            self._health.absent(why)
            self._detail = detail
        self._on_change()
        return self._connect_backoff.next_delay_s()

    def _stream(self, channel: grpc.Channel) -> float:
        opened_at = self._clock.monotonic()
        with self._lock:
            self._epoch += 1
            epoch = self._epoch
            self._outbox.stream_opened()
            self._health.opened(opened_at)
            self._channel = channel
            self._cancelled_for = None
            self._poll_at = opened_at + HEALTH_INTERVAL_S
            self._poll = None
            self._streams += 1
        self._on_change()
        why, detail = Away.STREAM_CLOSED, ""
        call = stream_method(channel)(Requests(lambda: self._next_request(epoch)), metadata=self._connector.metadata)
        cut: _Call = call
        try:
            if self._set_call(call):
                for response in call:
                    retry = self._answer(response)
                    if retry is not None:
                        why, detail = Away.RETRY, retry
                        break
        except IngesterProtocolError as exc:
            why, detail = Away.PROTOCOL_ERROR, str(exc)
        except grpc.RpcError as exc:
            why, detail = self._cancelled_for or Away.STREAM_BROKEN, words_of(exc)
        finally:
            again, progressed = self._end_stream(epoch, why, detail, opened_at)
            cut.cancel()
        if self.stopping.is_set():
            return 0.0
        delay_s = self._retry_backoff.next_delay_s()
        log.info(
            "stream_ended",
            ingester=self.address,
            reason=why.value,
            detail=detail,
            batches_to_resend=again,
            progressed=progressed,
            delay_s=round(delay_s, 2),
        )
        if self._metrics is not None:
            self._metrics.error(why.value)
        return delay_s

    def _end_stream(self, epoch: int, why: Away, detail: str, opened_at: float) -> tuple[int, bool]:
        """Return how many batches are to be sent again, and whether any was acknowledged."""
        with self._lock:
            progressed = self._outbox.has_progressed
            if self._clock.monotonic() - opened_at > RETRY_LIMIT_S:
                self._retry_backoff.reset()  # a long quiet life counts as well as an acknowledgement
            self._outbox.stream_lost()
            again = len(self._outbox.in_flight)
            self._detail = detail
            self._epoch = epoch + 1
            self._call = self._channel = None
            self._health.closed(why, progressed=progressed)
            if not self.stopping.is_set():
                self._reconnects += 1
            self._writer.notify_all()
        self._on_change()
        return again, progressed

    def _answer(self, response: OperationResponse) -> str | None:
        """Take in one answer; the ingester's words when it said RETRY."""
        complaints = [Complaint(error.index, error.code, error.message) for error in response.errors]
        now = self._clock.monotonic()
        with self._lock:
            was_healthy, had_progressed = self._health.is_healthy, self._outbox.has_progressed
            acknowledged = self._outbox.acknowledged_batches
            outcome = self._outbox.answer(response.batch_id, complaints, now)
            if self._outbox.acknowledged_batches != acknowledged:
                self._health.acknowledged()
                if not had_progressed:
                    self._retry_backoff.reset()
            self._untold += 1
            if outcome.retry is not None:
                self._epoch += 1
            self._writer.notify()
        self._tell(outcome, now)
        if not was_healthy:
            self._on_change()
        return outcome.retry

    # -- gRPC's writing thread

    def _next_request(self, epoch: int) -> bytes:
        """Return the next message of this stream; StopIteration ends it."""
        try:
            while True:
                with self._lock:
                    while True:
                        if epoch != self._epoch or self.stopping.is_set():
                            raise StopIteration
                        now = self._clock.monotonic()
                        outcome = self._outbox.next_message(now)
                        if outcome.message is not None or outcome.copied or outcome.acknowledged:
                            self._untold += 1
                            break
                        self._writer.wait(self._outbox.wait_s(now))
                self._tell(outcome, now)
                self._tell_room()
                if outcome.message is not None:
                    return outcome.message
        except StopIteration:
            raise
        except Exception as exc:
            with self._lock:
                self._writer_death = exc
                call = self._call
            if call is not None:
                call.cancel()
            raise StopIteration from exc

    # -- both

    def _tell(self, outcome: Outcome, now: float) -> None:
        for copied in outcome.copied:
            copied()
        for refused in outcome.refused:
            self._events.refused(refused)
        metrics = self._metrics
        if outcome.acknowledged:
            if metrics is not None:
                for segment in outcome.acknowledged:
                    metrics.delivered(
                        self.address,
                        segment.lane,
                        segment.operations - segment.refused_operations,
                        segment.size,
                        now - segment.received_at,
                    )
            self._events.acknowledged(self.address, outcome.acknowledged)
        if metrics is not None and outcome.sent_operations:
            metrics.sent(self.address, outcome.sent_operations, again=outcome.is_resent)
        with self._lock:
            self._untold -= 1
            if self._outbox.is_idle:
                self._idle.notify_all()

    def _tell_room(self) -> None:
        with self._lock:
            relieved = {lane for lane in self._wants_room if self._outbox.lanes.is_relieved(lane)}
            self._wants_room -= relieved
        if relieved and self._on_room is not None:
            self._on_room(self.address)
