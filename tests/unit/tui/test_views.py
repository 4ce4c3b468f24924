"""The screen: fits whatever terminal there is, shows what matters first, and lets no foreign text through."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from relay.observe.status import (
    Backlog,
    ErrorView,
    FetchView,
    FirehoseStatus,
    Gauge,
    HostView,
    IncidentView,
    IngesterView,
    ListingView,
    Phase,
    Rates,
    ReconcileStatus,
    StatusSnapshot,
    Targets,
    WorkerView,
)
from relay.tui.live import tolerant
from relay.tui.views import dashboard

AT = "2026-11-23T10:00:00.000Z"


def _busy(hosts: int = 30, errors: int = 12, phase: Phase = Phase.RUNNING) -> StatusSnapshot:
    return StatusSnapshot(
        instance="tradr-relay",
        phase=phase,
        command="backfill",
        reason="all ingesters away" if phase == Phase.WAITING else "",
        version="0.1.0",
        uptime_s=192.0,
        repos={"synced": 12_345, "pending": 1_234_567, "active": 10, "quarantined": 3, "failed": 7},
        records_delivered=123_456_789,
        bytes_fetched=34_567_890_123,
        rates=Rates(repos_per_s=12.3, records_per_s=42_100.0, bytes_per_s=3.4e6),
        targets=Targets(total=2_000_000, done=12_348, eta_s=185.0, final=True),
        firehose=FirehoseStatus(
            seq=12_345_678_901, cursor=12_345_678_000, lag_s=1.2, connected=True, events_per_s=800.0
        ),
        listing=ListingView(
            running=True, source="listRepos", hosts_total=320, hosts_done=12, hosts_failed=1, repos_seen=99
        ),
        fetch=FetchView(active=9, limit=10, done=12_000, failed=4, rate_limit_waits=12, rate_limit_wait_s=3.4),
        ingesters=tuple(
            IngesterView(
                address=f"ingester-{number}.internal:50052",
                healthy=number > 0,
                in_flight_batches=12,
                window_batches=32,
                queued_operations=50_000,
                oldest_unacked_s=31.0,
                rtt_ms=3.2,
                delivered_operations=1_234_567,
                reason="" if number else "no stream",
            )
            for number in range(3)
        ),
        hosts=tuple(
            HostView(host=f"https://host-{number}.example", state="ok", pending=number) for number in range(hosts)
        ),
        hosts_total=320,
        workers=tuple(
            WorkerView(role="worker", number=number, state="busy", doing="did:plc:abc") for number in range(4)
        ),
        gauges=(Gauge(name="slots", used=24, limit=24), Gauge(name="store", used=130, limit=5000)),
        failures={"host_down": 12, "rate_limited": 5},
        incidents=(IncidentView(at=AT, kind="outdated_cursor", text="reconciling"),),
        last_errors=tuple(
            ErrorView(at=AT, reason="host_down", text=f"did:plc:{number}: no answer") for number in range(errors)
        ),
    )


def _screen(
    snapshot: StatusSnapshot, width: int, height: int, log_lines: Sequence[str] = (), **options: object
) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, highlight=False, **options)  # type: ignore[arg-type]
    console.print(dashboard(snapshot, width, height, log_lines), width=width, crop=False, no_wrap=True)
    return out.getvalue().splitlines()


def test_a_small_terminal_shows_what_matters() -> None:
    lines = _screen(_busy(), 80, 24)
    text = "\n".join(lines)
    assert len(lines) <= 24
    for word in (
        "tradr-relay backfill running", "0.6% of 2,000,000", "eta 3m05s", "123M", "42.1k/s", "lag 1.2s", "3 quarantined", "no stream",
        "ingesters", "incidents", "outdated_cursor", "last errors", "host_down",
    ):  # fmt: skip
        assert word in text, word


def test_a_large_terminal_shows_every_list_side_by_side() -> None:
    lines = _screen(_busy(hosts=20), 160, 50, ["2026-11-23T10:00:00.000Z info    repo_synced did=did:plc:abc"])
    text = "\n".join(lines)
    assert len(lines) <= 50
    for word in ("host-19.example", "worker 3", "incidents", "no answer  did:plc:11", "repo_synced"):
        assert word in text, word
    assert any("ingesters" in line and "incidents" in line for line in lines)


def test_what_is_left_out_is_counted() -> None:
    snapshot = _busy(hosts=30, errors=0)
    for height in range(24, 60):
        text = "\n".join(_screen(snapshot, 80, height))
        shown = sum(f"host-{number}.example" in text for number in range(30))
        if "hosts (320)" in text and shown < 30:
            assert f"{30 - shown} more" in text


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(40, 220),
    height=st.integers(3, 80),
    hosts=st.integers(0, 60),
    errors=st.integers(0, 10),
    phase=st.sampled_from(Phase),
    logs=st.integers(0, 50),
)
def test_the_screen_is_never_higher_or_wider_than_the_terminal(
    width: int, height: int, hosts: int, errors: int, phase: Phase, logs: int
) -> None:
    lines = _screen(_busy(hosts, errors, phase), width, height, ["x" * 300] * logs)
    assert len(lines) <= height
    assert max((len(line) for line in lines), default=0) <= width


def test_an_instance_of_which_nothing_is_known_yet_can_be_shown() -> None:
    text = "\n".join(_screen(StatusSnapshot(instance="a", phase=Phase.STARTING), 80, 24))
    assert "a starting" in text
    assert "no repos yet" in text


def test_while_targets_are_still_being_found_the_view_says_so() -> None:
    snapshot = StatusSnapshot(
        instance="a", phase=Phase.RUNNING, targets=Targets(total=100, done=50, final=False, eta_s=10.0)
    )
    text = "\n".join(_screen(snapshot, 80, 24))
    assert "50.0% of 100 so far" in text
    assert "eta 10s or more" in text


@pytest.mark.parametrize(("eta", "shown"), [(None, "eta -"), (7200.0, "eta 2h00m")])
def test_a_time_that_is_not_known_is_not_made_up(eta: float | None, shown: str) -> None:
    snapshot = StatusSnapshot(
        instance="a", phase=Phase.RUNNING, targets=Targets(total=9, done=1, final=True, eta_s=eta)
    )
    assert shown in "\n".join(_screen(snapshot, 80, 24))


def _live(*, connected: bool = True, left: int = 33_210) -> StatusSnapshot:
    return StatusSnapshot(
        instance="tradr-relay",
        phase=Phase.RUNNING,
        command="run",
        version="0.1.0",
        uptime_s=11_520.0,
        repos={"synced": 1_201_357, "pending": left, "inactive": 2210},
        bytes_fetched=34_567_890_123,
        operations_delivered=223_456_789,
        operations_per_s=2310.0,
        rates=Rates(repos_per_s=12.3, records_per_s=0.0, bytes_per_s=3.4e6),
        backlog=Backlog(repos=left, eta_s=725.0 if left else 0.0),
        firehose=FirehoseStatus(
            seq=12_345_678_901,
            cursor=12_345_678_000,
            lag_s=0.4 if connected else 75.0,
            connected=connected,
            events_per_s=812.0,
            upstream="wss://bsky.network",
            events={"commit": 1_234_567, "sync": 12, "account": 0},
            outcomes={"proved": 1_234_000, "unprovable": 3, "invalid": 14},
            invalid={"bad_signature": 9, "no_key": 5},
            ignored={"replayed": 120},
            open_frames=900,
            distance=1234,
            max_open_frames=200_000,
            waiting_batches=2,
            verifying=320,
            buffered_operations=12_345,
            buffer_size=50_000,
            connections=3,
            last_error=None if connected else "upstream says ConsumerTooSlow",
        ),
        fetch=FetchView(active=9, limit=10, done=12_000, failed=4, rate_limit_waits=12, rate_limit_wait_s=3.4),
        ingesters=tuple(IngesterView(address=f"ingester-{number}:50052", healthy=True) for number in range(2)),
        incidents=(IncidentView(at=AT, kind="consumer_too_slow", text="reconciling"),),
        gauges=(Gauge(name="CAR slots", used=24, limit=24), Gauge(name="to be stored", used=130)),
    )


def test_a_small_terminal_shows_how_the_firehose_is_followed() -> None:
    lines = _screen(_live(), 80, 24)
    text = "\n".join(lines)
    assert len(lines) <= 24
    for word in (
        "97.3% of 1,236,777 repos  33,210 to go  eta 12m05s", "operations 223M  2.31k/s", "tail connected  lag 0.4s  events 812/s",
        "seq 12,345,678,901", "cursor 901 behind", "open incidents 1", "open frames 1.23k/200k", "batches waiting 2",
        "verifying 320", "buffered 12.3k/50.0k", "invalid 14", "consumer_too_slow",
    ):  # fmt: skip
        assert word in text, word
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)


def test_a_large_terminal_shows_what_came_of_the_frames() -> None:
    text = "\n".join(_screen(_live(), 160, 50))
    for word in ("read: commit", "checked: unprovable", "ignored: replayed", "invalid: bad_signature"):
        assert word in text, word
    assert "read: account" not in text  # none came
    assert "checked: invalid" not in text  # it stands there by reason


def test_a_reconcile_that_runs_is_shown() -> None:
    reconcile = ReconcileStatus(
        running=True, hosts_total=320, hosts_done=12, hosts_failed=1, compared=1_234_567, differed=3
    )
    text = "\n".join(_screen(replace(_live(), reconcile=reconcile), 80, 24))
    assert "reconcile hosts 12 of 320  compared 1,234,567  differ 3" in text
    assert "silent hosts 1" in text
    assert "reconcile" not in "\n".join(
        _screen(replace(_live(), incidents=(), reconcile=replace(reconcile, running=False)), 80, 24)
    )


def test_a_stream_that_is_lost_says_why() -> None:
    text = "\n".join(_screen(_live(connected=False), 80, 24))
    assert "tail not connected  lag 1m15s" in text
    assert "upstream says ConsumerTooSlow" in text


def test_a_backlog_that_is_gone_is_no_news() -> None:
    text = "\n".join(_screen(_live(left=0), 80, 24))
    assert "100% of 1,203,567 repos" in text
    assert "to go" not in text


def test_without_an_instance_the_stored_cursor_is_shown() -> None:
    snapshot = StatusSnapshot(
        instance="a", phase=Phase.STOPPED, firehose=FirehoseStatus(cursor=1234, upstream="wss://relay.example")
    )
    assert "tail stored cursor 1,234  of wss://relay.example" in "\n".join(_screen(snapshot, 80, 24))
    assert "tail" not in "\n".join(_screen(StatusSnapshot(instance="a", phase=Phase.RUNNING), 80, 24))


@settings(max_examples=40, deadline=None)
@given(width=st.integers(40, 220), height=st.integers(3, 80), connected=st.booleans(), left=st.integers(0, 2))
def test_the_screen_of_a_followed_stream_fits_too(width: int, height: int, connected: bool, left: int) -> None:
    lines = _screen(_live(connected=connected, left=left), width, height)
    assert len(lines) <= height
    assert max((len(line) for line in lines), default=0) <= width


def test_unhealthy_ingesters_and_open_incidents_come_first() -> None:
    snapshot = StatusSnapshot(
        instance="a",
        phase=Phase.RUNNING,
        ingesters=(IngesterView(address="good:1", healthy=True), IngesterView(address="gone:1", healthy=False)),
        incidents=(
            IncidentView(at="2026-11-23T10:00:00.000Z", kind="still_open", text=""),
            IncidentView(at="2026-11-23T11:00:00.000Z", kind="over", text="", closed_at=AT),
        ),
    )
    text = "\n".join(_screen(snapshot, 80, 24))
    assert text.index("gone:1") < text.index("good:1")
    assert text.index("still_open") < text.index("over")


def test_foreign_text_neither_colours_nor_moves_nor_is_taken_for_markup() -> None:
    evil = "[red]x[/red]\x1b[2J\r\n\x07"
    snapshot = StatusSnapshot(
        instance="a",
        phase=Phase.WAITING,
        reason=evil,
        hosts=(HostView(host=f"https://{evil}"),),
        last_errors=(ErrorView(at="", reason=evil, text=evil),),
        incidents=(IncidentView(at="", kind=evil, text=evil),),
        workers=(WorkerView(role="worker", number=0, doing=evil),),
        ingesters=(IngesterView(address=evil, healthy=False, reason=evil),),
    )
    lines = _screen(snapshot, 120, 60, [evil])
    assert not any("\x1b" in line or "\r" in line or "\x07" in line for line in lines)
    assert any("[red]x[/red]" in line for line in lines)


def test_no_colour_means_no_colour() -> None:
    coloured = "\n".join(_screen(_busy(), 80, 24, force_terminal=True, color_system="standard", no_color=False))
    plain = "\n".join(_screen(_busy(), 80, 24, force_terminal=True, color_system="standard", no_color=True))
    assert "\x1b[32m" in coloured or "\x1b[1;32m" in coloured
    assert not any(f"\x1b[{style}{colour}m" in plain for style in ("", "1;", "2;") for colour in range(30, 38))


def test_a_terminal_without_unicode_gets_ascii() -> None:
    buffer = io.BytesIO()
    console = Console(file=tolerant(io.TextIOWrapper(buffer, encoding="ascii")), width=80, height=24)
    console.print(dashboard(_busy(), 80, 24), width=80)
    console.file.flush()
    assert b"host_down" in buffer.getvalue()


def test_hosts_keep_their_places_while_they_work_and_the_sick_stand_first() -> None:
    def shown(connections: tuple[int, int, int]) -> list[str]:
        hosts = (
            HostView(host="https://busy.example", done=90, connections=connections[0]),
            HostView(host="https://calm.example", done=10, connections=connections[1]),
            HostView(host="https://down.example", done=5, state="down", connections=connections[2]),
        )
        lines = _screen(replace(_busy(), hosts=hosts, last_errors=()), 80, 40)
        return [line.split()[0] for line in lines if ".example" in line]

    assert shown((0, 4, 0)) == shown((4, 0, 1)) == ["down.example", "busy.example", "calm.example"]


def test_lanes_stand_apart_and_a_lane_that_nobody_tells_takes_no_room() -> None:
    ingester = IngesterView(
        address="here:1", healthy=True, queued_live=7, queued_backfill=1_234, queued_operations=1_241
    )
    lines = _screen(replace(_busy(), ingesters=(ingester,)), 80, 24)
    (heads,) = [line for line in lines if line.startswith("ingesters")]
    (row,) = [line for line in lines if line.startswith("here:1")]
    assert heads.split()[2:4] == ["live", "backfill"]
    assert row.split()[2:4] == ["7", "1.23k"]
    assert "backfill" not in next(line for line in _screen(_busy(), 80, 24) if line.startswith("ingesters"))


def test_the_bytes_that_are_left_are_told_where_there_is_room() -> None:
    snapshot = replace(_busy(), targets=Targets(total=100, done=20, eta_s=60.0, final=True, bytes_left=50 * 1024**2))
    assert "about 50.0 MiB to go  eta 1m00s" in _screen(snapshot, 120, 24)[1]
    assert "MiB to go" not in _screen(snapshot, 80, 24)[1]
    service = replace(_busy(), targets=Targets(), backlog=Backlog(repos=7, eta_s=60.0, bytes_left=50 * 1024**2))
    assert "7 to go (about 50.0 MiB)  eta 1m00s" in _screen(service, 120, 24)[1]


def test_what_comes_and_goes_moves_nothing_before_it() -> None:
    def tail(waiting: int) -> str:
        firehose = replace(
            _busy().firehose,
            distance=3,
            max_open_frames=9,
            verifying=0,
            waiting_batches=waiting,
            waiting_for_key=waiting,
        )
        lines = _screen(replace(_busy(), firehose=firehose, targets=Targets()), 160, 50)
        return next(line for line in lines if line.startswith("tail")).rstrip()

    assert tail(30).startswith(tail(0))
    assert "batches waiting 30" in tail(30)
