"""The page at `/`: every number of a status snapshot as plain HTML that needs no script and nothing from elsewhere (pure).

Everything that is not ours (names of hosts, texts of errors, addresses) goes through `escape`. With scripts, the numbers are
renewed in place; without, the page asks for itself again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from relay.admin import charts, tables
from relay.admin.charts import STATE_ORDER
from relay.admin.history import Point
from relay.admin.look import SCRIPT, STYLE
from relay.admin.tables import table
from relay.observe import words
from relay.observe.status import StatusSnapshot

_LATE_S = 10.0  # a stream whose newest event is older than this stands out
_RELOAD_S = 5
# Of a repo: what somebody who searches for it wants to know first.
_FIRST = ("state", "reason", "last_error", "host", "attempts", "next_attempt_at", "rev", "records", "synced_at", "acknowledged", "sent")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What was asked for a DID, and what came of it: `story` (JSON-ready, all that is known), or `problem`."""

    did: str
    story: Mapping[str, object] | None = None
    problem: str = ""


def render_page(
    snapshot: StatusSnapshot,
    *,
    recent: Sequence[Point] = (),
    day: Sequence[Point] = (),
    search: Search | None = None,
) -> bytes:
    """Return the page, with charts where there is a history, and above all what was searched for."""
    title = f"{escape(snapshot.instance)}: {snapshot.phase.value}"
    reload = "" if search else f'<noscript><meta http-equiv="refresh" content="{_RELOAD_S}"></noscript>'
    asked = escape(search.did) if search else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'{reload}<link rel="icon" href="data:,"><title>{title}</title><style>{STYLE}</style></head><body>'
        f'<header>{_head(snapshot)}<form action="/" role="search"><input type="search" name="did" value="{asked}" maxlength="2048" '
        'placeholder="did:plc:…" aria-label="Find a repo by its DID" spellcheck="false" autocomplete="off">'
        "<button>Find</button></form></header>"
        f'<main><p class="notice" id="stale" hidden>The relay does not answer: these numbers are old.</p>{_found(search)}</main>'
        f'<main id="live">{"".join(_sections(snapshot, recent, day))}</main>'
        '<footer><a href="/status.json">status.json</a> · <a href="/metrics">metrics</a> · <a href="/health">health</a> · '
        f'<a href="/ready">ready</a></footer><script>{SCRIPT}</script></body></html>'
    ).encode()


def _head(snapshot: StatusSnapshot) -> str:
    facts = " · ".join(
        escape(fact)
        for fact in (
            snapshot.command,
            f"up {words.duration(snapshot.uptime_s)}" if snapshot.uptime_s is not None else "",
            f"version {snapshot.version}" if snapshot.version else "",
            f"as of {snapshot.at[11:19]} UTC" if snapshot.at else "",
        )
        if fact
    )
    phase = snapshot.phase.value
    reason = f' <span class="facts">{escape(snapshot.reason)}</span>' if snapshot.reason else ""
    return (
        f'<div id="head"><h1>{escape(snapshot.instance)} <span class="badge {phase}">{phase}</span>{reason}</h1>'
        f'<div class="facts">{facts}</div></div>'
    )


def _sections(snapshot: StatusSnapshot, recent: Sequence[Point], day: Sequence[Point]) -> Iterable[str]:
    yield from _notices(snapshot)
    yield _numbers(snapshot)
    yield _states(snapshot)
    yield f'<section><h2>The last minutes</h2><div class="charts">{_charts(recent)}</div></section>'
    if len(day) > 1:
        yield (
            '<section><details id="day"><summary>The last 24 hours</summary>'
            f'<div class="charts">{_charts(day)}</div></details></section>'
        )
    yield from tables.all_of(snapshot)


def _notices(snapshot: StatusSnapshot) -> Iterable[str]:
    """What is open now stands first: whoever opens the page at night looks for it."""
    for each in snapshot.incidents:
        if each.closed_at is None:
            yield (
                f'<p class="notice open"><b class="bad">{escape(each.kind)}</b> since {escape(each.at)}: {escape(each.text)}</p>'
            )
    away = [each for each in snapshot.ingesters if not each.healthy]
    if away and snapshot.phase.value not in ("starting", "stopped"):
        names = ", ".join(f"{each.address} ({each.reason or 'away'})" for each in away[:5])
        yield (
            f'<p class="notice"><b class="warn">{len(away)} of {len(snapshot.ingesters)} ingesters away</b>: {escape(names)}</p>'
        )


