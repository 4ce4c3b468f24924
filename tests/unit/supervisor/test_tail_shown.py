"""What is shown of the firehose: the same numbers in the status and in the metrics."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.discovery.progress import ReconcileView
from relay.model import OpType
from relay.observe.metrics import Metrics
from relay.observe.status import FirehoseStatus, ReconcileStatus
from relay.repos.buffer import LiveBuffer
from relay.supervisor.tail_shown import ReconcileShown, TailShown
from relay.tail.ports import TailView
from relay.tail.reader import IncidentKind

TAIL = TailView(
    upstream="wss://relay.example",
    is_connected=True,
    seq=1050,
    cursor=1000,
    time_us=1_700_000_000_500_000,
    events={"commit": 40, "sync": 1, "account": 2, "identity": 3},
    outcomes={"commit": 38, "invalid": 2},
    made={OpType.CREATE: 30, OpType.DELETE: 8},
    invalid={"bad_signature": 2},
    ignored={"replayed": 7},
    incidents={IncidentKind.HOLE: 1},
    open_frames=12,
    distance=50,
    waiting_batches=3,
    verifying=9,
    waiting_for_key=4,
    key_refreshes=5,
    reliefs=6,
    verify_cpu_s=1.5,
    slot_wait_s=0.25,
    received_bytes=123_456,
    connections=2,
    last_error=None,
)


def _values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_a_clock_that_stays_behind_the_events_is_told_and_one_event_from_the_future_is_not() -> None:
    assert TAIL.time_us is not None
    shown, wall = TailShown(Metrics(version="0"), max_open_frames=200), TAIL.time_us / 1e6 - 400
    told = []
    for now, behind in ((0.0, 400), (9.0, 400), (10.0, 390), (11.0, 1), (12.0, 400)):
        shown.look(TAIL, _buffer(), now=now, wall=wall + 400 - behind)
        told.append(shown.clock_behind_s)
    assert told == [None, None, 390, None, None]


def _buffer() -> LiveBuffer[str]:
    buffer: LiveBuffer[str] = LiveBuffer(max_operations=100, max_per_repo=10)
    buffer.add("a", "event", 4)
    buffer.add("b", "event", 11)  # more than its share: thrown away
    return buffer


def test_every_number_of_the_tail_is_shown_and_measured() -> None:
    metrics = Metrics(version="0")
    shown = TailShown(metrics, max_open_frames=200).look(TAIL, _buffer(), now=10.0, wall=1_700_000_002.0)
    assert shown == FirehoseStatus(
        seq=1050,
        cursor=1000,
        lag_s=1.5,
        connected=True,
        events_per_s=None,
        upstream="wss://relay.example",
        events=TAIL.events,
        outcomes=TAIL.outcomes,
        invalid={"bad_signature": 2},
        ignored={"replayed": 7},
        open_frames=12,
        distance=50,
        max_open_frames=200,
        waiting_batches=3,
        verifying=9,
        waiting_for_key=4,
        buffered_operations=4,
        buffer_size=100,
        connections=2,
    )
    values = _values(metrics)
    for name, *expected in (
        ("relay_firehose_seq", 1050), ("relay_firehose_cursor", 1000), ("relay_firehose_lag_seconds", 1.5),
        ("relay_firehose_connected", 1), ("relay_firehose_connections_total", 2), ("relay_firehose_bytes_total", 123_456),
        ("relay_firehose_stalled_seconds_total", 0.25), ("relay_verify_cpu_seconds_total", 1.5), ("relay_open_frames", 12),
        ("relay_cursor_distance_frames", 50), ("relay_queue_depth", "frames", 3), ("relay_queue_depth", "verify", 9),
        ("relay_queue_depth", "key", 4), ("relay_key_refreshes_total", 5), ("relay_open_frames_reliefs_total", 6),
        ("relay_buffered_operations", 4), ("relay_operations_buffered_total", 15), ("relay_buffer_overflows_total", 1),
        ("relay_events_total", "commit", 40), ("relay_events_total", "identity", 3), ("relay_frames_total", "commit", 38),
        ("relay_operations_total", "FIREHOSE", "CREATE", 30), ("relay_operations_total", "FIREHOSE", "DELETE", 8),
        ("relay_invalid_total", "bad_signature", 2), ("relay_frames_ignored_total", "replayed", 7),
        ("relay_incidents_total", "hole", 1),
    ):  # fmt: skip
        *labels, value = expected
        assert values[str(name), *(str(label) for label in labels)] == value, name


def test_a_second_look_counts_only_what_is_new() -> None:
    metrics = Metrics(version="0")
    shown, buffer = TailShown(metrics, max_open_frames=200), _buffer()
    shown.look(TAIL, buffer, now=10.0, wall=0.0)
    status = shown.look(
        replace(TAIL, events={"commit": 60, "sync": 1, "account": 2, "identity": 3}, connections=3),
        buffer,
        now=20.0,
        wall=0.0,
    )
    assert status.events_per_s == pytest.approx(2.0)
    values = _values(metrics)
    assert values["relay_events_total", "commit"] == 60
    assert values["relay_invalid_total", "bad_signature"] == 2
    assert values["relay_firehose_connections_total",] == 3
    assert values["relay_operations_buffered_total",] == 15


def test_what_is_not_known_yet_is_null_and_an_event_from_the_future_is_not_late() -> None:
    shown = TailShown(Metrics(version="0"), max_open_frames=200)
    before = replace(TAIL, seq=None, cursor=None, time_us=None, is_connected=False, events={}, last_error="refused")
    status = shown.look(before, _buffer(), now=10.0, wall=1_700_000_000.0)
    assert (status.seq, status.cursor, status.lag_s, status.connected) == (None, None, None, False)
    assert status.last_error == "refused"
    assert shown.look(TAIL, _buffer(), now=11.0, wall=1_600_000_000.0).lag_s == 0.0


def test_a_reconcile_is_shown_and_measured_and_the_next_one_counts_anew() -> None:
    metrics = Metrics(version="0")
    shown = ReconcileShown(metrics)
    assert shown.look(None) == ReconcileStatus()
    before = ReconcileView(last_completed_at=0.0)
    assert shown.look(before) == ReconcileStatus(completed_at="1970-01-01T00:00:00.000Z")
    first = ReconcileView(
        running=True, hosts_total=3, hosts_done=2, hosts_failed=1, compared=90, differed=4, queued=3, found=1
    )
    assert shown.look(first) == ReconcileStatus(
        running=True, hosts_total=3, hosts_done=2, hosts_failed=1, compared=90, differed=4, queued=3, found=1
    )
    assert _values(metrics)["relay_reconciling",] == 1
    assert shown.look(replace(first, running=False, compared=100, last_completed_at=0.0)).completed_at == (
        "1970-01-01T00:00:00.000Z"
    )
    shown.look(ReconcileView(running=True, hosts_total=3, compared=0))
    shown.look(ReconcileView(running=True, hosts_total=3, compared=20, differed=1))
    values = _values(metrics)
    assert values["relay_reconciled_repos_total", "compared"] == 120
    assert values["relay_reconciled_repos_total", "differed"] == 5
