"""subscribeRepos through the websocket client that the product uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import libipld
import pytest
import requests
import websocket

from relay.simnet import connection
from relay.simnet.faults import Fault, FaultKind
from relay.simnet.network import SimNetwork
from tests.support.simnet import StartNetwork
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")
Connect = Callable[..., websocket.WebSocket]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as stack:

        def subscribe(network: SimNetwork, cursor: int | None = None) -> websocket.WebSocket:
            query = "" if cursor is None else f"?cursor={cursor}"
            url = f"{network.firehose_url}/xrpc/com.atproto.sync.subscribeRepos{query}"
            client = websocket.create_connection(url, timeout=10)
            stack.callback(client.shutdown)
            return client

        yield subscribe


def _next(client: websocket.WebSocket) -> tuple[dict[str, Any], dict[str, Any]]:
    header, payload = libipld.decode_dag_cbor_multi(bytes(client.recv_data()[1]))
    return header, payload


def test_a_live_subscriber_learns_the_newest_seq_at_once(simnet: SimNetwork, connect: Connect) -> None:
    newest = simnet.log.newest_seq
    header, payload = _next(connect(simnet))
    assert header == {"op": 1, "t": "#identity"}
    assert payload["seq"] == newest + 1
    assert payload["did"] in simnet.dids()


def test_events_reach_every_subscriber_as_they_happen(simnet: SimNetwork, connect: Connect) -> None:
    clients = [connect(simnet, simnet.log.newest_seq) for _ in range(3)]
    did = simnet.dids()[0]
    commit = simnet.world.write(did, {"com.example.note/1": {"$type": "com.example.note"}})
    simnet.world.set_status(did, "deactivated")
    for client in clients:
        header, payload = _next(client)
        assert header["t"] == "#commit"
        assert (payload["repo"], payload["rev"], payload["since"]) == (did, commit.rev, commit.since)
        assert payload["ops"][0]["path"] == "com.example.note/1"
        header, payload = _next(client)
        assert header["t"] == "#account"
        assert (payload["did"], payload["active"], payload["status"]) == (did, False, "deactivated")


def test_a_cursor_replays_what_came_after_it(simnet: SimNetwork, connect: Connect) -> None:
    start = simnet.log.newest_seq
    simnet.write(150)
    client = connect(simnet, start + 100)
    assert [_next(client)[1]["seq"] for _ in range(50)] == list(range(start + 101, start + 151))
    simnet.write(1)
    assert _next(client)[1]["seq"] == start + 151


def test_a_cursor_that_is_too_old_is_told_before_the_whole_window(start_simnet: StartNetwork, connect: Connect) -> None:
    network = start_simnet(replay_window=5)
    start = network.log.newest_seq
    network.write(20)
    client = connect(network, start + 1)
    header, payload = _next(client)
    assert (header["t"], payload["name"]) == ("#info", "OutdatedCursor")
    assert [_next(client)[1]["seq"] for _ in range(5)] == list(range(start + 16, start + 21))


def test_a_cursor_in_the_future_is_an_error_frame_and_the_end(simnet: SimNetwork, connect: Connect) -> None:
    client = connect(simnet, simnet.log.newest_seq + 10)
    header, payload = _next(client)
    assert header == {"op": -1}
    assert payload["error"] == "FutureCursor"
    opcode, data = client.recv_data()
    assert opcode == websocket.ABNF.OPCODE_CLOSE
    assert int.from_bytes(data[:2], "big") == 1008


def test_pings_are_answered_and_a_close_is_returned(simnet: SimNetwork, connect: Connect) -> None:
    client = connect(simnet, simnet.log.newest_seq)
    client.ping(b"are you there")
    assert client.recv_data(control_frame=True) == (websocket.ABNF.OPCODE_PONG, b"are you there")
    client.send_close(1000)
    opcode, data = client.recv_data()
    assert (opcode, int.from_bytes(data[:2], "big")) == (websocket.ABNF.OPCODE_CLOSE, 1000)


def test_large_frames_arrive_whole(simnet: SimNetwork, connect: Connect) -> None:
    client = connect(simnet, simnet.log.newest_seq)
    simnet.world.add_large_record(simnet.dids()[0], 900_000)
    _, payload = _next(client)
    assert len(payload["blocks"]) > 900_000


def test_what_is_no_subscription_is_refused(simnet: SimNetwork) -> None:
    url = f"{simnet.relay_url}/xrpc/com.atproto.sync.subscribeRepos"
    assert requests.get(url, timeout=10).status_code == 426
    handshake = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    answer = requests.get(url, params={"cursor": "soon"}, headers=handshake, timeout=10)
    assert answer.json()["error"] == "InvalidRequest"


# What goes wrong with a stream, as a client sees it


@pytest.mark.parametrize("kind", [FaultKind.STREAM_CUT, FaultKind.STREAM_RESET])
def test_a_cut_stream_is_a_lost_connection_and_the_next_one_goes_on(
    simnet: SimNetwork, connect: Connect, kind: FaultKind
) -> None:
    start = simnet.log.newest_seq
    simnet.set_faults([Fault(kind=kind, after=3, times=1)])
    simnet.write(5)
    client = connect(simnet, start)

    def read_all() -> None:
        for _ in range(5):
            _next(client)

    with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionResetError)):
        read_all()
    assert simnet.fault_counts() == {kind.value: 1}
    again = connect(simnet, start)
    assert [_next(again)[1]["seq"] for _ in range(5)] == list(range(start + 1, start + 6))


def test_a_server_that_goes_away_says_so(simnet: SimNetwork, connect: Connect) -> None:
    simnet.set_faults([Fault(kind=FaultKind.STREAM_CLOSE, times=1)])
    client = connect(simnet, simnet.log.newest_seq)
    simnet.write(1)
    opcode, data = client.recv_data()
    assert (opcode, int.from_bytes(data[:2], "big")) == (websocket.ABNF.OPCODE_CLOSE, 1001)


def test_fragments_arrive_as_one_message(simnet: SimNetwork, connect: Connect) -> None:
    simnet.set_faults([Fault(kind=FaultKind.FRAGMENT)])
    client = connect(simnet, simnet.log.newest_seq)
    simnet.write(2)
    frames = [bytes(client.recv_data()[1]) for _ in range(2)]
    assert frames == [event.frame for event in simnet.log.after(0)]


def test_a_silent_stream_stays_open(simnet: SimNetwork, connect: Connect) -> None:
    simnet.set_faults([Fault(kind=FaultKind.STREAM_SILENCE, times=1)])
    client = connect(simnet, simnet.log.newest_seq)
    simnet.write(1)
    # Until the event is about to be sent a ping is answered.
    wait_until(lambda: simnet.fault_counts() == {"stream_silence": 1}, "the stream is silent")
    client.ping(b"are you there")
    client.settimeout(0.2)
    with pytest.raises(websocket.WebSocketTimeoutException):
        client.recv_data(control_frame=True)


def test_a_consumer_that_does_not_read_is_too_slow(start_simnet: StartNetwork, connect: Connect) -> None:
    network = start_simnet(options={"outbox_events": 50}, accounts=1, sizes=(1,))
    client = connect(network, network.log.newest_seq)
    client.ping(b"live")  # answered, so it has caught up
    assert client.recv_data(control_frame=True)[0] == websocket.ABNF.OPCODE_PONG
    # More than what fits into the buffers of both sockets.
    for number in range(120):
        network.world.add_large_record(network.dids()[0], 200_000, rkey=f"large{number}")
    while True:
        header, payload = _next(client)
        if header["op"] == -1:
            break
    assert payload["error"] == "ConsumerTooSlow"
    assert client.recv_data()[0] == websocket.ABNF.OPCODE_CLOSE


def test_a_still_stream_is_pinged(
    monkeypatch: pytest.MonkeyPatch, start_simnet: StartNetwork, connect: Connect
) -> None:
    monkeypatch.setattr(connection, "_KEEPALIVE_S", 0.02)
    network = start_simnet()
    client = connect(network, network.log.newest_seq)
    opcodes = [client.recv_data(control_frame=True)[0] for _ in range(3)]
    assert opcodes == [websocket.ABNF.OPCODE_PING] * 3


def test_an_upgrade_can_be_refused(simnet: SimNetwork, connect: Connect) -> None:
    simnet.set_faults([Fault(kind=FaultKind.TOO_MANY, endpoint="subscribeRepos", times=1, seconds=5)])
    with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
        connect(simnet, simnet.log.newest_seq)
    assert refusal.value.status_code == 429
    connect(simnet, simnet.log.newest_seq)


def test_a_lost_window_is_told_to_who_comes_back(simnet: SimNetwork, connect: Connect) -> None:
    start = simnet.log.newest_seq
    simnet.write(20)
    simnet.set_faults([Fault(kind=FaultKind.LOSE_WINDOW, times=1, count=5)])
    client = connect(simnet, start + 3)
    header, payload = _next(client)
    assert (header["t"], payload["name"]) == ("#info", "OutdatedCursor")
    assert _next(client)[1]["seq"] == start + 16
    assert simnet.fault_counts() == {"lose_window": 1}


def test_a_disconnected_relay_takes_new_subscribers(simnet: SimNetwork, connect: Connect) -> None:
    client = connect(simnet, simnet.log.newest_seq)
    simnet.disconnect()
    with pytest.raises(websocket.WebSocketConnectionClosedException):
        _next(client)
    again = connect(simnet, simnet.log.newest_seq)
    simnet.write(1)
    assert _next(again)[0]["t"] == "#commit"
