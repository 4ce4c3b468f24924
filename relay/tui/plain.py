"""Progress where there is no terminal: one line every few seconds, and the closing summary (pure but for the reporter's thread)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from relay.model import RepoState
from relay.observe import words
from relay.observe.status import Phase, StatusSnapshot
from relay.runtime.service import ServiceThread

# States that are no news: where work waits, and where it ends well.
_QUIET = (RepoState.DISCOVERED, RepoState.PENDING, RepoState.SYNCED)


def progress_line(snapshot: StatusSnapshot) -> str:
    """Return the state of a run in one line, most important first."""
    targets, rates = snapshot.targets, snapshot.rates
    parts = [snapshot.phase.value + (f" ({snapshot.reason})" if snapshot.reason else "")]
    if targets.total is not None:
        known = "" if targets.final else " so far"
        share = words.percent(targets.done, targets.total)
        parts.append(f"{words.count(targets.done)} of {words.count(targets.total)} repos{known} ({share})")
    else:
        parts.append(f"{words.count(snapshot.state_counts()['synced'])} repos synced")
    if rates.repos_per_s is not None:
        parts[-1] += f" {words.rate(rates.repos_per_s)}"
    parts.append(f"{words.count(snapshot.records_delivered)} records {words.rate(rates.records_per_s)}")
    per_s = words.UNKNOWN if rates.bytes_per_s is None else f"{words.size(rates.bytes_per_s)}/s"
    parts.append(f"{words.size(snapshot.bytes_fetched)} {per_s}")
    if targets.total is not None:
        more = "" if targets.final or targets.eta_s is None else " or more"
        parts.append(f"eta {words.duration(targets.eta_s)}{more}")
    if snapshot.firehose.seq is not None:
        parts.append(f"tail lag {words.duration(snapshot.firehose.lag_s)}")
    parts += [
        f"{words.count(number)} {name}"
        for name, number in snapshot.state_counts().items()
        if number and RepoState(name) not in _QUIET
    ]
    away = sum(not each.healthy for each in snapshot.ingesters)
    if away:
        parts.append(f"{away} of {len(snapshot.ingesters)} ingesters away")
    if open_incidents := sum(each.closed_at is None for each in snapshot.incidents):
        parts.append(f"{open_incidents} open incidents")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a batch did. `quarantined` may be cut short: (DID, reason) of some; `repos` has the whole number."""

    took_s: float
    repos: Mapping[str, int]
    records: int
    bytes_fetched: int
    failures: Mapping[str, int] = field(default_factory=dict)  # failed attempts by reason
    quarantined: Sequence[tuple[str, str]] = ()
    dead_letters: int = 0
    was_interrupted: bool = False


def summary_lines(summary: Summary, most_quarantined: int = 20) -> list[str]:
    """Return the closing summary of a batch."""
    counts = {state: summary.repos.get(state.value, 0) for state in RepoState}
    total = sum(counts.values())
    seconds = max(summary.took_s, 0.001)
    lines = [
        f"{'interrupted' if summary.was_interrupted else 'finished'} after {words.duration(summary.took_s)}: "
        f"{words.count(total)} repos, {words.count(summary.records)} records, {words.size(summary.bytes_fetched)} fetched",
        f"  rates        {words.rate(total_done(summary) / seconds)} repos, {words.rate(summary.records / seconds)} records, "
        f"{words.size(summary.bytes_fetched / seconds)}/s",
    ]
    shown = ", ".join(f"{words.count(number)} {state.value}" for state, number in counts.items() if number)
    lines.append(f"  repos        {shown or 'none'}")
    if summary.failures:
        by_number = sorted(summary.failures.items(), key=lambda item: (-item[1], item[0]))
        lines.append("  failures     " + ", ".join(f"{words.count(number)} {reason}" for reason, number in by_number))
    if summary.dead_letters:
        lines.append(f"  dead letters {words.count(summary.dead_letters)}: see `bin/relay deadletter list`")
    if counts[RepoState.QUARANTINED]:
        listed = list(summary.quarantined)[:most_quarantined]
        lines.append("  quarantined")
        lines += [f"    {did}  {reason}" for did, reason in listed]
        if left := counts[RepoState.QUARANTINED] - len(listed):
            lines.append(f"    and {words.count(left)} more: see `bin/relay repos list --state quarantined`")
    if summary.was_interrupted:
        lines.append("  the same command continues where this one stopped")
    return lines


def total_done(summary: Summary) -> int:
    """Return how many repos a batch brought to an end, well or badly."""
    return sum(
        summary.repos.get(state.value, 0) for state in (RepoState.SYNCED, RepoState.INACTIVE, RepoState.QUARANTINED)
    )


class PlainReporter(ServiceThread):
    """Writes `progress_line` every `interval_s` seconds, and at once when the phase changes. Owned by the command."""

    def __init__(
        self,
        out: TextIO,
        snapshot: Callable[[], StatusSnapshot],
        *,
        interval_s: float = 5.0,
        poll_s: float = 0.5,
        on_death: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        super().__init__("progress", on_death)
        self._out, self._snapshot = out, snapshot
        self._interval_s, self._poll_s = interval_s, poll_s

    def run(self) -> None:
        waited_s, told = self._interval_s, None
        while not self.stopping.wait(self._poll_s):
            waited_s += self._poll_s
            snapshot = self._snapshot()
            now: tuple[Phase, str] = (snapshot.phase, snapshot.reason)
            if waited_s >= self._interval_s or now != told:
                self._out.write(progress_line(snapshot) + "\n")
                self._out.flush()
                waited_s, told = 0.0, now
