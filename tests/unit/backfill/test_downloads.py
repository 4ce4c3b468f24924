"""Downloads: bounded by number and slots, hosts take turns, and nothing is lost when no child is there."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from relay.backfill.downloads import Downloads
from relay.backfill.work import Stage, Work
from relay.ipc.arena import SlotAccount
from relay.net.gate import HostGate
from relay.net.hosts import HostPolicy, HostTable, Outcome
from relay.runtime.clock import ManualClock
from tests.unit.backfill.works import a_work

POLICY = HostPolicy(requests_per_s=1000.0, burst=30.0, connections=2, breaker_s=10.0)


class Children:
    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.seat: int | None = 0

    def send(self, message: Any) -> int | None:
        if self.seat is not None:
            self.sent.append(message)
        return self.seat


def made(*, parallel: int = 4, slots: int = 3) -> tuple[Downloads, Children, HostGate]:
    children = Children()
    gate = HostGate(HostTable(POLICY), ManualClock())
    return Downloads(gate, SlotAccount(range(slots)), children.send, parallel=parallel), children, gate


def work(number: int, host: str) -> Work:
    return a_work(number, host=host)


@given(hosts=st.lists(st.integers(0, 4), max_size=30), parallel=st.integers(1, 6), slots=st.integers(1, 6))
def test_everything_is_downloaded_within_all_limits(hosts: list[int], parallel: int, slots: int) -> None:
    downloads, children, gate = made(parallel=parallel, slots=slots)
    for number, host in enumerate(hosts, 1):
        downloads.add(work(number, f"h{host}"))
    for _ in range(len(hosts) + 1):
        downloads.pump(0.0)
        running = list(downloads.running.values())
        assert len(running) <= min(parallel, slots)
        assert all(sum(w.host == f"h{host}" for w in running) <= POLICY.connections for host in range(5))
        assert len({w.slot for w in running}) == len(running) == downloads.slots.in_use
        for each in running:
            downloads.ended(each)
            gate.finished(each.host, Outcome.ANSWERED)
            assert each.slot is not None
            downloads.slots.free(each.slot)
    assert sorted(message.job for message in children.sent) == list(range(1, len(hosts) + 1))
    assert downloads.queued == 0


def test_hosts_take_turns() -> None:
    downloads, children, _ = made(parallel=2, slots=4)
    for number in range(1, 7):
        downloads.add(work(number, "big" if number < 6 else "small"))
    downloads.pump(0.0)
    for each in list(downloads.running.values()):
        downloads.ended(each)
    downloads.pump(0.0)
    assert "did:plc:6" in {message.did for message in children.sent[:4]}


def test_without_a_child_nothing_is_lost_and_no_slot_or_connection_is_held() -> None:
    downloads, children, gate = made()
    children.seat = None
    first = work(1, "h")
    downloads.add(first)
    downloads.pump(0.0)
    assert (first.stage, first.slot, downloads.queued, downloads.slots.in_use) == (Stage.QUEUED, None, 1, 0)
    assert gate.snapshot()[0].in_flight == 0
    children.seat = 1
    downloads.pump(0.0)
    assert (first.stage, first.seat, downloads.queued) == (Stage.FETCHING, 1, 0)
    assert downloads.of_seat(1) == [first]


def test_works_whose_ingester_is_behind_are_given_back_and_take_nothing_from_the_others() -> None:
    children, gate = Children(), HostGate(HostTable(POLICY), ManualClock())
    behind = {"did:plc:1", "did:plc:2"}
    downloads = Downloads(gate, SlotAccount(range(3)), children.send, parallel=1, waits=behind.__contains__)
    works = [work(number, "h") for number in (1, 2, 3)]
    for each in works:
        downloads.add(each)
    downloads.pump(0.0)
    assert downloads.unwanted == works[:2]
    assert [message.did for message in children.sent] == ["did:plc:3"]
    assert (downloads.queued, downloads.slots.in_use, gate.snapshot()[0].in_flight) == (0, 1, 1)


def test_a_host_that_is_given_up_gives_its_works_back_and_only_its() -> None:
    downloads, children, _ = made()
    gone, other = work(1, "gone"), work(2, "other")
    downloads.add(gone)
    downloads.add(other)
    assert downloads.release_host("gone") == [gone]
    assert (downloads.queued, downloads.queued_of("gone"), downloads.queued_of("other")) == (1, 0, 1)
    downloads.pump(0.0)
    assert [message.job for message in children.sent] == [2]


def test_works_that_are_over_are_passed_over() -> None:
    downloads, children, _ = made()
    over, fine = work(1, "h"), work(2, "h")
    downloads.add(over)
    downloads.add(fine)
    over.over = True
    downloads.pump(0.0)
    assert [message.job for message in children.sent] == [2]
    assert downloads.queued == 0
