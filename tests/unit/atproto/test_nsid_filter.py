from __future__ import annotations

import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto.errors import InvalidSyntax
from relay.atproto.nsid_filter import NsidFilter

# Few segments, so that patterns meet, and neighbours of "." and "/" in ASCII order ("-" below, "0" above).
SEGMENTS = st.sampled_from(["a", "a-a", "a0", "b", "aa"])
NSIDS = st.builds(
    lambda parts, name: ".".join([*parts, name]),
    st.lists(SEGMENTS, min_size=2, max_size=4),
    st.sampled_from(["n", "n0", "nn"]),
)
PREFIXES = st.lists(SEGMENTS, min_size=1, max_size=3).map(lambda parts: ".".join(parts) + ".")
PATTERNS = st.lists(st.one_of(NSIDS, PREFIXES, PREFIXES.map(lambda prefix: prefix + "*")), max_size=5)
FILTERS = PATTERNS.map(NsidFilter.parse)
RKEYS = st.sampled_from(["a", "-", "~", "0", ":"])


def _wants(patterns: list[str], collection: str) -> bool:
    """The rule as it is written down, pattern by pattern."""
    if not patterns:
        return True
    return any(
        collection.startswith(pattern.removesuffix("*")) if pattern.endswith((".", ".*")) else collection == pattern
        for pattern in patterns
    )


@given(PATTERNS, NSIDS)
def test_a_filter_wants_what_one_of_its_patterns_wants(patterns: list[str], collection: str) -> None:
    assert NsidFilter.parse(patterns).wants(collection) == _wants(patterns, collection)


@given(FILTERS, NSIDS, RKEYS)
def test_a_key_is_in_a_range_exactly_when_its_collection_is_wanted(
    wanted: NsidFilter, collection: str, rkey: str
) -> None:
    key = f"{collection}/{rkey}".encode()
    assert any(low <= key < high for low, high in wanted.ranges()) == wanted.wants(collection)


@given(FILTERS)
def test_ranges_are_sorted_disjoint_and_not_empty(wanted: NsidFilter) -> None:
    edges = [edge for pair in wanted.ranges() for edge in pair]
    assert all(a < b for a, b in itertools.pairwise(edges))


@given(FILTERS, FILTERS, NSIDS)
def test_the_intersection_wants_what_both_want(a: NsidFilter, b: NsidFilter, collection: str) -> None:
    assert a.intersect(b).wants(collection) == (a.wants(collection) and b.wants(collection))
    assert a.intersect(b) == b.intersect(a)


@given(FILTERS, FILTERS, NSIDS)
def test_what_is_covered_is_wanted_too(a: NsidFilter, b: NsidFilter, collection: str) -> None:
    if a.covers(b) and b.wants(collection):
        assert a.wants(collection)
    assert a.covers(a.intersect(b))
    assert NsidFilter.parse([]).covers(a)
    assert a.covers(b) == (a.intersect(b) == b)


@given(FILTERS)
def test_patterns_are_canonical_and_come_back(wanted: NsidFilter) -> None:
    again = NsidFilter.parse(wanted.patterns)
    assert again == wanted
    assert again.patterns == wanted.patterns == tuple(sorted(wanted.patterns))
    assert pickle.loads(pickle.dumps(wanted)) == wanted
    for index, pattern in enumerate(wanted.patterns):
        others = wanted.patterns[:index] + wanted.patterns[index + 1 :]
        assert not any(other.endswith(".") and pattern.startswith(other) for other in others)


def test_no_pattern_means_everything() -> None:
    everything = NsidFilter.parse(["", "  "])
    assert everything.is_everything
    assert everything.patterns == ()
    assert everything.wants("any.thing.atAll")
    assert everything.ranges() == ((b"", b"\xff"),)


def test_nothing_in_common_wants_nothing_and_is_stored_as_such() -> None:
    nothing = NsidFilter.parse(["app.bsky."]).intersect(NsidFilter.parse(["com.example.post"]))
    assert nothing.is_nothing
    assert not nothing.wants("app.bsky.feed.post")
    assert nothing.ranges() == ()
    assert NsidFilter.parse(nothing.patterns) == nothing
    assert NsidFilter.parse([*nothing.patterns, "a.b.c"]) == NsidFilter.parse(["a.b.c"])
    assert not nothing.covers(NsidFilter.parse([]))
    assert NsidFilter.parse(["a.b.c"]).covers(nothing)


def test_both_spellings_of_a_prefix_are_the_same() -> None:
    assert NsidFilter.parse([" app.bsky.* ", "app.bsky.feed.post"]).patterns == ("app.bsky.",)
    assert NsidFilter.parse(["App.Bsky.", "COM.example.fooBar"]).patterns == ("app.bsky.", "com.example.fooBar")


def test_a_collection_beside_a_prefix_is_not_wanted() -> None:
    wanted = NsidFilter.parse(["app.bsky.feed."])
    assert not wanted.wants("app.bsky.feedx.post")
    assert not wanted.wants("app.bsky.feed")


@pytest.mark.parametrize(
    "pattern", ["app", "*", ".", ".*", "app.bsky.feed.*.x", "app..bsky.", "-a.", "a b.c.d", "é.b.c", "a.b*"]
)
def test_what_is_no_pattern_is_named(pattern: str) -> None:
    with pytest.raises(InvalidSyntax) as caught:
        NsidFilter.parse(["app.bsky.", pattern])
    assert repr(pattern) in str(caught.value)
