"""The page for a browser: every part of a snapshot, nothing of what is not there."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser

from relay.admin.look import POLICY
from relay.admin.page import Search, render_page
from relay.observe.status import (
    Backlog,
    ErrorView,
    FirehoseStatus,
    Gauge,
    HostView,
    IncidentView,
    IngesterView,
    ListingView,
    Phase,
    ReconcileStatus,
    StatusSnapshot,
    Targets,
    WorkerView,
)

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


HOSTILE = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>&#x3c;b&#x3e;</script>\x00 javascript:alert(3)"


class _Parts(HTMLParser):
    """Every element and attribute that a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name in ("href", "src", "action")}


def _parts(page: str) -> _Parts:
    parts = _Parts()
    parts.feed(page)
    return parts


def test_no_name_from_outside_becomes_markup_wherever_it_stands() -> None:
    text = HOSTILE
    page = render_page(
        StatusSnapshot(
            instance=text,
            phase=Phase.WAITING,
            reason=text,
            command=text,
            repos={"synced": 1},
            firehose=FirehoseStatus(
                seq=1, distance=1, upstream=text, last_error=text, events={text: 1}, invalid={text: 1}
            ),
            ingesters=(IngesterView(address=text, healthy=False, reason=text),),
            incidents=(IncidentView(at=text, kind=text, text=text),),
            hosts=(HostView(host=text, state=text),),
            workers=(WorkerView(role=text, number=1, state=text, doing=text),),
            gauges=(Gauge(name=text, used=1),),
            failures={text: 1},
            last_errors=(ErrorView(at=text, reason=text, text=f"did:web:{text} did:plc:{'a' * 24}{text}"),),
            listing=ListingView(running=True, source=text),
        ),
        search=Search(did=text, story={text: text, "list": [{text: text}], "map": {text: text}}),
    ).decode()
    parts = _parts(page)
    assert (parts.tags["script"], parts.tags["img"], parts.tags["b"] > 3) == (1, 0, True)
    assert not [name for name in parts.attributes if name.startswith("on") or name == "style"]
    assert parts.links == {
        "data:,", "/", "/status.json", "/metrics", "/health", "/ready", f"/?did=did:plc:{'a' * 24}"
    }  # fmt: skip


def test_the_policy_allows_the_pages_own_script_and_style_and_no_other() -> None:
    page = _page(StatusSnapshot(instance="a", phase=Phase.RUNNING))
    for tag in ("script", "style"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in POLICY
    assert "unsafe" not in POLICY
    assert POLICY.startswith("default-src 'none'")


def test_without_scripts_it_asks_for_itself_again_but_not_while_somebody_reads_what_was_found() -> None:
    snapshot = StatusSnapshot(instance="a", phase=Phase.RUNNING)
    assert '<noscript><meta http-equiv="refresh"' in _page(snapshot)
    found = render_page(snapshot, search=Search(did="did:plc:a", problem="This DID is not known here.")).decode()
    assert "http-equiv" not in found
    assert "not known here" in found


def test_what_is_open_stands_above_everything() -> None:
    page = _page(
        StatusSnapshot(
            instance="a",
            phase=Phase.RUNNING,
            ingesters=(IngesterView(address="here:1", healthy=True), IngesterView(address="there:2", healthy=False)),
            incidents=(
                IncidentView(at="2026-01-01T00:00:00.000Z", kind="outdated_cursor", text="too old"),
                IncidentView(
                    at="2026-01-01T00:00:00.000Z", kind="over", text="x", closed_at="2026-01-01T00:01:00.000Z"
                ),
            ),
        )
    )
    top = page[: page.index("Repos synced")]
    assert "outdated_cursor" in top
    assert "1 of 2 ingesters away" in top
    assert "there:2" in top
    assert ">over<" not in top


def test_a_story_begins_with_the_state_and_its_history_and_folds_the_rest() -> None:
    story: dict[str, object] = {
        "did": "did:plc:a", "covers": [], "state": "failed", "reason": "host_down", "last_error": None,
        "status_told": {"active": True, "time_us": 1_795_478_859_362_000}, "tracked": True, "records": 1_234,
        "history": [{"at": "2026-11-24T00:07:53.000Z", "state": "failed", "attempts": 1},
                    {"at": "2026-11-24T00:07:52.000Z", "state": "pending", "reason": "active_again"}],
        "dead_letters": [],
    }  # fmt: skip
    page = render_page(
        StatusSnapshot(instance="a", phase=Phase.RUNNING), search=Search(did="did:plc:a", story=story)
    ).decode()
    found = page[page.index('id="found"') : page.index('id="live"')]
    places = [
        found.index(text)
        for text in ("<dd>failed</dd>", "<dd>host_down</dd>", "<dd>1,234</dd>", "active_again", "Everything", "time_us")
    ]
    assert places == sorted(places)
    assert "<dt>covers</dt><dd>all collections</dd>" in found
    assert "<dd>active yes, time_us 1795478859362000</dd>" in found
    assert "<dt>dead_letters</dt><dd>-</dd>" in found
    assert "2026-11-24 00:07:53" in found
