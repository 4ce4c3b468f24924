"""The wanted collections: exact NSIDs, and prefixes that end in `.` or `.*`; no pattern at all means every collection.

A filter compares bytes, as the tree of a repo does: `App.Bsky.feed.like` in a repo is not wanted by `app.bsky.`.
Source: DESIGN 10 (`firehose.nsid_filter`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from relay.atproto.errors import InvalidSyntax
from relay.atproto.syntax import NSID_CHARS, fold_nsid, is_nsid, parse_nsid

_PREFIX = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)+", re.ASCII)

# The filter that wants nothing, which two filters with nothing in common leave. It needs a pattern of its own, because no
# pattern means everything.
NOTHING_PATTERN: Final = "-"

# Keys are ASCII: every key is below this.
_ABOVE_ALL_KEYS: Final = b"\xff"


@dataclass(frozen=True, slots=True)
class NsidFilter:
    """A set of collections. Made by `parse`; equal to another exactly when it wants the same collections.

    `patterns` is canonical: sorted, prefixes end in `.`, and none is covered by another. `parse(f.patterns) == f`.
    """

    patterns: tuple[str, ...]
    _exact: frozenset[str] = field(init=False, repr=False, compare=False)
    _prefixes: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        prefixes = tuple(pattern for pattern in self.patterns if pattern.endswith(".")) if self.patterns else ("",)
        exact = frozenset(p for p in self.patterns if not p.endswith(".") and p != NOTHING_PATTERN)
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_prefixes", prefixes)

    @classmethod
    def parse(cls, patterns: Iterable[str]) -> NsidFilter:
        """Return the filter of these patterns; blanks around one, and empty ones, are ignored.

        The authority of a pattern is folded to lower case. Raises InvalidSyntax that names the pattern.
        """
        texts = [text for text in (pattern.strip() for pattern in patterns) if text]
        if not texts:
            return cls(())
        return cls._of({_canonical(text) for text in texts})

    @classmethod
    def _of(cls, wanted: set[str]) -> NsidFilter:
        """Return the filter of canonical patterns, at least one of them or else nothing is wanted."""
        prefixes = {pattern for pattern in wanted if pattern.endswith(".")}
        kept = {p for p in wanted if p != NOTHING_PATTERN and not _is_below(p, prefixes - {p})}
        return cls(tuple(sorted(kept)) or (NOTHING_PATTERN,))

    @property
    def is_everything(self) -> bool:
        return not self.patterns

    @property
    def is_nothing(self) -> bool:
        return self.patterns == (NOTHING_PATTERN,)

    def wants(self, collection: str) -> bool:
        """Say whether records of this collection are wanted. 0.1 us."""
        return collection in self._exact or collection.startswith(self._prefixes)

    def covers(self, other: NsidFilter) -> bool:
        """Say whether everything that `other` wants is wanted here too."""
        return self.intersect(other) == other

    def intersect(self, other: NsidFilter) -> NsidFilter:
        """Return the filter that wants what both want; with nothing in common, the one that wants nothing."""
        if self.is_everything:
            return other
        if other.is_everything:
            return self
        mine = {
            pattern for pattern in self.patterns if pattern in other.patterns or _is_below(pattern, other._prefixes)
        }
        theirs = {pattern for pattern in other.patterns if _is_below(pattern, self._prefixes)}
        return self._of(mine | theirs)

    def ranges(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return sorted, disjoint, half-open ranges of MST keys: a valid key (`collection/rkey`) is wanted iff it is in one.

        An exact NSID is [nsid + "/", nsid + "0"), a prefix p is [p, p with its "." made "/"), everything is [b"", b"\\xff").
        Neighbours are joined, so a walk can prune a subtree whose keys all lie between two ranges.
        """
        if self.is_everything:
            return ((b"", _ABOVE_ALL_KEYS),)
        found: list[tuple[bytes, bytes]] = []
        for pattern in self.patterns:
            if pattern.endswith("."):
                found.append((pattern.encode(), pattern[:-1].encode() + b"/"))
            elif pattern != NOTHING_PATTERN:
                found.append((pattern.encode() + b"/", pattern.encode() + b"0"))
        found.sort()
        joined: list[tuple[bytes, bytes]] = []
        for low, high in found:
            if joined and joined[-1][1] == low:
                joined[-1] = (joined[-1][0], high)
            else:
                joined.append((low, high))
        return tuple(joined)


def _is_below(pattern: str, prefixes: Iterable[str]) -> bool:
    """Say whether all that `pattern` wants is wanted by one of these prefixes too."""
    return pattern.startswith(tuple(prefixes))


def _canonical(text: str) -> str:
    if text == NOTHING_PATTERN:
        return text
    prefix = text.removesuffix("*") if text.endswith(".*") else text
    if prefix.endswith("."):
        if _PREFIX.fullmatch(prefix) and len(prefix) <= NSID_CHARS:
            return prefix.lower()
    elif is_nsid(text):
        return fold_nsid(parse_nsid(text))
    raise InvalidSyntax(f"not a collection filter: {text[:100]!r} (an NSID, or a prefix that ends in . or .*)")
