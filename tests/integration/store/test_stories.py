"""A repo's history: what is out of the ordinary is noted by the statement that does it, and the straight way leaves nothing."""

from __future__ import annotations

import time

import pytest

from relay.model import Identity, RepoState
from relay.store import dead_letters, identities, incidents, reconcile, repos, sweeps
from relay.store.dead_letters import DeadLetter
from relay.store.identities import IdentityFailure
from relay.store.pool import Database
from relay.store.repos import Discovered, RepoRow
from relay.store.stories import Note, Story, load_story

S = RepoState
DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
OLD, NEW = "https://old.example", "https://new.example"
NOW = 1_700_000_000.0


def discover(database: Database, did: str = DID, rev: str | None = None, active: bool | None = None) -> None:
    with database.transaction("discover") as cur:
        entry = Discovered(did=did, rev=rev, active=active)
        repos.upsert_discovered(cur, [entry], batch=None, named=True, partitions=64, now=NOW)


def store(database: Database, **columns: object) -> None:
    with database.transaction("store") as cur:
        row = repos.load(cur, [DID])[DID]
        for name, value in columns.items():
            setattr(row, name, value)
        repos.store_rows(cur, [row])


def story(database: Database, did: str = DID) -> Story:
    with database.transaction("story") as cur:
        found = load_story(cur, did)
    assert found is not None
    return found


def noted(database: Database) -> list[tuple[str, str | None]]:
    """Return the history, oldest first."""
    return [(note.state, note.reason) for note in reversed(story(database).history)]


def sync(database: Database, **columns: object) -> None:
    """The straight way: found, resolved, claimed, delivered."""
    discover(database)
    store(database, state=S.PENDING, host=OLD)
    store(database, state=S.ACTIVE, rev_begun="3kb", touched=True)
    store(database, state=S.SYNCED, rev="3kb", rev_heard="3kb", synced_at=NOW, **columns)


def test_the_straight_way_to_synced_and_what_a_stream_brings_leaves_nothing(each_database: Database) -> None:
    sync(each_database)
    store(each_database, rev="3kc", rev_heard="3kc")
    with each_database.transaction("look") as cur:
        cur.execute("SELECT history IS NULL FROM repo")
        assert cur.fetchall() == [(True,)]
    assert story(each_database).history == ()


def test_failed_attempts_of_one_reason_are_one_note_with_the_newest_error_and_their_number(database: Database) -> None:
    discover(database)
    store(database, state=S.PENDING, host=OLD)
    for attempt in (1, 2, 3):
        store(database, state=S.ACTIVE, reason=None)
        store(database, state=S.FAILED, reason="cut", attempts=attempt, last_error=f"cut at {attempt}")
    (note,) = story(database).history
    assert (note.state, note.reason, note.attempts, note.error, note.times) == ("failed", "cut", 3, "cut at 3", 3)
    assert note.since is not None
    assert note.since <= note.at
    assert abs(note.at - time.time()) < 300


def test_a_repo_that_was_out_of_order_is_noted_when_it_is_synced_again(database: Database) -> None:
    sync(database)
    store(database, state=S.DESYNCED, reason="chain")
    store(database, state=S.ACTIVE, reason=None)
    store(database, state=S.SYNCED, rev="3kd")
    assert noted(database) == [("desynced", "chain"), ("synced", None)]


def test_an_account_that_goes_away_and_comes_back_is_noted_twice(database: Database) -> None:
    sync(database)
    store(database, state=S.INACTIVE, reason="takendown")
    store(database, state=S.INACTIVE, reason="suspended")
    store(database, state=S.PENDING, reason=None)
    assert noted(database) == [("inactive", "takendown"), ("inactive", "suspended"), ("pending", "active_again")]


def test_a_move_names_both_hosts(database: Database) -> None:
    sync(database)
    store(database, host=NEW)
    store(database, host=NEW)
    (note,) = story(database).history
    assert (note.reason, note.old_host, note.host) == ("moved", OLD, NEW)


def test_a_move_back_is_no_repetition(database: Database) -> None:
    sync(database)
    store(database, host=NEW)
    store(database, host=OLD)
    assert [(note.old_host, note.host) for note in story(database).history] == [(NEW, OLD), (OLD, NEW)]


def test_a_failed_lookup_of_a_discovered_repo_is_noted_although_its_state_stays(database: Database) -> None:
    discover(database)
    store(database, reason="plc_unknown", attempts=1, last_error="PLC knows no such DID")
    assert noted(database) == [("discovered", "plc_unknown")]


