"""What a service keeps beside a batch: retries of quarantined repos, filters, batches that were handed over."""

from __future__ import annotations

import pytest

from relay.model import RepoState
from relay.store import batches, partitions, repos, sweeps
from relay.store.pool import Database
from relay.store.repos import Discovered, RepoRow
from relay.store.statements import Cursor

NOW = 1_700_000_000.0
HOUR = 3600.0
DID = "did:web:a.example"
S = RepoState


def put(cur: Cursor, *rows: RepoRow) -> None:
    repos.upsert_discovered(
        cur, [Discovered(did=row.did) for row in rows], batch=None, named=True, partitions=64, now=NOW
    )
    repos.store_rows(cur, rows)


def state(cur: Cursor, did: str = DID) -> RepoState:
    return repos.load(cur, [did])[did].state


def waits(cur: Cursor, now: float) -> float:
    """Return how long the quarantined repo waits for its next retry, seen from `now`: found by trying."""
    cur.execute("SELECT extract(epoch FROM retry_at)::float8 FROM repo WHERE did = %s", (DID,))
    return float(cur.fetchone()[0]) - now  # type: ignore[index]


class TestRetriesOfQuarantinedRepos:
    def test_each_waits_twice_as_long_as_before_up_to_seven_days(self, each_database: Database) -> None:
        row = RepoRow(did=DID, host="https://pds.example", state=RepoState.QUARANTINED, reason="bad_car", attempts=6)
        now, waited = NOW, []
        with each_database.transaction("try") as cur:
            put(cur, row)
            for _ in range(11):
                assert not sweeps.retry_quarantined(cur, now, 100)
                wait = waits(cur, now)
                waited.append(wait)
                assert not sweeps.retry_quarantined(cur, now + wait - 1, 100), "before its time"
                now += wait
                assert sweeps.retry_quarantined(cur, now, 100) == {(RepoState.QUARANTINED, RepoState.PENDING): 1}
                back = repos.load(cur, [DID])[DID]
                assert (back.state, back.attempts, back.next_attempt_at) == (RepoState.PENDING, 0, now)
                repos.store_rows(cur, [row])
        assert waited == [HOUR * hours for hours in (1, 2, 4, 8, 16, 32, 64, 128, 168, 168, 168)]

    def test_after_it_was_synced_it_waits_an_hour_again(self, database: Database) -> None:
        row = RepoRow(did=DID, host="https://pds.example", state=RepoState.QUARANTINED)
        with database.transaction("try") as cur:
            put(cur, row)
            now = NOW
            for _ in range(3):
                sweeps.retry_quarantined(cur, now, 100)
                now += waits(cur, now)
                sweeps.retry_quarantined(cur, now, 100)
                repos.store_rows(cur, [row])
            row.synced_at = now + 5
            repos.store_rows(cur, [row])
            sweeps.retry_quarantined(cur, now + 10, 100)
            assert waits(cur, now + 10) == HOUR

    def test_without_a_host_it_is_resolved_first_and_a_removed_one_is_left_alone(self, database: Database) -> None:
        with database.transaction("try") as cur:
            other = "did:web:removed.example"
            put(cur, RepoRow(did=DID, state=RepoState.QUARANTINED), RepoRow(did=other, state=RepoState.QUARANTINED))
            repos.remove(cur, [other])
            sweeps.retry_quarantined(cur, NOW, 100)
            moved = sweeps.retry_quarantined(cur, NOW + HOUR, 100)
            assert moved == {(RepoState.QUARANTINED, RepoState.DISCOVERED): 1}
            assert (state(cur), state(cur, other)) == (RepoState.DISCOVERED, RepoState.QUARANTINED)

    @pytest.mark.parametrize("each", [each for each in RepoState if each is not RepoState.QUARANTINED])
    def test_other_states_are_none_of_its_business(self, database: Database, each: RepoState) -> None:
        with database.transaction("try") as cur:
            put(cur, RepoRow(did=DID, host="https://pds.example", state=each))
            assert not sweeps.retry_quarantined(cur, NOW, 100)
            assert not sweeps.retry_quarantined(cur, NOW + 1000 * HOUR, 100)
            assert state(cur) is each


