"""The thread that owns the websocket: frames into shared-memory slots, batch by batch, and what the reader decides.

What wakes it: the socket, a freed slot, stopping. Its back pressure: no free slot, and then upstream keeps the log. It decides
nothing itself (`reader` does), proves nothing (the verify workers do) and stores nothing (whoever gets the batches does).
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

from relay.errors import RelayError
from relay.ipc.arena import Arena, SlotAccount
from relay.net.errors import BadResponse, NetError, PrivateAddress, Stopped
from relay.net.subscribe import MAX_MESSAGE_BYTES, Received
from relay.net.wsframes import OversizeMessage, TextMessage
from relay.observe.log import get_logger
from relay.runtime.clock import Clock, SystemClock
from relay.runtime.service import ServiceThread
from relay.tail import reader as r
from relay.tail.envelope import ErrorHead, EventHead, InfoHead, Undecodable, UnknownHead, parse_head

log = get_logger(__name__)

# How long a frame waits for others before its batch is handed on: a batch costs a message to each worker.
LINGER_S: Final = 0.005
BATCH_BYTES: Final = 256 * 1024
BATCH_FRAMES: Final = 512
_TICK_S: Final = 1.0
_JUDGING_S: Final = 0.1
_PROBE_S: Final = 10.0
_PROBE_LOOK_S: Final = 0.2
_US: Final = 1_000_000


class Envelope(NamedTuple):
    """One event of a batch: `size` bytes at `offset` of the slot are the frame. See `envelope.EventHead` for the rest."""

    seq: int
    kind: str
    did: str
    time_us: int | None
    offset: int
    size: int
    rev: str = ""
    is_first: bool = False
    operations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBatch:
    """Frames in rising seq, in the first `size` bytes of slot `slot`, which is the receiver's until it calls `Tailer.free`.

    `received_at`: monotonic seconds at which the first of them was read. `era`: of the numbering that the seqs belong to.
    """

    slot: int
    size: int
    envelopes: tuple[Envelope, ...]
    received_at: float
    era: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BadFrame:
    """A frame that was undecodable twice, for the dead letters. `frame` is its beginning when `size` is above the limit."""

    era: int
    after_seq: int | None
    frame: bytes
    size: int
    why: str


# What the tailer tells besides batches, in the order of the stream; but an incident may be told before the batch that it came
# with, never after one whose cursor would forget it.
Told: TypeAlias = r.IncidentFound | r.BeganAfresh | r.GiveUp | BadFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class TailStatus:
    """Counters and the present, for status and metrics. `events` by kind, `ignored` and `incidents` by reason."""

    is_connected: bool
    seq: int | None
    time_us: int | None  # of the newest event
    events: dict[str, int]
    ignored: dict[str, int]  # replayed, unknown_kind, no_did, undecodable
    incidents: dict[str, int]
    connections: int
    failures: int  # in a row
    received_bytes: int
    slot_wait_s: float  # how long no slot was free
    last_error: str | None  # since the last connection was made

    def lag_s(self, now: float) -> float | None:
        """Return how old the newest event is at wall time `now` (seconds); None before the first one."""
        return None if self.time_us is None else max(0.0, now - self.time_us / _US)


class Stream(Protocol):
    """What the tailer needs of a `net.subscribe.Subscription`."""

    @property
    def received_bytes(self) -> int: ...
    def open(self) -> None: ...
    def receive(self, wait_s: float) -> list[Received]: ...
    def close(self) -> None: ...
    def release(self) -> None: ...


class _Left(Exception):
    """The connection is given up; `delay_s` until the next one."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s


class _Ended(Exception):
    """There will be no next connection: stopping, or given up."""


