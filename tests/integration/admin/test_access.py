"""Who may call what on grpc.port: token, TLS and mutual TLS, right and wrong; and that nothing is served off loopback without a token."""

from __future__ import annotations

import datetime as dt
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from relay.admin.auth import load_token
from relay.admin.control import AdminService, Control
from relay.admin.http import CannotListen
from relay.admin.ingest import Batch, Health, IngestService, PassedStream
from relay.admin.server import GrpcServer
from relay.config.addresses import is_loopback
from relay.config.schema import GrpcSettings
from relay.errors import ConfigError
from relay.observe.status import Phase, StatusSnapshot
from relay.pb import admin_pb2 as admin
from relay.pb import ingester_pb2 as pb
from relay.pb.admin_pb2_grpc import RelayAdminStub
from relay.pb.ingester_pb2_grpc import IngesterServiceStub

TOKEN = "correct-horse-battery"
NO_PROXY = [("grpc.enable_http_proxy", 0)]


class Echo:
    """A chain whose ingesters have everything at once, and a control that knows its status."""

    def tracked(self, dids: Collection[str]) -> frozenset[str]:
        return frozenset(did for did in dids if did == "did:plc:ours")

    def put(self, batch: Batch) -> None:
        batch.stream.finished(batch)

    def forget(self, stream: PassedStream) -> None:
        pass

    def status(self) -> StatusSnapshot:
        return StatusSnapshot(instance="one", phase=Phase.RUNNING)

    def paused(self) -> frozenset[Any]:
        return frozenset()


@contextmanager
def serving(**settings: Any) -> Iterator[GrpcServer]:
    stopping, echo = threading.Event(), Echo()
    ingest = IngestService(echo, lambda: Health(is_serving=True, message="running", details={}), stopping)
    control: Control = echo  # type: ignore[assignment]  # what is not called need not be there
    server = GrpcServer(GrpcSettings(port=0, **settings), ingest, AdminService(control, stopping), stopping)
    try:
        yield server
    finally:
        server.stop(time.monotonic() + 5.0)


def status_of(channel: grpc.Channel, token: str | None = None) -> str:
    stub = RelayAdminStub(channel)  # type: ignore[no-untyped-call]
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    (answer,) = stub.Status(admin.StatusRequest(), metadata=metadata, timeout=10)
    return str(answer.phase)


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as exc:
        code: grpc.StatusCode = exc.code()
        return code
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False), ("relay.example", False)],
)  # fmt: skip
def test_loopback_is_told_from_the_rest(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_off_loopback_a_token_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"grpc\.token_file"):
        load_token(GrpcSettings(host="0.0.0.0"))
    file = tmp_path / "token"
    for content in ("", "short", "two\nlines of a token"):
        file.write_text(content)
        with pytest.raises(ConfigError, match="holds no token"):
            load_token(GrpcSettings(host="0.0.0.0", token_file=str(file)))
    with pytest.raises(ConfigError, match="cannot read"):
        load_token(GrpcSettings(token_file=str(tmp_path / "absent")))
    file.write_text(f"{TOKEN}\n")
    assert load_token(GrpcSettings(host="0.0.0.0", token_file=str(file))) == TOKEN
    assert load_token(GrpcSettings()) is None, "nobody but this machine"


def test_without_the_token_only_health_and_reflection_are_answered(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    with (
        serving(host="0.0.0.0", token_file=str(file)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}", options=NO_PROXY) as channel,
    ):
        ingest = IngesterServiceStub(channel)  # type: ignore[no-untyped-call]
        assert ingest.HealthCheck(pb.HealthCheckRequest(), timeout=10).message == "running"
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=10))

        batch = pb.OperationRequest(batch_id=1, operations=[pb.Operation(type=pb.CREATE, did="did:plc:other")])
        refused = [
            lambda: status_of(channel),
            lambda: status_of(channel, "wrong-horse-battery"),
            lambda: status_of(channel, ""),
            lambda: ingest.Ingest(batch, timeout=10),
            lambda: list(ingest.StreamOperations(iter([batch]), timeout=10)),
            lambda: list(
                ingest.StreamOperations(iter([batch]), timeout=10, metadata=(("authorization", f"Basic {TOKEN}"),))
            ),
        ]
        assert [code_of(call) for call in refused] == [grpc.StatusCode.UNAUTHENTICATED] * len(refused)

        right = (("authorization", f"Bearer {TOKEN}"),)
        assert status_of(channel, TOKEN) == "running"
        assert ingest.Ingest(batch, metadata=right, timeout=10).batch_id == 1
        assert [each.batch_id for each in ingest.StreamOperations(iter([batch]), metadata=right, timeout=10)] == [1]

        file.write_text("another-horse-battery")
        server.renew()
        assert code_of(lambda: status_of(channel, TOKEN)) is grpc.StatusCode.UNAUTHENTICATED
        assert status_of(channel, "another-horse-battery") == "running"


