"""What a listing's entry means for a row: every state against everything that a host can say of it; and when it is decided."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto.syntax import make_tid
from relay.discovery.comparison import LONGEST_WAIT_S, MARGIN_S, STILL_S, SecondLook, Verdict, compare, listed_by
from relay.model import RepoState
from relay.net.xrpc import ListedRepo
from relay.store.reconcile import Candidate, StoredRepo, Stream

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
HOST = "https://pds.example"
OLD, STORED, NEW = "3kaaaaaaaaa2a", "3kbbbbbbbbb2a", "3kccccccccc2a"
NOW = 1_790_000_000.0

FETCHED_ANYWAY = [
    RepoState.DISCOVERED, RepoState.PENDING, RepoState.ACTIVE, RepoState.DESYNCED, RepoState.FAILED, RepoState.QUARANTINED,
]  # fmt: skip
SAID = {
    "the same rev": {"rev": STORED, "active": True},
    "an older rev": {"rev": OLD, "active": True},
    "a newer rev": {"rev": NEW, "active": True},
    "no rev": {"rev": None, "active": True},
    "a newer rev, not whether active": {"rev": NEW, "active": None},
    "deactivated": {"rev": STORED, "active": False, "status": "deactivated"},
    "taken down": {"rev": NEW, "active": False, "status": "takendown"},
    "inactive, not why": {"rev": None, "active": False},
    "nothing: missing": {"missing": True},
}


def stored(state: RepoState, **changes: object) -> StoredRepo:
    values: dict[str, object] = {"rev": STORED, "rev_heard": STORED, "host": HOST, "active": True}
    if state is RepoState.INACTIVE:
        values |= {"active": False, "status": "deactivated", "reason": "deactivated"}
    return StoredRepo(did=DID, state=state, **{**values, **changes})  # type: ignore[arg-type]


def said(what: str) -> Candidate:
    return Candidate(did=DID, host=HOST, **SAID[what])  # type: ignore[arg-type]


EXPECTED = {
    RepoState.SYNCED: {
        "the same rev": Verdict.SAME,
        "an older rev": Verdict.SAME,
        "a newer rev": Verdict.NEWER,
        "no rev": Verdict.COMMIT,
        "a newer rev, not whether active": Verdict.NEWER,
        "deactivated": Verdict.STATUS,
        "taken down": Verdict.STATUS,
        "inactive, not why": Verdict.STATUS,
        "nothing: missing": Verdict.STATUS,
    },
    RepoState.INACTIVE: {
        "the same rev": Verdict.STATUS,
        "an older rev": Verdict.STATUS,
        "a newer rev": Verdict.STATUS,
        "no rev": Verdict.STATUS,
        "a newer rev, not whether active": Verdict.STATUS,
        "deactivated": Verdict.SAME,
        "taken down": Verdict.STATUS,
        "inactive, not why": Verdict.SAME,
        "nothing: missing": Verdict.STATUS,
    },
}
HEARD = {"a newer rev", "a newer rev, not whether active", "taken down"}


@pytest.mark.parametrize(("state", "what"), list(itertools.product(RepoState, SAID)))
def test_every_state_answers_everything_that_a_host_can_say(state: RepoState, what: str) -> None:
    if state in FETCHED_ANYWAY:
        expected = Verdict.HEARD if what in HEARD else Verdict.SAME
    else:
        expected = EXPECTED[state][what]
    assert compare(stored(state), said(what)) is expected


@pytest.mark.parametrize(("state", "what"), list(itertools.product(RepoState, SAID)))
def test_another_host_says_nothing_of_a_repo_and_nobody_of_a_removed_one(state: RepoState, what: str) -> None:
    assert compare(stored(state, host="https://other.example"), said(what)) is Verdict.SAME
    assert compare(stored(state, host=None), said(what)) is Verdict.SAME
    assert compare(stored(state, tracked=False), said(what)) is Verdict.SAME


@pytest.mark.parametrize("what", SAID)
def test_a_did_without_a_row_is_unknown_unless_it_is_missing_there_too(what: str) -> None:
    expected = Verdict.SAME if what == "nothing: missing" else Verdict.UNKNOWN
    assert compare(None, said(what)) is expected


def test_a_rev_that_was_heard_of_and_never_came_is_a_difference() -> None:
    assert compare(stored(RepoState.SYNCED, rev_heard=NEW), said("a newer rev")) is Verdict.NEWER


def test_an_inactive_repo_that_was_told_as_active_last_is_compared_by_its_reason() -> None:
    row = stored(RepoState.INACTIVE, active=None, status="", reason="takendown")
    assert compare(row, said("taken down")) is Verdict.SAME
    assert compare(row, said("deactivated")) is Verdict.STATUS


def test_a_deleted_repo_that_is_missing_is_no_difference() -> None:
    row = stored(RepoState.INACTIVE, status="deleted")
    assert compare(row, said("nothing: missing")) is Verdict.SAME
    assert compare(row, said("the same rev")) is Verdict.STATUS


def test_a_synced_repo_that_was_told_as_inactive_last_is_asked_for() -> None:
    assert compare(stored(RepoState.SYNCED, active=False, status="deactivated"), said("the same rev")) is Verdict.STATUS


def test_the_last_entry_of_a_did_counts_and_revs_from_the_future_do_not() -> None:
    soon, late = make_tid(int((NOW + 200) * 1e6), 1), make_tid(int((NOW + 400) * 1e6), 1)
    entries = [
        ListedRepo(did="did:plc:a", rev=OLD),
        ListedRepo(did="did:plc:b", rev=late),
        ListedRepo(did="did:plc:a", rev=soon),
    ]
    assert listed_by(HOST, entries, NOW) == ([Candidate(did="did:plc:a", host=HOST, rev=soon)], 1)


def stream(now: float, cursor_at: float | None, *, followed: bool = True) -> Stream:
    return Stream(now=now, cursor_time_us=None if cursor_at is None else int(cursor_at * 1e6), is_followed=followed)


def test_without_a_followed_stream_everything_is_decided_at_once() -> None:
    assert SecondLook().until(stream(NOW, NOW - 999, followed=False), 0.0) == NOW


def test_while_a_stream_is_followed_only_what_its_cursor_has_passed_is_decided() -> None:
    look = SecondLook()
    assert look.until(stream(NOW, NOW - 40), 0.0) == NOW - 40 - MARGIN_S
    assert look.until(stream(NOW + 50, NOW + 49), 50.0) == NOW + 49 - MARGIN_S


def test_a_cursor_that_stands_still_is_waited_for_a_minute_and_then_not() -> None:
    look = SecondLook()
    assert look.until(stream(NOW, NOW - 500), 0.0) == NOW - 500 - MARGIN_S
    assert look.until(stream(NOW + STILL_S - 1, NOW - 500), STILL_S - 1) == NOW - 500 - MARGIN_S
    assert look.until(stream(NOW + STILL_S, NOW - 500), STILL_S) == NOW
    assert look.until(stream(NOW + STILL_S + 1, NOW - 400), STILL_S + 1) == NOW - 400 - MARGIN_S  # it moves again


def test_a_follower_without_a_cursor_is_one_that_stands_still() -> None:
    look = SecondLook()
    assert look.until(stream(NOW, None), 0.0) == NOW - LONGEST_WAIT_S
    assert look.until(stream(NOW + STILL_S, None), STILL_S) == NOW


def test_a_cursor_that_moves_far_behind_is_not_waited_for_for_ever() -> None:
    look = SecondLook()
    assert look.until(stream(NOW, NOW - 50_000), 0.0) == NOW - LONGEST_WAIT_S


@given(
    steps=st.lists(
        st.tuples(st.floats(0, 100), st.one_of(st.none(), st.floats(-10_000, 10_000)), st.booleans()), max_size=30
    )
)
def test_nothing_is_decided_before_it_was_found(steps: list[tuple[float, float | None, bool]]) -> None:
    look, now = SecondLook(), NOW
    for passed, behind, followed in steps:
        now += passed
        assert look.until(stream(now, None if behind is None else now + behind, followed=followed), now) <= now
