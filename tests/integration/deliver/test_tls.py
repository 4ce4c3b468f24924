from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.integration.deliver.owner import Owner
from tests.integration.deliver.stranger import Stranger
from tests.support.waiting import wait_until


@dataclass(frozen=True)
class Pair:
    """A key and its certificate, PEM."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def certified(name: str, issuer: Pair | None = None) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(issuer.key if issuer else key, hashes.SHA256())
    )
    return Pair(key, certificate)


@pytest.fixture(scope="module")
def ca() -> Pair:
    return certified("test ca")


def write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def test_tls_with_a_client_certificate_delivers(ca: Pair, tmp_path: Path) -> None:
    server, client = certified("ingester", ca), certified("relay", ca)
    credentials = grpc.ssl_server_credentials(
        [(server.key_pem, server.certificate_pem)], ca.certificate_pem, require_client_auth=True
    )
    stranger = Stranger().start(credentials=credentials)
    files = (
        write(tmp_path, "ca.pem", ca.certificate_pem),
        write(tmp_path, "cert.pem", client.certificate_pem),
        write(tmp_path, "key.pem", client.key_pem),
    )
    try:
        with Owner(stranger.address, tls=files) as owner:
            owner.feed(rounds=3)
            owner.drain()
            owner.check(stranger.stored, exactly_once=True)
    finally:
        stranger.stop()


def test_an_ingester_that_the_ca_does_not_know_gets_nothing(ca: Pair, tmp_path: Path) -> None:
    imposter = certified("imposter", certified("another ca"))
    credentials = grpc.ssl_server_credentials([(imposter.key_pem, imposter.certificate_pem)])
    stranger = Stranger().start(credentials=credentials)
    try:
        with Owner(stranger.address, tls=(write(tmp_path, "ca.pem", ca.certificate_pem), "", "")) as owner:
            owner.feed(rounds=1)
            owner.await_health(stranger.address, False, "unreachable")
            assert stranger.streams == []
            assert "certificate" in owner.status(stranger.address).detail.lower()
    finally:
        stranger.stop()


def test_a_tls_file_that_vanishes_while_running_is_named_and_waited_for(ca: Pair, tmp_path: Path) -> None:
    server = certified("ingester", ca)
    credentials = grpc.ssl_server_credentials([(server.key_pem, server.certificate_pem)])
    stranger = Stranger().start(credentials=credentials)
    path = write(tmp_path, "ca.pem", ca.certificate_pem)
    try:
        with Owner(stranger.address, tls=(path, "", "")) as owner:
            owner.feed(rounds=1)
            owner.drain()
            Path(path).unlink()
            stranger.stop()
            owner.await_health(stranger.address, False, "credentials")
            assert "delivery.tls_ca" in owner.status(stranger.address).detail
            write(tmp_path, "ca.pem", ca.certificate_pem)
            stranger.start(stranger.port, credentials)
            owner.feed(rounds=1, start=1)
            owner.drain()
            wait_until(lambda: owner.status(stranger.address).healthy, "healthy again")
            owner.check(stranger.stored)
    finally:
        stranger.stop()
