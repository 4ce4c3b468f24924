"""The tailer against a server that breaks every rule: nothing is lost, nothing loops, and it stops at once."""

from __future__ import annotations

import threading
import time

import pytest

from relay.net.subscribe import MAX_MESSAGE_BYTES, SUBSCRIBE_REPOS
from relay.tail.reader import BeganAfresh, GiveUp
from relay.tail.tailer import BadFrame
from tests.integration.net.rude import Call, RudeServer
from tests.integration.tail.hostile import Upstream, event, message, raw, sends, upgrade, watched
from tests.support.waiting import wait_until

GARBAGE = raw(b"garbage")
TEXT = raw(b"hello", 1)
OVERSIZE = raw(b"o" * (MAX_MESSAGE_BYTES + 1))


def test_frames_arrive_byte_for_byte_with_their_heads(server: RudeServer) -> None:
    frames = [event(seq, padding=seq * 1000) for seq in range(1, 50)]
    with watched(Upstream(server, sends(*map(raw, frames)))) as seen:
        seen.wait_for(49)
        assert [frame for _, frame in seen.events] == frames
        assert {each.kind for each, _ in seen.events} == {"account"}
        assert {each.time_us for each, _ in seen.events} == {1704164645678000}
        assert seen.tailer.status.events == {"account": 49}
        assert seen.tailer.status.is_connected
        assert seen.tailer.status.seq == 49


@pytest.mark.parametrize("bad", [GARBAGE, TEXT, OVERSIZE], ids=["garbage", "text", "oversize"])
def test_a_bad_frame_that_is_good_the_second_time_costs_one_reconnect(server: RudeServer, bad: bytes) -> None:
    upstream = Upstream(server, sends(raw(event(1)), bad, raw(event(3))), sends(raw(event(2)), raw(event(3))))
    with watched(upstream) as seen:
        seen.wait_for(3)
        assert seen.seqs == [1, 2, 3]
        assert upstream.cursors == [None, 1]
        assert seen.told == []


@pytest.mark.parametrize(
    ("bad", "kept", "size"),
    [
        (GARBAGE, b"garbage", 7),
        (TEXT, b"hello", 5),
        (OVERSIZE, b"o" * 65536, MAX_MESSAGE_BYTES + 1),
    ],
    ids=["garbage", "text", "oversize"],
)
def test_a_bad_frame_that_is_bad_again_is_kept_and_skipped(
    server: RudeServer, bad: bytes, kept: bytes, size: int
) -> None:
    upstream = Upstream(server, sends(raw(event(1)), bad, raw(event(3))), sends(bad, raw(event(3)), raw(event(4))))
    with watched(upstream) as seen:
        seen.wait_for(4)
        assert seen.seqs == [1, 3, 4]
        assert upstream.cursors == [None, 1]
        (letter,) = seen.told
        assert isinstance(letter, BadFrame)
        assert (letter.after_seq, letter.frame, letter.size) == (1, kept, size)
        assert seen.order == ["1", "BadFrame", "3", "4"]


