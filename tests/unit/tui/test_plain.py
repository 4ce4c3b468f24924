"""Progress as lines, and the closing summary."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from relay.model import RepoState
from relay.observe.status import (
    Backlog,
    FetchView,
    FirehoseStatus,
    IncidentView,
    IngesterView,
    Phase,
    Rates,
    ReconcileStatus,
    StatusSnapshot,
    Targets,
)
from relay.tui.plain import ProgressLines, closing_lines, progress_line, summary_lines


@dataclass(frozen=True)
class _Summary:
    interrupted: bool = False
    why: str | None = None
    counts: Mapping[RepoState, int] = field(default_factory=dict)
    reasons: Sequence[tuple[RepoState, str | None, int]] = ()
    quarantined: Sequence[tuple[str, str | None, str | None]] = ()
    failed_listings: Sequence[str] = ()
    dead_letters: int = 0
    records: int = 0
    bytes_fetched: int = 0
    repos_synced: int = 0
    took_s: float = 0.0


def test_a_line_tells_progress_rates_and_trouble() -> None:
    snapshot = StatusSnapshot(
        instance="a",
        phase=Phase.RUNNING,
        repos={"synced": 120, "pending": 170, "active": 8, "quarantined": 2},
        records_delivered=12_345,
        bytes_fetched=5 * 2**20,
        rates=Rates(repos_per_s=12.3, records_per_s=4210.0, bytes_per_s=2.0**20),
        targets=Targets(total=300, done=122, final=True, eta_s=15.0),
        ingesters=(IngesterView(address="a:1", healthy=False), IngesterView(address="b:1", healthy=True)),
        incidents=(IncidentView(at="", kind="hole", text=""), IncidentView(at="", kind="hole", text="", closed_at="x")),
    )
    assert progress_line(snapshot) == (
        "running, 122 of 300 repos (40.7%) 12/s, 12,345 records 4.21k/s, 5.00 MiB 1.00 MiB/s, eta 15s, 8 active, 2 quarantined, "
        "1 of 2 ingesters away, 1 open incidents"
    )


def test_a_line_is_honest_about_what_it_does_not_know() -> None:
    line = progress_line(
        StatusSnapshot(instance="a", phase=Phase.WAITING, reason="database away", targets=Targets(total=5))
    )
    assert line == "waiting (database away), - of 5 repos so far (-), - records -, - -, eta -"


def test_a_line_tells_how_the_firehose_is_followed() -> None:
    firehose = FirehoseStatus(
        seq=100,
        cursor=90,
        lag_s=0.4,
        connected=True,
        events_per_s=812.0,
        connections=1,
        distance=1234,
        buffered_operations=12,
    )
    snapshot = StatusSnapshot(
        instance="a",
        phase=Phase.RUNNING,
        repos={"synced": 1200, "pending": 30, "desynced": 2},
        operations_delivered=223_456,
        operations_per_s=2310.0,
        bytes_fetched=0,
        rates=Rates(repos_per_s=1.5, bytes_per_s=0.0),
        backlog=Backlog(repos=32, eta_s=21.0),
        firehose=firehose,
    )
    assert progress_line(snapshot) == (
        "running, 1,200 repos synced 1.50/s, 32 to go (eta 21s), 223,456 operations 2.31k/s, 0 B 0 B/s, tail lag 0.4s 812/s, "
        "1.23k open frames, 12 buffered, 2 desynced"
    )
    reconciling = replace(snapshot, reconcile=ReconcileStatus(running=True, hosts_total=9, hosts_done=2, differed=5))
    assert "reconciling 2 of 9 hosts (5 repos differ)" in progress_line(reconciling)
    lost = replace(snapshot, firehose=replace(firehose, connected=False))
    assert "tail not connected" in progress_line(lost)
    assert "tail" not in progress_line(replace(snapshot, firehose=FirehoseStatus()))


def test_a_line_is_written_now_and_then_and_at_once_when_the_phase_changes() -> None:
    out = io.StringIO()
    lines = ProgressLines(out, interval_s=5)
    running = StatusSnapshot(instance="a", phase=Phase.RUNNING)
    waiting = StatusSnapshot(instance="a", phase=Phase.WAITING, reason="database away")
    for tenth in range(100):
        lines.show(running, tenth / 10)
    lines.show(waiting, 10.1)
    lines.show(waiting, 10.2)
    words = [line.split(",")[0] for line in out.getvalue().splitlines()]
    assert words == ["running", "running", "waiting (database away)"]


def test_the_summary_has_numbers_reasons_and_who_was_given_up() -> None:
    summary = _Summary(
        counts={RepoState.SYNCED: 290, RepoState.QUARANTINED: 3, RepoState.INACTIVE: 7},
        reasons=[(RepoState.INACTIVE, "takendown", 7), (RepoState.QUARANTINED, "bad_signature", 2)],
        quarantined=[("did:plc:a", "bad_signature", "signature\nof x"), ("did:plc:b", None, None)],
        failed_listings=["https://pds.example: no answer"],
        dead_letters=4,
        records=58_000,
        bytes_fetched=20 * 2**20,
        repos_synced=290,
        took_s=29.0,
    )
    assert summary_lines(summary) == [
        "finished after 29s",
        "  this run     290 repos synced, 58,000 records, 20.0 MiB fetched",
        "  rates        10/s repos, 2.00k/s records, 706 KiB/s",
        "  targets      290 synced, 3 quarantined, 7 inactive",
        "  not synced",
        "            7  inactive: takendown",
        "            2  quarantined: bad_signature",
        "  dead letters 4: see `bin/relay deadletter list`",
        "  listings that failed",
        "    https://pds.example: no answer",
        "  quarantined",
        "    did:plc:a  bad_signature  signature of x",
        "    did:plc:b  -",
        "    and 1 more: see `bin/relay repos list --state quarantined`",
    ]


def test_the_list_of_those_given_up_is_limited() -> None:
    summary = _Summary(
        counts={RepoState.QUARANTINED: 5000},
        quarantined=[(f"did:plc:{number}", "x", None) for number in range(1000)],
        failed_listings=[f"host {number}" for number in range(50)],
    )
    lines = summary_lines(summary, most_listed=20)
    assert sum("did:plc:" in line for line in lines) == 20
    assert "    and 4,980 more: see `bin/relay repos list --state quarantined`" in lines
    assert "    and 30 more" in lines


def test_an_interrupted_run_says_how_to_go_on_and_a_failed_one_why() -> None:
    assert summary_lines(_Summary(interrupted=True, took_s=2.0))[0] == "interrupted after 2.0s"
    assert summary_lines(_Summary(interrupted=True))[-1] == "  the same command continues where this one stopped"
    assert summary_lines(_Summary(why="the disk is full", took_s=2.0))[:2] == [
        "cannot go on: the disk is full",
        "stopped after 2.0s",
    ]


def test_a_service_ends_with_what_it_did_where_it_stands_and_what_is_open() -> None:
    snapshot = StatusSnapshot(
        instance="a",
        phase=Phase.STOPPED,
        uptime_s=7_800,
        repos={"synced": 1_378, "pending": 112, "quarantined": 1},
        operations_delivered=2_923,
        bytes_fetched=486_400,
        fetch=FetchView(done=13),
        backlog=Backlog(repos=112),
        firehose=FirehoseStatus(seq=20_829, cursor=20_822, events={"commit": 1_200, "account": 66}),
        ingesters=(IngesterView(address="127.0.0.1:1", healthy=False, queued_operations=5),),
        incidents=(
            IncidentView(at="2026-01-01T00:00:00.000Z", kind="gap", text="a hole\nof\x1b[31m an hour"),
            IncidentView(at="2026-01-01T00:00:00.000Z", kind="old", text="x", closed_at="2026-01-01T01:00:00.000Z"),
        ),
    )
    assert closing_lines(snapshot) == [
        "stopped after 2h10m",
        "  fetched      13 repos, 475 KiB",
        "  read         1,266 events",
        "  delivered    2,923 operations",
        "  cursor       20,822, 7 below the newest event read",
        "  repos        112 pending, 1,378 synced, 1 quarantined",
        "  left         112 repos to fetch",
        "  not taken    5 operations",
        "  open         gap since 2026-01-01T00:00:00.000Z: a hole of [31m an hour",
        "  the next start goes on from here",
    ]
    assert closing_lines(snapshot, "the disk is full")[:2] == [
        "relay: cannot go on: the disk is full",
        "stopped after 2h10m",
    ]