class Tailer(ServiceThread):
    """Follows one upstream from a cursor. `deliver` and `tell` are called in this thread, in stream order, and must not block.

    `subscribe(cursor)` makes a subscription that is not open yet (`net.subscribe.Subscription`). Every slot of `frames` must
    hold the largest message: only what is written of a slot takes memory. `slots`: which of them are ours (None: all). After `GiveUp` was told the thread ends by itself.
    """

    def __init__(
        self,
        *,
        subscribe: Callable[[int | None], Stream],
        reader: r.StreamReader,
        frames: Arena,
        deliver: Callable[[FrameBatch], None],
        tell: Callable[[Told], None],
        slots: range | None = None,
        clock: Clock | None = None,
        linger_s: float = LINGER_S,
        batch_bytes: int = BATCH_BYTES,
        batch_frames: int = BATCH_FRAMES,
        on_death: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        if frames.slot_bytes < MAX_MESSAGE_BYTES:
            raise ValueError(f"slots of {frames.slot_bytes:,} bytes: a frame may have {MAX_MESSAGE_BYTES:,}")
        super().__init__("tailer", on_death)
        self._subscribe, self._reader, self._frames = subscribe, reader, frames
        self._deliver, self._tell = deliver, tell
        self._clock = clock or SystemClock()
        self._linger_s, self._batch_bytes, self._batch_frames = linger_s, batch_bytes, batch_frames
        self._slots = SlotAccount(range(frames.slots) if slots is None else slots)
        self._state = threading.Condition()  # guards: _slots, _streams
        self._streams: set[Stream] = set()  # to be closed when we stop
        self._batch: list[Envelope] = []
        self._slot: int | None = None
        self._view = memoryview(b"")
        self._size = 0
        self._began = 0.0  # monotonic, of the batch
        self._events: Counter[str] = Counter()
        self._ignored: Counter[str] = Counter()
        self._incidents: Counter[str] = Counter()
        self._connections = 0
        self._bytes_before = 0  # of the connections that are over
        self._stream: Stream | None = None  # the open one
        self._slot_wait_s = 0.0
        self._last_error: str | None = None

    # From other threads

    @property
    def slots(self) -> tuple[int, int]:
        """How many frame slots are taken, and how many there are. Any thread."""
        with self._state:
            return self._slots.in_use, self._slots.total

    def free(self, slot: int) -> None:
        """The receiver of a batch is through with its slot. Raise SlotError if it did not have it."""
        with self._state:
            self._slots.free(slot)
            self._state.notify()

    def wake(self) -> None:
        with self._state:
            self._state.notify()
            streams = list(self._streams)
        for stream in streams:
            stream.close()

    @property
    def status(self) -> TailStatus:
        stream = self._stream
        return TailStatus(
            is_connected=stream is not None,
            seq=self._reader.newest,
            time_us=self._reader.newest_time_us,
            events=dict(self._events),
            ignored=dict(self._ignored),
            incidents=dict(self._incidents),
            connections=self._connections,
            failures=self._reader.failures,
            received_bytes=self._bytes_before + (stream.received_bytes if stream is not None else 0),
            slot_wait_s=self._slot_wait_s,
            last_error=self._last_error,
        )

    # In this thread

    def run(self) -> None:
        delay_s = 0.0
        try:
            while not self.stopping.wait(delay_s):
                delay_s = self._follow()
        except _Ended:
            pass
        finally:
            self._view.release()
            self._view = memoryview(b"")

    def _follow(self) -> float:
        """One connection, from its beginning to its end; return how long to wait before the next one."""
        cursor = self._reader.newest
        stream = self._opened(cursor)
        try:
            try:
                stream.open()
            except Stopped:
                raise _Ended from None
            except NetError as exc:
                refused = isinstance(exc, PrivateAddress) or (isinstance(exc, BadResponse) and exc.answered)
                self._note_error(exc, "firehose_unreachable")
                now_us = self._now_us()
                self._do(
                    self._reader.failed(str(exc), now_us, retry_after_s=exc.retry_after_s, is_refused=refused), None
                )
                raise AssertionError("a failed connection has an answer") from exc
            self._last_error = None  # before it shows as connected
            self._stream = stream
            self._connections += 1
            self._reader.connected(self._now_us())
            log.info("firehose_connected", cursor=cursor, era=self._reader.era)
            self._read(stream)
        except _Left as left:
            return left.delay_s
        finally:
            self._stream = None
            self._bytes_before += stream.received_bytes
            self._closed(stream)
        raise AssertionError("reading ends with an exception")

    def _read(self, stream: Stream) -> None:
        """Read until the reader gives the connection up. What was read before that is delivered."""
        clock = self._clock
        heard_at = ticked_at = clock.monotonic()
        while True:
            now = clock.monotonic()
            wait_s = _TICK_S
            if self._batch:
                wait_s = _JUDGING_S if self._reader.is_judging else max(0.0, self._began + self._linger_s - now)
            try:
                messages = stream.receive(wait_s)
            except Stopped:
                raise _Ended from None
            except RelayError as exc:
                self._note_error(exc, "firehose_lost")
                self._do(self._reader.failed(str(exc), self._now_us()), None)
                raise AssertionError("a lost connection has an answer") from exc
            if self.stopping.is_set():
                raise _Ended
            now = clock.monotonic()
            now_us = self._now_us()
            if messages:
                heard_at = now
                for message in messages:
                    self._take(message, now, now_us)
            if not messages or now - ticked_at >= _TICK_S:
                # Only now: between two ticks everything that had come was told.
                ticked_at = now
                self._do(self._reader.tick(now_us, idle_s=now - heard_at), None)
            if self._batch and now - self._began >= self._linger_s:
                self._flush()

    def _take(self, message: Received, now: float, now_us: int) -> None:
        if not isinstance(message, bytes):
            why = "a text message" if isinstance(message, TextMessage) else f"a message of {message.size:,} bytes"
            self._bad(message, why)
            return
        try:
            head = parse_head(message)
        except Undecodable as exc:
            self._bad(message, str(exc))
            return
        if isinstance(head, EventHead):
            seq, kind, did, time_us = head[:4]
            actions = self._reader.event(seq, time_us, now_us)
            first = actions[0]
            if isinstance(first, r.Drop):
                self._ignored["replayed"] += 1
            elif did is None:
                # Its producer's mistake, and nobody's repo: there is nothing to do about it.
                self._ignored["no_did"] += 1
            else:
                self._events[kind] += 1
                if time_us is not None and time_us > now_us:
                    # A producer's word, and the cursor's time is stored: one from the future would hide every hole after a start.
                    head = head._replace(time_us=now_us)
                self._put(message, head, did, now)
            if len(actions) > 1:
                self._do(actions[1:], None)
            return
        match head:
            case UnknownHead(kind=kind, seq=unknown_seq):
                self._ignored["unknown_kind"] += 1
                log.debug("firehose_unknown_kind", kind=kind, seq=unknown_seq)
                if unknown_seq is not None:
                    self._do(self._reader.event(unknown_seq, None, now_us)[1:], None)
            case InfoHead(name=name, message=text):
                log.info("firehose_info", name=name, message=text)
                self._do(self._reader.info(name, text), None)
            case ErrorHead(error=error, message=text):
                self._last_error = f"upstream says {error}" + (f": {text}" if text else "")
                self._do(self._reader.error_frame(error, text), None)

    def _bad(self, message: Received, why: str) -> None:
        self._ignored["undecodable"] += 1
        self._last_error = f"undecodable frame behind {self._reader.newest}: {why}"
        log.warning("firehose_frame_undecodable", after_seq=self._reader.newest, reason=why)
        self._do(self._reader.undecodable(why), message)

    def _put(self, frame: bytes, head: EventHead, did: str, now: float) -> None:
        size = len(frame)
        if self._slot is not None and (
            self._size + size > self._frames.slot_bytes
            or len(self._batch) >= self._batch_frames
            or (self._size >= self._batch_bytes)
        ):
            self._flush(is_forced=True)
        if self._slot is None:
            self._lease()
        if not self._batch:
            self._began = now
        end = self._size + size
        self._view[self._size : end] = frame
        seq, kind, _, time_us, rev, is_first, operations = head
        self._batch.append(Envelope(seq, kind, did, time_us, self._size, size, rev, is_first, operations))
        self._size = end

    def _lease(self) -> None:
        """Wait for a free slot: this is where a slow receiver stops the reading."""
        began = self._clock.monotonic()
        with self._state:
            slot = self._slots.lease("receiver")
            while slot is None:
                if self.stopping.is_set():
                    raise _Ended
                self._state.wait(_TICK_S)
                slot = self._slots.lease("receiver")
        self._slot_wait_s += self._clock.monotonic() - began
        self._slot = slot
        self._view = self._frames.view(slot)

    def _flush(self, *, is_forced: bool = False) -> None:
        """Hand the batch on. While the reader has not decided about a hole it stays, unless there is no more room for it."""
        if is_forced or not self._reader.is_judging:
            self._hand_on(self._reader.era)

    def _hand_on(self, era: int) -> None:
        if not self._batch or self._slot is None:
            return
        batch = FrameBatch(
            slot=self._slot, size=self._size, envelopes=tuple(self._batch), received_at=self._began, era=era
        )
        self._view.release()
        self._view = memoryview(b"")
        self._slot, self._size = None, 0
        self._batch.clear()
        self._deliver(batch)

    def _do(self, actions: tuple[r.Action, ...], message: Received | None) -> None:
        """Do what the reader says. Raises _Left or _Ended when the connection is over."""
        for action in actions:
            match action:
                case r.Deliver() | r.Drop():
                    raise AssertionError("decided where the event is")
                case r.IncidentFound(kind=kind, text=text):
                    log.warning("firehose_incident", kind=kind, text=text)
                    self._incidents[kind] += 1
                    # Before the batch: no cursor behind the hole may be stored before the hole is.
                    self._tell(action)
                case r.BeganAfresh():
                    self._hand_on(action.era - 1)  # what belongs to the numbering before
                    self._tell(action)
                case r.KeepBadFrame(after_seq=after_seq, why=why):
                    assert message is not None
                    self._flush(is_forced=True)
                    self._tell(_bad_frame(message, self._reader.era, after_seq, why))
                case r.Probe():
                    self._do(self._reader.probed(self._probe()), None)
                case r.GiveUp(text=text):
                    log.error("firehose_given_up", text=text)
                    self._flush()
                    self._tell(action)
                    raise _Ended
                case r.ReconnectFrom(delay_s=delay_s):
                    self._flush()
                    log.info("firehose_reconnect", cursor=action.cursor, delay_s=round(delay_s, 3))
                    raise _Left(delay_s)

    def _probe(self) -> int | None:
        """Ask on another connection, without a cursor, for upstream's newest seq; None when there is no answer."""
        stream = self._opened(None)
        try:
            stream.open()
            ends_at = self._clock.monotonic() + _PROBE_S
            while self._clock.monotonic() < ends_at:
                for message in stream.receive(_PROBE_LOOK_S):
                    if isinstance(message, bytes):
                        try:
                            head = parse_head(message)
                        except Undecodable:
                            continue
                        if isinstance(head, EventHead | UnknownHead) and head.seq is not None:
                            log.info("firehose_probed", newest_seq=head.seq, cursor=self._reader.newest)
                            return head.seq
        except Stopped:
            raise _Ended from None
        except RelayError as exc:
            log.info("firehose_probe_failed", error=str(exc), reason=exc.reason)
        finally:
            self._closed(stream)
        return None

    def _opened(self, cursor: int | None) -> Stream:
        stream = self._subscribe(cursor)
        with self._state:
            self._streams.add(stream)
            if self.stopping.is_set():  # `wake` may have run before it could see the stream
                stream.close()
        return stream

    def _closed(self, stream: Stream) -> None:
        with self._state:
            self._streams.discard(stream)
        stream.release()

    def _note_error(self, exc: RelayError, event: str) -> None:
        self._last_error = str(exc)
        log.warning(event, reason=exc.reason, error=str(exc))

    def _now_us(self) -> int:
        return int(self._clock.now() * _US)


def _bad_frame(message: Received, era: int, after_seq: int | None, why: str) -> BadFrame:
    match message:
        case TextMessage(data=data):
            return BadFrame(era=era, after_seq=after_seq, frame=data, size=len(data), why=why)
        case OversizeMessage(size=size, head=head):
            return BadFrame(era=era, after_seq=after_seq, frame=head, size=size, why=why)
    return BadFrame(era=era, after_seq=after_seq, frame=message, size=len(message), why=why)


def make_reader(
    *, cursor: int | None, time_us: int | None, reconnect_delay_ms: int, max_reconnect_attempts: int
) -> r.StreamReader:
    """Return the reader of a stream as `firehose.*` configures it; cursor and time as they are stored (None: live)."""
    return r.StreamReader(
        cursor=cursor,
        time_us=time_us,
        first_delay_s=reconnect_delay_ms / 1000,
        max_attempts=max_reconnect_attempts,
        rng=random.Random(),
    )
