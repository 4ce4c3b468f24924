"""An ingester that is away loses its repos to the others, and gets them back: with real streams, and one database behind them all."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.deliver.health import Away
from relay.model import Lane
from relay.observe.metrics import Metrics
from tests.integration.deliver.owner import Owner
from tests.integration.deliver.stranger import Answers, Op, Stranger, Stream, acknowledge, ask_again
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

AFTER_S = 0.3


class Trio:
    """Three ingesters with one database."""

    def __init__(self) -> None:
        self.stored: list[Op] = []
        self.strangers = [Stranger(), Stranger(), Stranger()]
        for stranger in self.strangers:
            stranger.stored = self.stored
            stranger.start()

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(stranger.address for stranger in self.strangers)


@pytest.fixture
def trio(no_leaks: None) -> Iterator[Trio]:
    made = Trio()
    yield made
    for stranger in made.strangers:
        stranger.stop()


def mute(_stranger: Stranger, _stream: Stream, _batch_id: int, _operations: list[Op]) -> Answers:
    """Take everything, and say nothing."""
    return iter(())


def await_reason(owner: Owner, address: str, reason: str) -> None:
    wait_until(lambda: owner.status(address).reason == reason, f"{address} {reason or 'healthy'}")


def test_one_that_is_away_loses_its_repos_and_what_was_under_way_arrives_elsewhere_in_order(trio: Trio) -> None:
    gone = trio.strangers[0]
    gone.answer = mute
    metrics = Metrics(version="0")
    with Owner(*trio.addresses, ack_timeout_s=1.0, failover_after_s=AFTER_S, metrics=metrics) as owner:
        owner.feed(dids=30, rounds=20)
        await_reason(owner, gone.address, "failed_over")
        owner.feed(dids=30, rounds=20, start=20)
        gone.stop()
        owner.drain()
        owner.check(trio.stored)
        status = owner.status(gone.address)
        assert status.moved_repos > 0
        assert (status.in_flight_batches, status.queued_operations, status.healthy) == (0, 0, False)
        assert (False, "failed_over") in owner.health[gone.address]
        homes = {did for address, segment in owner.acked if address == gone.address for did in [segment.did]}
        assert not homes, "it acknowledged nothing"
        assert owner.status(trio.addresses[1]).moved_repos == 0
    (family,) = [
        each for each in text_string_to_metric_families(metrics.render().decode()) if each.name == "relay_moved_repos"
    ]
    assert {s.labels["ingester"]: s.value for s in family.samples if s.name.endswith("_total")} == {
        address: status.moved_repos if address == gone.address else 0 for address in trio.addresses
    }


def test_the_others_repos_stay_where_they_are(trio: Trio) -> None:
    with Owner(*trio.addresses, failover_after_s=AFTER_S) as owner:
        homes = {did: owner.delivery.address_of(did) for did in (f"did:plc:{number}" for number in range(60))}
        trio.strangers[2].stop()
        address = trio.strangers[2].address
        await_reason(owner, address, "failed_over")
        for did, home in homes.items():
            assert (owner.delivery.address_of(did) == home) == (home != address)
        trio.strangers[2].start(trio.strangers[2].port)
        await_reason(owner, address, "")
        assert {did: owner.delivery.address_of(did) for did in homes} == homes


def test_a_repo_goes_back_when_the_other_has_acknowledged_and_not_before(trio: Trio) -> None:
    may_answer = threading.Event()

    def late(stranger: Stranger, _stream: Stream, batch_id: int, operations: list[Op]) -> Answers:
        assert may_answer.wait(30.0)
        yield from acknowledge(stranger, _stream, batch_id, operations)

    home, *others = trio.strangers
    for other in others:
        other.answer = late
    with Owner(*trio.addresses, failover_after_s=AFTER_S) as owner:
        did = next(did for n in range(99) if owner.delivery.address_of(did := f"did:plc:{n}") == home.address)
        home.stop()
        await_reason(owner, home.address, "failed_over")
        owner.offer(did, [0], Lane.LIVE)
        guest_at = owner.delivery.address_of(did)
        assert guest_at != home.address
        home.start(home.port)
        await_reason(owner, home.address, "")
        owner.offer(did, [1], Lane.LIVE)
        assert owner.delivery.address_of(did) == guest_at
        may_answer.set()
        wait_until(lambda: len(owner.acked) == 2, "acknowledged elsewhere")
        assert owner.delivery.address_of(did) == home.address
        owner.offer(did, [2], Lane.LIVE)
        owner.drain()
        assert [address for address, _ in owner.acked] == [guest_at, guest_at, home.address]
        owner.check(trio.stored, exactly_once=True)


def test_with_nobody_left_nothing_moves_and_the_first_that_comes_back_gets_all(trio: Trio) -> None:
    with Owner(*trio.addresses, failover_after_s=AFTER_S, queue_operations=500) as owner:
        for stranger in trio.strangers:
            stranger.stop()
        for address in trio.addresses:
            wait_until(lambda address=address: not owner.status(address).healthy, f"{address} away")  # type: ignore[misc]
        assert owner.delivery.is_full(Lane.LIVE)
        owner.feed(dids=12, rounds=4)
        assert all(status.reason != "failed_over" for status in owner.delivery.status())
        trio.strangers[1].start(trio.strangers[1].port)
        owner.drain()
        owner.check(trio.stored, exactly_once=True)
        assert {address for address, _ in owner.acked} == {trio.strangers[1].address}
        assert not owner.delivery.is_full(Lane.LIVE)
        trio.strangers[0].start(trio.strangers[0].port)
        await_reason(owner, trio.strangers[0].address, "")


def test_zero_means_that_each_keeps_its_own(trio: Trio) -> None:
    gone = trio.strangers[0]
    gone.answer = mute
    with Owner(*trio.addresses, ack_timeout_s=0.5, failover_after_s=0.0) as owner:
        owner.feed(dids=30, rounds=5)
        owner.await_health(gone.address, False, Away.ACK_TIMEOUT.value)
        wait_until(lambda: owner.status(gone.address).reconnects >= 2, "away for longer than the others' fail-over")
        assert owner.status(gone.address).moved_repos == 0
        gone.answer = acknowledge
        owner.drain()
        owner.check(trio.stored)
        assert {address for address, _ in owner.acked} == set(trio.addresses)


def test_an_ingester_that_answers_nothing_but_retry_is_away_and_no_operation_is_to_blame(trio: Trio) -> None:
    def later(_stranger: Stranger, stream: Stream, batch_id: int, _operations: list[Op]) -> Answers:
        yield ask_again(stream, batch_id, 0, "database away")

    trio.strangers[1].answer = later
    with Owner(*trio.addresses, failover_after_s=AFTER_S, max_retries=1) as owner:
        owner.feed(dids=30, rounds=10)
        owner.drain()
        owner.check(trio.stored, exactly_once=True)
        assert owner.status(trio.addresses[1]).moved_repos > 0
        assert not owner.dead


def test_packets_that_are_dropped_are_seen_by_the_acknowledgements_that_do_not_come(trio: Trio) -> None:
    far = trio.strangers[2]
    with Proxy("127.0.0.1", far.port) as proxy:
        address = f"127.0.0.1:{proxy.port}"
        with Owner(*trio.addresses[:2], address, ack_timeout_s=0.5, failover_after_s=AFTER_S) as owner:
            owner.feed(dids=30, rounds=5)
            owner.drain()
            proxy.stall()
            owner.feed(dids=30, rounds=5, start=5)
            await_reason(owner, address, "failed_over")
            owner.drain()
            owner.check(trio.stored)
            proxy.resume()
            await_reason(owner, address, "")
            owner.feed(dids=30, rounds=5, start=10)
            owner.drain()
            owner.check(trio.stored)


def test_coming_and_going_under_load_loses_nothing_and_keeps_the_order(trio: Trio) -> None:
    with Owner(*trio.addresses, failover_after_s=0.1, batch_bytes=512) as owner:
        for turn in range(6):
            stranger = trio.strangers[turn % 3]
            owner.feed(dids=40, rounds=5, start=15 * turn)
            stranger.stop()
            owner.feed(dids=40, rounds=5, start=15 * turn + 5)
            if turn % 2:
                await_reason(owner, stranger.address, "failed_over")
            owner.feed(dids=40, rounds=5, start=15 * turn + 10)
            stranger.start(stranger.port)
        owner.drain()
        owner.check(trio.stored)
        assert sum(status.moved_repos for status in owner.delivery.status()) > 0
