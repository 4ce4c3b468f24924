"""A status snapshot as something to look at (pure): fits 80x24, and uses a larger terminal for more rows, not for larger gaps.

Below a head of fixed lines stand sections, the most important first. Each says how few rows of it still make sense: every
section gets its least, then the first ones get what is left. Lists become short on a small screen ("12 more"), and sections for
which not even their least is left go, the last one first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from relay.model import RepoState
from relay.observe import words
from relay.observe.status import IngesterView, Phase, StatusSnapshot

_WIDE = 130  # columns from which on the lists stand side by side
_GAP = 3

_PHASE_STYLES = {
    Phase.STARTING: "cyan",
    Phase.RUNNING: "green",
    Phase.WAITING: "yellow",
    Phase.PAUSED: "yellow",
    Phase.DRAINING: "yellow",
    Phase.STANDBY: "cyan",
    Phase.STOPPED: "dim",
}
_STATE_STYLES = {
    RepoState.ACTIVE: "cyan",
    RepoState.SYNCED: "green",
    RepoState.DESYNCED: "yellow",
    RepoState.FAILED: "yellow",
    RepoState.QUARANTINED: "red",
}
# In the order in which they are shown: a narrow screen cuts off the end, and what needs somebody must not stand there.
_STATES = (
    RepoState.SYNCED,
    RepoState.ACTIVE,
    RepoState.PENDING,
    RepoState.QUARANTINED,
    RepoState.FAILED,
    RepoState.DESYNCED,
    RepoState.INACTIVE,
    RepoState.DISCOVERED,
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a section; `flexible` ones share what width is left, the others take what they need."""

    name: str
    is_number: bool = True
    flexible: bool = False


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


def dashboard(snapshot: StatusSnapshot, width: int, height: int, log_lines: Sequence[str] = ()) -> RenderableType:
    """Return the screen for a terminal of `width` (40 or more) columns and `height` lines; never higher, never wider."""
    head = _head(snapshot, width)
    left = height - len(head) - 1
    body: list[RenderableType] = []
    if left > 2:
        body = [Text(""), *_body(snapshot, width, left, log_lines)]
    return Group(*(head + body)[:height])


def _head(snapshot: StatusSnapshot, width: int) -> list[RenderableType]:
    """Who, how far, how fast, and what waits: five to eight lines of text that need no table."""
    lines: list[RenderableType] = [_title(snapshot, width)]
    if snapshot.targets.total is not None:
        lines.append(_bar(snapshot, width))
    lines.append(_throughput(snapshot))
    lines.append(_states(snapshot))
    lines.extend(_activity(snapshot, width))
    for line in lines:
        if isinstance(line, Text):
            line.truncate(width, overflow="ellipsis")
            line.no_wrap = True
    return lines


def _title(snapshot: StatusSnapshot, width: int) -> Text:
    left = Text(f"{snapshot.instance} ", style="bold")
    if snapshot.command:
        left.append(f"{snapshot.command} ", style="not bold")
    left.append(snapshot.phase.value, style=f"bold {_PHASE_STYLES[snapshot.phase]}")
    if snapshot.reason:
        left.append(f": {_clean(snapshot.reason)}", style="not bold yellow")
    right = []
    if snapshot.uptime_s is not None:
        right.append(f"up {words.duration(snapshot.uptime_s)}")
    if snapshot.version:
        right.append(f"v{snapshot.version}")
    tail = "  ".join(right)
    room = width - len(tail) - 2
    if room < 20:
        return left
    left.truncate(room, overflow="ellipsis")
    left.append(" " * (width - left.cell_len - len(tail)))
    left.append(tail, style="not bold dim")
    return left


def _bar(snapshot: StatusSnapshot, width: int) -> RenderableType:
    targets = snapshot.targets
    done = targets.done or 0
    # The two are counted at different moments: more than all is never shown.
    total = max(done, targets.total or 0)
    known = "" if targets.final else " so far"
    label = f" {words.percent(done, total)} of {words.count(total)}{known}"
    if total and done >= total and targets.final:
        eta = "  done"
    elif targets.eta_s is None:
        eta = "  eta -"
    else:
        eta = f"  eta {words.duration(targets.eta_s)}" + ("" if targets.final else " or more")
    text = Text((label + eta).lstrip(), no_wrap=True)
    room = width - text.cell_len - 1
    if room < 10:
        return text
    grid = Table.grid(padding=0)
    grid.add_column(width=room + 1)
    grid.add_column(no_wrap=True)
    grid.add_row(ProgressBar(total=max(1, total), completed=done, width=room, finished_style="green"), text)
    return grid


def _throughput(snapshot: StatusSnapshot) -> Text:
    line = Text()
    targets, rates = snapshot.targets, snapshot.rates
    repos = targets.done if targets.total is not None else snapshot.state_counts()["synced"]
    _fact(line, "repos", words.count(repos), words.rate(rates.repos_per_s))
    _fact(line, "records", words.count(snapshot.records_delivered), words.rate(rates.records_per_s))
    per_s = words.UNKNOWN if rates.bytes_per_s is None else f"{words.size(rates.bytes_per_s)}/s"
    _fact(line, "fetched", words.size(snapshot.bytes_fetched), per_s)
    return line


