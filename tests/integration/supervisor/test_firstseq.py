"""Where the stream of an upstream is: of one that speaks, one that is quiet, and one that is away."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from relay.config.schema import Settings
from relay.simnet.upstream import UPSTREAM
from relay.supervisor.firstseq import BEGINNING, ask_position
from tests.support.simnet import StartNetwork

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def _settings(upstream: str) -> Settings:
    base = Settings()
    return replace(
        base,
        firehose=replace(base.firehose, relay_host=upstream),
        security=replace(base.security, allow_private_hosts=True),
    )


@pytest.fixture
def quiet_upstream() -> Iterator[str]:
    """A server that lets in, and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        kept: list[socket.socket] = []

        def serve() -> None:
            connection, _ = listener.accept()
            kept.append(connection)
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(4096)
            (key,) = [
                line.split(b":")[1].strip() for line in request.split(b"\r\n") if b"sec-websocket-key:" in line.lower()
            ]
            accept = base64.b64encode(hashlib.sha1(key + _MAGIC).digest())
            connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5.0)
        for each in kept:
            each.close()


def test_one_that_lets_in_and_is_quiet_is_followed_from_its_beginning(quiet_upstream: str) -> None:
    assert ask_position(_settings(quiet_upstream), (), wait_s=0.2) == BEGINNING


def test_one_that_speaks_is_where_its_next_event_is(start_simnet: StartNetwork) -> None:
    network = start_simnet(accounts=3)
    network.start_writers(50)
    position = ask_position(_settings(network.relay_url), ())
    network.stop_writers()
    assert position is not None
    assert 0 < position.seq <= network.log.newest_seq
    assert position.time_us


def test_one_that_is_away_has_no_place(start_simnet: StartNetwork) -> None:
    network = start_simnet(accounts=3)
    network.silence(UPSTREAM)
    assert ask_position(_settings(network.relay_url), (), wait_s=0.2) is None
