"""The lists of the page: ingesters, hosts, firehose, queues, workers, incidents, errors (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from relay.observe import words
from relay.observe.status import FirehoseStatus, HostView, IngesterView, StatusSnapshot

_TEXT = 30  # characters from which on a cell may be wrapped
# In escaped text. Of no DID with characters that mean something in a URL or in HTML: those can still be typed.
_DID = re.compile(r"\bdid:(?:plc:[a-z2-7]{24}(?![a-z0-9])|web:[a-zA-Z0-9.-]{0,200}[a-zA-Z0-9](?![a-zA-Z0-9%.-]))")


def all_of(snapshot: StatusSnapshot) -> Iterable[str]:
    """Yield a section for each list; what is not there has none, but for what an operator looks for."""
    yield table(
        "Ingesters",
        ("address", "state", "delivered", "live queued", "backfill queued", "in flight", "window", "round trip", "oldest unacknowledged"),
        [_ingester(each) for each in snapshot.ingesters],
    )  # fmt: skip
    yield from _firehose(snapshot.firehose)
    yield table(
        "Incidents",
        ("since", "over", "kind", "what"),
        [(each.at, each.closed_at or "no", each.kind, each.text) for each in snapshot.incidents],
    )
    yield table(
        "Last errors",
        ("at", "reason", "what"),
        [(each.at, each.reason, each.text) for each in reversed(snapshot.last_errors)],
    )
    yield table("Failures", ("reason", "attempts"), [(name, words.count(n)) for name, n in snapshot.failures.items()])
    total = snapshot.hosts_total
    if snapshot.hosts:
        yield table(
            "Hosts" if total is None else f"Hosts ({words.count(total)})",
            ("host", "state", "connections", "requests", "allowed", "done", "failed"),
            [_host(each) for each in snapshot.hosts],
        )
    yield from _work(snapshot)


def _ingester(each: IngesterView) -> tuple[str, ...]:
    return (
        each.address,
        "healthy" if each.healthy else f"away: {each.reason}" if each.reason else "away",
        words.count(each.delivered_operations),
        words.count(each.queued_live if each.queued_live is not None else each.queued_operations),
        words.count(each.queued_backfill),
        words.count(each.in_flight_batches),
        words.count(each.window_batches),
        words.UNKNOWN if each.rtt_ms is None else f"{each.rtt_ms:.0f} ms",
        words.duration(each.oldest_unacked_s),
    )


def _host(each: HostView) -> tuple[str, ...]:
    return (
        each.host,
        each.state + (f" {words.duration(each.wait_s)}" if each.wait_s else ""),
        words.count(each.connections),
        words.rate(each.requests_per_s),
        words.rate(each.limit_per_s),
        words.count(each.done),
        words.count(each.failed),
    )


def _work(snapshot: StatusSnapshot) -> Iterable[str]:
    if snapshot.workers:
        yield table(
            "Workers",
            ("process", "state", "for", "done", "restarts", "works on"),
            [
                (f"{each.role} {each.number}", each.state, words.duration(each.busy_s), words.count(each.done),
                 words.count(each.restarts), each.doing)
                for each in snapshot.workers
            ],
        )  # fmt: skip
    if snapshot.gauges:
        yield table(
            "Queues",
            ("", "used", "of"),
            [(each.name, words.count(each.used), words.count(each.limit)) for each in snapshot.gauges],
        )
    listing, reconcile = snapshot.listing, snapshot.reconcile
    if listing.running:
        yield table(
            "Enumeration",
            ("source", "hosts done", "of", "failed", "repos seen"),
            [(listing.source, words.count(listing.hosts_done), words.count(listing.hosts_total),
              words.count(listing.hosts_failed), words.count(listing.repos_seen))],
        )  # fmt: skip
    if reconcile.hosts_total is not None:
        yield table(
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


def _firehose(firehose: FirehoseStatus) -> Iterable[str]:
    yield table(
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
    yield table(
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
    rows = [(what, name, words.count(number)) for what, counts in counted for name, number in counts.items()]
    yield table("Frames", ("", "", "since the start"), rows, folded="frames")


def table(title: str, heads: Iterable[str], rows: Iterable[Iterable[str]], *, folded: str = "") -> str:
    """Return a titled table; every cell is escaped, and one that starts like a number stands right. `folded`: opened on demand, by this id."""
    heads, cells = list(heads), [list(row) for row in rows]
    if not cells:
        return f'<section><h2>{escape(title)}</h2><span class="dim">none</span></section>'
    # A column is of numbers or of words as a whole: one number that is not known yet moves nothing.
    sides = [_side([row[index] for row in cells]) for index in range(len(heads))]
    head = "".join(f"<th{side}>{escape(name)}</th>" for side, name in zip(sides, heads, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{side}>{_cell(cell)}</td>" for side, cell in zip(sides, row, strict=True)) + "</tr>"
        for row in cells
    )
    body = f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'
    if folded:
        return f'<section><details id="{folded}"><summary>{escape(title)} ({len(cells)})</summary>{body}</details></section>'
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _side(cells: list[str]) -> str:
    known = [cell for cell in cells if cell and cell != words.UNKNOWN]
    # An address begins with a digit too, and is none.
    if all(cell[0].isdigit() and ":" not in cell for cell in known):
        return ' class="n"'
    if all(_is_time(cell) for cell in known):
        return ' class="time"'
    return ' class="text"' if any(len(cell) > _TEXT for cell in known) else ""


def _is_time(cell: str) -> bool:
    return len(cell) >= 20 and cell[4:5] == "-" and cell[10:11] == "T" and cell[-1] == "Z"


def _cell(cell: str) -> str:
    text = escape(f"{cell[:10]} {cell[11:19]}" if _is_time(cell) else cell)
    if "did:" in text:
        text = _DID.sub(r'<a href="/?did=\g<0>">\g<0></a>', text)
    style = {"healthy": "good", "down": "bad", "dead": "bad"}.get(cell)
    if style is None and cell.startswith(("away", "waiting ")):
        style = "warn"
    return f'<span class="{style}">{text}</span>' if style else text