def _numbers(snapshot: StatusSnapshot) -> str:
    rates, firehose, counts = snapshot.rates, snapshot.firehose, snapshot.state_counts()
    cards = []
    targets, backlog = snapshot.targets, snapshot.backlog
    if targets.total is not None:
        known = "" if targets.final else " so far"
        cards.append(
            _progress(
                "Batch", targets.done or 0, targets.total, f"{words.count(targets.done)} of {words.count(targets.total)} repos{known}",
                targets.eta_s, targets.bytes_left,
            )
        )  # fmt: skip
    elif backlog.repos is not None and any(counts.values()):
        total = sum(counts.values())
        done = max(0, total - backlog.repos)
        note = f"{words.count(done)} of {words.count(total)} repos, {words.count(backlog.repos)} to go"
        cards.append(_progress("At rest", done, total, note, backlog.eta_s, backlog.bytes_left))
    cards += [
        _card("Repos synced", words.count(counts["synced"]), words.rate(rates.repos_per_s)),
        _card("Records delivered", words.count(snapshot.records_delivered), words.rate(rates.records_per_s)),
        _card(
            "Operations delivered", words.count(snapshot.operations_delivered), words.rate(snapshot.operations_per_s)
        ),
        _card("Bytes fetched", words.size(snapshot.bytes_fetched), _per_s(rates.bytes_per_s)),
    ]
    if firehose.connections is not None or firehose.seq is not None:
        is_late = not firehose.connected or (firehose.lag_s or 0) > _LATE_S
        note = f"{words.rate(firehose.events_per_s)} events" if firehose.connected else "not connected"
        cards.append(_card("Firehose lag", words.duration(firehose.lag_s), note, "warn" if is_late else ""))
    number = sum(each.closed_at is None for each in snapshot.incidents)
    cards.append(
        _card("Open incidents", words.count(number), f"{len(snapshot.incidents)} in 24 h", "bad" if number else "")
    )
    return f'<div class="numbers">{"".join(cards)}</div>'


def _card(label: str, value: str, note: str, style: str = "") -> str:
    return f'<section><span>{escape(label)}</span><b class="{style}">{escape(value)}</b><small>{escape(note)}</small></section>'


def _progress(label: str, done: int, total: int, note: str, eta_s: float | None, bytes_left: int | None) -> str:
    left = ""
    if done < total:
        left = f", about {words.duration(eta_s)} left" if eta_s is not None else ", time left not known yet"
        if bytes_left:
            left += f" (about {words.size(bytes_left)})"
    return (
        f'<section class="whole"><span>{escape(label)}</span><b>{words.percent(done, total)}</b>'
        f'<progress max="{max(1, total)}" value="{min(done, total)}"></progress>'
        f"<small>{escape(note + left)}</small></section>"
    )


def _states(snapshot: StatusSnapshot) -> str:
    counts = snapshot.state_counts()
    items = "".join(
        f'<li><i class="s-{state.value}" aria-hidden="true">■</i><b>{words.count(counts[state.value])}</b> {state.value}</li>'
        for state in STATE_ORDER
    )
    return f'<section id="repos"><h2>Repos</h2>{charts.bar(counts)}<ul class="legend">{items}</ul></section>'


def _charts(points: Sequence[Point]) -> str:
    figures = [
        charts.line_chart("Operations", points, "operations", words.rate),
        charts.line_chart("Repos", points, "repos", words.rate),
        charts.line_chart("Bytes", points, "bytes", _per_s),
    ]
    if any("lag" in point.values for point in points):
        figures.append(charts.line_chart("Firehose lag", points, "lag", words.duration))
        figures.append(charts.line_chart("Events", points, "events", words.rate))
    figures.append(charts.line_chart("Oldest unacknowledged", points, "unacked", words.duration))
    figures.append(charts.states_chart(points))
    return "".join(figures)


def _per_s(value: float | None) -> str:
    return words.UNKNOWN if value is None else f"{words.size(value)}/s"


def _found(search: Search | None) -> str:
    if search is None:
        return ""
    body = f'<p class="bad">{escape(search.problem)}</p>' if search.story is None else _story(search.story)
    return f'<section id="found"><h2>{escape(search.did)}</h2>{body}<p><a href="/">Close</a></p></section>'


def _story(story: Mapping[str, object]) -> str:
    """Return what is asked most, then each list of objects as a table of its own, then the rest, folded."""
    lists = {name: _objects(value) for name, value in story.items() if _objects(value)}
    others = [name for name in story if name not in _FIRST and name not in lists and name != "did"]
    tables_ = "".join(_listed(name, entries) for name, entries in lists.items())
    first = _facts(story, [name for name in _FIRST if name in story])
    return f'{first}{tables_}<details id="all"><summary>Everything</summary>{_facts(story, others)}</details>'


def _facts(story: Mapping[str, object], names: Iterable[str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_text(story[name], name))}</dd>" for name in names)
    return f"<dl>{items}</dl>"


def _objects(value: object) -> list[Mapping[str, object]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _listed(name: str, entries: Sequence[Mapping[str, object]]) -> str:
    heads = list(dict.fromkeys(key for entry in entries for key in entry))
    return table(name, heads, [[_text(entry.get(head)) for head in heads] for entry in entries])


def _text(value: object, name: str = "") -> str:
    if value is None or value == "":
        return words.UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if name.endswith("_us") else words.count(value)
    if isinstance(value, list):
        return ", ".join(str(each) for each in value) or ("all collections" if name == "covers" else words.UNKNOWN)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each, name)}" for name, each in value.items())
    return str(value)
