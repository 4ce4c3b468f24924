"""Progress where there is no terminal: one line every few seconds, and the closing summary (pure but for the writing)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO

from relay.model import RepoState
from relay.observe import words
from relay.observe.status import Phase, StatusSnapshot
from relay.tui.foreign import one_line

# States that are no news: where work waits, and where it ends well.
_QUIET = (RepoState.DISCOVERED, RepoState.PENDING, RepoState.SYNCED)


def progress_line(snapshot: StatusSnapshot) -> str:
    """Return the state of a run in one line, most important first."""
    targets, rates, firehose, backlog = snapshot.targets, snapshot.rates, snapshot.firehose, snapshot.backlog
    parts = [snapshot.phase.value + (f" ({snapshot.reason})" if snapshot.reason else "")]
    is_batch = targets.total is not None
    if is_batch:
        known = "" if targets.final else " so far"
        share = words.percent(targets.done, targets.total)
        parts.append(f"{words.count(targets.done)} of {words.count(targets.total)} repos{known} ({share})")
    else:
        parts.append(f"{words.count(snapshot.state_counts()['synced'])} repos synced")
    if rates.repos_per_s is not None:
        parts[-1] += f" {words.rate(rates.repos_per_s)}"
    if backlog.repos and not is_batch:
        parts.append(f"{words.count(backlog.repos)} to go (eta {words.duration(backlog.eta_s)})")
    if is_batch or snapshot.operations_delivered is None:
        parts.append(f"{words.count(snapshot.records_delivered)} records {words.rate(rates.records_per_s)}")
    else:
        per_s = words.rate(snapshot.operations_per_s)
        parts.append(f"{words.count(snapshot.operations_delivered)} operations {per_s}")
    per_s = words.UNKNOWN if rates.bytes_per_s is None else f"{words.size(rates.bytes_per_s)}/s"
    parts.append(f"{words.size(snapshot.bytes_fetched)} {per_s}")
    if is_batch:
        more = "" if targets.final or targets.eta_s is None else " or more"
        parts.append(f"eta {words.duration(targets.eta_s)}{more}")
    if firehose.connections is not None or firehose.seq is not None:
        if firehose.connected:
            parts.append(f"tail lag {words.duration(firehose.lag_s)} {words.rate(firehose.events_per_s)}")
        else:
            parts.append("tail not connected")
        if firehose.distance is not None:
            parts.append(f"{words.short_count(firehose.distance)} open frames")
        if firehose.buffered_operations:
            parts.append(f"{words.short_count(firehose.buffered_operations)} buffered")
    reconcile = snapshot.reconcile
    if reconcile.running:
        hosts = f"{words.count(reconcile.hosts_done)} of {words.count(reconcile.hosts_total)} hosts"
        parts.append(f"reconciling {hosts} ({words.count(reconcile.differed)} repos differ)")
    parts += [
        f"{words.count(number)} {name}"
        for name, number in snapshot.state_counts().items()
        if number and RepoState(name) not in _QUIET
    ]
    away = sum(not each.healthy for each in snapshot.ingesters)
    if away and snapshot.phase is not Phase.STARTING:
        parts.append(f"{away} of {len(snapshot.ingesters)} ingesters away")
    if open_incidents := sum(each.closed_at is None for each in snapshot.incidents):
        parts.append(f"{open_incidents} open incidents")
    return ", ".join(parts)


class ProgressLines:
    """Writes `progress_line` every `interval_s` seconds, and at once when the phase or its reason changes."""

    def __init__(self, out: TextIO, interval_s: float = 5.0) -> None:
        self._out, self._interval_s = out, interval_s
        self._next_at = float("-inf")
        self._told: tuple[Phase, str] | None = None

    def show(self, snapshot: StatusSnapshot, now: float) -> None:
        """Take the newest snapshot at `now` (monotonic seconds), as often as there is one."""
        kind = (snapshot.phase, snapshot.reason)
        if now < self._next_at and kind == self._told:
            return
        self._next_at, self._told = now + self._interval_s, kind
        self._out.write(progress_line(snapshot) + "\n")
        self._out.flush()


class BatchSummary(Protocol):
    """What a batch did, as its run reports it. `why`: set when it could not go on. `quarantined`, of which some may be left out
    (`counts` has the whole number): DID, reason, last error. `reasons`: state, reason and number of the repos that are not synced.
    """

    @property
    def interrupted(self) -> bool: ...
    @property
    def why(self) -> str | None: ...
    @property
    def counts(self) -> Mapping[RepoState, int]: ...
    @property
    def reasons(self) -> Sequence[tuple[RepoState, str | None, int]]: ...
    @property
    def quarantined(self) -> Sequence[tuple[str, str | None, str | None]]: ...
    @property
    def failed_listings(self) -> Sequence[str]: ...
    @property
    def dead_letters(self) -> int: ...
    @property
    def records(self) -> int: ...
    @property
    def bytes_fetched(self) -> int: ...
    @property
    def repos_synced(self) -> int: ...
    @property
    def took_s(self) -> float: ...


def summary_lines(summary: BatchSummary, most_listed: int = 20) -> list[str]:
    """Return the closing summary of a batch: numbers of this run first, then the targets as they stand, then what went wrong."""
    seconds = max(summary.took_s, 0.001)
    if summary.why is not None:
        end = f"cannot go on: {summary.why}\nstopped"
    else:
        end = "interrupted" if summary.interrupted else "finished"
    lines = f"{end} after {words.duration(summary.took_s)}".splitlines()
    lines.append(
        f"  this run     {words.count(summary.repos_synced)} repos synced, {words.count(summary.records)} records, "
        f"{words.size(summary.bytes_fetched)} fetched"
    )
    lines.append(
        f"  rates        {words.rate(summary.repos_synced / seconds)} repos, "
        f"{words.rate(summary.records / seconds)} records, {words.size(summary.bytes_fetched / seconds)}/s"
    )
    shown = ", ".join(f"{words.count(number)} {state.value}" for state, number in summary.counts.items() if number)
    lines.append(f"  targets      {shown or 'none'}")
    if summary.reasons:
        lines.append("  not synced")
        lines += [
            f"    {words.count(number):>9}  {state.value}{f': {reason}' if reason else ''}"
            for state, reason, number in list(summary.reasons)[:most_listed]
        ]
    if summary.dead_letters:
        lines.append(f"  dead letters {words.count(summary.dead_letters)}: see `bin/relay deadletter list`")
    if summary.failed_listings:
        lines.append("  listings that failed")
        lines += [f"    {one_line(each)}" for each in list(summary.failed_listings)[:most_listed]]
        if left := len(summary.failed_listings) - most_listed:
            lines += [f"    and {words.count(left)} more"] if left > 0 else []
    if number := summary.counts.get(RepoState.QUARANTINED, 0):
        listed = list(summary.quarantined)[:most_listed]
        lines.append("  quarantined")
        for did, reason, error in listed:
            lines.append(f"    {did}  {reason or '-'}" + (f"  {one_line(error)}" if error else ""))
        if left := number - len(listed):
            lines.append(f"    and {words.count(left)} more: see `bin/relay repos list --state quarantined`")
    if summary.interrupted:
        lines.append("  the same command continues where this one stopped")
    return lines


def closing_lines(snapshot: StatusSnapshot, why: str | None = None) -> list[str]:
    """Return how a service ended, from its last status: what it did, where it stands, what is left, what is open."""
    lines = [] if why is None else [f"relay: cannot go on: {why}"]
    lines.append(f"stopped after {words.duration(snapshot.uptime_s)}")
    firehose = snapshot.firehose
    lines.append(f"  fetched      {words.count(snapshot.fetch.done)} repos, {words.size(snapshot.bytes_fetched)}")
    if firehose.events:
        lines.append(f"  read         {words.count(sum(firehose.events.values()))} events")
    lines.append(f"  delivered    {words.count(snapshot.operations_delivered)} operations")
    if firehose.cursor is not None:
        behind = ""
        if firehose.seq is not None and firehose.seq > firehose.cursor:
            behind = f", {words.count(firehose.seq - firehose.cursor)} below the newest event read"
        lines.append(f"  cursor       {words.count(firehose.cursor)}{behind}")
    shown = ", ".join(f"{words.count(number)} {name}" for name, number in snapshot.state_counts().items() if number)
    lines.append(f"  repos        {shown or 'none'}")
    if left := snapshot.backlog.repos:
        lines.append(f"  left         {words.count(left)} repos to fetch")
    undelivered = sum(each.queued_operations or 0 for each in snapshot.ingesters)
    if undelivered:
        lines.append(f"  not taken    {words.count(undelivered)} operations")
    lines += [
        f"  open         {each.kind} since {each.at}: {one_line(each.text)}"
        for each in snapshot.incidents
        if each.closed_at is None
    ]
    lines.append("  the next start goes on from here")
    return lines
