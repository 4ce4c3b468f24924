"""Every way in which a stream can end or lie has an answer, and no answer loses an event."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.tail.reader import (
    CAUGHT_UP_S,
    LASTED_S,
    PROBE_S,
    REFUSED_DELAY_S,
    SAMPLE_EVENTS,
    SAMPLE_S,
    Action,
    BeganAfresh,
    Deliver,
    Drop,
    GiveUp,
    IncidentFound,
    IncidentKind,
    KeepBadFrame,
    Probe,
    ReconnectFrom,
    StreamReader,
)

S = 1_000_000
T0 = 1_700_000_000 * S
HOUR = 3600 * S


def make(cursor: int | None = 100, time_us: int | None = T0, attempts: int = -1) -> StreamReader:
    return StreamReader(cursor=cursor, time_us=time_us, first_delay_s=5.0, max_attempts=attempts, rng=random.Random(1))


def kinds(actions: tuple[Action, ...]) -> list[IncidentKind]:
    return [action.kind for action in actions if isinstance(action, IncidentFound)]


def reconnect(actions: tuple[Action, ...]) -> ReconnectFrom:
    last = actions[-1]
    assert isinstance(last, ReconnectFrom)
    return last


def play(reader: StreamReader, first_seq: int, times_us: list[int], now_us: int) -> list[IncidentKind]:
    """Events with these times; then time enough passes for a judgement. Returns the incidents."""
    found: list[IncidentKind] = []
    for number, time_us in enumerate(times_us):
        actions = reader.event(first_seq + number, time_us, now_us)
        assert actions[0] == Deliver()
        found += kinds(actions)
    return found + kinds(reader.tick(now_us + int(SAMPLE_S * S), idle_s=SAMPLE_S))


# The order of seqs


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(0, 30))
def test_events_are_delivered_once_and_in_rising_seq(seqs: list[int], cursor: int) -> None:
    reader = make(cursor, None)
    reader.connected(T0)
    delivered = [seq for seq in seqs if reader.event(seq, None, T0)[0] == Deliver()]
    assert delivered == sorted(set(delivered))
    assert all(seq > cursor for seq in delivered)
    assert {seq for n, seq in enumerate(seqs) if seq > max([cursor, *seqs[:n]])} == set(delivered)


class Server:
    """An upstream with a log, some frames of which are garbage, that cuts connections and replays overlaps."""

    def __init__(self, length: int, garbage: dict[int, int], overlap: int) -> None:
        self.log = list(range(1, length + 1))
        self.garbage = garbage  # after seq -> how often it is bad; the frame itself has a seq that nobody learns
        self.overlap = overlap

    def frames(self, cursor: int | None) -> list[int | None]:
        found: list[int | None] = []
        for seq in self.log:
            if seq > (cursor or 0) - self.overlap:
                found.append(seq)
                if self.garbage.get(seq, 0) and seq >= (cursor or 0):
                    self.garbage[seq] -= 1
                    found.append(None)
        return found


@settings(max_examples=200)
@given(
    garbage=st.dictionaries(st.integers(1, 20), st.integers(1, 3), max_size=6),
    overlap=st.integers(0, 5),
    cuts=st.lists(st.integers(1, 30), max_size=10),
)
def test_nothing_is_lost_and_nothing_loops_however_often_the_stream_breaks(
    garbage: dict[int, int], overlap: int, cuts: list[int]
) -> None:
    server = Server(20, dict(garbage), overlap)
    reader = make(1, None)
    delivered: list[int] = []
    kept: list[int | None] = []
    connections = 0
    at_most = 2 + len(cuts) + len(garbage)
    while not delivered or delivered[-1] != 20:
        connections += 1
        assert connections <= at_most
        reader.connected(T0)
        frames = server.frames(reader.newest)
        if cuts:
            frames = frames[: cuts.pop()]
        again = None
        for seq in frames:
            actions = reader.undecodable("x") if seq is None else reader.event(seq, None, T0)
            for action in actions:
                if isinstance(action, Deliver):
                    assert seq is not None
                    delivered.append(seq)
                elif isinstance(action, KeepBadFrame):
                    kept.append(action.after_seq)
                elif isinstance(action, ReconnectFrom):
                    again = action
            if again is not None:
                break
        else:
            again = reconnect(reader.failed("cut", T0))
        assert again.cursor == reader.newest
    assert delivered == list(range(2, 21))
    assert all(kept.count(place) <= 1 for place in kept)  # once each, not once a connection


def test_a_garbage_frame_means_one_reconnect_from_before_it_and_then_it_is_kept_and_skipped() -> None:
    reader = make()
    reader.connected(T0)
    reader.event(101, T0, T0)
    assert reconnect(reader.undecodable("not CBOR")).cursor == 101
    reader.connected(T0)
    assert reader.undecodable("not CBOR") == (KeepBadFrame(101, "not CBOR"),)
    assert reader.event(103, T0, T0)[0] == Deliver()
    assert reconnect(reader.undecodable("not CBOR")).cursor == 103  # another place: once more


def test_garbage_without_end_at_one_place_never_reconnects_twice() -> None:
    reader = make()
    reader.connected(T0)
    reconnect(reader.undecodable("x"))
    reader.connected(T0)
    assert all(isinstance(reader.undecodable(str(number))[0], KeepBadFrame) for number in range(50))


# Failing connections


def test_delays_grow_to_a_limit_with_jitter_and_begin_again_after_an_event() -> None:
    reader = make()
    delays = [reconnect(reader.failed("refused", T0)).delay_s for _ in range(10)]
    for number, delay in enumerate(delays):
        full = min(64.0, 5.0 * 2**number)
        assert full / 2 <= delay <= full
    assert reader.failures == 10
    reader.connected(T0)
    reader.event(101, T0, T0)
    assert reader.failures == 0
    assert reconnect(reader.failed("cut", T0)).delay_s <= 5.0


def test_a_quiet_connection_that_lasted_is_no_failure() -> None:
    reader = make(attempts=2)
    for _ in range(5):
        reader.connected(T0)
        again = reconnect(reader.failed("closed", T0 + int(LASTED_S * S)))
        assert again.delay_s <= 5.0
    assert reader.failures == 0


@pytest.mark.parametrize(("attempts", "failures"), [(0, 1), (1, 1), (3, 3)])
def test_it_gives_up_after_so_many_failed_connections_in_a_row(attempts: int, failures: int) -> None:
    reader = make(attempts=attempts)
    for _ in range(failures - 1):
        reconnect(reader.failed("refused", T0))
    (last,) = reader.failed("refused", T0)
    assert isinstance(last, GiveUp)
    assert "refused" in last.text


def test_a_connection_that_opens_and_brings_nothing_counts_as_failed() -> None:
    reader = make(attempts=2)
    for _ in range(2):
        reader.connected(T0)
        actions = reader.failed("closed at once", T0 + S)
    assert isinstance(actions[0], GiveUp)


def test_retry_after_is_obeyed_and_costs_no_attempt() -> None:
    reader = make(attempts=1)
    for _ in range(3):
        assert reconnect(reader.failed("429", T0, retry_after_s=120.0)).delay_s == 120.0
    assert reader.failures == 0


def test_a_server_that_refuses_for_good_is_asked_rarely() -> None:
    assert reconnect(make().failed("501", T0, is_refused=True)).delay_s == REFUSED_DELAY_S


# What upstream says


def test_a_future_cursor_is_an_incident_and_a_fresh_start() -> None:
    reader = make()
    reader.connected(T0)
    actions = reader.error_frame("FutureCursor", "Cursor in the future.")
    assert kinds(actions) == [IncidentKind.FUTURE_CURSOR]
    assert BeganAfresh(1) in actions
    assert reconnect(actions).cursor is None
    reader.connected(T0)
    assert reader.event(5, T0, T0) == (Deliver(),)  # a lower seq is welcome now
    assert reader.newest == 5


def test_an_outdated_cursor_is_an_incident_and_the_stream_goes_on() -> None:
    reader = make()
    reader.connected(T0 + 100 * HOUR)
    (incident,) = reader.info("OutdatedCursor", None)
    assert isinstance(incident, IncidentFound)
    assert incident.kind is IncidentKind.OUTDATED_CURSOR
    # ... and it is not told a second time as a hole.
    assert play(reader, 5000, [T0 + 28 * HOUR + n for n in range(20)], T0 + 100 * HOUR) == []


def test_an_outdated_cursor_as_an_error_does_not_loop() -> None:
    reader = make()
    reader.connected(T0)
    assert reconnect(reader.error_frame("OutdatedCursor", None)).cursor is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [("ConsumerTooSlow", IncidentKind.CONSUMER_TOO_SLOW), ("SomethingNew", IncidentKind.STREAM_ERROR)],
)
def test_other_errors_are_incidents_and_resume_where_it_was(error: str, kind: IncidentKind) -> None:
    reader = make()
    reader.connected(T0)
    reader.event(101, T0, T0)
    actions = reader.error_frame(error, "x")
    assert kinds(actions) == [kind]
    assert reconnect(actions).cursor == 101
    reader.connected(T0)
    assert kinds(reader.error_frame(error, "x")) == []  # no event since: no news
    reader.connected(T0)
    reader.event(102, T0, T0)
    assert kinds(reader.error_frame(error, "x")) == [kind]


def test_an_error_frame_after_events_is_no_failed_connection() -> None:
    reader = make(attempts=1)
    reader.connected(T0)
    reader.event(101, T0, T0)
    assert reconnect(reader.error_frame("ConsumerTooSlow", None)).cursor == 101
    reader.connected(T0)
    assert isinstance(reader.error_frame("ConsumerTooSlow", None)[-1], GiveUp)


def test_an_info_that_we_do_not_know_changes_nothing() -> None:
    assert make().info("Hello", None) == ()


# The silent forms: a hole


def test_a_busy_stream_that_resumes_hours_later_has_a_hole() -> None:
    reader = make()
    reader.connected(T0 + 100 * HOUR)
    assert play(reader, 5000, [T0 + 28 * HOUR + n * 1000 for n in range(20)], T0 + 100 * HOUR) == [IncidentKind.HOLE]


def test_a_hole_is_judged_when_the_connection_ends_early() -> None:
    reader = make()
    reader.connected(T0 + 100 * HOUR)
    reader.event(5000, T0 + 28 * HOUR, T0 + 100 * HOUR)
    assert reader.is_judging
    assert kinds(reader.failed("cut", T0 + 100 * HOUR)) == [IncidentKind.HOLE]
    assert not reader.is_judging


def test_a_replay_of_what_we_missed_is_no_hole() -> None:
    reader = make()
    reader.connected(T0 + 10 * HOUR)
    assert play(reader, 102, [T0 + S + n * 1000 for n in range(20)], T0 + 10 * HOUR) == []


@pytest.mark.parametrize("first", [101, 100])
def test_no_gap_in_seq_or_the_cursors_own_event_proves_that_nothing_is_missing(first: int) -> None:
    reader = make()
    reader.connected(T0 + 10 * HOUR)
    found = kinds(reader.event(first, T0 + 9 * HOUR, T0 + 10 * HOUR))
    for seq in range(150, 180):
        found += kinds(reader.event(seq, T0 + 9 * HOUR, T0 + 10 * HOUR))
    assert found == []


def test_a_slow_stream_has_gaps_of_its_own_pace() -> None:
    reader = make()
    reader.connected(T0 + 20 * HOUR)
    times = [T0 + 2 * HOUR + n * HOUR // 4 for n in range(SAMPLE_EVENTS)]
    assert play(reader, 200, times, T0 + 20 * HOUR) == []


def test_one_event_with_a_false_time_neither_makes_nor_hides_a_hole() -> None:
    now = T0 + 100 * HOUR
    reader = make()
    reader.connected(now)
    assert play(reader, 200, [T0 + 90 * HOUR] + [T0 + S + n for n in range(19)], now) == []
    reader = make()
    reader.connected(now)
    assert play(reader, 200, [T0 + S] + [T0 + 90 * HOUR + n for n in range(19)], now) == [IncidentKind.HOLE]


def test_silence_that_we_watched_explains_the_time_that_passed() -> None:
    reader = make()
    reader.connected(T0)
    reader.event(101, T0, T0)
    quiet_until = T0 + 3 * HOUR
    reader.tick(quiet_until, idle_s=CAUGHT_UP_S)
    reconnect(reader.failed("cut", quiet_until))
    reader.connected(quiet_until + 5 * S)
    assert play(reader, 200, [quiet_until + 6 * S + n for n in range(20)], quiet_until + 30 * S) == []


def test_without_a_stored_time_there_is_nothing_to_compare() -> None:
    reader = make(time_us=None)
    reader.connected(T0)
    assert play(reader, 5000, [T0 + n for n in range(20)], T0 + HOUR) == []


def test_times_from_the_future_are_not_believed() -> None:
    reader = make()
    reader.connected(T0)
    reader.event(101, T0 + 1000 * HOUR, T0 + 7)
    assert reader.newest_time_us == T0 + 7


# The silent forms: a cursor from the future


def test_silence_above_the_cursor_is_probed_more_and_more_rarely() -> None:
    reader = make()
    reader.connected(T0)
    probes = []
    for second in range(1, 400):
        if reader.tick(T0 + second * S, idle_s=1.0) == (Probe(),):
            probes.append(second)
            assert reader.probed(None) == ()
    assert probes == [int(PROBE_S), int(PROBE_S * 3), int(PROBE_S * 7)]


def test_a_probe_below_the_cursor_is_an_incident_and_a_fresh_start() -> None:
    reader = make()
    reader.connected(T0)
    actions = reader.probed(99)
    assert kinds(actions) == [IncidentKind.SILENT_FUTURE_CURSOR]
    assert reconnect(actions).cursor is None
    assert reader.era == 1


@pytest.mark.parametrize("newest", [100, 101, None])
def test_a_probe_at_or_above_the_cursor_proves_it_good(newest: int | None) -> None:
    reader = make()
    reader.connected(T0)
    assert reader.probed(newest) == ()


def test_a_stream_that_has_risen_above_the_cursor_is_not_probed() -> None:
    reader = make()
    reader.connected(T0)
    reader.event(101, T0, T0)
    assert reader.tick(T0 + HOUR, idle_s=3600.0) == ()


def test_younger_events_below_the_cursor_are_a_new_numbering() -> None:
    reader = make()
    reader.connected(T0 + HOUR)
    found: list[Action] = []
    for seq in range(1, 50):
        found += reader.event(seq, T0 + HOUR + seq, T0 + 2 * HOUR)
        if isinstance(found[-1], ReconnectFrom):
            break
    assert kinds(tuple(found)) == [IncidentKind.SILENT_FUTURE_CURSOR]
    assert Deliver() not in found


def test_an_overlap_of_older_events_is_only_a_replay() -> None:
    reader = make()
    reader.connected(T0 + HOUR)
    for seq in range(1, 100):
        assert reader.event(seq, T0 - (100 - seq) * S, T0 + HOUR) == (Drop(),)
    assert reader.event(101, T0 + S, T0 + HOUR) == (Deliver(),)