def _states(snapshot: StatusSnapshot) -> Text:
    line = Text()
    counts = snapshot.state_counts()
    for state in _STATES:
        name, number = state.value, counts[state.value]
        if number:
            style = _STATE_STYLES.get(state, "")
            line.append(f"{words.count(number)}", style=f"bold {style}".strip())
            line.append(f" {name}  ", style=style)
    return line if line.plain else Text("no repos yet", style="dim")


def _activity(snapshot: StatusSnapshot, width: int) -> list[Text]:
    """Return the lines on the listing, the downloads, the firehose and the queues, each only where there is something."""
    lines = []
    listing, fetch, firehose = snapshot.listing, snapshot.fetch, snapshot.firehose
    if listing.running or listing.hosts_failed:
        line = Text()
        _label(line, "listing")
        line.append(f"{_clean(listing.source)} " if listing.source else "")
        if listing.hosts_total is not None:
            line.append(f"hosts {words.count(listing.hosts_done)} of {words.count(listing.hosts_total)}  ")
        line.append(f"repos seen {words.count(listing.repos_seen)}")
        if listing.hosts_failed:
            line.append(f"  {words.count(listing.hosts_failed)} hosts failed", style="red")
        lines.append(line)
    if fetch.active is not None:
        line = Text()
        _label(line, "fetch")
        line.append(
            f"{words.count(fetch.active)} of {words.count(fetch.limit)} running  done {words.count(fetch.done)}"
        )
        if fetch.failed:
            line.append(f"  failed {words.count(fetch.failed)}", style="yellow")
        if fetch.rate_limit_waits:
            line.append(f"  rate-limit waits {words.count(fetch.rate_limit_waits)}", style="dim")
            if fetch.rate_limit_wait_s:
                line.append(f" ({words.duration(fetch.rate_limit_wait_s)})", style="dim")
        lines.append(line)
    if firehose.connected or firehose.seq is not None:
        line = Text()
        _label(line, "tail")
        line.append(
            "connected" if firehose.connected else "not connected", style="green" if firehose.connected else "red"
        )
        lag_style = "yellow" if (firehose.lag_s or 0) > 10 else ""
        line.append("  lag ").append(words.duration(firehose.lag_s), style=lag_style)
        if firehose.events_per_s is not None:
            line.append(f"  events {words.rate(firehose.events_per_s)}")
        line.append(f"  seq {words.count(firehose.seq)}  cursor {words.count(firehose.cursor)}", style="dim")
        lines.append(line)
    if snapshot.gauges:
        lines.extend(_queues(snapshot, width))
    if snapshot.failures:
        line = Text()
        _label(line, "failed")
        for reason, number in sorted(snapshot.failures.items(), key=lambda item: -item[1]):
            line.append(f"{_clean(reason)} {words.short_count(number)}  ")
        lines.append(line)
    return lines


def _queues(snapshot: StatusSnapshot, width: int) -> list[Text]:
    """Return what is bounded and how full it is, in one line, or in two where one is too short; full ones stand out."""
    lines = [Text("queues ", style="dim")]
    for gauge in snapshot.gauges:
        is_full = gauge.limit is not None and gauge.used >= gauge.limit > 0
        limit = "" if gauge.limit is None else f"/{words.short_count(gauge.limit)}"
        entry = Text(f"{_clean(gauge.name)} ", style="dim")
        entry.append(f"{words.short_count(gauge.used)}{limit}  ", style="not dim yellow" if is_full else "not dim")
        if lines[-1].cell_len + entry.cell_len - 2 > width and len(lines) == 1:
            lines.append(Text("       "))
        lines[-1].append(entry)
    return lines


