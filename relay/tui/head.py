"""The fixed lines at the top of a screen (pure): who, how far, how fast, what waits, how late the firehose is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from relay.model import RepoState
from relay.observe import words
from relay.observe.status import FirehoseStatus, Phase, ReconcileStatus, StatusSnapshot
from relay.tui.foreign import clean

_LATE_S = 10.0  # a stream whose newest event is older than this stands out
_ROOMY = 110  # columns from which on there is room for what is only good to know
_MANY_BATCHES = 2
_MOST_LINES = 3  # of one label in the head

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


def head(snapshot: StatusSnapshot, width: int) -> list[RenderableType]:
    """Who, how far, how fast, and what waits: five to eleven lines of text that need no table."""
    lines: list[RenderableType] = [_title(snapshot, width)]
    if snapshot.targets.total is not None:
        lines.append(_targets_bar(snapshot, width))
    elif snapshot.backlog.repos is not None and any(snapshot.repos.values()):
        lines.append(_backlog_bar(snapshot, width))
    lines.append(_throughput(snapshot, width))
    lines.append(_states(snapshot, width))
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
        left.append(f": {clean(snapshot.reason)}", style="not bold yellow")
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


def _targets_bar(snapshot: StatusSnapshot, width: int) -> RenderableType:
    """Return how much of a batch is done."""
    targets = snapshot.targets
    done = targets.done or 0
    # The two are counted at different moments: more than all is never shown.
    total = max(done, targets.total or 0)
    known = "" if targets.final else " so far"
    label = f"{words.percent(done, total)} of {words.count(total)}{known}"
    if total and done >= total and targets.final:
        eta = "  done"
    elif targets.eta_s is None:
        eta = "  eta -"
    else:
        eta = f"  eta {words.duration(targets.eta_s)}" + ("" if targets.final else " or more")
    if done < total and targets.bytes_left and width >= _ROOMY:
        eta = f"  about {words.size(targets.bytes_left)} to go{eta}"
    return _bar(done, total, label + eta, width)


def _backlog_bar(snapshot: StatusSnapshot, width: int) -> RenderableType:
    """Return how many of the tracked repos are at rest, where work never ends."""
    backlog, total = snapshot.backlog, sum(snapshot.repos.values())
    left = min(total, backlog.repos or 0)
    label = f"{words.percent(total - left, total)} of {words.count(total)} repos"
    if left:
        size = f" (about {words.size(backlog.bytes_left)})" if backlog.bytes_left and width >= _ROOMY else ""
        label += f"  {words.count(left)} to go{size}  eta {words.duration(backlog.eta_s)}"
    return _bar(total - left, total, label, width)


def _bar(done: int, total: int, label: str, width: int) -> RenderableType:
    text = Text(label, no_wrap=True)
    room = width - text.cell_len - 1
    if room < 10:
        return text
    grid = Table.grid(padding=0)
    grid.add_column(width=room + 1)
    grid.add_column(no_wrap=True)
    grid.add_row(ProgressBar(total=max(1, total), completed=done, width=room, finished_style="green"), text)
    return grid


def _throughput(snapshot: StatusSnapshot, width: int) -> Text:
    """Return totals and rates; with short numbers where the long ones do not fit."""
    line = _facts(snapshot, words.count)
    return line if line.cell_len <= width else _facts(snapshot, words.short_count)


def _facts(snapshot: StatusSnapshot, shown: Callable[[float | None], str]) -> Text:
    line = Text()
    targets, rates = snapshot.targets, snapshot.rates
    repos = targets.done if targets.total is not None else snapshot.state_counts()["synced"]
    _fact(line, "repos", shown(repos), words.rate(rates.repos_per_s))
    if targets.total is None and snapshot.operations_delivered is not None:
        _fact(line, "operations", shown(snapshot.operations_delivered), words.rate(snapshot.operations_per_s))
    else:
        _fact(line, "records", shown(snapshot.records_delivered), words.rate(rates.records_per_s))
    per_s = words.UNKNOWN if rates.bytes_per_s is None else f"{words.size(rates.bytes_per_s)}/s"
    _fact(line, "fetched", words.size(snapshot.bytes_fetched), per_s)
    line.rstrip()
    return line


def _states(snapshot: StatusSnapshot, width: int) -> Text:
    line = _counted_states(snapshot, words.count)
    return line if line.cell_len <= width else _counted_states(snapshot, words.short_count)


def _counted_states(snapshot: StatusSnapshot, shown: Callable[[float | None], str]) -> Text:
    line = Text()
    counts = snapshot.state_counts()
    for state in _STATES:
        name, number = state.value, counts[state.value]
        if number:
            style = _STATE_STYLES.get(state, "")
            line.append(f"{shown(number)}", style=f"bold {style}".strip())
            line.append(f" {name}  ", style=style)
    line.rstrip()
    return line if line.plain else Text("no repos yet", style="dim")


def _activity(snapshot: StatusSnapshot, width: int) -> list[Text]:
    """Return the lines on the listing, the downloads, the firehose and the queues, each only where there is something."""
    lines = []
    listing, fetch = snapshot.listing, snapshot.fetch
    if listing.running or listing.hosts_failed:
        line = Text()
        _label(line, "listing")
        line.append(f"{clean(listing.source)} " if listing.source else "")
        if listing.hosts_total is not None:
            line.append(f"hosts {words.count(listing.hosts_done)} of {words.count(listing.hosts_total)}  ")
        line.append(f"repos seen {words.count(listing.repos_seen)}")
        if listing.hosts_failed:
            line.append(f"  {words.count(listing.hosts_failed)} hosts failed", style="red")
        lines.append(line)
    if snapshot.reconcile.running:
        lines.extend(_reconcile(snapshot.reconcile, width))
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
    lines.extend(_tail(snapshot, width))
    if snapshot.gauges:
        lines.extend(_queues(snapshot, width))
    if snapshot.failures:
        line = Text()
        _label(line, "failed")
        for reason, number in sorted(snapshot.failures.items(), key=lambda item: -item[1]):
            line.append(f"{clean(reason)} {words.short_count(number)}  ")
        lines.append(line)
    return lines


def _reconcile(reconcile: ReconcileStatus, width: int) -> list[Text]:
    entries = [
        _entry("hosts", f"{words.count(reconcile.hosts_done)} of {words.count(reconcile.hosts_total)}"),
        _entry("compared", words.count(reconcile.compared)),
        _entry("differ", words.count(reconcile.differed), "yellow" if reconcile.differed else ""),
        _entry("queued", words.count(reconcile.queued)),
    ]
    if reconcile.found:
        entries.append(_entry("found", words.count(reconcile.found)))
    if reconcile.hosts_failed:
        entries.append(_entry("silent hosts", words.count(reconcile.hosts_failed), "red"))
    return _flowing("reconcile", entries, width)


def _tail(snapshot: StatusSnapshot, width: int) -> list[Text]:
    """Return how the firehose is followed: how late, how much, and what waits on the way; nothing where nobody follows it."""
    firehose = snapshot.firehose
    if not (firehose.connected or firehose.seq is not None or firehose.connections is not None):
        if firehose.cursor is None:
            return []
        stored = [_entry("stored cursor", words.count(firehose.cursor)), _entry("of", clean(firehose.upstream) or "-")]
        return _flowing("tail", stored, width)
    is_late = (firehose.lag_s or 0) > _LATE_S
    entries = [
        Text(
            "connected" if firehose.connected else "not connected", style="green" if firehose.connected else "bold red"
        ),
        _entry("lag", words.duration(firehose.lag_s), "yellow" if is_late else ""),
        _entry("events", words.rate(firehose.events_per_s)),
        _entry("seq", words.count(firehose.seq)),
        _entry("cursor", _behind(firehose)),
    ]
    if number := sum(each.closed_at is None for each in snapshot.incidents):
        entries.append(_entry("open incidents", words.count(number), "bold red"))
    if firehose.distance is not None:
        entries.append(_limited("open frames", firehose.distance, firehose.max_open_frames))
    if firehose.verifying is not None:
        entries.append(_entry("verifying", words.short_count(firehose.verifying)))
    if firehose.buffered_operations is not None:
        entries.append(_limited("buffered", firehose.buffered_operations, firehose.buffer_size))
    if number := sum(firehose.invalid.values()):
        entries.append(_entry("invalid", words.short_count(number), "yellow"))
    # Last, and not for the one that is just being handed over: what comes and goes moves everything behind it.
    if (firehose.waiting_batches or 0) >= _MANY_BATCHES:
        entries.append(_entry("batches waiting", words.count(firehose.waiting_batches)))
    if firehose.waiting_for_key:
        entries.append(_entry("waiting for a key", words.short_count(firehose.waiting_for_key)))
    lines = _flowing("tail", entries, width)
    if not firehose.connected and firehose.last_error:
        lines.append(Text(f"     {clean(firehose.last_error)}", style="yellow"))
    return lines


def _behind(firehose: FirehoseStatus) -> str:
    """Return how far the stored cursor is behind what was read: two numbers of eleven digits say that less well."""
    if firehose.cursor is None or firehose.seq is None or firehose.cursor > firehose.seq:
        return words.count(firehose.cursor)
    behind = firehose.seq - firehose.cursor
    return f"{words.short_count(behind)} behind" if behind else "at it"


def _queues(snapshot: StatusSnapshot, width: int) -> list[Text]:
    """Return what is bounded and how full it is; full ones stand out."""
    return _flowing("queues", [_limited(clean(each.name), each.used, each.limit) for each in snapshot.gauges], width)


def _flowing(label: str, entries: Sequence[Text], width: int) -> list[Text]:
    """Return the entries behind a label, in one line, or in two or three where that is too short."""
    lines = [Text(f"{label} ", style="dim")]
    for entry in entries:
        gap = "" if lines[-1].cell_len == len(label) + 1 else "  "
        if gap and lines[-1].cell_len + len(gap) + entry.cell_len > width and len(lines) < _MOST_LINES:
            lines.append(Text(" " * (len(label) + 1)))
            gap = ""
        lines[-1].append(gap)
        lines[-1].append(entry)
    return lines


def _limited(name: str, used: int, limit: int | None) -> Text:
    is_full = limit is not None and used >= limit > 0
    of = "" if limit is None else f"/{words.short_count(limit)}"
    return _entry(name, f"{words.short_count(used)}{of}", "yellow" if is_full else "")


def _entry(name: str, value: str, style: str = "") -> Text:
    return Text(f"{name} ", style="dim").append(value, style=f"not dim {style}".strip())


def _fact(line: Text, label: str, value: str, rate: str) -> None:
    _label(line, label)
    line.append(value, style="bold")
    line.append(f"  {rate}    ", style="dim" if rate == words.UNKNOWN else "cyan")


def _label(line: Text, label: str) -> None:
    line.append(f"{label} ", style="dim")
