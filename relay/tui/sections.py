"""The lists of a screen, each a titled table of text (pure). How many rows are shown is the screen's business."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rich.text import Text

from relay.observe import words
from relay.observe.status import IngesterView, StatusSnapshot
from relay.tui.foreign import clean

_LOG_TIME = re.compile(r"^\d{4}-\d\d-\d\dT(\d\d:\d\d:\d\d)\.\d+Z")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a section; `flexible` ones share what width is left, the others take what they need.

    `optional` ones are left out where nobody tells them; not the others, which may be unknown for a moment only.
    """

    name: str
    is_number: bool = True
    flexible: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A titled list. `least` rows are shown on the smallest screen; sections earlier in a list get more room first."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Text | str, ...], ...]
    least: int = 1

    @property
    def height(self) -> int:
        """Lines with every row: the title line holds the column names too."""
        return 1 + len(self.rows)

    @property
    def least_height(self) -> int:
        return 1 + min(self.least + 1, len(self.rows))  # one more for "12 more"


def ingesters(snapshot: StatusSnapshot) -> Section:
    return Section(
        "ingesters",
        (
            Column("address", is_number=False, flexible=True),
            Column("state", is_number=False),
            Column("live"),
            Column("backfill", optional=True),
            Column("flight"),
            Column("rtt"),
            Column("oldest"),
            Column("stored"),
        ),
        tuple(
            _ingester_row(each) for each in sorted(snapshot.ingesters, key=lambda each: (each.healthy, each.address))
        ),
        least=2,
    )


def _ingester_row(each: IngesterView) -> tuple[Text | str, ...]:
    flight = words.count(each.in_flight_batches)
    if each.window_batches is not None:
        flight += f"/{each.window_batches}"
    return (
        clean(each.address),
        Text("healthy", style="green") if each.healthy else Text(clean(each.reason) or "away", style="red"),
        # What waits in each lane; of an older version only the sum is known.
        words.short_count(each.queued_operations if each.queued_live is None else each.queued_live),
        words.short_count(each.queued_backfill),
        flight,
        words.UNKNOWN if each.rtt_ms is None else f"{each.rtt_ms:.0f}ms",
        words.duration(each.oldest_unacked_s),
        words.short_count(each.delivered_operations),
    )


_HOST_RANKS = {"down": 0, "waiting": 1}


def hosts(snapshot: StatusSnapshot) -> Section:
    styles = {"down": "red", "waiting": "yellow"}
    rows = []
    # Not by what they do at this moment: rows that change places twice a second cannot be read.
    for each in sorted(snapshot.hosts, key=lambda each: (_HOST_RANKS.get(each.state, 2), -(each.done or 0), each.host)):
        state = each.state + (f" {words.duration(each.wait_s)}" if each.wait_s else "")
        rows.append(
            (
                clean(each.host).removeprefix("https://"),
                Text(state, style=styles.get(each.state, "")),
                words.count(each.connections),
                _rate_of(each.requests_per_s, each.limit_per_s),
                words.short_count(each.pending),
                words.short_count(each.done),
                Text(words.short_count(each.failed), style="yellow" if each.failed else ""),
            )
        )
    total = "" if snapshot.hosts_total is None else f" ({words.count(snapshot.hosts_total)})"
    return Section(
        f"hosts{total}",
        (
            Column("host", is_number=False, flexible=True),
            Column("state", is_number=False),
            Column("conns"),
            Column("requests"),
            Column("pending", optional=True),
            Column("done"),
            Column("failed"),
        ),
        tuple(rows),
        least=2,
    )


def _rate_of(rate: float | None, limit: float | None) -> str:
    """Return `9.8 of 10/s`: the rate, and what is allowed."""
    if rate is None or limit is None:
        return words.rate(rate)
    return f"{rate:.1f} of {words.rate(limit)}" if limit >= 10 else f"{rate:.2f} of {words.rate(limit)}"


def workers(snapshot: StatusSnapshot) -> Section:
    rows = []
    for each in snapshot.workers:
        style = {"busy": "cyan", "dead": "red", "starting": "yellow"}.get(each.state, "dim")
        state = each.state + (f" {words.duration(each.busy_s)}" if (each.busy_s or 0) >= 1 else "")
        rows.append(
            (
                f"{each.role} {each.number}",
                Text(state, style=style),
                Text(clean(each.doing), style="dim"),
                words.short_count(each.done),
                Text(words.count(each.restarts), style="yellow" if each.restarts else "dim"),
            )
        )
    return Section(
        "workers",
        (
            Column("", is_number=False),
            Column("state", is_number=False),
            Column("doing", is_number=False, flexible=True),
            Column("done"),
            Column("restarts"),
        ),
        tuple(rows),
    )


def incidents(snapshot: StatusSnapshot) -> Section:
    newest_first = sorted(snapshot.incidents, key=lambda each: (each.closed_at is None, each.at), reverse=True)
    return Section(
        "incidents",
        (Column("", is_number=False), Column("kind", is_number=False), Column("what", is_number=False, flexible=True)),
        tuple(
            (
                _time_of_day(each.at),
                Text(clean(each.kind), style="bold red" if each.closed_at is None else "dim"),
                Text(clean(each.text), style="" if each.closed_at is None else "dim"),
            )
            for each in newest_first
        ),
    )


def frames(snapshot: StatusSnapshot) -> Section:
    """Return what was read and what came of it; what is no trouble stands first."""
    firehose = snapshot.firehose
    rows: list[tuple[Text | str, ...]] = [
        (f"read: {name}", words.count(number)) for name, number in firehose.events.items() if number
    ]
    # An invalid one stands with its reason below.
    rows += [
        (f"checked: {name}", words.count(number))
        for name, number in firehose.outcomes.items()
        if number and name != "invalid"
    ]
    rows += [
        (Text(clean(f"{what}: {reason}"), style=style), words.count(number))
        for what, style, counts in (("ignored", "dim", firehose.ignored), ("invalid", "yellow", firehose.invalid))
        for reason, number in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return Section("frames", (Column("", is_number=False, flexible=True), Column("count")), tuple(rows))


def errors(snapshot: StatusSnapshot) -> Section:
    return Section(
        "last errors",
        (
            Column("", is_number=False),
            Column("reason", is_number=False),
            Column("what", is_number=False, flexible=True),
        ),
        tuple(
            (_time_of_day(each.at), Text(clean(each.reason), style="yellow"), _cause_first(clean(each.text)))
            for each in reversed(snapshot.last_errors)
        ),
    )


def log(lines: Iterable[str]) -> Section:
    # The day and the milliseconds of a line are in the file; here its words need the room.
    newest_first = [Text(_LOG_TIME.sub(r"\1", clean(line))) for line in lines][::-1]
    return Section(
        "log", (Column("", is_number=False, flexible=True),), tuple((line,) for line in newest_first), least=2
    )


def _cause_first(text: str) -> str:
    """Return a text that begins with a DID with the DID at its end: a narrow screen shows no more than the beginning."""
    did, colon, rest = text.partition(": ")
    return f"{rest}  {did}" if colon and did.startswith("did:") and " " not in did else text


def _time_of_day(at: str) -> str:
    """Return HH:MM:SS of an RFC 3339 time; UTC, as everywhere."""
    return at[11:19] if len(at) >= 19 and at[10] == "T" else clean(at)
