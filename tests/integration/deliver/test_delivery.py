from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import HealthServicer

from relay.deliver import sender
from relay.model import Lane
from relay.observe.metrics import Metrics
from relay.pb.ingester_pb2 import HealthCheckResponse, OperationError, OperationResponse
from tests.integration.deliver.owner import DEADLINE_S, Owner
from tests.integration.deliver.stranger import Answers, Op, Stranger, Stream, acknowledge, ask_again, refuse
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def stranger(no_leaks: None) -> Iterator[Stranger]:
    made = Stranger().start()
    yield made
    made.stop()


def free_port() -> int:
    made = Stranger().start()
    made.stop()
    return made.port


def test_without_faults_every_operation_arrives_once_and_in_order(stranger: Stranger) -> None:
    with Owner(stranger.address) as owner:
        owner.feed()
        owner.drain()
        owner.check(stranger.stored, exactly_once=True)
        status = owner.status(stranger.address)
        assert (status.sent_operations, status.delivered_operations, status.resent_operations) == (2100, 2100, 0)
        assert (status.in_flight_batches, status.queued_operations, status.oldest_unacked_s) == (0, 0, None)
        assert (status.streams, status.reconnects) == (1, 0)
        assert len(stranger.streams[0].batches) == status.sent_batches


def test_a_stream_tells_the_relays_name_and_version(stranger: Stranger) -> None:
    from relay import __version__

    with Owner(stranger.address) as owner:
        owner.feed(rounds=1)
        owner.drain()
    metadata = stranger.streams[0].metadata
    assert (metadata["relay-name"], metadata["relay-version"]) == ("test relay", __version__)


def test_an_ingester_that_is_absent_at_start_is_waited_for() -> None:
    port = free_port()
    stranger = Stranger()
    with Owner(f"127.0.0.1:{port}") as owner:
        owner.feed(rounds=10)
        owner.await_health(f"127.0.0.1:{port}", False, "unreachable")
        status = owner.status(f"127.0.0.1:{port}")
        assert not status.healthy
        assert "UNAVAILABLE" in status.detail
        assert not owner.delivery.drain(time.monotonic())
        try:
            stranger.start(port)
            owner.await_health(f"127.0.0.1:{port}", True, "")
            owner.drain()
            owner.check(stranger.stored, exactly_once=True)
        finally:
            stranger.stop()


def test_a_port_that_accepts_and_never_greets_is_given_up_by_connecting_and_not_by_the_health_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("relay.deliver.sender.PROBE_TIMEOUT_S", 300.0)
    monkeypatch.setattr("relay.deliver.channel.CONNECT_TIMEOUT_MS", 300)
    stranger = Stranger()
    mute = socket.create_server(("127.0.0.1", 0))
    port: int = mute.getsockname()[1]
    with Owner(f"127.0.0.1:{port}") as owner:
        owner.feed(rounds=10)
        with mute:
            # gRPC by itself would try for 20 s.
            owner.await_health(f"127.0.0.1:{port}", False, "unreachable", deadline_s=15.0)
            assert "SETTINGS" in owner.status(f"127.0.0.1:{port}").detail
        try:
            stranger.start(port)
            owner.drain()
            owner.check(stranger.stored, exactly_once=True)
        finally:
            stranger.stop()


def test_an_ingester_that_stops_and_comes_back_gets_everything() -> None:
    stranger = Stranger().start()
    try:
        with Owner(stranger.address) as owner:
            for number in range(4):
                owner.feed(rounds=20, start=number * 20)
                wait_until(lambda number=number: len(set(stranger.stored)) > number * 700, "some operations stored")  # type: ignore[misc]
                stranger.stop()
                wait_until(lambda: not owner.status(stranger.address).healthy, "the loss is seen")
                stranger.start(stranger.port)
            owner.drain()
            owner.check(stranger.stored)
            assert owner.status(stranger.address).reconnects >= 4
    finally:
        stranger.stop()


