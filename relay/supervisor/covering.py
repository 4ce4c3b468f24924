"""Which of the filters that stored repos cover suffice for the one in force (pure)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from relay.atproto.nsid_filter import NsidFilter


def parse_covers(text: str) -> NsidFilter:
    """Return the filter that a stored text names; '' is every collection."""
    return NsidFilter.parse(text.split(",") if text else ())


def filter_text(wanted: NsidFilter) -> str:
    """Return the canonical text of a filter, as rows have it."""
    return ",".join(wanted.patterns)


def insufficient_for(wanted: NsidFilter) -> Callable[[Collection[str | None]], Collection[str]]:
    """Return a function: which of these stored filters do not cover `wanted`? None (nothing complete yet) is passed over."""

    def insufficient(covers: Collection[str | None]) -> Collection[str]:
        return [text for text in set(covers) if text is not None and not parse_covers(text).covers(wanted)]

    return insufficient