def test_what_synced_repos_cover_is_read_page_by_page(database: Database) -> None:
    dids = [f"did:web:{letter}.example" for letter in "abcde"]
    with database.transaction("try") as cur:
        put(cur, *(RepoRow(did=did, state=RepoState.SYNCED, covers="app.bsky.") for did in dids))
        repos.store_rows(cur, [RepoRow(did=dids[1], state=RepoState.PENDING), RepoRow(did=dids[2], state=S.SYNCED)])
        assert sweeps.covers_above(cur, "", 2) == [(dids[0], "app.bsky."), (dids[2], None)]
        assert sweeps.covers_above(cur, dids[2], 9) == [(dids[3], "app.bsky."), (dids[4], "app.bsky.")]


def test_the_filter_in_force_and_the_one_compared_are_two_facts(database: Database) -> None:
    with database.transaction("try") as cur:
        assert (partitions.read(cur).filter, partitions.read(cur).filter_compared) == (None, None)
        partitions.store_filter(cur, "")
        partitions.store_filter_compared(cur, "app.bsky.")
        assert (partitions.read(cur).filter, partitions.read(cur).filter_compared) == ("", "app.bsky.")
        assert partitions.take(cur, "another", 10) == partitions.read(cur).epoch
        assert partitions.read(cur).filter is None, "who takes the lease may be no service"


class TestHandedOverBatches:
    def test_one_is_found_until_it_is_finished(self, each_database: Database) -> None:
        with each_database.transaction("try") as cur:
            alone, _ = batches.open_batch(cur, "alone", NOW)
            batch, _ = batches.open_batch(cur, "mine", NOW)
            batches.hand_over(cur, batch, '{"network": "https://relay.example"}', NOW + 1)
            (found,) = batches.list_handed_over(cur)
            assert (found.id, found.handed_over_at, found.enumerated_at) == (batch, NOW + 1, None)
            assert found.sources == '{"network": "https://relay.example"}'
            batches.enumerated(cur, batch, [("https://pds.example", "away")], NOW + 2)
            (found,) = batches.list_handed_over(cur)
            assert (found.enumerated_at, found.failed_listings) == (NOW + 2, (("https://pds.example", "away"),))
            batches.finish_batch(cur, batch, NOW + 3)
            assert batches.list_handed_over(cur) == []
            assert [each.id for each in batches.list_unfinished(cur)] == [alone]
            finished = batches.get(cur, batch)
            assert finished is not None
            assert finished.failed_listings == (("https://pds.example", "away"),)

    def test_handed_over_again_it_is_enumerated_again(self, database: Database) -> None:
        with database.transaction("try") as cur:
            batch, _ = batches.open_batch(cur, "mine", NOW)
            batches.hand_over(cur, batch, "{}", NOW)
            batches.enumerated(cur, batch, [("x", "y")], NOW)
            batches.hand_over(cur, batch, "{}", NOW + 5)
            (found,) = batches.list_handed_over(cur)
            assert (found.enumerated_at, found.failed_listings) == (None, ())

    def test_what_was_delivered_counts_targets_synced_since(self, database: Database) -> None:
        dids = [f"did:web:{letter}.example" for letter in "abc"]
        with database.transaction("try") as cur:
            repos.upsert_discovered(
                cur, [Discovered(did=did) for did in dids], batch=3, named=True, partitions=64, now=NOW
            )
            repos.store_rows(
                cur,
                [
                    RepoRow(did=dids[0], state=S.SYNCED, records=5, bytes=100, synced_at=NOW + 1),
                    RepoRow(did=dids[1], state=S.SYNCED, records=7, bytes=200, synced_at=NOW - 1),
                    RepoRow(did=dids[2], state=S.FAILED, records=9, bytes=300, synced_at=NOW + 1),
                ],
            )
            put(cur, RepoRow(did="did:web:other.example", state=S.SYNCED, records=1, synced_at=NOW + 1))
            assert batches.delivered_since(cur, 3, NOW) == batches.Delivered(repos=1, records=5, bytes_fetched=100)
