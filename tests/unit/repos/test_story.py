"""A story as an object and as lines."""

from __future__ import annotations

from dataclasses import replace

import orjson

from relay.model import Identity, Incident, RepoState
from relay.repos.shown import show_entry
from relay.repos.story import story_entry, story_lines
from relay.store.dead_letters import DeadLetter
from relay.store.identities import IdentityFailure
from relay.store.repos import RepoRow
from relay.store.stories import Note, Story

AT = 1_700_000_000.0
RFC = "2023-11-14T22:13:20"
ROW = RepoRow(
    did="did:plc:a", host="https://pds.example", state=RepoState.SYNCED, rev="3kb", rev_begun="3kb", touched=True,
    shard="i:1", synced_at=AT, updated_at=AT + 60, created_at=AT, next_attempt_at=AT,
)  # fmt: skip
QUIET = Story(
    row=ROW, history=(), identity=None, lookup_failure=None, letters=(), letter_count=0, incidents=()
)  # fmt: skip
LETTER = DeadLetter(
    at=AT, did="did:plc:a", collection="app.bsky.feed.post", rkey="3k", cid=None, rev="3kb", type="CREATE",
    source="BACKFILL", reason="rejected", message="too long", ingester="i:1", attempts=2, size=9, operation=None, id=7,
)  # fmt: skip
FULL = replace(
    QUIET,
    history=(
        Note(at=AT, state="failed", reason="cut", attempts=2, error="connection lost", times=2, since=AT - 60),
        Note(at=AT - 90, state="synced", reason="moved", host="https://b.example", old_host="https://a.example"),
    ),
    identity=Identity(
        did="did:plc:a", signing_key="zQ3", pds="https://pds.example", handle="a.example", resolved_at=AT
    ),
    lookup_failure=IdentityFailure(did="did:plc:a", failed_at=AT, error="PLC away"),
    letters=(LETTER,),
    letter_count=31,
    incidents=(Incident(kind="hole", text="events missing", at=AT, closed_at=None, id=1),),
)


def test_the_object_begins_with_what_show_always_had_and_is_json() -> None:
    entry = story_entry(FULL)
    assert list(entry)[: len(show_entry(ROW))] == list(show_entry(ROW))
    assert orjson.loads(orjson.dumps(entry)) == entry
    assert entry["dead_letter_count"] == 31


def test_a_rev_of_a_snapshot_was_acknowledged_in_the_backfill_lane_and_a_later_one_live() -> None:
    assert story_entry(QUIET)["acknowledged"] == {
        "lane": "backfill", "rev": "3kb", "at": f"{RFC}.000Z", "ingester": "i:1",
    }  # fmt: skip
    live = replace(QUIET, row=replace(ROW, rev="3kc"))
    acknowledged = story_entry(live)["acknowledged"]
    assert isinstance(acknowledged, dict)
    assert (acknowledged["lane"], acknowledged["rev"], acknowledged["at"]) == (
        "live",
        "3kc",
        "2023-11-14T22:14:20.000Z",
    )


def test_what_was_begun_and_is_not_acknowledged_is_shown_as_sent() -> None:
    assert story_entry(QUIET)["sent"] is None
    begun = replace(QUIET, row=replace(ROW, rev_begun="3kd"))
    assert story_entry(begun)["sent"] == {"lane": "backfill", "rev": "3kd", "ingester": "i:1"}


def test_a_repo_of_which_nothing_was_ever_sent_has_nothing_acknowledged() -> None:
    assert story_entry(replace(QUIET, row=replace(ROW, touched=False)))["acknowledged"] is None


def test_the_lines_tell_everything_and_say_so_when_nothing_happened() -> None:
    text = "\n".join(story_lines(FULL))
    for part in (
        f"{RFC}.000Z  failed       cut  (2 times since 2023-11-14T22:12:20.000Z)  attempt 2  connection lost",
        "moved  from https://a.example to https://b.example",
        "zQ3", "PLC away", "31; the newest 1; `deadletter list`", "CREATE app.bsky.feed.post 3k  rejected  too long",
        "hole (open)  events missing",
    ):  # fmt: skip
        assert part in text
    quiet = "\n".join(story_lines(QUIET))
    assert "nothing out of the ordinary" in quiet
    assert "dead letters" not in quiet


def test_no_line_ends_in_a_space_and_what_is_not_known_of_a_part_is_left_out() -> None:
    lines = list(story_lines(FULL)) + list(story_lines(QUIET))
    assert [line for line in lines if line != line.rstrip()] == []
    (acknowledged,) = [
        line for line in story_lines(replace(QUIET, row=replace(ROW, shard=None))) if "acknowledged" in line
    ]
    assert acknowledged.split() == ["acknowledged", "lane", "backfill,", "rev", "3kb,", "at", f"{RFC}.000Z"]


def test_a_removed_repo_is_marked_in_its_first_line() -> None:
    assert next(story_lines(replace(QUIET, row=replace(ROW, tracked=False)))).endswith("not tracked any more)")