def _body(snapshot: StatusSnapshot, width: int, height: int, log_lines: Sequence[str]) -> list[RenderableType]:
    incidents, ingesters = _incidents(snapshot), _ingesters(snapshot)
    hosts, workers = _hosts(snapshot), _workers(snapshot)
    errors, log = _errors(snapshot), _log(log_lines)
    if width < _WIDE:
        present = [each for each in (ingesters, incidents, errors, hosts, workers, log) if each.rows]
        return _stack(present, width, height)
    # Side by side: whom we work with on the left, what went wrong and who works on the right. The log has the width below.
    bottom = [log] if log.rows and height >= 16 else []
    log_height = min(log.height, max(log.least_height, height // 4)) if bottom else 0
    left_width = (width - _GAP) // 2
    left = [each for each in (ingesters, hosts) if each.rows]
    right = [each for each in (incidents, errors, workers) if each.rows]
    upper_height = height - log_height - (1 if bottom else 0)
    if not right:
        lines = _stack(left, width, upper_height)
    else:
        grid = Table.grid(padding=0)
        grid.add_column(width=left_width + _GAP)
        grid.add_column(width=width - left_width - _GAP)
        grid.add_row(
            Group(*_stack(left, left_width, upper_height)),
            Group(*_stack(right, width - left_width - _GAP, upper_height)),
        )
        lines = [grid]
    return [*lines, *([Text("")] if bottom else []), *_stack(bottom, width, log_height)]


def _stack(sections: Sequence[Section], width: int, height: int) -> list[RenderableType]:
    """Return the sections below one another, a blank line between them, in at most `height` lines."""
    kept = list(sections)
    while kept and sum(each.least_height for each in kept) + len(kept) - 1 > height:
        kept.pop()  # the least important
    shares = _share_rows(kept, height - max(0, len(kept) - 1))
    lines: list[RenderableType] = []
    for section, share in zip(kept, shares, strict=True):
        if lines:
            lines.append(Text(""))
        lines.append(_render(section, width, share))
    return lines


def _share_rows(sections: Sequence[Section], height: int) -> list[int]:
    """Return the lines of each section: its least, then what is left goes to those that come first."""
    shares = [each.least_height for each in sections]
    left = height - sum(shares)
    for index, section in enumerate(sections):
        more = min(left, section.height - shares[index])
        shares[index] += more
        left -= more
    return shares


def _render(section: Section, width: int, height: int) -> RenderableType:
    """Return one section: a title in the line of the column names, rows, and how many are left out."""
    shown = section.rows if section.height <= height else section.rows[: max(0, height - 2)]
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        collapse_padding=True,
        width=width,
        header_style="dim",
        expand=True,
    )
    for index, column in enumerate(section.columns):
        title = Text(section.title, style="not dim bold") if index == 0 else Text(column.name)
        table.add_column(
            title,
            justify="right" if column.is_number else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if column.flexible else None,
        )
    for row in shown:
        table.add_row(*row)
    if len(shown) < len(section.rows):
        table.add_row(Text(f"{len(section.rows) - len(shown)} more", style="dim"))
    return table


def _ingesters(snapshot: StatusSnapshot) -> Section:
    return Section(
        "ingesters",
        (
            Column("address", is_number=False, flexible=True),
            Column("state", is_number=False),
            Column("flight"),
            Column("queued"),
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
        _clean(each.address),
        Text("healthy", style="green") if each.healthy else Text(_clean(each.reason) or "away", style="red"),
        flight,
        words.short_count(each.queued_operations),
        words.UNKNOWN if each.rtt_ms is None else f"{each.rtt_ms:.0f}ms",
        words.duration(each.oldest_unacked_s),
        words.short_count(each.delivered_operations),
    )


def _hosts(snapshot: StatusSnapshot) -> Section:
    styles = {"down": "red", "waiting": "yellow"}
    rows = []
    for each in snapshot.hosts:
        state = each.state + (f" {words.duration(each.wait_s)}" if each.wait_s else "")
        rows.append(
            (
                _clean(each.host).removeprefix("https://"),
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
            Column("pending"),
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


def _workers(snapshot: StatusSnapshot) -> Section:
    rows = []
    for each in snapshot.workers:
        style = {"busy": "cyan", "dead": "red", "starting": "yellow"}.get(each.state, "dim")
        state = each.state + (f" {words.duration(each.busy_s)}" if (each.busy_s or 0) >= 1 else "")
        rows.append(
            (
                f"{each.role} {each.number}",
                Text(state, style=style),
                Text(_clean(each.doing), style="dim"),
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


def _incidents(snapshot: StatusSnapshot) -> Section:
    newest_first = sorted(snapshot.incidents, key=lambda each: (each.closed_at is None, each.at), reverse=True)
    return Section(
        "incidents",
        (Column("", is_number=False), Column("kind", is_number=False), Column("what", is_number=False, flexible=True)),
        tuple(
            (
                _time_of_day(each.at),
                Text(_clean(each.kind), style="bold red" if each.closed_at is None else "dim"),
                Text(_clean(each.text), style="" if each.closed_at is None else "dim"),
            )
            for each in newest_first
        ),
    )


def _errors(snapshot: StatusSnapshot) -> Section:
    return Section(
        "last errors",
        (
            Column("", is_number=False),
            Column("reason", is_number=False),
            Column("what", is_number=False, flexible=True),
        ),
        tuple(
            (_time_of_day(each.at), Text(_clean(each.reason), style="yellow"), _clean(each.text))
            for each in reversed(snapshot.last_errors)
        ),
    )


def _log(lines: Iterable[str]) -> Section:
    newest_first = [Text(_clean(line)) for line in lines][::-1]
    return Section(
        "log", (Column("", is_number=False, flexible=True),), tuple((line,) for line in newest_first), least=2
    )


def _fact(line: Text, label: str, value: str, rate: str) -> None:
    _label(line, label)
    line.append(value, style="bold")
    line.append(f"  {rate}    ", style="dim" if rate == words.UNKNOWN else "cyan")


def _label(line: Text, label: str) -> None:
    line.append(f"{label} ", style="dim")


def _time_of_day(at: str) -> str:
    """Return HH:MM:SS of an RFC 3339 time; UTC, as everywhere."""
    return at[11:19] if len(at) >= 19 and at[10] == "T" else _clean(at)


def _clean(text: str) -> str:
    """Return foreign text without what would move the cursor or colour the screen."""
    return (
        text
        if text.isprintable()
        else "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    )
