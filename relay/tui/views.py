"""A status snapshot as something to look at (pure): fits 80x24, and uses a larger terminal for more rows, not for larger gaps.

Below a head of fixed lines stand sections, the most important first. Each says how few rows of it still make sense: every
section gets its least, then the first ones get what is left. Lists become short on a small screen ("12 more"), and sections for
which not even their least is left go, the last one first.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from relay.observe import words
from relay.observe.status import StatusSnapshot
from relay.tui import sections as lists
from relay.tui.head import head
from relay.tui.sections import Column, Section

_WIDE = 130  # columns from which on the lists stand side by side
_GAP = 3


def dashboard(snapshot: StatusSnapshot, width: int, height: int, log_lines: Sequence[str] = ()) -> RenderableType:
    """Return the screen for a terminal of `width` (40 or more) columns and `height` lines; never higher, never wider."""
    top = head(snapshot, width)
    left = height - len(top) - 1
    body: list[RenderableType] = []
    if left > 2:
        body = [Text(""), *_body(snapshot, width, left, log_lines)]
    return Group(*(top + body)[:height])


def _body(snapshot: StatusSnapshot, width: int, height: int, log_lines: Sequence[str]) -> list[RenderableType]:
    incidents, ingesters = lists.incidents(snapshot), lists.ingesters(snapshot)
    hosts, workers = lists.hosts(snapshot), lists.workers(snapshot)
    errors, log, frames = lists.errors(snapshot), lists.log(log_lines), lists.frames(snapshot)
    if width < _WIDE:
        present = [each for each in (ingesters, incidents, errors, hosts, workers, frames, log) if each.rows]
        return _stack(present, width, height)
    # Side by side: whom we work with on the left, what went wrong and who works on the right. The log has the width below.
    bottom = [log] if log.rows and height >= 16 else []
    log_height = min(log.height, max(log.least_height, height // 4)) if bottom else 0
    left_width = (width - _GAP) // 2
    left = [each for each in (ingesters, hosts) if each.rows]
    right = [each for each in (incidents, errors, workers, frames) if each.rows]
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


def _told(section: Section) -> list[tuple[int, Column]]:
    """Return the columns, with their places, without optional ones of which no row knows anything."""
    return [
        (index, column)
        for index, column in enumerate(section.columns)
        if not column.optional or any(str(row[index]) != words.UNKNOWN for row in section.rows)
    ]


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
    kept = _told(section)
    for index, column in kept:
        title = Text(section.title, style="not dim bold") if index == 0 else Text(column.name)
        table.add_column(
            title,
            justify="right" if column.is_number else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if column.flexible else None,
        )
    for row in shown:
        table.add_row(*[row[index] for index, _ in kept])
    if len(shown) < len(section.rows):
        table.add_row(Text(f"{len(section.rows) - len(shown)} more", style="dim"))
    return table
