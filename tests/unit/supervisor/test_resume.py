"""Where a start goes on, and which of them means that something may be missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis.strategies import booleans, builds, integers, just, none, sampled_from

from relay.store.partitions import Partition
from relay.supervisor.resume import Resume, StartKind, where_to_resume

OURS, THEIRS = "wss://relay.example", "wss://other.example"


def stored(upstream: str | None, cursor: int | None, time_us: int | None = None) -> Partition:
    return Partition(
        owner=None,
        epoch=1,
        lease_until=None,
        renewed_at=None,
        upstream=upstream,
        cursor=cursor,
        cursor_time_us=time_us,
    )


def kind(resume: Resume) -> StartKind | None:
    return None if resume.incident is None else resume.incident[0]


def test_a_stored_cursor_of_this_upstream_is_where_it_goes_on() -> None:
    resume = where_to_resume(stored(OURS, 70, 7), OURS, has_repos=True)
    assert resume == Resume(cursor=70, time_us=7)


@pytest.mark.parametrize(
    ("row", "expected"),
    [(stored(None, None), StartKind.NO_CURSOR), (stored(THEIRS, 70), StartKind.OTHER_UPSTREAM)],
    ids=["none", "of another"],
)
def test_without_one_it_starts_live_and_repos_that_are_known_are_compared(row: Partition, expected: StartKind) -> None:
    resume = where_to_resume(row, OURS, has_repos=True)
    assert (resume.cursor, kind(resume)) == (None, expected)
    assert where_to_resume(row, OURS, has_repos=False) == Resume(cursor=None)


def test_live_leaves_the_stored_cursor_alone_and_has_everything_compared() -> None:
    resume = where_to_resume(stored(OURS, 70), OURS, live=True, has_repos=False)
    assert (resume.cursor, kind(resume)) == (None, StartKind.STARTED_LIVE)
    assert where_to_resume(stored(None, None), OURS, live=True, has_repos=False) == Resume(cursor=None)


@pytest.mark.parametrize(
    ("cursor", "time_us", "expected"),
    [(69, None, None), (70, 7, None), (71, None, StartKind.SKIPPED), (0, None, None)],
)
def test_a_named_cursor_is_taken_and_one_above_the_stored_one_skips(
    cursor: int, time_us: int | None, expected: StartKind | None
) -> None:
    resume = where_to_resume(stored(OURS, 70, 7), OURS, cursor=cursor, has_repos=True)
    assert (resume.cursor, resume.time_us, kind(resume)) == (cursor, time_us, expected)


def test_a_named_cursor_where_none_is_stored_says_nothing_of_what_was_before_it() -> None:
    assert kind(where_to_resume(stored(THEIRS, 70), OURS, cursor=5, has_repos=True)) is StartKind.OTHER_UPSTREAM
    assert kind(where_to_resume(stored(None, None), OURS, cursor=5, has_repos=True)) is StartKind.NO_CURSOR
    assert kind(where_to_resume(stored(None, None), OURS, cursor=5, has_repos=False)) is None


@given(
    row=builds(stored, none() | sampled_from([OURS, THEIRS]), none() | integers(0, 9), none() | just(3)),
    cursor=none() | integers(0, 9),
    live=booleans(),
)
def test_with_known_repos_nothing_is_passed_over_in_silence(row: Partition, cursor: int | None, live: bool) -> None:
    resume = where_to_resume(row, OURS, cursor=cursor, live=live and cursor is None, has_repos=True)
    done_up_to = row.cursor if row.upstream == OURS else None
    if done_up_to is None or resume.cursor is None or resume.cursor > done_up_to:
        assert resume.incident is not None
