"""The newest event of a stream."""

from __future__ import annotations

import base64
import hashlib
import re

import cbor2
import pytest

from relay.net.address import InvalidAddress
from relay.net.guard import Guard
from relay.net.subscribe import SUBSCRIBE_REPOS, NewestEvent, fetch_newest_event
from tests.integration.net.rude import Call, RudeServer

GUARD = Guard(allow_private=True)
DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


def frame(header: object, payload: object) -> bytes:
    return cbor2.dumps(header, canonical=True) + cbor2.dumps(payload, canonical=True)


def websocket_frame(data: bytes) -> bytes:
    length = len(data)
    if length < 126:
        return bytes([0x82, length]) + data
    return bytes([0x82, 126]) + length.to_bytes(2, "big") + data


ACCOUNT = frame(
    {"op": 1, "t": "#account"}, {"seq": 4711, "did": DID, "active": True, "time": "2024-01-02T03:04:05.678Z"}
)
INFO = frame({"op": 1, "t": "#info"}, {"name": "OutdatedCursor"})
NOVEL = frame({"op": 1, "t": "#novel"}, {"seq": 4712})
BROKEN = frame({"op": 1, "t": "#account"}, {"seq": 4713, "did": DID})
ERROR = frame({"op": -1}, {"error": "ConsumerTooSlow", "message": "x"})


def stream(server: RudeServer, *messages: bytes) -> str:
    """Serve `messages` as raw websocket bytes after a proper handshake, then hold the connection."""

    def handler(call: Call) -> None:
        match = re.search(r"(?i)sec-websocket-key: (\S+)", call.head)
        assert match is not None
        digest = hashlib.sha1((match[1] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        call.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            + base64.b64encode(digest)
            + b"\r\n\r\n"
        )
        for message in messages:
            call.send(message)
        call.wait_until_left()

    server.on(SUBSCRIBE_REPOS, handler)
    return server.origin.replace("http", "ws")


def newest(address: str, timeout_s: float = 10.0, guard: Guard = GUARD) -> NewestEvent | None:
    return fetch_newest_event(address, guard=guard, user_agent="test/1", timeout_s=timeout_s)


def test_the_first_event_has_the_newest_seq(server: RudeServer) -> None:
    address = stream(server, websocket_frame(INFO), websocket_frame(ACCOUNT))
    assert newest(address) == NewestEvent(seq=4711, time_us=1704164645678000)
    assert "User-Agent: test/1" in server.requests[0].head
    assert "cursor" not in server.requests[0].path


@pytest.mark.parametrize(("message", "seq"), [(NOVEL, 4712), (BROKEN, 4713)])
def test_a_message_that_we_cannot_use_has_a_seq_all_the_same(server: RudeServer, message: bytes, seq: int) -> None:
    found = newest(stream(server, websocket_frame(message)))
    assert found is not None
    assert found.seq == seq


def test_a_quiet_stream_has_none(server: RudeServer) -> None:
    assert newest(stream(server), timeout_s=0.2) is None


@pytest.mark.parametrize(
    "raw",
    [
        websocket_frame(ERROR),
        websocket_frame(b"junk"),
        b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff" + bytes(100_000),
        b"\xff\xff\xff\xff",
        b"\x88\x00",
    ],
    ids=["error-frame", "junk", "huge-length", "bad-opcode", "close"],
)
def test_a_broken_stream_has_none(server: RudeServer, raw: bytes) -> None:
    assert newest(stream(server, raw), timeout_s=0.5) is None


def test_a_server_that_refuses_the_upgrade_has_none(server: RudeServer) -> None:
    server.on(SUBSCRIBE_REPOS, lambda call: call.answer(400, b"{}"))
    assert newest(server.origin) is None


def test_a_redirect_is_not_followed_past_the_guard(server: RudeServer) -> None:
    server.on(SUBSCRIBE_REPOS, lambda call: call.answer(302, Location="ws://127.0.0.1:1/x"))
    assert newest(server.origin) is None


def test_a_private_upstream_is_refused_unless_the_operator_named_it(server: RudeServer) -> None:
    address = stream(server, websocket_frame(ACCOUNT))
    assert newest(address, guard=Guard(allow_private=False)) is None
    assert server.connections == 0
    assert newest(address, guard=Guard(allow_private=False, exempt=[address])) is not None


def test_an_address_that_is_none_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidAddress):
        newest("ftp://a.io")
