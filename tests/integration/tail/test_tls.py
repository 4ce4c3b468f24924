"""The subscription over TLS: many frames in one record, large ones in many, and a close from another thread."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from relay.net.errors import HostDown, Stopped
from relay.net.guard import AddressInfo, Guard
from relay.net.subscribe import Received, Subscription
from tests.integration.net.certificates import Authority
from tests.integration.net.rude import RudeServer, rude_server
from tests.integration.tail.hostile import Upstream, event, raw, sends

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(Path(tmp_path_factory.mktemp("authority")))


def subscribe(authority: Authority, server: RudeServer, name: str = "relay.example.com") -> Subscription:
    def lookup(host: str, port: int) -> list[AddressInfo]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]

    return Subscription(
        f"wss://{name}",
        cursor=None,
        guard=Guard(allow_private=True, lookup=lookup),
        user_agent="test/1",
        idle_timeout_s=20,
        tls=authority.client(),
    )


def test_every_frame_arrives_over_tls(authority: Authority) -> None:
    frames = [event(seq, padding=(seq % 7) * 9000) for seq in range(1, 300)]
    with rude_server(authority.server("relay.example.com")) as server:
        Upstream(server, sends(b"".join(map(raw, frames))))
        stream = subscribe(authority, server)
        stream.open()
        got: list[Received] = []
        while len(got) < len(frames):
            got += stream.receive(10)
        assert got == frames
        stream.release()


def test_close_interrupts_a_read_over_tls(authority: Authority) -> None:
    with rude_server(authority.server("relay.example.com")) as server:
        Upstream(server, sends(raw(event(1))))
        stream = subscribe(authority, server)
        stream.open()
        assert stream.receive(10) == [event(1)]
        closer = threading.Timer(0.05, stream.close)
        closer.start()
        with pytest.raises(Stopped):
            stream.receive(15)
        closer.join()
        stream.release()


def test_another_name_in_the_certificate_is_refused(authority: Authority) -> None:
    with rude_server(authority.server("other.example.com")) as server:
        stream = subscribe(authority, server)
        with pytest.raises(HostDown, match="certificate"):
            stream.open()
        stream.release()
