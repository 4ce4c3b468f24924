"""The gRPC service on loopback, with real sinks."""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import signal
import socket
import struct
import threading
from pathlib import Path
from typing import IO

import grpc
import psycopg2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from relay.ingester.errors import ListenFailed
from relay.ingester.faults import parse_faults
from relay.ingester.server import MAX_STREAMS, IngesterServer, ServerOptions
from relay.ingester.sinks.choose import make_sink
from relay.pb import ingester_pb2 as pb
from relay.pb import ingester_pb2_grpc as pb_grpc
from relay.store.embedded import EmbeddedPostgres
from tests.integration.ingester.client import Delivery, numbered, serving, stop, stub_of
from tests.integration.ingester.tables import postgresql_tables, sqlite_tables
from tests.support.waiting import wait_until

SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING


def create(number: int, did: str = "did:plc:aaa", rev: str = "3ka") -> pb.Operation:
    return pb.Operation(
        type=pb.CREATE, did=did, collection="a.b.c", rkey=f"r{number:06}", rev=rev, cid="bafy1", record_json="{}"
    )


def health(stub: pb_grpc.IngesterServiceStub) -> pb.HealthCheckResponse:
    response: pb.HealthCheckResponse = stub.HealthCheck(pb.HealthCheckRequest(), timeout=10)
    return response


class OpenStream:
    """A stream that is written by hand; closed by `with`."""

    def __init__(self, stub: pb_grpc.IngesterServiceStub) -> None:
        self._queue: queue.SimpleQueue[pb.OperationRequest | None] = queue.SimpleQueue()
        self.call = stub.StreamOperations(iter(self._queue.get, None), timeout=30)

    def send(self, *requests: pb.OperationRequest) -> None:
        for request in requests:
            self._queue.put(request)

    def next(self) -> pb.OperationResponse:
        response: pb.OperationResponse = next(self.call)
        return response

    def await_ack(self, batch_id: int) -> None:
        while self.next().batch_id < batch_id:
            pass

    def __enter__(self) -> OpenStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self.call.cancel()


def test_what_is_acknowledged_is_in_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with serving(f"sqlite://{path}") as (_, stub), OpenStream(stub) as stream:
        for place, request in enumerate(numbered([[create(n)] for n in range(5)]), 1):
            stream.send(request)
            stream.await_ack(place)
            assert len(sqlite_tables(path)[0]) == place


def test_batches_that_gathered_are_acknowledged_together(tmp_path: Path) -> None:
    batches = numbered([[create(n)] for n in range(300)])
    with serving(f"sqlite://{tmp_path}/x.db") as (server, stub):
        responses = list(stub.StreamOperations(iter(batches), timeout=30))
        assert responses[-1].batch_id == 300
        assert [r.batch_id for r in responses] == sorted({r.batch_id for r in responses})
        assert int(server.details()["transactions"]) <= 300
        assert server.details()["operations"] == "300"


@pytest.mark.parametrize("wrong", [0, 2, 4, 9])
def test_a_batch_id_that_is_not_the_next_one_ends_the_stream(wrong: int) -> None:
    with serving("null:") as (_, stub):
        requests = [*numbered([[create(n)] for n in range(2)]), pb.OperationRequest(batch_id=wrong)]
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.StreamOperations(iter(requests), timeout=30))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "expected 3" in str(caught.value.details())


def test_bytes_that_are_no_batch_end_the_stream_only() -> None:
    with serving("null:") as (server, stub):
        with grpc.insecure_channel(server.address) as channel:
            raw = channel.stream_stream("/ingester.v1.IngesterService/StreamOperations", bytes, bytes)
            with pytest.raises(grpc.RpcError) as caught:
                list(raw(iter([b"\xff\xff"]), timeout=30))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert health(stub).status == SERVING


def test_a_malformed_operation_is_rejected_by_its_index_and_the_rest_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    bad = create(1)
    bad.rkey = ""
    delivery = Delivery([[create(0), bad, create(2)], [create(3)], [bad]])
    with serving(f"sqlite://{path}") as (_, stub):
        delivery.run(stub)
    assert delivery.rejected == {(0, 1), (2, 0)}
    assert {key[2] for key in sqlite_tables(path)[0]} == {"r000000", "r000002", "r000003"}


