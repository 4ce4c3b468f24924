"""The verify workers seen from the supervisor: which frames they have, in which order, and what becomes of those of a dead one.

Frames of a DID always go to the same seat, which answers in their order. Seats outlive the processes that sit in them: what a dead
one has not answered goes to its replacement, in order. Lives in the engine's thread.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from relay.atproto.nsid_filter import NsidFilter
from relay.ipc.arena import Arena, SlotAccount
from relay.runtime.clock import Clock
from relay.tail.inhand import FrameInHand, FrameSlot, seq_of
from relay.tail.messages import FrameResult, FramesVerified, FrameToVerify, FreeSlots, VerifyFrames

# A worker reads its pipe between two jobs only, so what is on its way to it must fit the socket, or we and it, which answers at
# the same time, may wait for each other for ever: a frame takes some 110 bytes, one of a DID as long as they may be 2 KB.
JOB_FRAMES: Final = 256
JOB_BYTES: Final = 48 * 1024
JOBS_AHEAD: Final = 2  # one in hand, and one to go on with
FRAMES_AHEAD: Final = 32  # ... but of small ones as many as take a moment
# A frame in whose verification so many workers have died is given up.
DEATHS: Final = 2
# The longest a job may take: 256 frames of 5 MB take some 20 s.
JOB_S: Final = 60.0


@dataclass(slots=True)
class _Job:
    slot: FrameSlot
    frames: list[FrameInHand] = field(default_factory=list)
    number: int = 0
    filter: int = 0
    answered: int = 0
    wire_bytes: int = 0

    def add(self, frame: FrameInHand) -> None:
        self.frames.append(frame)
        self.wire_bytes += len(frame.did) + 100


@dataclass(slots=True)
class _Seat:
    number: int
    slots: range  # of operations
    is_alive: bool = False
    waiting: deque[_Job] = field(default_factory=deque)
    again: deque[FrameInHand] = field(default_factory=deque)  # with bytes of their own, not in a slot yet
    sent: deque[_Job] = field(default_factory=deque)
    moved_at: float = 0.0  # when it was given something to do, or showed that it does it; monotonic seconds

    def wants_more(self) -> bool:
        if len(self.sent) < JOBS_AHEAD:
            return True
        return sum(len(job.frames) for job in self.sent) < FRAMES_AHEAD

    @property
    def frames(self) -> int:
        jobs = sum(len(job.frames) - job.answered for queue in (self.waiting, self.sent) for job in queue)
        return jobs + len(self.again)


class VerifySeats:
    """Hands frames to the workers and takes their answers. `send(seat, message) -> bool`: False when the child is gone.

    `own_slots`: slots of `frames` that nobody else fills, for frames that come a second time. `sought`: collections that
    LOOK_ONLY looks for. Memory: what the owner puts in.
    """

    def __init__(
        self,
        *,
        seats: int,
        slots_per_seat: int,
        frames: Arena,
        own_slots: range,
        send: Callable[[int, Any], bool],
        wanted: Sequence[str],
        sought: Sequence[str],
        clock: Clock,
    ) -> None:
        self._seats = [
            _Seat(number, range(number * slots_per_seat, (number + 1) * slots_per_seat)) for number in range(seats)
        ]
        self._frames, self._own, self._send, self._clock = frames, SlotAccount(own_slots), send, clock
        self._wanted, self._sought = list(wanted), list(sought)
        self._number = 0
        self._filter = self._widened = (
            0  # numbers of the filter in force, and of the last that wanted more than the one before
        )
        self.cpu_s = 0.0

    def set_wanted(self, patterns: Sequence[str]) -> None:
        """Deliver records of these collections from now on."""
        self._filter += 1
        if not NsidFilter.parse(self._wanted).covers(NsidFilter.parse(patterns)):
            self._widened = self._filter
        self._wanted = list(patterns)

    def is_narrow(self, frame: FrameInHand) -> bool:
        """Was an answered frame judged by a filter that lacked something of the one in force?"""
        return frame.filter < self._widened

    @property
    def frames(self) -> int:
        """How many frames are with the workers, or wait for them."""
        return sum(seat.frames for seat in self._seats)

    def put(self, slot: FrameSlot, frames: Iterable[FrameInHand]) -> None:
        """Have frames of one slot verified, in order."""
        jobs: dict[int, _Job] = {}
        for frame in frames:
            frame.slot = slot
            seat = self._seat_of(frame.did)
            job = jobs.get(seat)
            if job is None or len(job.frames) >= JOB_FRAMES or job.wire_bytes >= JOB_BYTES:
                job = jobs[seat] = _Job(slot)
                slot.jobs += 1
                self._seats[seat].waiting.append(job)
            job.add(frame)

    def put_again(self, frame: FrameInHand) -> None:
        """Have a frame verified whose bytes are its own; before what else waits, so that its DID is not held for long."""
        assert frame.frame is not None
        frame.slot = None
        self._seats[self._seat_of(frame.did)].again.append(frame)

    def pump(self) -> None:
        """Send what the workers have room for."""
        for seat in self._seats:
            if seat.again:
                self._fill_own(seat)
            while seat.is_alive and seat.waiting and seat.wants_more():
                self._send_next(seat)

    def answered(self, number: int, message: FramesVerified) -> list[tuple[FrameInHand, FrameResult]]:
        """Return the frames that a message is about, with what became of each. Call `took` when their operations are copied."""
        seat = self._seats[number]
        job = seat.sent[0] if seat.sent else None
        if job is None or job.number != message.job:
            raise RuntimeError(f"verify/{number} answers job {message.job}, which it does not have")
        frames = job.frames[job.answered : job.answered + len(message.results)]
        for frame, result in zip(frames, message.results, strict=True):
            frame.filter = job.filter
            if seq_of(frame.position) != result.seq:
                raise RuntimeError(f"verify/{number} answers for frame {result.seq} instead of {frame.position}")
        job.answered += len(frames)
        if message.done and job.answered != len(job.frames):
            raise RuntimeError(f"verify/{number} is through with job {job.number} and has not answered all of it")
        seat.moved_at = self._clock.monotonic()
        return list(zip(frames, message.results, strict=True))

    def took(self, number: int, message: FramesVerified) -> None:
        """The operations of a message are copied, and its frames' bytes where they are still needed: the slots are free."""
        seat = self._seats[number]
        if message.slot is not None:
            self._send(number, FreeSlots([message.slot]))
        if message.done:
            self.cpu_s += message.cpu_s
            seat.sent.popleft().slot.through()

    def bytes_of(self, frame: FrameInHand) -> bytes:
        """Return a copy of a frame that is in somebody's hands."""
        if frame.frame is not None:
            return frame.frame
        assert frame.slot is not None
        return bytes(self._frames.view(frame.slot.slot, frame.slot.size)[frame.offset : frame.offset + frame.size])

    # --- processes ----------------------------------------------------------------------------------------------------

    def started(self, number: int) -> None:
        """A process sits down: every operation slot of the seat is its to fill."""
        seat = self._seats[number]
        seat.is_alive = True
        seat.moved_at = self._clock.monotonic()
        self._send(number, FreeSlots(list(seat.slots)))

    def died(self, number: int) -> list[FrameInHand]:
        """Its frames go to the replacement. Return those that killed it once too often, with their bytes: they get no other answer.

        Of a job with many frames the one to blame is not known, so each goes alone the next time.
        """
        seat = self._seats[number]
        seat.is_alive = False
        given_up: list[FrameInHand] = []
        jobs: list[_Job] = []
        for place, job in enumerate(seat.sent):
            left = job.frames[job.answered :]
            if place == 0 and len(left) == 1:
                left[0].deaths += 1
            if left and left[0].deaths >= DEATHS:
                left[0].frame = self.bytes_of(left[0])
                given_up.append(left.pop(0))
            groups = [[frame] for frame in left] if place == 0 else [left] if left else []
            for group in groups:
                again = _Job(job.slot)
                for frame in group:
                    again.add(frame)
                jobs.append(again)
            job.slot.jobs += len(groups)
            job.slot.through()
        seat.sent.clear()
        seat.waiting.extendleft(reversed(jobs))
        return given_up

    def overdue(self, now: float) -> list[int]:
        """Return the seats whose worker has not moved for longer than a job may take."""
        return [s.number for s in self._seats if s.is_alive and s.sent and now - s.moved_at > JOB_S]

    def _seat_of(self, did: str) -> int:
        return zlib.crc32(did.encode()) % len(self._seats) if len(self._seats) > 1 else 0

    def _send_next(self, seat: _Seat) -> None:
        job = seat.waiting[0]
        self._number += 1
        frames = [
            FrameToVerify(seq_of(each.position), each.offset, each.size, each.did, each.key, each.flags)
            for each in job.frames
        ]
        now_us = int(self._clock.now() * 1_000_000)
        message = VerifyFrames(self._number, job.slot.slot, job.slot.size, self._wanted, now_us, frames, self._sought)
        if not self._send(seat.number, message):
            # It is gone, and we have not heard of it yet: it never saw these frames.
            seat.is_alive = False
            return
        seat.waiting.popleft()
        if not seat.sent:
            seat.moved_at = self._clock.monotonic()
        job.number, job.filter = self._number, self._filter
        seat.sent.append(job)

    def _fill_own(self, seat: _Seat) -> None:
        """Put frames with bytes of their own into slots, as far as there are free ones."""
        jobs: list[_Job] = []
        while seat.again and (number := self._own.lease(seat.number)) is not None:
            slot = FrameSlot(number, 0, self._own.free)
            job = _Job(slot)
            view = self._frames.view(number)
            while seat.again and len(job.frames) < JOB_FRAMES and job.wire_bytes < JOB_BYTES:
                data = self.bytes_of(seat.again[0])
                end = slot.size + len(data)
                if end > self._frames.slot_bytes:
                    break
                view[slot.size : end] = data
                frame = seat.again.popleft()
                frame.slot, frame.offset, frame.size = slot, slot.size, len(data)
                slot.size = end
                job.add(frame)
            view.release()
            slot.jobs = 1
            slot.close()
            jobs.append(job)
        seat.waiting.extendleft(reversed(jobs))
