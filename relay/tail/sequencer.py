"""Frames in the order of the stream become events of the repos' machines; when all that one caused is done, the cursor passes it.

Lives in the engine's thread and has none of its own: it is told things (`take`, `tell`, `answered`, `done`, ...) and does in
`pump` what has become possible. Batches are sequenced strictly one after the other, when the rows of their DIDs are in memory.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from relay.atproto.syntax import make_tid
from relay.atproto.verify_live import FUTURE_REV_US
from relay.ipc.arena import Arena
from relay.observe.log import get_logger
from relay.repos import live_events as e
from relay.repos.checkpointer import CursorChange
from relay.runtime.clock import Clock
from relay.tail import meaning
from relay.tail import reader as r
from relay.tail.dispatch import VerifySeats
from relay.tail.inhand import FrameInHand, FrameSlot, era_of, position_of, seq_of
from relay.tail.messages import FrameFlag, FrameResult, FramesVerified, Outcome
from relay.tail.ports import Residents, TailView
from relay.tail.refresh import DidQueue
from relay.tail.tailer import BadFrame, Envelope, FrameBatch, TailStatus, Told
from relay.tail.turns import Turns
from relay.tail.watermark import SeqWatermark

log = get_logger(__name__)

# Slots of frames, each as large as the largest message (what is written of one takes memory): the tailer's, which bound what is
# read and not proved, and ours, for frames that are verified a second time.
FRAME_SLOTS: Final = 16
FRAME_SLOTS_PER_VERIFIER: Final = 4
OWN_SLOTS: Final = 2
# Operations come back in these. They are copied at once, so a few do.
OPERATION_SLOTS_PER_VERIFIER: Final = 4
OPERATION_SLOT_BYTES: Final = 512 * 1024

# Questions for rows at a time: while one is out the next gathers what all batches need that come meanwhile, so a database that
# takes long to answer is asked more seldom, for more.
LOADS_AHEAD: Final = 2
LOAD_DIDS: Final = 2000  # ... about so many DIDs, at most
BATCHES_A_ROUND: Final = 4  # ... that are sequenced before the engine looks at something else
CURSOR_S: Final = 0.2
# The repo of the oldest open frame was told to give way: so long until it is told again.
RELIEF_S: Final = 1.0
_S: Final = 1_000_000


def frame_slots(verifiers: int) -> tuple[range, range]:
    """Return which slots of the arena of frames are the tailer's, and which the sequencer's own."""
    tailer = FRAME_SLOTS + verifiers * FRAME_SLOTS_PER_VERIFIER
    return range(tailer), range(tailer, tailer + OWN_SLOTS)


class _Work:
    """A batch on its way through. `at`: the next envelope."""

    __slots__ = ("at", "batch", "has_asked", "is_here", "slot")

    def __init__(self, batch: FrameBatch, free_slot: Callable[[int], None]) -> None:
        self.batch = batch
        self.slot = FrameSlot(batch.slot, batch.size, free_slot)
        self.at = 0
        self.has_asked = self.is_here = False


class Sequencer:
    """Owns the frames from the tailer's batch to the machine's event, the watermark, and the answers' order per DID.

    Invariants (each has a test): every frame is opened once, in rising order, and finished once; a machine is told of its frames
    in their order, and of what they prove in that order, an `#account` or `#identity` behind all earlier results and before any
    later frame; a DID is pinned while a frame of it is in hand, and not longer; every slot comes back once; the cursor never
    passes an open frame, and no frame of an earlier era moves that of the present one.

    A frame is called by its position inside (`inhand.position_of`): machines carry that as `seq`.
    """

    def __init__(
        self,
        *,
        upstream: str,
        cursor: int | None,
        time_us: int | None,
        mode: str,
        collections: Sequence[str],
        wanted: Sequence[str],
        max_open_frames: int,
        verifiers: int,
        frames: Arena,
        operations: Arena,
        own_slots: range,
        residents: Residents,
        send: Callable[[int, Any], bool],
        free_slot: Callable[[int], None],
        blocked: Callable[[], bool],
        on_incident: Callable[[str, str], None],
        on_give_up: Callable[[str], None],
        clock: Clock,
    ) -> None:
        """`cursor`, `time_us`: as stored (None: live). `mode`, `collections`: discovery's. `wanted`: patterns of the filter.

        `send(seat, message)` to a verify worker, False when it is gone; `free_slot` is the tailer's; `blocked()`: nobody takes
        operations now, so nothing more is sequenced; the other two are told at once of what the tailer tells.
        """
        self.upstream = upstream
        self._mode, self._max_open = mode, max_open_frames
        self._residents, self._operations = residents, operations
        self._free_slot, self._blocked = free_slot, blocked
        self._on_incident, self._on_give_up, self._clock = on_incident, on_give_up, clock
        self._seats = VerifySeats(
            seats=verifiers,
            slots_per_seat=operations.slots // verifiers,
            frames=frames,
            own_slots=own_slots,
            send=send,
            wanted=wanted,
            sought=collections if mode == "collection" else (),
            clock=clock,
        )
        self._turns = Turns(seats=self._seats, residents=residents, done=self.done, clock=clock)
        self._works: deque[_Work] = deque()
        self._loading = 0
        self._is_stopping = False
        self._era = 0
        self._mark = SeqWatermark(cursor, time_us)
        self._open: dict[int, str] = {}  # seq of an open frame of this era -> DID
        self._cursor = cursor  # the last one put
        self._cursor_due = 0.0
        self._relieved: int | None = None
        self._relief_due = 0.0
        self._reliefs = 0
        self._now = 0.0

    # --- told by the tailer -------------------------------------------------------------------------------------------

    def take(self, batch: FrameBatch) -> None:
        """The next batch; its slot comes back by `free_slot`."""
        if self._is_stopping:
            self._free_slot(batch.slot)
            return
        for envelope in batch.envelopes:
            self._turns.queue(envelope.did).expected += 1
        self._works.append(_Work(batch, self._free_slot))
        self._ask_ahead()

    def tell(self, told: Told) -> None:
        """What the tailer tells besides, in the order of the stream."""
        match told:
            case r.IncidentFound(kind=kind, text=text):
                self._on_incident(kind, text)
            case r.GiveUp(text=text):
                self._on_give_up(text)
            case r.BeganAfresh():
                pass  # its batches say so; those of the numbering before may still wait here
            case BadFrame():
                after = "the first frame" if told.after_seq is None else f"the frame behind {told.after_seq}"
                letter = meaning.frame_letter(
                    at=self._clock.now(),
                    did="",
                    seq=told.after_seq,
                    rev=None,
                    reason="undecodable",
                    text=f"{after} of {self.upstream}, {told.size:,} bytes: {told.why}",
                    frame=told.frame,
                    size=told.size,
                )
                self._residents.keep_letters([letter])

    # --- called by the machines' owner --------------------------------------------------------------------------------

    def verify(self, did: str, seq: int, frame: Any) -> None:
        """Effect `Verify`: answered by an event. `frame`: what FrameSeen carried, where the machine kept it."""
        self._turns.verify(did, seq, frame)

    def done(self, seq: int) -> None:
        """Effect `Done`: nothing that the frame caused is open any longer. One of an earlier era changes nothing."""
        if era_of(seq) == self._era:
            seq = seq_of(seq)
            self._mark.finish(seq)
            del self._open[seq]

    # --- told of the verify workers -----------------------------------------------------------------------------------

    def child_started(self, seat: int) -> None:
        self._seats.started(seat)

    def child_died(self, seat: int) -> None:
        for frame in self._seats.died(seat):
            seq = seq_of(frame.position)
            log.error("frame_kills_workers", did=frame.did, seq=seq)
            text = "workers died while they verified it"
            self._turns.answered(frame, FrameResult(seq, Outcome.INVALID, meaning.WORKER_DIED, text), b"")

    def overdue(self, now: float) -> list[int]:
        """Return the seats whose worker hangs: to be killed."""
        return self._seats.overdue(now)

    def answered(self, seat: int, message: FramesVerified) -> None:
        """A worker proved some frames, or not."""
        view = memoryview(b"")
        if message.inline is not None:
            view = memoryview(message.inline)
        elif message.slot is not None:
            view = self._operations.view(message.slot, message.size)
        for frame, result in self._seats.answered(seat, message):
            payload = bytes(view[result.offset : result.offset + result.length]) if result.length else b""
            self._turns.answered(frame, result, payload)
        view.release()
        self._seats.took(seat, message)

    # --- the engine's round -------------------------------------------------------------------------------------------

    def pump(self, now: float) -> float | None:
        """Do what has become possible. Return when to come back at the latest (monotonic seconds), None: whenever."""
        self._now = now
        sequenced = 0
        while self._works and self._works[0].is_here and not self._is_stopping:
            if sequenced >= BATCHES_A_ROUND:
                break
            if self._blocked() or not self._has_room(now):
                break
            if not self._sequence(self._works[0]):
                break
            self._works.popleft()
            sequenced += 1
        self._ask_ahead()
        self._seats.pump()
        if now >= self._cursor_due and self._mark.cursor != self._cursor:
            self.store_cursor()
        if sequenced >= BATCHES_A_ROUND:
            return now
        return None if self._mark.cursor == self._cursor else self._cursor_due

    def store_cursor(self) -> None:
        """Have the cursor stored now, if it has moved."""
        cursor = self._mark.cursor
        if cursor is not None and cursor != self._cursor:
            self._cursor, self._cursor_due = cursor, self._now + CURSOR_S
            self._residents.checkpoint(
                CursorChange(upstream=self.upstream, seq=cursor, time_us=self._mark.cursor_time_us)
            )

    def set_wanted(self, patterns: Sequence[str]) -> None:
        """Deliver records of these collections from now on; commits that the workers have already follow nothing if those lack something."""
        self._seats.set_wanted(patterns)

    def stop_taking(self) -> None:
        """Forget what is not sequenced, and take nothing more: a start reads it again. What is being proved goes on."""
        self._is_stopping = True
        for work in self._works:
            for envelope in work.batch.envelopes[work.at :]:
                queue = self._turns.queue(envelope.did)
                queue.expected -= 1
                self._turns.let_go(queue)
            work.slot.close()
        self._works.clear()

    @property
    def is_quiet(self) -> bool:
        """Nothing is in our hands: neither batches nor frames at the workers or waiting for a key."""
        return not self._works and not self._turns.queues

    def view(self, status: TailStatus) -> TailView:
        return TailView(
            upstream=self.upstream,
            is_connected=status.is_connected,
            seq=status.seq,
            cursor=self._cursor,
            time_us=status.time_us,
            events=status.events,
            outcomes=dict(self._turns.outcomes),
            made=dict(self._turns.made),
            invalid=dict(self._turns.invalid),
            ignored=status.ignored,
            incidents=status.incidents,
            open_frames=self._mark.open_frames,
            distance=self._mark.distance,
            waiting_batches=len(self._works),
            verifying=self._seats.frames,
            waiting_for_key=self._turns.keys.frames,
            key_refreshes=self._turns.keys.asked,
            reliefs=self._reliefs,
            verify_cpu_s=self._seats.cpu_s,
            slot_wait_s=status.slot_wait_s,
            received_bytes=status.received_bytes,
            connections=status.connections,
            last_error=status.last_error,
        )

    # --- sequencing ---------------------------------------------------------------------------------------------------

    def _ask_ahead(self) -> None:
        """Ask for the repos that are not in memory before their batches' turn, in one question for all batches that came since the last."""
        if self._loading >= LOADS_AHEAD:
            return
        works: list[_Work] = []
        missing: list[str] = []
        for work in self._works:
            if work.has_asked:
                continue
            if len(missing) >= LOAD_DIDS:
                break
            work.has_asked = True
            before = len(missing)
            for envelope in work.batch.envelopes:
                queue = self._turns.queue(envelope.did)
                if queue.is_pinned or queue.is_loading:
                    continue  # it is asked for already, with this batch or for an earlier one, which comes first
                if self._residents.get(envelope.did) is not None:
                    self._turns.pin(queue)
                else:
                    queue.is_loading = True
                    missing.append(envelope.did)
            if len(missing) == before:
                work.is_here = True
            else:
                works.append(work)
        if missing:
            self._loading += 1
            self._residents.load(missing, functools.partial(self._loaded, works, missing))

    def _loaded(self, works: list[_Work], dids: list[str]) -> None:
        self._loading -= 1
        for work in works:
            work.is_here = True
        for did in dids:
            queue = self._turns.queues.get(did)
            if queue is not None:  # else nothing more is taken
                queue.is_loading = False
                self._turns.pin(queue)

    def _sequence(self, work: _Work) -> bool:
        """Open the frames of a batch and tell the machines of them. False: there are too many open ones, the rest waits."""
        batch = work.batch
        if batch.era != self._era:
            self._begin(batch.era)
        latest_rev = make_tid(int(self._clock.now() * _S) + FUTURE_REV_US, 1023)
        frames: list[FrameInHand] = []
        for envelope in batch.envelopes[work.at :]:
            if self._mark.distance >= self._max_open and not self._has_room(self._now):
                break
            work.at += 1
            frame = self._open_frame(envelope, work.slot, latest_rev, batch.received_at)
            if frame is not None:
                frames.append(frame)
        self._seats.put(work.slot, frames)
        if work.at < len(batch.envelopes):
            return False
        work.slot.close()
        return True

    def _open_frame(
        self, envelope: Envelope, slot: FrameSlot, latest_rev: str, received_at: float
    ) -> FrameInHand | None:
        """Open one frame; return it if a worker has to look at it."""
        seq, kind, did, time_us, offset, size, rev, is_first, operations = envelope
        queue = self._turns.queue(did)
        queue.expected -= 1
        resident = self._turns.resident(did)
        life = resident.life
        is_telling = kind not in ("commit", "sync")
        if life.is_removed or (not life.is_known and self._is_nobodys(kind, queue)):
            self._mark.open_done(seq, time_us)
            self._turns.outcomes["untracked"] += 1
            self._turns.let_go(queue)
            return None
        self._mark.open(seq, time_us)
        self._open[seq] = did
        # A rev from the future must not be remembered as heard: every copy of the repo would be older.
        rev = rev if rev <= latest_rev else ""
        frame = FrameInHand(position_of(self._era, seq), did, kind, rev, is_first=is_first, operations=operations)
        frame.slot, frame.offset, frame.size = slot, offset, size
        frame.received_at = received_at
        is_look = not life.is_known and self._mode == "collection"
        if is_telling or is_look or queue.gates:
            frame.is_gate = True
            queue.gates += 1
            if not is_telling:
                frame.frame = self._seats.bytes_of(frame)
                frame.flags = FrameFlag.LOOK_ONLY if is_look else 0
        elif not self._turns.see(frame):
            self._turns.let_go(queue)
            return None
        frame.key = None if resident.identity is None else resident.identity.signing_key
        queue.put(frame)
        return frame

    def _is_nobodys(self, kind: str, queue: DidQueue) -> bool:
        """Is a frame of an unknown DID done at once? Not behind one that may make it known."""
        if self._mode == "tracked":
            return True
        if kind == "commit" or (kind == "sync" and self._mode != "collection"):
            return False
        return not queue.frames

    def _begin(self, era: int) -> None:
        """Another numbering: what is open of the one before is done in its time, and moves nothing."""
        log.info("firehose_began_afresh", era=era, open_frames=self._mark.open_frames)
        self._era = era
        self._mark = SeqWatermark(None)
        self._open = {}
        self._cursor = self._relieved = None

    def _has_room(self, now: float) -> bool:
        """May another frame be opened? At the bound the repo of the oldest open one has to give way, and the next, ..."""
        mark = self._mark
        while mark.distance >= self._max_open:
            oldest = mark.oldest_open
            if oldest is None or (oldest == self._relieved and now < self._relief_due):
                return False
            self._relieved, self._relief_due = oldest, now + RELIEF_S
            self._reliefs += 1
            did = self._open[oldest]
            log.warning("open_frames_relief", did=did, seq=oldest, distance=mark.distance)
            self._residents.feed(did, e.OpenFramesRelief())
            self._turns.give_way(did)
        return True
