"""The workers and their operation slots, seen from the supervisor: who gets the next CAR, which slots go back to whom.

Seats outlive the processes that sit in them. Operation slots belong to a seat: those that a delivery still reads stay busy when
the process dies, and its replacement gets the others. Lives in the engine's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from relay.backfill.messages import CancelJob, FreeSlots, VerifyRepo
from relay.backfill.work import Stage, Work

# One in hand and one to go on with, and of small repos as many as take a moment: the worker never waits for us between two.
JOBS_AHEAD = 2
SMALL_JOBS_AHEAD = 8
SMALL_BYTES_AHEAD = 512 * 1024


@dataclass(slots=True)
class _Seat:
    number: int
    slots: range
    alive: bool = False
    jobs: deque[Work] = field(default_factory=deque)
    done: int = 0
    busy: set[int] = field(default_factory=set)  # filled by the worker, not yet copied by a sender
    to_free: list[int] = field(default_factory=list)
    moved_at: float = 0.0  # the worker was given something to do, or showed that it does it; monotonic seconds

    def load(self) -> tuple[int, int]:
        return sum(work.size for work in self.jobs), len(self.jobs)

    def wants_more(self) -> bool:
        size, count = self.load()
        return count < JOBS_AHEAD or (count < SMALL_JOBS_AHEAD and size < SMALL_BYTES_AHEAD)

    @property
    def is_starved(self) -> bool:
        """Is there no slot that the worker could fill? Then it stands still because of us."""
        return len(self.busy) + len(self.to_free) >= len(self.slots)


class WorkerSeats:
    """Hands fetched CARs to workers and takes slots back. `send(seat, message) -> bool`: False when the child is gone."""

    def __init__(self, seats: int, slots_per_seat: int, send: Callable[[int, Any], bool]) -> None:
        self._seats = [
            _Seat(number, range(number * slots_per_seat, (number + 1) * slots_per_seat)) for number in range(seats)
        ]
        self._send = send
        self._now = 0.0  # of the last pump: near enough for judging who hangs
        self.queue: deque[Work] = deque()

    @property
    def slots_in_use(self) -> int:
        return sum(len(seat.busy) for seat in self._seats)

    @property
    def jobs(self) -> int:
        return sum(len(seat.jobs) for seat in self._seats)

    def view(self, seat_number: int, now: float) -> tuple[str, float | None, int]:
        """Return (DID in hand or empty, since how many seconds, jobs done) of a seat, for status."""
        seat = self._seats[seat_number]
        if not seat.jobs:
            return "", None, seat.done
        return seat.jobs[0].did, now - seat.jobs[0].started_at, seat.done

    def started(self, seat_number: int) -> None:
        """A process sits down: it may fill every slot of the seat that nobody reads any more."""
        seat = self._seats[seat_number]
        seat.alive = True
        seat.moved_at = self._now
        seat.to_free = []
        self._send(seat_number, FreeSlots([slot for slot in seat.slots if slot not in seat.busy]))

    def died(self, seat_number: int) -> tuple[Work | None, list[Work]]:
        """Return the work that was in the dead worker's hands, and the work that only waited for it."""
        seat = self._seats[seat_number]
        seat.alive = False
        jobs, seat.jobs = list(seat.jobs), deque()
        return (jobs[0] if jobs else None), jobs[1:]

    def pump(self, now: float, make: Callable[[Work], VerifyRepo]) -> None:
        """Hand out what waits, to the least loaded workers first."""
        self._now = now
        while self.queue:
            seat = min((s for s in self._seats if s.alive), key=_Seat.load, default=None)
            if seat is None or not seat.wants_more():
                return
            work = self.queue.popleft()
            if work.over:
                continue
            # It may have been verified before, with another key.
            work.stage, work.seat, work.produced, work.failure = Stage.VERIFYING, seat.number, False, None
            if not self._send(seat.number, make(work)):
                # It is gone, and we have not heard of it yet: it never saw this job, so the job is not to blame.
                work.stage, work.seat = Stage.FETCHED, None
                self.queue.appendleft(work)
                seat.alive = False
                continue
            seat.jobs.append(work)
            if len(seat.jobs) == 1:
                work.started_at = seat.moved_at = now

    def filled(self, seat_number: int, slot: int) -> None:
        """The worker has written into a slot: it is busy until `copied`."""
        seat = self._seats[seat_number]
        seat.busy.add(slot)
        seat.moved_at = self._now

    def copied(self, seat_number: int, slot: int) -> None:
        """The bytes of a slot are copied, or not wanted any more."""
        seat = self._seats[seat_number]
        seat.busy.discard(slot)
        if seat.alive:
            seat.to_free.append(slot)

    def flush(self) -> None:
        """Give copied slots back to their workers, one message each."""
        for seat in self._seats:
            if seat.to_free:
                if seat.is_starved:
                    seat.moved_at = self._now  # from here on it can go on
                self._send(seat.number, FreeSlots(seat.to_free))
                seat.to_free = []

    def done(self, work: Work, now: float) -> None:
        """The worker is through with a job, which is the oldest one of its seat."""
        assert work.seat is not None
        seat = self._seats[work.seat]
        if work in seat.jobs:
            seat.jobs.remove(work)
            seat.done += 1
        seat.moved_at = now
        if seat.jobs:
            seat.jobs[0].started_at = now

    def cancel(self, work: Work) -> None:
        if work.seat is not None and self._seats[work.seat].alive:
            self._send(work.seat, CancelJob(work.number))

    def overdue(self, now: float, limit_s: Callable[[Work], float]) -> list[int]:
        """Return the seats whose worker has not moved for longer than its job may take.

        One that has no slot to fill waits for the ingesters or the database: that may take for ever, and is nobody's fault here.
        """
        return [
            s.number
            for s in self._seats
            if s.alive and s.jobs and not s.is_starved and now - s.moved_at > limit_s(s.jobs[0])
        ]
