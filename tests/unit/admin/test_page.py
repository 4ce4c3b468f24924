"""The page for a browser: every part of a snapshot, nothing of what is not there."""

from __future__ import annotations

from relay.admin.page import render_page
from relay.observe.status import Backlog, FirehoseStatus, Phase, ReconcileStatus, StatusSnapshot, Targets

FOLLOWED = FirehoseStatus(
    seq=12_345,
    cursor=12_300,
    lag_s=0.5,
    connected=True,
    events_per_s=812.0,
    upstream="wss://relay.example",
    events={"commit": 4321},
    outcomes={"proved": 4300},
    invalid={"bad_signature": 9},
    ignored={"replayed": 77},
    open_frames=900,
    distance=1234,
    max_open_frames=200_000,
    waiting_batches=2,
    verifying=320,
    buffered_operations=12_345,
    buffer_size=50_000,
    last_error="<b>upstream</b> says ConsumerTooSlow",
)


def _page(snapshot: StatusSnapshot) -> str:
    return render_page(snapshot).decode()


def test_a_followed_firehose_is_shown_with_what_waits_and_what_came_of_it() -> None:
    page = _page(
        StatusSnapshot(
            instance="a",
            phase=Phase.RUNNING,
            repos={"synced": 1000, "pending": 24},
            operations_delivered=99_887,
            backlog=Backlog(repos=24, eta_s=61.0),
            firehose=FOLLOWED,
            reconcile=ReconcileStatus(running=True, hosts_total=321, hosts_done=12, compared=98_765),
        )
    )
    for text in (
        "wss://relay.example", ">yes<", "12,345", "12,300", "0.5s", "812/s", "&lt;b&gt;upstream&lt;/b&gt; says", "1,234", "200,000",
        "320", "50,000", "4,321", "4,300", "bad_signature", "77", "99,887", "1,000 of 1,024", "97.7%", "24 to go", "1m01s", ">321<", "98,765",
    ):  # fmt: skip
        assert text in page, text


def test_what_is_not_there_has_no_table() -> None:
    page = _page(
        StatusSnapshot(instance="a", phase=Phase.STOPPED, firehose=FirehoseStatus(cursor=77, upstream="wss://x"))
    )
    assert "<h2>Firehose</h2>" in page
    assert ">77<" in page
    for title in ("Frames in work", "Frames", "Hosts", "Workers", "Reconcile"):
        assert f"<h2>{title}</h2>" not in page
    assert "At rest" not in page
    assert "1 of 3 repos so far" in _page(
        StatusSnapshot(instance="a", phase=Phase.RUNNING, targets=Targets(total=3, done=1))
    )
