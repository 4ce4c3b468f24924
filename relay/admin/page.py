"""The page at `/`: every number of a status snapshot as plain HTML that needs no script and nothing from elsewhere (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from relay.observe import words
from relay.observe.status import FirehoseStatus, StatusSnapshot

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --dim: #777; --bad: #c22; --good: #282; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h1 small { font-weight: normal; color: var(--dim); }
h2 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
th { color: var(--dim); font-weight: normal; }
.bad { color: var(--bad); } .good { color: var(--good); }
.wide { overflow-x: auto; }
"""


def render_page(snapshot: StatusSnapshot) -> bytes:
    """Return the page; it asks for itself again every 5 seconds."""
    title = f"{escape(snapshot.instance)}: {snapshot.phase.value}"
    reason = f" ({escape(snapshot.reason)})" if snapshot.reason else ""
    facts = ", ".join(
        escape(fact)
        for fact in (
            snapshot.command,
            f"version {snapshot.version}" if snapshot.version else "",
            f"up {words.duration(snapshot.uptime_s)}" if snapshot.uptime_s is not None else "",
        )
        if fact
    )
    body = "".join(_sections(snapshot))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="refresh" content="5"><title>{title}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{title}{reason} <small>{facts}</small></h1>{body}"
        '<p><a href="/status.json">status.json</a> <a href="/metrics">metrics</a> <a href="/health">health</a> '
        '<a href="/ready">ready</a></p></body></html>'
    ).encode()


def _sections(snapshot: StatusSnapshot) -> Iterable[str]:
    rates, firehose, targets = snapshot.rates, snapshot.firehose, snapshot.targets
    yield _table(
        "Throughput",
        ("", "total", "per second"),
        [
            ("repos synced", words.count(snapshot.state_counts()["synced"]), words.rate(rates.repos_per_s)),
            ("records delivered", words.count(snapshot.records_delivered), words.rate(rates.records_per_s)),
            (
                "operations delivered",
                words.count(snapshot.operations_delivered),
                words.rate(snapshot.operations_per_s),
            ),
            ("bytes fetched", words.size(snapshot.bytes_fetched), words.size(rates.bytes_per_s)),
        ],
    )
    if snapshot.backlog.repos is not None:
        total = sum(snapshot.repos.values())
        yield _table(
            "Backlog",
            ("at rest", "share", "to go", "time left"),
            [
                (f"{words.count(total - snapshot.backlog.repos)} of {words.count(total)}",
                 words.percent(total - snapshot.backlog.repos, total), words.count(snapshot.backlog.repos),
                 words.duration(snapshot.backlog.eta_s)),
            ],
        )  # fmt: skip
    if targets.total is not None:
        known = "" if targets.final else " so far"
        done = f"{words.count(targets.done)} of {words.count(targets.total)}{known}"
        yield _table(
            "Batch",
            ("finished", "share", "quarantined", "still to go"),
            [
                (done, words.percent(targets.done, targets.total), words.count(targets.quarantined),
                 words.duration(targets.eta_s)),
            ],
        )  # fmt: skip
    yield _table("Repos", snapshot.state_counts().keys(), [[words.count(n) for n in snapshot.state_counts().values()]])
    yield from _firehose(firehose)
    reconcile = snapshot.reconcile
    if reconcile.hosts_total is not None:
        yield _table(
            "Reconcile",
            ("running", "hosts done", "of", "silent", "repos compared", "differed", "queued", "found", "last complete"),
            [
                ["yes" if reconcile.running else "no"]
                + [
                    words.count(number)
                    for number in (
                        reconcile.hosts_done, reconcile.hosts_total, reconcile.hosts_failed, reconcile.compared,
                        reconcile.differed, reconcile.queued, reconcile.found,
                    )
                ]
                + [reconcile.completed_at or "never"],
            ],
        )  # fmt: skip
    yield _table(
        "Ingesters",
        ("address", "state", "batches in flight", "queued", "oldest unacknowledged", "delivered"),
        [
            (
                each.address,
                "healthy" if each.healthy else f"away: {each.reason}" if each.reason else "away",
                words.count(each.in_flight_batches),
                words.count(each.queued_operations),
                words.duration(each.oldest_unacked_s),
                words.count(each.delivered_operations),
            )
            for each in snapshot.ingesters
        ],
    )
    yield _table(
        "Incidents",
        ("since", "over", "kind", "what"),
        [(each.at, each.closed_at or "no", each.kind, each.text) for each in snapshot.incidents],
    )
    yield _table("Failures", ("reason", "attempts"), [(name, words.count(n)) for name, n in snapshot.failures.items()])
    yield _table(
        "Last errors",
        ("at", "reason", "what"),
        [(each.at, each.reason, each.text) for each in snapshot.last_errors],
    )


def _firehose(firehose: FirehoseStatus) -> Iterable[str]:
    yield _table(
        "Firehose",
        ("upstream", "connected", "newest seq", "stored cursor", "lag", "events", "last error"),
        [
            (firehose.upstream or words.UNKNOWN, "yes" if firehose.connected else "no", words.count(firehose.seq),
             words.count(firehose.cursor), words.duration(firehose.lag_s), words.rate(firehose.events_per_s),
             firehose.last_error or ""),
        ],
    )  # fmt: skip
    if firehose.distance is None:
        return  # nobody follows it
    yield _table(
        "Frames in work",
        ("open", "from the oldest open one on", "at most", "batches waiting", "being verified", "waiting for a key",
         "operations buffered", "at most"),
        [
            [
                words.count(number)
                for number in (
                    firehose.open_frames, firehose.distance, firehose.max_open_frames, firehose.waiting_batches,
                    firehose.verifying, firehose.waiting_for_key, firehose.buffered_operations, firehose.buffer_size,
                )
            ],
        ],
    )  # fmt: skip
    counted = (("read", firehose.events), ("checked", firehose.outcomes), ("invalid", firehose.invalid),
               ("ignored", firehose.ignored))  # fmt: skip
    yield _table(
        "Frames",
        ("", "", "since the start"),
        [(what, name, words.count(number)) for what, counts in counted for name, number in counts.items()],
    )


def _table(title: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a titled table; every cell is escaped, and one that starts like a number stands right."""
    heads, rows = list(heads), [list(row) for row in rows]
    if not rows:
        return f"<h2>{escape(title)}</h2><p>none</p>"
    head = "".join(f"<th{_side(cell)}>{escape(name)}</th>" for name, cell in zip(heads, rows[0], strict=True))
    lines = "".join("<tr>" + "".join(f"<td{_side(cell)}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<h2>{escape(title)}</h2><div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _side(cell: str) -> str:
    return ' class="n"' if cell and (cell == words.UNKNOWN or (cell[0].isdigit() and "-" not in cell)) else ""