def test_what_sql_does_by_itself_is_noted_where_it_is_done(each_database: Database) -> None:
    database = each_database
    sync(database)
    discover(database, rev="3kx", active=True)
    with database.transaction("x") as cur:
        repos.resync(cur, now=NOW, dids=[DID])
    store(database, state=S.QUARANTINED, reason="too_large", attempts=6, last_error="too large")
    with database.transaction("x") as cur:
        cur.execute("UPDATE repo SET retry_at = to_timestamp(%s)", (NOW,))
        sweeps.retry_quarantined(cur, NOW + 1, 10)
    store(database, state=S.SYNCED, rev="3kx", rev_heard="3kx", covers="app.bsky.feed.post", attempts=0)
    with database.transaction("x") as cur:
        # While it was pending somebody may have asked for it: then it is not synced by the write.
        cur.execute("UPDATE repo SET state = 'synced', reason = NULL")
        repos.requeue_uncovered(cur, [DID], ["app.bsky.feed.post"], None, now=NOW)
        repos.remove(cur, [DID])
    assert noted(database) == [
        ("pending", "newer_rev"), ("pending", "resync"), ("quarantined", "too_large"), ("pending", "retry"),
        ("pending", "filter"), ("pending", "removed"),
    ]  # fmt: skip


def test_a_resync_of_a_repo_in_work_is_noted_and_so_is_the_fetch_that_follows(database: Database) -> None:
    sync(database)
    store(database, state=S.ACTIVE)
    with database.transaction("x") as cur:
        repos.resync(cur, now=NOW, dids=[DID])
    store(database, state=S.SYNCED)
    assert noted(database) == [("active", "resync"), ("pending", "resync")]


def test_a_reconcile_and_a_host_that_is_given_up_are_noted(database: Database) -> None:
    sync(database)
    with database.transaction("x") as cur:
        reconcile.mark(cur, [(DID, "newer", "3kz")], NOW)
        cur.execute("UPDATE repo SET batch = 1")
        repos.give_up_host(cur, OLD, NOW)
    assert noted(database) == [("pending", "newer_rev"), ("quarantined", "host_down")]


def test_only_the_newest_twenty_are_kept_and_errors_are_short(database: Database) -> None:
    discover(database)
    for number in range(30):
        store(database, state=S.FAILED, reason=f"reason_{number}", attempts=number + 1, last_error="ä" * 1000)
    history = story(database).history
    assert [note.reason for note in history] == [f"reason_{number}" for number in range(29, 9, -1)]
    assert {len(note.error or "") for note in history} == {200}


def test_a_note_of_a_newer_version_is_read_as_far_as_we_know_it(database: Database) -> None:
    discover(database)
    with database.transaction("x") as cur:
        cur.execute("""UPDATE repo SET history = ARRAY['{"at": 5, "state": "failed", "colour": "blue"}']""")
    assert story(database).history == (Note(at=5, state="failed"),)


def test_a_story_has_identity_letters_and_the_incidents_since_it_is_known(database: Database) -> None:
    sync(database)
    with database.transaction("x") as cur:
        known = Identity(did=DID, signing_key="zKey", pds=OLD, handle="a.example", resolved_at=NOW)
        identities.upsert_many(cur, [known])
        failure = IdentityFailure(did=DID, failed_at=NOW + 1, error="away")
        identities.mark_failed(cur, [failure])
        letters = [_letter(f"r{number}") for number in range(12)]
        dead_letters.add_many(cur, letters)
        incidents.open_incident(cur, "before", "not ours", NOW - 1)
        incidents.open_incident(cur, "hole", "ours", NOW + 1)
    found = story(database)
    assert (found.identity, found.lookup_failure) == (known, failure)
    assert found.letter_count == 12
    assert [letter.rkey for letter in found.letters] == [f"r{number}" for number in range(11, 1, -1)]
    assert [each.kind for each in found.incidents] == ["hole"]


def test_an_unknown_did_has_no_story(database: Database) -> None:
    with database.transaction("x") as cur:
        assert load_story(cur, "did:plc:nobody") is None


def _letter(rkey: str) -> DeadLetter:
    return DeadLetter(
        at=NOW, did=DID, collection="app.bsky.feed.post", rkey=rkey, cid="bafy", rev="3kb", type="CREATE",
        source="BACKFILL", reason="rejected", message="no", ingester="i:1", attempts=1, size=10, operation=b"x",
    )  # fmt: skip


@pytest.mark.parametrize("reason", [None, "newer_rev"])
def test_a_write_with_the_reason_that_is_stored_is_no_news(database: Database, reason: str | None) -> None:
    discover(database)
    store(database, state=S.PENDING, host=OLD, reason=reason)
    before = noted(database)
    store(database, state=S.PENDING, host=OLD, reason=reason, rev_heard="3kz")
    assert noted(database) == before
    assert isinstance(story(database).row, RepoRow)