def test_an_ingester_that_is_killed_again_and_again_gets_everything(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "stored"
    path.touch()
    rng = random.Random(7)
    command = [sys.executable, "-m", "tests.integration.deliver.stranger", str(port), str(path)]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening")
        return process

    def kill(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)
        assert process.stdout is not None
        process.stdout.close()

    process = start()
    try:
        with Owner(f"127.0.0.1:{port}") as owner:
            for number in range(4):
                wanted = path.stat().st_size + rng.randrange(1, 4000)
                owner.feed(rounds=30, start=number * 30)
                wait_until(lambda wanted=wanted: path.stat().st_size > wanted, "some operations stored")  # type: ignore[misc]
                kill(process)
                process = start()
            owner.drain()
            stored = [(did, int(key)) for did, key in (line.split() for line in path.read_text().splitlines())]
            owner.check(stored)
    finally:
        kill(process)


def test_acknowledgements_that_come_late_twice_and_for_many_batches_are_fine(stranger: Stranger) -> None:
    def late(stranger: Stranger, stream: Stream, batch_id: int, operations: list[Op]) -> Answers:
        stranger.store(operations)
        if batch_id % 3 == 0 or sum(len(batch) for batch in stream.batches) == 2100:
            yield OperationResponse(batch_id=batch_id)
            yield OperationResponse(batch_id=batch_id)

    stranger.answer = late
    with Owner(stranger.address) as owner:
        owner.feed()
        owner.drain()
        owner.check(stranger.stored, exactly_once=True)
        assert owner.status(stranger.address).streams == 1


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda number: [OperationResponse(batch_id=number + 100)], id="a batch that was never sent"),
        pytest.param(
            lambda number: [OperationResponse(batch_id=number), OperationResponse(batch_id=number - 1)],
            id="out of order",
        ),
        pytest.param(
            lambda number: [refuse(number, 10_000, OperationError.REJECT, "")], id="an index beyond the batch"
        ),
        pytest.param(lambda number: [refuse(number, 0, OperationError.CODE_UNSPECIFIED, "")], id="no code"),
    ],
)
def test_an_answer_that_cannot_be_right_resets_the_stream_and_loses_nothing(
    stranger: Stranger, wrong: Callable[[int], list[OperationResponse]]
) -> None:
    def confused(stranger: Stranger, stream: Stream, batch_id: int, operations: list[Op]) -> Answers:
        stranger.store(operations)
        if len(stranger.streams) <= 3 and batch_id == 3:
            yield from wrong(batch_id)
        else:
            yield OperationResponse(batch_id=batch_id)

    stranger.answer = confused
    with Owner(stranger.address) as owner:
        owner.feed(rounds=30)
        owner.drain()
        owner.check(stranger.stored)
        assert len(stranger.streams) == 4
        assert not owner.dead


def test_an_ingester_that_takes_everything_and_acknowledges_nothing_is_away_and_gets_it_again(
    stranger: Stranger,
) -> None:
    gate = threading.Event()

    def silent(stranger: Stranger, stream: Stream, batch_id: int, operations: list[Op]) -> Answers:
        if batch_id == 1:
            stream.is_over = (
                not gate.is_set()
            )  # a stream that began silent stays so: what it swallowed would be missing before the rest
        if not stream.is_over:
            yield from acknowledge(stranger, stream, batch_id, operations)

    stranger.answer = silent
    with Owner(stranger.address, ack_timeout_s=0.3) as owner:
        owner.feed(rounds=20)
        owner.await_health(stranger.address, False, "ack_timeout")
        wait_until(lambda: len(stranger.streams) > 2, "a new stream after each timeout")
        assert not owner.status(stranger.address).healthy
        assert owner.status(stranger.address).in_flight_bytes <= 8 * 1024 + 1024
        gate.set()
        owner.await_health(stranger.address, True, "")
        owner.drain()
        owner.check(stranger.stored, exactly_once=True)


def test_retry_for_a_while_is_waited_out_and_costs_no_operation(stranger: Stranger) -> None:
    gate = threading.Event()

    def busy(stranger: Stranger, stream: Stream, batch_id: int, operations: list[Op]) -> Answers:
        if gate.is_set():
            yield from acknowledge(stranger, stream, batch_id, operations)
        else:
            yield ask_again(stream, batch_id, 0, "database away")

    stranger.answer = busy
    with Owner(stranger.address, max_retries=1) as owner:
        owner.feed(rounds=20)
        wait_until(lambda: len(stranger.streams) > 5, "tried again with a back-off")
        owner.await_health(stranger.address, False, "retry")
        assert owner.status(stranger.address).detail == "database away"
        gate.set()
        owner.drain()
        owner.check(stranger.stored, exactly_once=True)
        assert not owner.dead


