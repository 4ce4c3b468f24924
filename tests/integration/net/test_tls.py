"""TLS: the name is checked although the connection goes to a checked address."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.net.body import BytesSink
from relay.net.errors import HostDown, Truncated
from relay.net.guard import AddressInfo, Guard
from relay.net.http import Fetcher, FetchLimits
from tests.integration.net.certificates import Authority
from tests.integration.net.rude import Call, RudeServer, rude_server

Opened = Callable[..., Fetcher]
LIMITS = FetchLimits(max_bytes=10_000_000, total_s=20, connect_timeout_s=10)
BODY = bytes(range(256)) * 4000


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def secure(opened: Opened, authority: Authority, server: RudeServer) -> Fetcher:
    """A fetcher for which every name leads to `server`."""

    def lookup(host: str, port: int) -> list[AddressInfo]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]

    return opened(Guard(allow_private=True, lookup=lookup), tls=authority.client())


def test_a_body_arrives_over_tls_by_name_and_the_connection_is_used_again(opened: Opened, authority: Authority) -> None:
    with rude_server(authority.server("pds.example.com")) as server:
        server.on("/a", lambda call: call.answer(body=BODY))
        fetcher = secure(opened, authority, server)
        for _ in range(3):
            sink = BytesSink()
            fetcher.get("https://pds.example.com/a", sink, limits=LIMITS)
            assert sink.body() == BODY
        assert server.connections == 1
        assert "Host: pds.example.com\r\n" in server.requests[0].head
        fetcher.abort()


def test_a_certificate_of_another_name_is_the_hosts_failure(opened: Opened, authority: Authority) -> None:
    with rude_server(authority.server("other.example.com")) as server:
        server.on("/a", lambda call: call.answer(body=BODY))
        with pytest.raises(HostDown, match="certificate"):
            secure(opened, authority, server).get("https://pds.example.com/a", BytesSink(), limits=LIMITS)
        assert server.requests == []


def test_an_unknown_authority_is_the_hosts_failure(opened: Opened, authority: Authority, tmp_path: Path) -> None:
    unknown = Authority(tmp_path).server("pds.example.com")
    with rude_server(unknown) as server, pytest.raises(HostDown, match="certificate"):
        secure(opened, authority, server).get("https://pds.example.com/a", BytesSink(), limits=LIMITS)


def test_a_server_without_tls_is_the_hosts_failure(opened: Opened, authority: Authority) -> None:
    with rude_server() as server:
        server.closing.set()  # it reads the hello, finds no request in it, and gives up
        with pytest.raises(HostDown, match="no connection"):
            secure(opened, authority, server).get("https://pds.example.com/a", BytesSink(), limits=LIMITS)


def test_a_handshake_that_never_ends_is_ended_by_the_connect_timeout(opened: Opened, authority: Authority) -> None:
    limits = FetchLimits(max_bytes=1, total_s=60, connect_timeout_s=0.2)
    with rude_server() as server, pytest.raises(HostDown, match="timed out"):
        secure(opened, authority, server).get("https://pds.example.com/a", BytesSink(), limits=limits)


def test_a_tls_connection_that_is_cut_in_the_body_is_truncated(opened: Opened, authority: Authority) -> None:
    def handler(call: Call) -> None:
        call.answer(body=BODY, length=len(BODY) + 1, keep=False)
        call.sock.shutdown(socket.SHUT_RDWR)  # no close_notify

    with rude_server(authority.server("pds.example.com")) as server:
        server.on("/a", handler)
        with pytest.raises(Truncated):
            secure(opened, authority, server).get("https://pds.example.com/a", BytesSink(), limits=LIMITS)


def test_an_idle_tls_connection_that_the_server_closed_is_not_a_failure(opened: Opened, authority: Authority) -> None:
    with rude_server(authority.server("pds.example.com")) as server:
        server.on("/a", lambda call: call.answer(body=b"x", keep=False))
        fetcher = secure(opened, authority, server)
        for _ in range(3):
            sink = BytesSink()
            fetcher.get("https://pds.example.com/a", sink, limits=LIMITS)
            assert sink.body() == b"x"
        fetcher.abort()
