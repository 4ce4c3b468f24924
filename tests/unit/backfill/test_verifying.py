"""Seats of workers: jobs to the least loaded, slots to their seat, and whose fault a standstill is."""

from __future__ import annotations

from typing import Any

from relay.backfill.messages import CancelJob, FreeSlots, VerifyRepo
from relay.backfill.verifying import JOBS_AHEAD, SMALL_JOBS_AHEAD, WorkerSeats
from relay.backfill.work import Stage, Work
from tests.unit.backfill.works import a_work


class Children:
    def __init__(self) -> None:
        self.sent: list[tuple[int, Any]] = []
        self.gone: set[int] = set()

    def send(self, seat: int, message: Any) -> bool:
        if seat in self.gone:
            return False
        self.sent.append((seat, message))
        return True


def made(seats: int = 2, slots: int = 3) -> tuple[WorkerSeats, Children]:
    children = Children()
    made_seats = WorkerSeats(seats, slots, children.send)
    for seat in range(seats):
        made_seats.started(seat)
    children.sent.clear()
    return made_seats, children


def work(number: int, size: int = 1 << 20) -> Work:
    return a_work(number, size=size)


def message(each: Work) -> VerifyRepo:
    return VerifyRepo(each.number, each.did, 0, None, 1, None, [], 1, 0, True, "", None, None, False)


def test_jobs_go_to_the_least_loaded_and_never_more_than_jobs_ahead() -> None:
    seats, children = made()
    seats.queue.extend(work(number) for number in range(1, 8))
    seats.pump(0.0, message)
    assert [seat for seat, _ in children.sent] == [0, 1, 0, 1]
    assert len(seats.queue) == 7 - 2 * JOBS_AHEAD


def test_small_repos_are_handed_out_further_ahead_and_go_where_fewer_bytes_wait() -> None:
    seats, children = made()
    seats.queue.append(work(1))
    seats.queue.extend(work(number, 10_000) for number in range(2, 20))
    seats.pump(0.0, message)
    assert [seat for seat, _ in children.sent] == [0, *[1] * SMALL_JOBS_AHEAD]
    assert len(seats.queue) == 18 - SMALL_JOBS_AHEAD


def test_a_started_worker_gets_the_slots_of_its_seat_that_nobody_reads() -> None:
    seats, children = made()
    seats.filled(1, 4)
    seats.died(1)
    seats.started(1)
    assert children.sent == [(1, FreeSlots([3, 5]))]
    seats.copied(1, 4)
    seats.flush()
    assert children.sent[1:] == [(1, FreeSlots([4]))]


def test_a_slot_copied_while_its_seat_is_empty_comes_with_the_next_worker_once() -> None:
    seats, children = made()
    seats.filled(0, 0)
    seats.died(0)
    seats.copied(0, 0)
    seats.flush()
    seats.started(0)
    seats.flush()
    assert children.sent == [(0, FreeSlots([0, 1, 2]))]


def test_the_dead_workers_job_in_hand_is_told_from_those_that_only_waited() -> None:
    seats, _ = made(seats=1)
    first, second = work(1), work(2)
    seats.queue.extend([first, second])
    seats.pump(0.0, message)
    assert seats.died(0) == (first, [second])
    assert seats.died(0) == (None, [])


def test_a_job_that_could_not_be_sent_stays_in_the_queue() -> None:
    seats, children = made(seats=1)
    children.gone.add(0)
    first = work(1)
    seats.queue.append(first)
    seats.pump(0.0, message)
    assert list(seats.queue) == [first]
    assert (first.stage, first.seat) == (Stage.FETCHED, None)
    assert seats.died(0) == (None, [])


def test_a_second_verification_begins_afresh() -> None:
    seats, _ = made(seats=1)
    again = work(1)
    again.produced = True
    seats.queue.append(again)
    seats.pump(0.0, message)
    assert not again.produced


def test_a_worker_is_overdue_only_while_it_could_go_on() -> None:
    seats, _ = made(seats=1, slots=2)
    seats.queue.append(work(1))
    seats.pump(0.0, message)

    def overdue(now: float) -> list[int]:
        return seats.overdue(now, lambda _work: 60.0)

    assert overdue(60.0) == []
    assert overdue(61.0) == [0]
    seats.pump(61.0, message)
    seats.filled(0, 0)
    assert overdue(100.0) == []
    seats.filled(0, 1)
    assert overdue(1e6) == []  # no slot left: it waits for us
    seats.pump(1e6, message)
    seats.copied(0, 0)
    assert overdue(1e6) == []  # copied, and not given back yet
    seats.flush()
    assert overdue(1e6 + 60.0) == []
    assert overdue(1e6 + 61.0) == [0]


def test_a_cancellation_reaches_a_living_worker_only() -> None:
    seats, children = made(seats=1)
    first = work(1)
    seats.queue.append(first)
    seats.pump(0.0, message)
    seats.cancel(first)
    assert children.sent[-1] == (0, CancelJob(1))
    seats.died(0)
    seats.cancel(first)
    assert len(children.sent) == 2