def test_an_operation_that_is_always_answered_with_retry_becomes_a_dead_letter_alone(stranger: Stranger) -> None:
    def allergic(stranger: Stranger, stream: Stream, batch_id: int, operations: list[Op]) -> Answers:
        if ("did:plc:3", 17) in operations:
            yield ask_again(stream, batch_id, operations.index(("did:plc:3", 17)), "cannot")
        else:
            yield from acknowledge(stranger, stream, batch_id, operations)

    stranger.answer = allergic
    with Owner(stranger.address, max_retries=2, retry_backoff_ms=1) as owner:
        owner.feed(rounds=30)
        for number in range(100):
            if owner.dead:
                break
            owner.offer(f"did:plc:other{number}", range(3), Lane.LIVE)
            wait_until(lambda: owner.dead or owner.status(stranger.address).queued_live == 0, "the operation passed")
        owner.drain()
        owner.check(stranger.stored)
        (dead,) = owner.dead
        assert (dead.segment.did, dead.index, dead.reason, dead.message) == ("did:plc:3", 2, "retries", "cannot")
        assert (dead.ingester, dead.attempts) == (stranger.address, 3)


def test_a_rejected_operation_is_told_and_the_rest_goes_on(stranger: Stranger) -> None:
    def picky(stranger: Stranger, stream: Stream, batch_id: int, operations: list[Op]) -> Answers:
        bad = [place for place, (_, key) in enumerate(operations) if key % 50 == 7]
        stranger.store([operation for operation in operations if operation[1] % 50 != 7])
        errors = [OperationError(index=place, code=OperationError.REJECT, message="seven") for place in bad]
        yield OperationResponse(batch_id=batch_id, errors=errors)

    stranger.answer = picky
    with Owner(stranger.address) as owner:
        owner.feed()
        owner.drain()
        owner.check(stranger.stored, exactly_once=True)
        assert len(owner.dead) == 7 * 6
        assert {(dead.reason, dead.message, dead.attempts) for dead in owner.dead} == {("rejected", "seven", 1)}
        status = owner.status(stranger.address)
        assert (status.refused_operations, status.delivered_operations, status.streams) == (42, 2100 - 42, 1)


def test_an_ingester_that_closes_the_stream_every_few_batches_gets_everything(stranger: Stranger) -> None:
    stranger.closes_after = 10
    with Owner(stranger.address, retry_backoff_ms=1) as owner:
        owner.feed(rounds=40)
        owner.drain()
        owner.check(stranger.stored)
        assert len(stranger.streams) > 3


def test_a_connection_that_passes_nothing_on_is_given_up_and_made_anew(
    stranger: Stranger, start_proxy: Callable[[int], Proxy]
) -> None:
    proxy = start_proxy(stranger.port)
    address = f"127.0.0.1:{proxy.port}"
    with Owner(address, ack_timeout_s=0.5) as owner:
        owner.feed(rounds=5)
        owner.drain()
        proxy.stall()
        owner.feed(rounds=20, start=5)
        owner.await_health(address, False, "ack_timeout")
        proxy.cut()  # of the old connection nothing comes through any more
        proxy.resume()
        owner.drain()
        owner.check(stranger.stored)


def test_a_connection_that_is_cut_in_the_middle_of_batches_loses_nothing(
    stranger: Stranger, start_proxy: Callable[[int], Proxy]
) -> None:
    proxy = start_proxy(stranger.port)
    with Owner(f"127.0.0.1:{proxy.port}", retry_backoff_ms=1) as owner:
        for number in range(6):
            proxy.cut_after(5_000 + 1_717 * number)
            owner.feed(rounds=40, start=number * 40)
        proxy.cut_after(1 << 40)
        owner.drain()
        owner.check(stranger.stored)
        assert owner.status(f"127.0.0.1:{proxy.port}").reconnects >= 3


def test_an_ingester_without_health_check_is_not_unhealthy(stranger: Stranger) -> None:
    stranger.has_health_check = False
    with Owner(stranger.address) as owner:
        owner.feed(rounds=2)
        owner.drain()
        owner.await_health(stranger.address, True, "")
        assert owner.health[stranger.address] == [(True, "")]
        owner.check(stranger.stored, exactly_once=True)


def test_an_ingester_with_the_standard_health_check_only_is_asked_that_way(
    no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "HEALTH_INTERVAL_S", 0.1)
    stranger = Stranger()
    stranger.has_health_check = False
    health = stranger.standard_health = HealthServicer(experimental_non_blocking=False)
    stranger.start()
    not_serving, serving = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING
    health.set("", not_serving)
    with Owner(stranger.address) as owner:
        owner.feed(rounds=2)
        owner.await_health(stranger.address, False, "not_serving")
        assert not stranger.streams
        health.set("", serving)
        owner.drain()
        owner.check(stranger.stored, exactly_once=True)
        health.set("", not_serving)
        owner.health[stranger.address].clear()
        owner.await_health(stranger.address, False, "not_serving")
        assert len(stranger.streams) == 1, "its stream stays"
        health.set("", serving)
        owner.await_health(stranger.address, True, "")
    stranger.stop()