@pytest.mark.parametrize(
    "end",
    [b"\x88\x02\x03\xe8", b"\x88\x00", b"", b"\xff\xff\xff\xff", b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff"],
    ids=["close", "close-without-code", "cut", "bad-opcode", "endless-message"],
)
def test_a_connection_that_ends_is_taken_up_behind_the_newest_event(server: RudeServer, end: bytes) -> None:
    upstream = Upstream(server, sends(raw(event(1)), raw(event(2)) + end, then_holds=False), sends(raw(event(3))))
    with watched(upstream) as seen:
        seen.wait_for(3)
        assert seen.seqs == [1, 2, 3]
        assert upstream.cursors == [None, 2]
        assert seen.told == []


def test_a_silent_connection_is_dropped_and_taken_up_again(
    server: RudeServer, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Upstream(server, sends(raw(event(1))), sends(raw(event(2))))
    with watched(upstream, idle_timeout_s=0.2) as seen:
        seen.wait_for(2)
        assert upstream.cursors[:2] == [None, 1]
    (lost,) = [record for record in caplog.records if record.msg == "firehose_lost"]
    assert "silent" in str(vars(lost))


def test_pongs_are_traffic(server: RudeServer) -> None:
    enough = threading.Event()

    def scene(call: Call, _cursor: int | None) -> None:
        call.send(raw(event(1)))
        for _ in range(3):
            call.sock.recv(1000)  # a ping, after half of the idle timeout each
            call.send(raw(b"", 10))
        enough.set()
        call.send(raw(event(2)))
        call.wait_until_left()

    upstream = Upstream(server, scene)
    with watched(upstream, idle_timeout_s=1.0) as seen:
        seen.wait_for(2)
        assert enough.is_set()
        assert upstream.cursors == [None]


def test_pings_are_answered_with_their_own_bytes(server: RudeServer) -> None:
    answers: list[bytes] = []

    def scene(call: Call, _cursor: int | None) -> None:
        call.send(raw(b"are you there", 9))
        got = call.sock.recv(1000)
        mask, body = got[2:6], got[6:]
        answers.append(bytes([got[0]]) + bytes(byte ^ mask[n % 4] for n, byte in enumerate(body)))
        call.send(raw(event(1)))
        call.wait_until_left()

    with watched(Upstream(server, scene)) as seen:
        seen.wait_for(1)
        assert answers == [b"\x8aare you there"]


def test_a_message_in_fragments_and_byte_by_byte_is_one_frame(server: RudeServer) -> None:
    frame = event(1, padding=300)
    fragments = (
        b"\x02\x0a" + frame[:10] + raw(b"x", 9) + b"\x80\x7e" + (len(frame) - 10).to_bytes(2, "big") + frame[10:]
    )

    def scene(call: Call, _cursor: int | None) -> None:
        for byte in fragments:
            call.send(bytes([byte]))
        call.wait_until_left()

    with watched(Upstream(server, scene)) as seen:
        seen.wait_for(1)
        assert seen.events[0][1] == frame


def test_a_future_cursor_is_an_incident_and_a_fresh_start(server: RudeServer) -> None:
    error = raw(message({"op": -1}, {"error": "FutureCursor", "message": "x"})) + b"\x88\x0e\x03\xf0FutureCursor"
    upstream = Upstream(server, sends(error, then_holds=False), sends(raw(event(5))))
    with watched(upstream, cursor=1000) as seen:
        seen.wait_for(5)
        assert upstream.cursors == [1000, None]
        assert seen.incidents() == ["future_cursor"]
        assert [told.era for told in seen.told if isinstance(told, BeganAfresh)] == [1]
        assert seen.batches[-1].era == 1


def test_an_outdated_cursor_is_an_incident_and_the_stream_goes_on(server: RudeServer) -> None:
    info = raw(message({"op": 1, "t": "#info"}, {"name": "OutdatedCursor"}))
    upstream = Upstream(server, sends(info, raw(event(500)), raw(event(501))))
    with watched(upstream, cursor=7) as seen:
        seen.wait_for(501)
        assert seen.incidents() == ["outdated_cursor"]
        assert upstream.cursors == [7]


def test_a_hole_is_told_before_any_event_behind_it_is_delivered(server: RudeServer) -> None:
    late = [raw(event(seq, time=f"2024-01-03T03:04:05.{seq}Z")) for seq in range(500, 530)]
    with watched(Upstream(server, sends(*late)), cursor=7, time_us=1704164645678000) as seen:
        seen.wait_for(529)
        assert seen.incidents() == ["hole"]
        assert seen.order[0] == "IncidentFound"


def test_a_time_from_the_future_is_that_of_the_reading_so_a_cursor_with_it_hides_no_hole(server: RudeServer) -> None:
    began_us = int(time.time() * 1_000_000)
    with watched(Upstream(server, sends(raw(event(1, time="9999-01-02T03:04:05.678Z")), raw(event(2))))) as seen:
        seen.wait_for(2)
        liar, honest = (each.time_us for each, _ in seen.events)
        assert liar is not None
        assert began_us <= liar <= int(time.time() * 1_000_000)
        assert honest == 1704164645678000


def test_events_of_nobody_and_unknown_kinds_are_skipped(server: RudeServer) -> None:
    novel = message({"op": 1, "t": "#novel"}, {"seq": 2})
    upstream = Upstream(server, sends(raw(event(1)), raw(novel), raw(event(3, did="x")), raw(event(4)), raw(event(4))))
    with watched(upstream) as seen:
        seen.wait_for(4)
        wait_until(lambda: seen.tailer.status.ignored.get("replayed"), "the replay is dropped")
        assert seen.seqs == [1, 4]
        assert seen.tailer.status.ignored == {"unknown_kind": 1, "no_did": 1, "replayed": 1}


def test_it_gives_up_after_so_many_failures_and_ends_by_itself(server: RudeServer) -> None:
    server.on(SUBSCRIBE_REPOS, lambda call: call.answer(503))
    with watched(server.origin, attempts=3) as seen:
        wait_until(lambda: not seen.tailer.is_alive(), "its end")
        assert [type(told) for told in seen.told] == [GiveUp]
        assert len(server.requests) == 3
        assert seen.tailer.status.failures == 3


def test_too_many_requests_cost_no_attempt(server: RudeServer) -> None:
    def handler(call: Call) -> None:
        if len(server.requests) < 4:
            call.answer(429, Retry_After="0")
        else:
            upgrade(call)
            call.send(raw(event(1)))
            call.wait_until_left()

    server.on(SUBSCRIBE_REPOS, handler)
    with watched(server.origin, attempts=1) as seen:
        seen.wait_for(1)


def test_redirects_are_followed_and_keep_the_cursor(server: RudeServer) -> None:
    moved: list[str] = []

    def there(call: Call) -> None:
        moved.append(call.path)
        upgrade(call)
        call.send(raw(event(8)))
        call.wait_until_left()

    target = server.on("/moved", there).replace("http", "ws")
    server.on(SUBSCRIBE_REPOS, lambda call: call.answer(302, Location=target))
    with watched(server.origin, cursor=7) as seen:
        seen.wait_for(8)
        assert moved == ["/moved?cursor=7"]


def test_without_a_free_slot_nothing_is_read_and_nothing_is_lost(server: RudeServer) -> None:
    frames = [raw(event(seq, padding=100_000)) for seq in range(1, 201)]
    with watched(Upstream(server, sends(*frames)), hold=True, slots=2, idle_timeout_s=0.5) as seen:
        wait_until(lambda: len(seen.batches) == 2, "both slots are out")
        wait_until(lambda: seen.tailer.status.received_bytes > 0, "bytes")
        stalled_at = seen.tailer.status.seq
        assert stalled_at is not None
        assert stalled_at < 100
        freed: list[int] = []
        while len(seen.events) < 200:
            wait_until(lambda: len(seen.batches) > len(freed), "another batch")
            freed.append(seen.batches[len(freed)].slot)
            seen.tailer.free(freed[-1])
        assert seen.seqs == list(range(1, 201))
        assert max(batch.size for batch in seen.batches) < 500_000
        assert {batch.slot for batch in seen.batches} == {0, 1}


@pytest.mark.parametrize("where", ["reading", "handshake", "no-slot", "delay"])
def test_it_stops_at_once_wherever_it_waits(server: RudeServer, where: str) -> None:
    frames = [raw(event(seq, padding=100_000)) for seq in range(1, 201)]
    reached = threading.Event()

    def handler(call: Call) -> None:
        if where == "delay":
            call.answer(429, Retry_After="600")
        elif where != "handshake":
            upgrade(call)
            for each in frames:
                call.send(each)
        reached.set()
        call.wait_until_left()

    server.on(SUBSCRIBE_REPOS, handler)
    with watched(server.origin, hold=where == "no-slot", slots=2) as seen:
        if where == "no-slot":
            wait_until(lambda: len(seen.batches) == 2, "both slots are out")
        else:
            assert reached.wait(10)
        if where == "reading":
            seen.wait_for(200)
    # `watched` has waited for its end: far less than the 30 s of a silent connection.


def test_a_silent_future_cursor_is_found_by_asking(server: RudeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.tail.reader.PROBE_S", 0.1)
    upstream = Upstream(server, sends(), sends(raw(event(5))), sends(raw(event(6))))
    with watched(upstream, cursor=1000) as seen:
        seen.wait_for(6)
        assert upstream.cursors == [1000, None, None]
        assert seen.incidents() == ["silent_future_cursor"]
