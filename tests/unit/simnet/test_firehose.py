"""A subscriber as a machine: what it sends for what is in the log, for every fault of a stream and of a subscription."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists

from relay.simnet.answers import Request
from relay.simnet.events import Event, EventLog
from relay.simnet.faults import STREAM_FAULTS, Fault, FaultKind, FaultPlan
from relay.simnet.firehose import Source, Subscriber, subscribe
from tests.unit.simnet.inverting import read_frame

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_FIRST = 100


class Frame(NamedTuple):
    """A websocket frame of the server."""

    is_final: bool
    opcode: int
    data: bytes


class Scene:
    """A log with a subscriber, and the faults between them."""

    def __init__(self, *faults: Fault, events: int = 0, window: int = 1000, outbox_events: int = 1000) -> None:
        self.log = EventLog(first_seq=_FIRST, window=window)
        self.plan = FaultPlan(faults)
        self.lost: list[int] = []
        self._source = Source(
            log=self.log, plan=lambda: self.plan, outbox_events=outbox_events, host=-1, on_lost=self._note_lost
        )
        self.add(events)

    def add(self, events: int) -> None:
        for _ in range(events):
            self.log.append("identity", f"did:plc:{self.log.newest_seq % 3}", {"did": "x"}, 0)

    def connect(self, cursor: int | None = None) -> Subscriber:
        return Subscriber(self._source, "key", cursor)

    def _note_lost(self, events: Sequence[Event]) -> None:
        self.lost += [event.seq for event in events]


def _pull_all(subscriber: Subscriber) -> bytes:
    data = b""
    while piece := subscriber.pull():
        data += piece
    return data


def _frames(data: bytes) -> list[Frame]:
    """Take apart what was sent; a cut frame at the end comes as what there is of it."""
    frames, at = [], 0
    while at < len(data):
        size, start = data[at + 1] & 127, at + 2
        if size == 126:
            size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif size == 127:
            size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        frames.append(Frame(bool(data[at] & 128), data[at] & 15, data[start : start + size]))
        at = start + size
    return frames


def _seqs(data: bytes) -> list[int]:
    return [_body(frame)["seq"] for frame in _frames(data) if frame.opcode == _BINARY]


def _body(frame: Frame) -> dict[str, Any]:
    return read_frame(frame.data)[1]


def _assert_ends_with_error(data: bytes, name: str) -> None:
    *_, error, close = _frames(data)
    assert read_frame(error.data)[0] == {"op": -1}
    assert _body(error)["error"] == name
    assert (close.opcode, close.data) == (_CLOSE, b"\x03\xf0" + name.encode())


def test_without_faults_everything_comes_once_and_in_order() -> None:
    scene = Scene(events=200)
    subscriber = scene.connect(_FIRST + 9)
    assert _seqs(_pull_all(subscriber)) == list(range(_FIRST + 10, _FIRST + 200))
    scene.add(3)
    assert _seqs(_pull_all(subscriber)) == [_FIRST + 200, _FIRST + 201, _FIRST + 202]
    assert _pull_all(scene.connect()) == b""


@pytest.mark.parametrize(("size", "sent"), [(0, None), (7, 7), (10**6, None)])
def test_a_cut_ends_the_connection_within_the_frame(size: int, sent: int | None) -> None:
    scene = Scene(Fault(kind=FaultKind.STREAM_CUT, after=3, times=1, bytes=size), events=10)
    subscriber = scene.connect(0)
    data = _pull_all(subscriber)
    whole = _pull_all(Scene(events=10).connect(0))
    assert subscriber.finished
    assert not subscriber.reset
    assert whole.startswith(data)
    ends = [len(_pull_all(Scene(events=count).connect(0))) for count in (3, 4)]
    assert ends[0] < len(data) < ends[1]
    if sent is not None:
        assert len(data) == ends[0] + sent
    # The next connection gets it right.
    assert _seqs(_pull_all(scene.connect(_FIRST + 2))) == list(range(_FIRST + 3, _FIRST + 10))
    assert scene.plan.fired() == {"stream_cut": 1}


def test_a_reset_and_a_close_come_before_the_frame() -> None:
    for kind, frames in ((FaultKind.STREAM_RESET, 4), (FaultKind.STREAM_CLOSE, 5)):
        scene = Scene(Fault(kind=kind, after=4, times=1, count=1012), events=10)
        subscriber = scene.connect(0)
        sent = _frames(_pull_all(subscriber))
        assert len(sent) == frames
        assert subscriber.finished
        assert subscriber.reset == (kind is FaultKind.STREAM_RESET)
        if frames == 5:
            assert sent[-1][1:] == (_CLOSE, (1012).to_bytes(2, "big"))


def test_silence_lasts_and_answers_no_ping() -> None:
    scene = Scene(Fault(kind=FaultKind.STREAM_SILENCE, after=2, times=1), events=5)
    subscriber = scene.connect(0)
    assert _seqs(_pull_all(subscriber)) == [_FIRST, _FIRST + 1]
    scene.add(1)
    assert _pull_all(subscriber) == b""
    assert subscriber.received(b"\x89\x00") == b""
    assert subscriber.keepalive() == b""
    assert not subscriber.finished


def test_silence_for_a_while_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr("relay.simnet.firehose.time.monotonic", lambda: now)
    scene = Scene(Fault(kind=FaultKind.STREAM_SILENCE, after=2, times=1, seconds=3.0), events=5)
    subscriber = scene.connect(0)
    assert len(_seqs(_pull_all(subscriber))) == 2
    now = 52.9
    assert _pull_all(subscriber) == b""
    now = 53.1
    assert _seqs(_pull_all(subscriber)) == [_FIRST + 2, _FIRST + 3, _FIRST + 4]
    assert subscriber.received(b"\x89\x00") == b"\x8a\x00"


def test_consumer_too_slow_by_plan() -> None:
    scene = Scene(Fault(kind=FaultKind.STREAM_TOO_SLOW, after=2, times=1), events=5)
    subscriber = scene.connect(0)
    data = _pull_all(subscriber)
    assert [frame.opcode for frame in _frames(data)] == [_BINARY, _BINARY, _BINARY, _CLOSE]
    _assert_ends_with_error(data, "ConsumerTooSlow")
    assert subscriber.finished


def test_a_live_subscriber_that_falls_behind_is_told_and_one_that_replays_is_not() -> None:
    scene = Scene(events=50, outbox_events=10)
    subscriber = scene.connect(0)
    assert len(_seqs(_pull_all(subscriber))) == 50
    scene.add(10)
    assert len(_seqs(_pull_all(subscriber))) == 10
    scene.add(11)
    _assert_ends_with_error(_pull_all(subscriber), "ConsumerTooSlow")


def test_a_subscriber_never_skips_what_has_left_the_window() -> None:
    scene = Scene(events=8, window=10)
    subscriber = scene.connect(_FIRST + 7)
    assert _pull_all(subscriber) == b""
    scene.add(11)
    _assert_ends_with_error(_pull_all(subscriber), "ConsumerTooSlow")


def test_a_range_comes_again() -> None:
    scene = Scene(Fault(kind=FaultKind.REPEAT_RANGE, after=4, times=1, count=3), events=7)
    told = [seq - _FIRST for seq in _seqs(_pull_all(scene.connect(0)))]
    assert told == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert scene.lost == []


def test_a_range_comes_after_what_follows_it() -> None:
    scene = Scene(Fault(kind=FaultKind.REORDER, after=2, times=1, count=3), events=7)
    told = [seq - _FIRST for seq in _seqs(_pull_all(scene.connect(0)))]
    assert told == [0, 1, 5, 2, 3, 4, 6]
    assert [seq - _FIRST for seq in scene.lost] == [2, 3, 4]


def test_what_is_held_back_waits_for_the_next_event() -> None:
    scene = Scene(Fault(kind=FaultKind.REORDER, after=2, times=1), events=3)
    subscriber = scene.connect(0)
    assert _seqs(_pull_all(subscriber)) == [_FIRST, _FIRST + 1]
    assert scene.lost == []
    scene.add(1)
    assert _seqs(_pull_all(subscriber)) == [_FIRST + 3, _FIRST + 2]
    assert scene.lost == [_FIRST + 2]


def test_a_corrupt_frame_is_right_on_the_next_connection() -> None:
    scene = Scene(Fault(kind=FaultKind.CORRUPT_FRAME, after=1, times=1), events=3)
    frames = _frames(_pull_all(scene.connect(0)))
    with pytest.raises(ValueError, match=r"."):
        read_frame(frames[1].data)
    assert _body(frames[2])["seq"] == _FIRST + 2
    assert len(_seqs(_pull_all(scene.connect(0)))) == 3


def test_a_text_message_comes_before_the_frame() -> None:
    scene = Scene(Fault(kind=FaultKind.TEXT_FRAME, after=1, times=1), events=3)
    assert [frame.opcode for frame in _frames(_pull_all(scene.connect(0)))] == [_BINARY, _TEXT, _BINARY, _BINARY]


def test_fragments_make_up_the_message_with_a_ping_between() -> None:
    scene = Scene(Fault(kind=FaultKind.FRAGMENT, times=1), events=1)
    frames = _frames(_pull_all(scene.connect(0)))
    assert [(frame.is_final, frame.opcode) for frame in frames] == [(False, 2), (True, _PING), (False, 0), (True, 0)]
    whole = b"".join(frame.data for frame in frames if frame.opcode != _PING)
    assert whole == scene.log.after(0)[0].frame


@given(lists(integers(0, 12), max_size=8), integers(0, 50))
def test_the_next_connection_always_makes_up_for_the_faults_of_this_one(adds: list[int], seed: int) -> None:
    """Whatever goes wrong: a client that takes rising seqs only and connects again from its last misses what was lost."""
    kinds = sorted(STREAM_FAULTS - {FaultKind.FRAGMENT, FaultKind.TEXT_FRAME, FaultKind.CORRUPT_FRAME})
    scene = Scene()
    scene.plan = FaultPlan([Fault(kind=kind, rate=0.05, count=2) for kind in kinds], seed=seed)
    last, taken = 0, []
    subscriber = scene.connect(last)

    def take(data: bytes) -> None:
        nonlocal last
        for frame in _frames(data):
            if frame.opcode != _BINARY or not frame.data:
                continue
            try:
                body = _body(frame)
            except ValueError:
                continue  # cut
            if body.get("seq", 0) > last:
                last = body["seq"]
                taken.append(last)

    for events in adds:
        scene.add(events)
        take(_pull_all(subscriber))
        if subscriber.finished or subscriber._is_silent():
            subscriber = scene.connect(last)
    scene.plan = FaultPlan()
    scene.add(1)
    take(_pull_all(scene.connect(last)))
    everything = [event.seq for event in scene.log.after(0, 1000)]
    assert set(everything) - set(taken) <= set(scene.lost)


@pytest.mark.parametrize("cursor", [_FIRST - 50, _FIRST + 4])
def test_an_old_cursor_is_told_before_the_whole_window(cursor: int) -> None:
    scene = Scene(events=20, window=10)
    info, *rest = _frames(_pull_all(scene.connect(cursor)))
    assert read_frame(info.data)[0] == {"op": 1, "t": "#info"}
    assert _body(info)["name"] == "OutdatedCursor"
    assert [_body(frame)["seq"] for frame in rest] == list(range(_FIRST + 10, _FIRST + 20))


def test_the_newest_cursor_that_has_left_the_window_misses_nothing() -> None:
    scene = Scene(events=20, window=10)
    assert _seqs(_pull_all(scene.connect(_FIRST + 9))) == list(range(_FIRST + 10, _FIRST + 20))


def test_gaps_in_the_seqs_are_no_loss() -> None:
    scene = Scene(events=5)
    scene.log.skip()
    scene.log.purge("did:plc:0")
    scene.add(2)
    assert len(_seqs(_pull_all(scene.connect(0)))) == len(scene.log.after(0))


def test_an_emptied_log_is_told_of_too() -> None:
    scene = Scene(events=20)
    scene.log.lose()
    [info] = _frames(_pull_all(scene.connect(_FIRST + 5)))
    assert _body(info)["name"] == "OutdatedCursor"
    assert _pull_all(scene.connect(_FIRST + 19)) == b""


def test_after_a_new_numbering_old_cursors_are_wrong() -> None:
    higher, lower = Scene(events=20), Scene(events=20)
    higher.log.renumber(20_000_000_000)
    higher.add(1)
    info, event = _frames(_pull_all(higher.connect(_FIRST + 19)))
    assert _body(info)["name"] == "OutdatedCursor"
    assert _body(event)["seq"] == 20_000_000_000
    lower.log.renumber(1)
    lower.add(1)
    _assert_ends_with_error(_pull_all(lower.connect(_FIRST + 19)), "FutureCursor")


def test_a_silent_server_says_nothing_of_a_wrong_cursor() -> None:
    scene = Scene(Fault(kind=FaultKind.SILENT_CURSOR), events=20, window=10)
    assert _seqs(_pull_all(scene.connect(_FIRST)))[0] == _FIRST + 10
    future = scene.connect(_FIRST + 22)
    assert _pull_all(future) == b""
    assert scene.plan.fired() == {"silent_cursor": 2}
    scene.add(4)
    assert _seqs(_pull_all(future)) == [_FIRST + 23]
    assert len(_seqs(_pull_all(scene.connect(_FIRST + 20)))) == 3
    assert scene.plan.fired() == {"silent_cursor": 2}  # a right cursor: there was nothing to be silent about


def test_a_right_cursor_can_be_called_wrong() -> None:
    scene = Scene(Fault(kind=FaultKind.OUTDATED_CURSOR, times=1), Fault(kind=FaultKind.FUTURE_CURSOR), events=5)
    info, *rest = _frames(_pull_all(scene.connect(_FIRST + 3)))
    assert _body(info)["name"] == "OutdatedCursor"
    assert len(rest) == 5
    refused = scene.connect(_FIRST + 3)
    _assert_ends_with_error(_pull_all(refused), "FutureCursor")
    assert refused.finished
    assert scene.plan.fired() == {"outdated_cursor": 1, "future_cursor": 1}


def test_a_log_can_be_lost_when_somebody_comes_back() -> None:
    scene = Scene(Fault(kind=FaultKind.LOSE_WINDOW, times=1, count=2), events=20)
    info, *rest = _frames(_pull_all(scene.connect(_FIRST + 5)))
    assert _body(info)["name"] == "OutdatedCursor"
    assert [_body(frame)["seq"] for frame in rest] == [_FIRST + 18, _FIRST + 19]


def test_who_asks_without_an_upgrade_is_refused() -> None:
    source = Source(log=EventLog(), plan=FaultPlan, outbox_events=1, host=-1)
    plain = Request(method="GET", path="/", query="", head=b"GET / HTTP/1.1", body=b"")
    assert subscribe(plain, source).status == 426


def test_a_ping_keeps_a_still_stream_alive() -> None:
    subscriber = Scene().connect()
    assert _frames(subscriber.keepalive()) == [Frame(True, _PING, b"")]
    subscriber.closed()
    assert subscriber.keepalive() == b""