def test_the_contracts_own_health_check_is_asked_before_the_standard_one(no_leaks: None) -> None:
    stranger = Stranger()
    health = stranger.standard_health = HealthServicer(experimental_non_blocking=False)
    health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    stranger.start()
    with Owner(stranger.address) as owner:
        owner.feed(rounds=2)
        owner.drain()
        owner.check(stranger.stored, exactly_once=True)
        assert owner.health[stranger.address] == [(True, "")]
    stranger.stop()


def test_an_ingester_that_is_not_serving_is_not_sent_anything_until_it_is(stranger: Stranger) -> None:
    stranger.health = HealthCheckResponse.NOT_SERVING
    with Owner(stranger.address) as owner:
        owner.feed(rounds=2)
        owner.await_health(stranger.address, False, "not_serving")
        wait_until(lambda: stranger.health_checks > 2, "asked again")
        assert stranger.streams == []
        assert owner.status(stranger.address).detail == "told to say so"
        stranger.health = HealthCheckResponse.SERVING
        owner.drain()
        owner.check(stranger.stored, exactly_once=True)


def test_each_ingester_gets_its_own_dids_and_an_absent_one_does_not_hold_the_others(stranger: Stranger) -> None:
    other, absent = Stranger().start(), f"127.0.0.1:{free_port()}"
    try:
        with Owner(stranger.address, other.address, absent, queue_operations=100) as owner:
            dids = [f"did:plc:many{number}" for number in range(60)]
            home = {did: owner.delivery.address_of(did) for did in dids}
            assert set(home.values()) == {stranger.address, other.address, absent}
            reachable = [did for did in dids if home[did] != absent]
            for number in range(5):
                for did in reachable:
                    owner.offer(did, range(number * 4, number * 4 + 4))
            (unlucky, *_) = [did for did in dids if home[did] == absent]
            key = 0
            while owner.delivery.has_room(unlucky):
                owner.offer(unlucky, [key])
                key += 1
            assert key == 50  # half of delivery.queue_operations is for backfill
            assert owner.delivery.has_room(unlucky, Lane.LIVE)
            wait_until(lambda: len(owner.acked) == 5 * len(reachable), "the others are done")
            for one in (stranger, other):
                assert {did for did, _ in one.stored} == {did for did in dids if home[did] == one.address}
            gone = owner.delivery.discard(unlucky, Lane.BACKFILL)
            assert [segment.did for segment in gone] == [unlucky] * 50
            assert owner.delivery.has_room(unlucky)
            assert owner.delivery.drain(time.monotonic() + DEADLINE_S)
    finally:
        other.stop()


def test_metrics_tell_sent_and_delivered(stranger: Stranger) -> None:
    metrics = Metrics(version="test")
    with Owner(stranger.address, metrics=metrics) as owner:
        owner.feed(rounds=2)
        owner.drain()
        owner.await_health(stranger.address, True, "")
        wait_until(lambda: b"relay_healthy_ingesters 1.0" in metrics.render(), "the gauge")
        text = metrics.render().decode()
        assert f'relay_operations_sent_total{{ingester="{stranger.address}"}} 70.0' in text
        assert f'relay_operations_delivered_total{{ingester="{stranger.address}"}} 70.0' in text
        assert 'relay_operation_duration_seconds_count{lane="backfill"} 70.0' in text


def test_an_owner_whose_callback_fails_is_told_and_nothing_goes_on_in_silence(
    stranger: Stranger, caplog: pytest.LogCaptureFixture
) -> None:
    with Owner(stranger.address) as owner:
        owner.fails_on_acknowledged = KeyError("a fault of ours")
        owner.feed(rounds=1)
        wait_until(lambda: owner.deaths, "the death is told")
        assert owner.deaths == [owner.fails_on_acknowledged]
        assert not owner.delivery.drain(time.monotonic() + 5)
    assert "thread_died" in caplog.text


def test_nothing_is_taken_after_a_stop(stranger: Stranger) -> None:
    with Owner(stranger.address) as owner:
        owner.feed(rounds=1)
        owner.drain()
        owner.delivery.request_stop()
        segment = owner.offered[0]
        segment.payload = bytes(segment.size)
        assert not owner.delivery.offer(segment)