def test_a_rejected_operation_that_comes_again_later_is_rejected_again(tmp_path: Path) -> None:
    bad = create(1, rev="3ka")
    bad.record_json = "no json"
    delivery = Delivery([[bad], [create(2, rev="3kb")], [bad]])
    with serving(f"sqlite://{tmp_path}/x.db") as (_, stub):
        delivery.run(stub)
    assert delivery.rejected == {(0, 0), (2, 0)}


def test_ingest_stores_one_batch_and_answers_with_its_id(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with serving(f"sqlite://{path}") as (_, stub):
        response = stub.Ingest(pb.OperationRequest(batch_id=77, operations=[create(1), pb.Operation()]), timeout=10)
        assert response.batch_id == 77
        assert [(error.index, error.code) for error in response.errors] == [(1, pb.OperationError.REJECT)]
        assert len(sqlite_tables(path)[0]) == 1


def test_health_tells_what_was_stored() -> None:
    with serving("null:?count=1") as (_, stub):
        Delivery([[create(1), create(2)], [pb.Operation()]]).run(stub)
        answer = health(stub)
    assert answer.status == SERVING
    details = dict(answer.details)
    assert (details["operations"], details["batches"], details["refused"]) == ("2", "2", "1")
    assert (details["queued_batches"], details["lag_s"], details["sink"]) == ("0", "0.000", "null")


def test_a_database_that_goes_away_is_answered_with_retry_until_it_is_back(database_dsn: str) -> None:
    name = psycopg2.extensions.parse_dsn(database_dsn)["dbname"]
    admin = psycopg2.connect(psycopg2.extensions.make_dsn(database_dsn, dbname="postgres"))
    admin.autocommit = True
    delivery = Delivery([[create(n)] for n in range(10)])
    with serving(as_url(database_dsn)) as (server, stub), contextlib.closing(admin), admin.cursor() as cursor:
        with OpenStream(stub) as stream:
            stream.send(*numbered(delivery.batches)[:3])
            stream.await_ack(3)
            delivery.acknowledged = 3
            cursor.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            stream.send(*numbered(delivery.batches)[3:5])
            response = stream.next()
            assert response.batch_id == 4
            assert [error.code for error in response.errors] == [pb.OperationError.RETRY]
            assert list(stream.call) == []  # and the stream is over
        delivery.attempt(stub)
        assert (delivery.acknowledged, delivery.retries) == (3, 1)
        assert health(stub).status == NOT_SERVING
        assert "the sink is away: PostgreSQL" in health(stub).message
        cursor.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

        def is_delivered() -> bool:
            delivery.attempt(stub)
            return delivery.acknowledged == 10

        wait_until(is_delivered, "everything acknowledged")
        assert health(stub).status == SERVING
        assert server.details()["operations"] == "10"
    assert len(postgresql_tables(database_dsn)[0]) == 10


def test_nothing_acknowledged_is_missing_when_the_database_server_is_killed_in_the_middle(short_folder: Path) -> None:
    postgres = EmbeddedPostgres(short_folder / "s")
    postgres.open()
    try:
        delivery = Delivery([[create(5 * n + k, did=f"did:plc:d{n % 50}") for k in range(5)] for n in range(6000)])
        killed_in_the_middle = 0
        with serving(as_url(postgres.dsn)) as (_, stub):
            for kill_at in (100, 400, 800):
                thread = threading.Thread(target=delivery.attempt, args=(stub,))
                thread.start()
                wait_until(lambda at=kill_at: delivery.acknowledged >= at, "enough acknowledged")  # type: ignore[misc]
                os.kill(int((short_folder / "s" / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
                thread.join(30)
                assert not thread.is_alive()
                killed_in_the_middle += delivery.acknowledged < len(delivery.batches)
                postgres.ensure_running()
                stored = {key[2] for key in postgresql_tables(postgres.dsn)[0]}
                assert {f"r{n:06}" for n in range(5 * delivery.acknowledged)} <= stored

                def goes_on(before: int = delivery.acknowledged) -> bool:
                    # A stream of one batch: the next kill shall find work to do.
                    one = Delivery(delivery.batches[:before][-1:])
                    one.attempt(stub)
                    return one.acknowledged == 1

                wait_until(goes_on, "the ingester has its database back")
            assert killed_in_the_middle > 0, "every kill came too late"
            delivery.run(stub)
        assert len(postgresql_tables(postgres.dsn)[0]) == 5 * len(delivery.batches)
    finally:
        postgres.close()


def as_url(dsn: str) -> str:
    parts = psycopg2.extensions.parse_dsn(dsn)
    return f"postgresql:///{parts['dbname']}?" + "&".join(
        f"{name}={value}" for name, value in parts.items() if name != "dbname"
    )


def test_a_table_that_somebody_dropped_ends_the_ingester_and_its_streams(database_dsn: str) -> None:
    failed = threading.Event()
    server = IngesterServer(make_sink(as_url(database_dsn)), ServerOptions(listen="127.0.0.1:0"), failed.set)
    server.start()
    try:
        with (
            contextlib.closing(psycopg2.connect(database_dsn)) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("DROP TABLE record")
        with grpc.insecure_channel(server.address) as channel:
            stub = stub_of(channel)
            delivery = Delivery([[create(1)]])
            delivery.attempt(stub)
            assert failed.wait(10)
            assert delivery.acknowledged == 0
            assert health(stub).status == NOT_SERVING
            assert 'relation "record" does not exist' in str(server.failure)
            with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
                stub.Ingest(pb.OperationRequest(batch_id=1), timeout=10)
    finally:
        stop(server)


def test_stopping_acknowledges_what_was_received_and_ends_the_streams_in_peace(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    server = IngesterServer(make_sink(f"sqlite://{path}"), ServerOptions(listen="127.0.0.1:0"))
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        stub = stub_of(channel)
        with OpenStream(stub) as stream:
            stream.send(*numbered([[create(n)] for n in range(200)]))
            acknowledged = stream.next().batch_id
            assert stop(server)
            for response in stream.call:
                acknowledged = response.batch_id
            assert stream.call.code() == grpc.StatusCode.OK
    assert len(sqlite_tables(path)[0]) == acknowledged


def test_one_stream_that_is_not_written_does_not_hold_another() -> None:
    with serving("null:") as (_, stub), OpenStream(stub) as idle, OpenStream(stub) as busy:
        idle.send(*numbered([[create(1)]]))
        idle.await_ack(1)
        busy.send(*numbered([[create(n)] for n in range(50)]))
        busy.await_ack(50)


def test_health_answers_beside_the_greatest_number_of_streams() -> None:
    with serving("null:") as (server, stub), contextlib.ExitStack() as stack:
        first = numbered([[create(1)]])
        for _ in range(MAX_STREAMS):
            stream = stack.enter_context(OpenStream(stub))
            stream.send(*first)
            stream.await_ack(1)
        assert health(stub).details["streams"] == str(MAX_STREAMS)
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            list(stub.StreamOperations(iter(first), timeout=10))
        stack.close()
        wait_until(lambda: server.details()["streams"] == "0", "all streams forgotten")
        Delivery([[create(1)]]).run(stub)


def test_pings_on_an_idle_connection_are_permitted() -> None:
    # By hand: gRPC's own client holds pings back, whatever it is told.
    pings = 8
    ping = struct.pack(">HBBBI8s", 0, 8, 6, 0, 0, b"pingpong")
    with (
        serving("null:") as (server, _),
        socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), timeout=10) as connection,
        connection.makefile("rb") as frames,
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">HBBBI", 0, 0, 4, 0, 0))
        for _ in range(pings):
            connection.sendall(ping)
            while (kind := next_frame(frames)) != "PING":
                # A server that counts these pings as strikes cuts the connection after the third one.
                assert kind != "GOAWAY"


def next_frame(frames: IO[bytes]) -> str:
    header = frames.read(9)
    assert len(header) == 9, "the server has closed the connection"
    frames.read(int.from_bytes(header[:3]))
    return {4: "SETTINGS", 6: "PING", 7: "GOAWAY"}.get(header[3], str(header[3]))


def test_a_port_in_use_is_told() -> None:
    with serving("null:") as (server, _), pytest.raises(ListenFailed, match=f"{server.address}: the address is in use"):
        IngesterServer(make_sink("null:"), ServerOptions(listen=server.address)).start()


def test_a_unix_socket_serves_too(tmp_path: Path) -> None:
    server = IngesterServer(make_sink("null:"), ServerOptions(listen=f"unix:{tmp_path}/s"))
    assert server.start() == f"unix:{tmp_path}/s"
    with grpc.insecure_channel(server.address) as channel:
        Delivery([[create(1)]]).run(stub_of(channel))
    stop(server)


def test_a_message_above_the_limit_is_refused_and_one_below_is_not() -> None:
    with serving("null:", max_message_bytes=100_000) as (_, stub):
        for size, code in ((90_000, None), (110_000, grpc.StatusCode.RESOURCE_EXHAUSTED)):
            op = create(1)
            op.record_json = '{"t":"%s"}' % ("x" * size)
            call = stub.StreamOperations(iter(numbered([[op]])), timeout=10)
            if code is None:
                assert [response.batch_id for response in call] == [1]
            else:
                with pytest.raises(grpc.RpcError):
                    list(call)
                assert call.code() == code


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


def test_tls_asks_for_the_clients_certificate_when_told_to(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    options = ServerOptions(listen="localhost:0", tls_cert=str(cert), tls_key=str(key), tls_client_ca=str(cert))
    server = IngesterServer(make_sink("null:"), options)
    server.start()
    try:
        known = grpc.ssl_channel_credentials(cert.read_bytes(), key.read_bytes(), cert.read_bytes())
        with grpc.secure_channel(server.address, known) as channel:
            Delivery([[create(1)]]).run(stub_of(channel))
        unknown = grpc.ssl_channel_credentials(cert.read_bytes())
        with grpc.secure_channel(server.address, unknown) as channel, pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            health(stub_of(channel))
    finally:
        stop(server)


def test_a_certificate_that_is_not_there_is_told(tmp_path: Path) -> None:
    options = ServerOptions(listen="127.0.0.1:0", tls_cert=f"{tmp_path}/no.pem", tls_key=f"{tmp_path}/no.key")
    with pytest.raises(ListenFailed, match=r"TLS: .*no\.key"):
        IngesterServer(make_sink("null:"), options).start()


# Misbehaving on purpose


@pytest.mark.parametrize(
    "specs",
    [
        ["retry-every=7"],
        ["close-every=5"],
        ["ack-twice=1", "ack-stale=1"],
        ["reject-rate=0.2", "close-every=4", "retry-every=9", "ack-stale=1", "seed=3"],
    ],
    ids=" ".join,
)
def test_a_relay_that_sends_again_loses_nothing_whatever_the_fault(tmp_path: Path, specs: list[str]) -> None:
    plan = parse_faults(specs)
    path = tmp_path / "x.db"
    delivery = Delivery([[create(3 * n), create(3 * n + 1), create(3 * n + 2)] for n in range(40)])
    with serving(f"sqlite://{path}", faults=plan) as (_, stub):
        delivery.run(stub)
    refused = {op.rkey for batch in delivery.batches for op in batch if plan.refuse(op)}
    told = {delivery.batches[place][index].rkey for place, index in delivery.rejected}
    assert told == refused
    assert {key[2] for key in sqlite_tables(path)[0]} == {f"r{n:06}" for n in range(120)} - refused
    if plan.retry_every:
        assert delivery.retries > 0
    if plan.close_every:
        assert delivery.streams > 5


def test_never_ack_stores_and_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with serving(f"sqlite://{path}", faults=parse_faults(["never-ack=1"])) as (_, stub):
        assert list(stub.StreamOperations(iter(numbered([[create(1)]])), timeout=10)) == []
    assert len(sqlite_tables(path)[0]) == 1


def test_not_serving_is_said_in_health_alone() -> None:
    with serving("null:", faults=parse_faults(["not-serving=1"])) as (_, stub):
        assert health(stub).status == NOT_SERVING
        Delivery([[create(1)]]).run(stub)


def test_the_order_of_each_stream_is_checked_with_any_sink() -> None:
    with serving("null:", check_order=True) as (server, stub):
        Delivery([[create(1, rev="3kb")]]).run(stub)
        Delivery([[create(2, rev="3ka")]]).run(stub)  # a stream of its own: nothing is known of it
        assert server.order_violations() == (0, "")
        Delivery([[create(1, rev="3kb")], [create(2, rev="3ka")]]).run(stub)
        assert health(stub).details["order_violations"] == "1"
        assert health(stub).details["order_first"] == "CREATE of did:plc:aaa: rev 3ka after 3kb"
