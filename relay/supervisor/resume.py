"""Where the stream goes on at a start (pure): DESIGN 9, `tail` and `run`; and which of it means that something may be missing."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from relay.store.partitions import Partition


class StartKind(enum.StrEnum):
    """Incidents of a start: each is answered by a reconcile. The words stand in `status` and in metrics."""

    NO_CURSOR = "no_cursor"  # repos are known, and nobody knows what of the stream they have seen
    OTHER_UPSTREAM = "other_upstream"  # the stored cursor counts in another one's numbers
    STARTED_LIVE = "started_live"  # --live
    SKIPPED = "cursor_skipped"  # --cursor above the stored one


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """`cursor` None: from now on. `incident`: kind and text of what is to be opened before anything is read."""

    cursor: int | None
    time_us: int | None = None
    incident: tuple[StartKind, str] | None = None


def where_to_resume(
    stored: Partition, upstream: str, *, cursor: int | None = None, live: bool = False, has_repos: bool
) -> Resume:
    """Return where the stream of `upstream` goes on. `cursor`, `live`: as the operator asked; `has_repos`: any row at all.

    Without rows nothing can be missing that an enumeration, or the stream, will not bring.
    """
    ours = stored.upstream == upstream and stored.cursor is not None
    if live:
        text = f"{upstream} is followed from now on (--live): what happened before is found by comparing every repo"
        return Resume(cursor=None, incident=(StartKind.STARTED_LIVE, text) if has_repos or ours else None)
    if cursor is not None:
        at = stored.cursor_time_us if ours and cursor == stored.cursor else None
        if ours and stored.cursor is not None and cursor > stored.cursor:
            text = f"{upstream} is followed from {cursor} (--cursor), and everything is done only up to {stored.cursor}"
            return Resume(cursor=cursor, time_us=at, incident=(StartKind.SKIPPED, text))
        return Resume(cursor=cursor, time_us=at, incident=None if ours else _unknown(stored, upstream, has_repos))
    if ours:
        return Resume(cursor=stored.cursor, time_us=stored.cursor_time_us)
    return Resume(cursor=None, incident=_unknown(stored, upstream, has_repos))


def _unknown(stored: Partition, upstream: str, has_repos: bool) -> tuple[StartKind, str] | None:
    if not has_repos:
        return None
    if stored.cursor is not None:
        text = f"the stored cursor {stored.cursor} counts the events of {stored.upstream}; now it is {upstream} that is followed"
        return StartKind.OTHER_UPSTREAM, text
    return (
        StartKind.NO_CURSOR,
        f"no cursor of {upstream} is stored: what the known repos have missed is found by comparing them",
    )
