"""Ingesters that are added and removed while operations flow: real streams, and one database behind them all."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from relay.deliver.routing import Rendezvous
from relay.model import Lane
from relay.observe.metrics import Metrics
from tests.integration.deliver.owner import Owner
from tests.integration.deliver.stranger import Answers, Op, Stranger, Stream, acknowledge
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

DIDS = [f"did:plc:{number}" for number in range(40)]


@pytest.fixture
def strangers(no_leaks: None) -> Iterator[list[Stranger]]:
    stored: list[Op] = []
    made = [Stranger(), Stranger(), Stranger()]
    for stranger in made:
        stranger.stored = stored
        stranger.start()
    yield made
    for stranger in made:
        stranger.stop()


def settle(owner: Owner) -> None:
    wait_until(lambda: owner.delivery.is_settled, "everybody has joined and left")


def late(gate: threading.Event):  # type: ignore[no-untyped-def]
    def answer(stranger: Stranger, stream: Stream, batch_id: int, operations: list[Op]) -> Answers:
        assert gate.wait(30.0)
        yield from acknowledge(stranger, stream, batch_id, operations)

    return answer


def test_one_that_is_added_gets_its_own_repos_when_it_is_there_and_nobody_elses_move(strangers: list[Stranger]) -> None:
    first, second, new = strangers
    address = new.address
    new.stop()
    with Owner(first.address, second.address, failover_after_s=1.0) as owner:
        before = {did: owner.delivery.address_of(did) for did in DIDS}
        assert owner.delivery.set_addresses([first.address, second.address, address]) == ([address], [])
        wait_until(lambda: owner.status(address).reason == "unreachable", "not there")
        owner.feed(dids=40, rounds=5)
        owner.drain()
        assert {did: owner.delivery.address_of(did) for did in DIDS} == before
        new.start(new.port)
        settle(owner)
        after = Rendezvous([first.address, second.address, address])
        assert {did: owner.delivery.address_of(did) for did in DIDS} == {did: after.address_of(did) for did in DIDS}
        owner.feed(dids=40, rounds=5, start=5)
        owner.drain()
        owner.check(new.stored, exactly_once=True)
        assert owner.status(address).delivered_operations > 0


def test_a_repo_moves_to_one_that_is_added_when_nothing_of_it_is_under_way(strangers: list[Stranger]) -> None:
    first, second, new = strangers
    gate = threading.Event()
    first.answer = second.answer = late(gate)
    with Owner(first.address, second.address) as owner:
        after = Rendezvous([first.address, second.address, new.address])
        busy, idle = [did for did in DIDS if after.address_of(did) == new.address][:2]
        owner.offer(busy, [0], Lane.LIVE)
        home = owner.delivery.address_of(busy)
        owner.delivery.set_addresses([first.address, second.address, new.address])
        settle(owner)
        assert owner.delivery.address_of(idle) == new.address
        owner.offer(busy, [1], Lane.LIVE)
        assert owner.delivery.address_of(busy) == home
        gate.set()
        wait_until(lambda: len(owner.acked) == 2, "acknowledged by the one that had it")
        owner.offer(busy, [2], Lane.LIVE)
        owner.drain()
        assert [address for address, _ in owner.acked] == [home, home, new.address]
        owner.check(new.stored, exactly_once=True)


def test_one_that_is_removed_acknowledges_what_it_was_sent_and_the_rest_goes_elsewhere_once(
    strangers: list[Stranger],
) -> None:
    gone, *others = strangers
    gate = threading.Event()
    gone.answer = late(gate)
    metrics = Metrics(version="0")
    addresses = [each.address for each in strangers]
    with Owner(*addresses, failover_after_s=30.0, queue_operations=20_000, metrics=metrics) as owner:
        owner.feed(dids=40, rounds=20)
        wait_until(lambda: owner.status(gone.address).in_flight_batches > 0, "something is under way")
        owner.delivery.set_addresses([each.address for each in others])
        wait_until(lambda: owner.status(gone.address).reason == "leaving", "it is awaited")
        sent = owner.status(gone.address).sent_operations
        owner.feed(dids=40, rounds=2, start=20)
        gate.set()
        settle(owner)
        owner.drain()
        owner.check(gone.stored, exactly_once=True)
        assert sum(segment.operations for address, segment in owner.acked if address == gone.address) == sent
        assert [status.address for status in owner.delivery.status()] == sorted(each.address for each in others)
        assert owner.delivery.departed.delivered_operations == sent
        wait_until(lambda: all(sender.address != gone.address for sender in owner.delivery.senders), "its thread ended")
        assert f'relay_in_flight_batches{{ingester="{gone.address}"}}' not in metrics.render().decode()
        assert len(gone.streams) == 1


def test_one_that_is_away_can_be_removed_and_what_it_had_is_sent_elsewhere(strangers: list[Stranger]) -> None:
    gone, *others = strangers
    gone.answer = lambda *_: iter(())
    with Owner(*(each.address for each in strangers), ack_timeout_s=0.5) as owner:
        owner.feed(dids=40, rounds=5)
        owner.await_health(gone.address, False, "ack_timeout")
        owner.delivery.set_addresses([each.address for each in others])
        owner.drain()
        settle(owner)
        owner.check(gone.stored)
        assert gone.address not in {address for address, _ in owner.acked}


def test_one_is_replaced_by_another_and_works_until_that_is_there(strangers: list[Stranger]) -> None:
    old, new, _ = strangers
    new.stop()
    with Owner(old.address) as owner:
        owner.delivery.set_addresses([new.address])
        owner.feed(dids=5, rounds=5)
        wait_until(lambda: len(owner.acked) == 25, "acknowledged by the old one")
        assert {address for address, _ in owner.acked} == {old.address}
        assert owner.delivery.addresses == (new.address,)
        new.start(new.port)
        settle(owner)
        owner.feed(dids=5, rounds=5, start=5)
        owner.drain()
        owner.check(new.stored, exactly_once=True)
        assert {address for address, _ in owner.acked[25:]} == {new.address}


def test_one_that_was_to_leave_and_is_wanted_again_stays(strangers: list[Stranger]) -> None:
    gate = threading.Event()
    strangers[0].answer = late(gate)
    addresses = [each.address for each in strangers]
    with Owner(*addresses) as owner:
        owner.feed(dids=40, rounds=5)
        wait_until(lambda: owner.status(addresses[0]).in_flight_batches > 0, "something is under way")
        owner.delivery.set_addresses(addresses[1:])
        wait_until(lambda: owner.status(addresses[0]).reason == "leaving", "it is awaited")
        assert owner.delivery.set_addresses(addresses) == ([addresses[0]], [])
        gate.set()
        owner.drain()
        owner.check(strangers[0].stored, exactly_once=True)
        assert owner.status(addresses[0]).healthy
        owner.delivery.set_addresses(addresses[1:])
        settle(owner)
        owner.delivery.set_addresses(addresses)
        settle(owner)
        owner.feed(dids=40, rounds=5, start=5)
        owner.drain()
        owner.check(strangers[0].stored, exactly_once=True)


def test_the_last_one_cannot_be_removed(strangers: list[Stranger]) -> None:
    with Owner(strangers[0].address) as owner:
        for bad in ([], [strangers[0].address] * 2):
            with pytest.raises(ValueError, match="at least one"):
                owner.delivery.set_addresses(bad)
        assert owner.delivery.addresses == (strangers[0].address,)


def test_joining_and_leaving_under_load_loses_nothing_and_keeps_the_order(strangers: list[Stranger]) -> None:
    addresses = [each.address for each in strangers]
    with Owner(*addresses, failover_after_s=0.2, batch_bytes=512) as owner:
        for turn in range(8):
            owner.feed(dids=40, rounds=5, start=10 * turn)
            wanted = addresses if turn % 2 else [each for each in addresses if each != addresses[turn // 2 % 3]]
            owner.delivery.set_addresses(wanted)
            owner.feed(dids=40, rounds=5, start=10 * turn + 5)
            if turn % 4 < 2:
                settle(owner)
        owner.drain()
        owner.check(strangers[0].stored, exactly_once=True)


def test_an_ingester_that_is_behind_is_told_of_while_another_one_is_not(strangers: list[Stranger]) -> None:
    slow, fast, _ = strangers
    gate = threading.Event()
    slow.answer = late(gate)
    with Owner(slow.address, fast.address, queue_operations=400) as owner:
        mine = next(did for did in DIDS if owner.delivery.address_of(did) == slow.address)
        other = next(did for did in DIDS if owner.delivery.address_of(did) == fast.address)
        owner.await_health(fast.address, True, "")
        number = 0
        while not owner.delivery.is_behind(mine):
            owner.offer(mine, range(number, number + 20))
            number += 20
        assert owner.delivery.has_room(mine), "what is in work by then has a place"
        assert not owner.delivery.is_behind(other)
        fast.answer = late(gate)
        while not owner.delivery.is_behind(other) and owner.delivery.is_behind(mine):
            owner.offer(other, range(number, number + 20))
            number += 20
        assert not owner.delivery.is_behind(mine), "where all are behind, nobody takes the others' places"
        gate.set()
        owner.drain()
