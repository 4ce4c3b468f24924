"""Small charts as inline SVG, which needs no script (pure). Colours come from the page's style by class, so both themes fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

from relay.admin.history import Point
from relay.model import RepoState
from relay.observe import words

WIDTH, HEIGHT = 300, 64
_GAP_FACTOR = 3.0  # a hole this many times the usual distance is not drawn over
# From below: what is at rest, what is on its way, what needs somebody.
STATE_ORDER = (
    RepoState.SYNCED,
    RepoState.INACTIVE,
    RepoState.DISCOVERED,
    RepoState.PENDING,
    RepoState.ACTIVE,
    RepoState.DESYNCED,
    RepoState.FAILED,
    RepoState.QUARANTINED,
)


def line_chart(title: str, points: Sequence[Point], name: str, shown: Callable[[float | None], str]) -> str:
    """Return one value over time as a figure: its newest value, its highest, and from when on."""
    known = [(point.at, point.values[name]) for point in points if name in point.values]
    now = shown(points[-1].values.get(name)) if points else words.UNKNOWN
    top = max((value for _, value in known), default=0.0)
    body = ""
    if len(known) > 1 and points[-1].at > points[0].at:
        scale = _scale(points)
        for run in _runs(known, _usual_step(points)):
            places = [(scale(at), _y(value, top)) for at, value in run]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            body += f'<polygon class="area" points="{places[0][0]:.1f},{HEIGHT} {line} {places[-1][0]:.1f},{HEIGHT}"/>'
            body += f'<polyline class="line" points="{line}"/>'
    label = f"{title}: now {now}, at most {shown(top) if known else words.UNKNOWN}"
    return _figure(title, now, f"max {shown(top)}" if known else "", body, label, points)


def states_chart(points: Sequence[Point]) -> str:
    """Return how the repos were spread over their states, as shares of all, stacked."""
    body = ""
    whole = [(point.at, sum(point.states.values()), point.states) for point in points if point.states]
    if len(whole) > 1 and points[-1].at > points[0].at:
        scale = _scale(points)
        below = [0.0] * len(whole)
        for state in STATE_ORDER:
            above = [
                base + states.get(state.value, 0) / total for base, (_, total, states) in zip(below, whole, strict=True)
            ]
            if above != below:
                upper = [
                    f"{scale(at):.1f},{HEIGHT * (1 - share):.1f}"
                    for (at, _, _), share in zip(whole, above, strict=True)
                ]
                lower = [
                    f"{scale(at):.1f},{HEIGHT * (1 - share):.1f}"
                    for (at, _, _), share in zip(whole, below, strict=True)
                ]
                body += f'<polygon class="s-{state.value}" points="{" ".join(upper + lower[::-1])}"/>'
            below = above
    return _figure("States", "", "share of all repos", body, "states of the repos over time", points)


def bar(states: dict[str, int]) -> str:
    """Return the states of all repos as one bar; empty where there are no repos."""
    total = sum(states.values())
    if not total:
        return ""
    x, parts = 0.0, []
    for state in STATE_ORDER:
        number = states.get(state.value, 0)
        if number:
            # What needs somebody is seen, however few they are.
            width = max(2.0, 1000.0 * number / total)
            parts.append(
                f'<rect class="s-{state.value}" x="{x:.1f}" y="0" width="{width:.1f}" height="14">'
                f"<title>{escape(state.value)}: {words.count(number)}</title></rect>"
            )
            x += width
    return (
        f'<svg class="bar" viewBox="0 0 {max(1.0, x):.1f} 14" preserveAspectRatio="none" role="img" '
        f'aria-label="states of {words.count(total)} repos">{"".join(parts)}</svg>'
    )


def _figure(title: str, now: str, note: str, body: str, label: str, points: Sequence[Point]) -> str:
    since = words.duration(points[-1].at - points[0].at) if len(points) > 1 else ""
    below = f"<span>{since} ago</span><span>now</span>" if since and body else "<span>collecting&hellip;</span>"
    return (
        f"<figure><figcaption><span>{escape(title)}</span> <b>{escape(now)}</b> <small>{escape(note)}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<line class="base" x1="0" y1="{HEIGHT - 0.5}" x2="{WIDTH}" y2="{HEIGHT - 0.5}"/>{body}</svg>'
        f'<div class="ends">{below}</div></figure>'
    )


def _scale(points: Sequence[Point]) -> Callable[[float], float]:
    first, last = points[0].at, points[-1].at
    return lambda at: (at - first) / (last - first) * WIDTH


def _y(value: float, top: float) -> float:
    return HEIGHT - 1 - (HEIGHT - 6) * (value / top if top > 0 else 0.0)


def _usual_step(points: Sequence[Point]) -> float:
    steps = sorted(after.at - before.at for before, after in pairwise(points))
    return steps[len(steps) // 2]


def _runs(known: Sequence[tuple[float, float]], step: float) -> list[list[tuple[float, float]]]:
    """Return the points cut where there is a hole."""
    runs = [[known[0]]]
    for point in known[1:]:
        if point[0] - runs[-1][-1][0] > step * _GAP_FACTOR:
            runs.append([])
        runs[-1].append(point)
    return runs