def test_a_port_in_use_is_named() -> None:
    with serving() as server:
        stopping, echo = threading.Event(), Echo()
        ingest = IngestService(echo, lambda: Health(is_serving=True, message="", details={}), stopping)
        with pytest.raises(CannotListen, match=r"in use by another program; set grpc\.port"):
            GrpcServer(GrpcSettings(port=server.port), ingest, AdminService(echo, stopping), stopping)  # type: ignore[arg-type]


class Authority:
    """A certificate authority that writes PEM files."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.cert = self._sign(name, self._key, is_ca=True)
        self.file = self._write(f"{name}.pem", self.cert.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return key and certificate files of a new pair for this machine."""
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self._sign(name, key, is_ca=False)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._write(f"{name}.key", pem), self._write(
            f"{name}.crt", cert.public_bytes(serialization.Encoding.PEM)
        )

    def _sign(self, name: str, key: ec.EllipticCurvePrivateKey, *, is_ca: bool) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        return path


@contextmanager
def secure_channel(server: GrpcServer, ca: Authority, pair: tuple[Path, Path] | None = None) -> Iterator[grpc.Channel]:
    key, cert = (None, None) if pair is None else (pair[0].read_bytes(), pair[1].read_bytes())
    credentials = grpc.ssl_channel_credentials(ca.file.read_bytes(), key, cert)
    with grpc.secure_channel(f"localhost:{server.port}", credentials, options=NO_PROXY) as channel:
        yield channel


def test_tls_is_for_those_who_trust_it_and_mutual_tls_for_those_whom_it_trusts(tmp_path: Path) -> None:
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    key, cert = ours.issue("server")
    tls = {"tls_key": str(key), "tls_cert": str(cert)}
    with serving(**tls) as server:
        with secure_channel(server, ours) as channel:
            assert status_of(channel) == "running"
        with secure_channel(server, others) as channel:
            assert code_of(lambda: status_of(channel)) is grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(f"localhost:{server.port}", options=NO_PROXY) as channel:
            assert code_of(lambda: status_of(channel)) is grpc.StatusCode.UNAVAILABLE
    with serving(**tls, tls_client_ca=str(ours.file)) as server:
        with secure_channel(server, ours, ours.issue("client")) as channel:
            assert status_of(channel) == "running"
        for pair in (None, others.issue("stranger")):
            with secure_channel(server, ours, pair) as channel:
                assert code_of(lambda channel=channel: status_of(channel)) is grpc.StatusCode.UNAVAILABLE  # type: ignore[misc]


def test_renewed_certificates_are_served_after_a_reload_and_broken_ones_are_not(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    key, cert = ours.issue("server")
    with serving(tls_key=str(key), tls_cert=str(cert)) as server:

        def served() -> bytes:
            return ssl.get_server_certificate(("localhost", server.port)).encode()

        first = served()
        assert first.split() == cert.read_bytes().split()
        ours.issue("server")
        assert served() == first, "nobody has said that they are new"
        server.renew()
        second = served()
        assert second != first
        assert second.split() == cert.read_bytes().split()
        cert.unlink()
        server.renew()
        assert served() == second


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "absent.pem")
    with pytest.raises(ConfigError, match=r"grpc\.tls_key: cannot read"), serving(tls_key=missing, tls_cert=missing):
        pass


def test_batches_are_numbered_and_bad_operations_are_refused_in_their_place() -> None:
    with serving() as server, grpc.insecure_channel(server.address, options=NO_PROXY) as channel:
        ingest = IngesterServiceStub(channel)  # type: ignore[no-untyped-call]
        good = pb.Operation(type=pb.CREATE, did="did:plc:other")
        ours = pb.Operation(type=pb.CREATE, did="did:plc:ours")
        answer = ingest.Ingest(
            pb.OperationRequest(operations=[good, ours, pb.Operation(did="did:plc:x"), pb.Operation(type=pb.DELETE)])
        )
        assert [(error.index, error.code) for error in answer.errors] == [(1, 2), (2, 2), (3, 2)]
        assert "tracked by this relay itself" in answer.errors[0].message
        wrong = [pb.OperationRequest(batch_id=number, operations=[good]) for number in (1, 3)]
        assert code_of(lambda: list(ingest.StreamOperations(iter(wrong)))) is grpc.StatusCode.INVALID_ARGUMENT
        many = [pb.OperationRequest(batch_id=number, operations=[good]) for number in range(1, 501)]
        answers = [each.batch_id for each in ingest.StreamOperations(iter(many))]
        assert answers[-1] == 500
        assert answers == sorted(set(answers))
        raw = channel.unary_unary("/ingester.v1.IngesterService/Ingest", bytes, bytes)
        assert code_of(lambda: raw(b"\xff\xff")) is grpc.StatusCode.INVALID_ARGUMENT
