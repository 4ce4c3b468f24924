"""Table `repo`: what a listing may change, what a claim hands out, what a stored row may not wipe out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest

from relay.errors import StoreError
from relay.model import Identity, RepoState
from relay.store import identities, repos
from relay.store.partitions import partition_of
from relay.store.pool import Database
from relay.store.repos import Discovered, RepoRow, UpsertResult

NOW = 1_700_000_000.0
HOST = "https://pds.example"
S = RepoState


def did(number: int) -> str:
    return f"did:plc:{number:024}"


def discover(
    database: Database,
    entries: Iterable[Discovered],
    *,
    batch: int | None = None,
    named: bool = False,
    now: float = NOW,
) -> UpsertResult:
    with database.transaction("discover") as cur:
        return repos.upsert_discovered(cur, list(entries), batch=batch, named=named, partitions=64, now=now)


def put(database: Database, row: RepoRow, *, batch: int | None = None) -> RepoRow:
    """Make sure that the row is there, as given."""
    discover(database, [Discovered(did=row.did)], batch=batch)
    with database.transaction("put") as cur:
        repos.store_rows(cur, [row])
    return get(database, row.did)


def get(database: Database, which: str) -> RepoRow:
    with database.transaction("get") as cur:
        return repos.load(cur, [which])[which]


def synced(number: int, **changes: object) -> RepoRow:
    row = RepoRow(
        did=did(number), host=HOST, state=S.SYNCED, rev="3kb", rev_heard="3kb", covers="app.bsky.", next_attempt_at=NOW
    )
    return replace(row, **changes)  # type: ignore[arg-type]


class TestDiscovered:
    def test_new_dids_become_discovered_with_partition_rev_and_batch(self, each_database: Database) -> None:
        result = discover(each_database, [Discovered(did=did(1), rev="3ka"), Discovered(did=did(2))], batch=7)
        assert (result.new, result.requeued, result.unchanged) == (2, 0, 0)
        assert result.transitions == {(None, S.DISCOVERED): 2}
        row = get(each_database, did(1))
        assert (row.state, row.rev_heard, row.batch, row.rev, row.host, row.tracked) == (
            S.DISCOVERED,
            "3ka",
            7,
            None,
            None,
            True,
        )
        assert row.partition == partition_of(did(1), 64)
        assert row.next_attempt_at == NOW

    def test_a_did_that_comes_twice_in_a_call_counts_once_with_its_greatest_rev(self, database: Database) -> None:
        result = discover(
            database, [Discovered(did=did(1), rev="3kb"), Discovered(did=did(1), rev="3ka"), Discovered(did=did(1))]
        )
        assert result.new == 1
        assert get(database, did(1)).rev_heard == "3kb"

    def test_nothing_listed_is_nothing_done(self, database: Database) -> None:
        assert discover(database, []) == UpsertResult()

    def test_a_greater_rev_makes_a_synced_repo_pending(self, each_database: Database) -> None:
        put(each_database, synced(1))
        result = discover(each_database, [Discovered(did=did(1), rev="3kc", active=True)], batch=3, now=NOW + 5)
        assert result.transitions == {(S.SYNCED, S.PENDING): 1}
        assert result.requeued == 1
        row = get(each_database, did(1))
        assert (row.state, row.reason, row.rev_heard, row.batch, row.next_attempt_at) == (
            S.PENDING,
            "newer_rev",
            "3kc",
            3,
            NOW + 5,
        )

    def test_a_host_that_is_not_the_repos_own_can_have_it_asked_and_no_more(self, database: Database) -> None:
        before = put(database, synced(1))
        listed = Discovered(did=did(1), rev="3kz", active=False, host="https://hostile.example")
        assert discover(database, [listed]).transitions == {}
        row = get(database, did(1))
        assert (row.state, row.rev_heard, row.check_due) == (S.SYNCED, before.rev_heard, "commit")
        discover(database, [replace(listed, rev="3ka")])
        assert before.host is not None
        assert discover(database, [replace(listed, host=before.host)]).requeued == 1

    @pytest.mark.parametrize("rev", ["3kb", "3ka"])
    def test_a_rev_that_is_not_greater_changes_nothing_but_the_batch(self, database: Database, rev: str) -> None:
        before = put(database, synced(1))
        result = discover(database, [Discovered(did=did(1), rev=rev, active=True)], batch=3, now=NOW + 5)
        assert (result.unchanged, result.to_check, set(result.covers)) == (1, 0, {"app.bsky."})
        assert get(database, did(1)) == replace(before, batch=3, updated_at=NOW + 5)

    def test_listing_again_what_is_at_rest_writes_nothing(self, database: Database) -> None:
        before = put(database, synced(1))
        discover(database, [Discovered(did=did(1), rev="3kb", active=True)], now=NOW + 5)
        assert get(database, did(1)) == before

    def test_a_synced_repo_listed_without_a_rev_is_to_be_checked(self, database: Database) -> None:
        put(database, synced(1))
        assert discover(database, [Discovered(did=did(1))]).to_check == 1
        assert get(database, did(1)).check_due == "commit"
        assert discover(database, [Discovered(did=did(1))]).to_check == 0  # it is already

    def test_a_synced_repo_listed_as_not_active_is_asked_for_its_status(self, database: Database) -> None:
        put(database, synced(1))
        assert discover(database, [Discovered(did=did(1), rev="3kb", active=False)]).to_check == 1
        assert get(database, did(1)).check_due == "status"

    @pytest.mark.parametrize("state", [S.FAILED, S.QUARANTINED])
    def test_a_repo_that_was_given_up_gets_all_its_attempts_again(self, database: Database, state: RepoState) -> None:
        put(database, synced(1, state=state, reason="too_large", attempts=6, next_attempt_at=NOW + 9999))
        result = discover(database, [Discovered(did=did(1))], now=NOW + 5)
        assert result.transitions == {(state, S.PENDING): 1}
        row = get(database, did(1))
        assert (row.attempts, row.reason, row.next_attempt_at) == (0, None, NOW + 5)

    def test_without_a_host_it_is_discovered_again_instead(self, database: Database) -> None:
        put(database, synced(1, state=S.QUARANTINED, host=None))
        assert discover(database, [Discovered(did=did(1))]).transitions == {(S.QUARANTINED, S.DISCOVERED): 1}

    @pytest.mark.parametrize(
        ("active", "state", "check"), [(True, S.PENDING, None), (None, S.INACTIVE, "status"), (False, S.INACTIVE, None)]
    )
    def test_an_inactive_repo_follows_what_the_listing_says_of_it(
        self, database: Database, active: bool | None, state: RepoState, check: str | None
    ) -> None:
        put(database, synced(1, state=S.INACTIVE, reason="deactivated"))
        discover(database, [Discovered(did=did(1), rev="3kz", active=active)])
        row = get(database, did(1))
        assert (row.state, row.check_due, row.rev_heard) == (state, check, "3kz")

    @pytest.mark.parametrize("state", [S.ACTIVE, S.PENDING, S.DISCOVERED, S.DESYNCED])
    def test_a_repo_that_is_fetched_anyway_only_remembers_the_rev(self, database: Database, state: RepoState) -> None:
        before = put(database, synced(1, state=state, attempts=2, reason="http"))
        result = discover(database, [Discovered(did=did(1), rev="3kz", active=True)], batch=4, now=NOW + 5)
        assert result.unchanged == 1
        assert not result.transitions
        assert not result.covers
        assert get(database, did(1)) == replace(before, rev_heard="3kz", batch=4, updated_at=NOW + 5)

    def test_a_removed_repo_comes_back_only_when_it_is_named(self, database: Database) -> None:
        put(database, synced(1, touched=True))
        with database.transaction("remove") as cur:
            assert repos.remove(cur, [did(1)]) == 1
        result = discover(database, [Discovered(did=did(1), rev="3kz", active=True)], batch=4)
        assert (result.ignored, result.unchanged, result.requeued, result.transitions) == (1, 0, 0, {})
        assert (get(database, did(1)).batch, get(database, did(1)).tracked) == (None, False)
        result = discover(database, [Discovered(did=did(1))], batch=4, named=True)
        assert (result.requeued, result.transitions) == (1, {(None, S.DISCOVERED): 1})
        row = get(database, did(1))
        assert (row.state, row.tracked, row.batch, row.touched) == (S.DISCOVERED, True, 4, True)

    def test_what_the_synced_ones_cover_is_reported_and_can_be_requeued(self, database: Database) -> None:
        put(database, synced(1, covers="app.bsky."))
        put(database, synced(2, covers=""))
        put(database, synced(3, covers=None))
        listed = [Discovered(did=did(number), rev="3kb", active=True) for number in range(1, 4)]
        assert discover(database, listed, batch=1).covers == {"app.bsky.", "", None}
        with database.transaction("requeue") as cur:
            assert repos.requeue_uncovered(cur, [did(1), did(2), did(3)], {"app.bsky."}, 1, now=NOW) == 2
        assert [(get(database, did(n)).state, get(database, did(n)).reason) for n in (1, 2, 3)] == [
            (S.PENDING, "filter"), (S.SYNCED, None), (S.PENDING, "filter")]  # fmt: skip

    def test_two_listings_of_the_same_repos_at_once_find_each_of_them_once(self, each_database: Database) -> None:
        entries = [Discovered(did=did(number), rev="3ka", active=True) for number in range(2000)]
        results: list[UpsertResult] = []

        def run(mine: list[Discovered]) -> None:
            for start in range(0, len(mine), 100):
                results.append(discover(each_database, mine[start : start + 100], batch=1))

        threads = [
            threading.Thread(target=run, args=(part,))
            for part in (entries, entries[::-1], entries[1000:] + entries[:1000])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sum(result.new for result in results) == 2000
        assert sum(result.new + result.unchanged for result in results) == 6000


class TestClaim:
    def fill(self, database: Database, per_host: dict[str, int]) -> None:
        rows = [
            RepoRow(
                did=f"did:web:{host}.{number:05}",
                host=f"https://{host}",
                state=S.PENDING,
                next_attempt_at=NOW - 1000 + number,
            )
            for host, count in per_host.items()
            for number in range(count)
        ]
        discover(database, [Discovered(did=row.did) for row in rows])
        with database.transaction("fill") as cur:
            repos.store_rows(cur, rows)

    def test_each_host_gives_as_many_as_were_asked_for_the_longest_due_first(self, each_database: Database) -> None:
        self.fill(each_database, {"a": 20, "b": 20, "c": 1})
        with each_database.transaction("claim") as cur:
            rows = repos.claim(cur, [("https://a", 3), ("https://c", 5), ("https://nowhere", 5)], NOW)
        assert sorted(row.did for row in rows) == [
            "did:web:a.00000",
            "did:web:a.00001",
            "did:web:a.00002",
            "did:web:c.00000",
        ]
        assert {row.state for row in rows} == {S.ACTIVE}
        assert get(each_database, "did:web:a.00000").state is S.ACTIVE

    def test_what_is_not_due_or_removed_is_not_claimed(self, database: Database) -> None:
        put(database, synced(1, state=S.PENDING, next_attempt_at=NOW + 1))
        put(database, synced(2, state=S.PENDING, next_attempt_at=NOW))
        put(database, synced(3, state=S.PENDING, next_attempt_at=NOW))
        with database.transaction("claim") as cur:
            repos.remove(cur, [did(3)])
            assert [row.did for row in repos.claim(cur, [(HOST, 10)], NOW)] == [did(2)]
            assert repos.claim(cur, [], NOW) == []

    def test_claimers_at_the_same_time_never_share_a_repo_and_leave_none(self, each_database: Database) -> None:
        hosts = [f"h{number}" for number in range(5)]
        self.fill(each_database, dict.fromkeys(hosts, 100))
        claimed: list[str] = []
        at_once = threading.Barrier(4)

        def run() -> None:
            at_once.wait(10)
            while True:
                with each_database.transaction("claim") as cur:
                    rows = repos.claim(cur, [(f"https://{host}", 4) for host in hosts], NOW)
                if not rows:
                    return
                claimed.extend(row.did for row in rows)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(claimed) == len(set(claimed)) == 500

    def test_hosts_with_something_due_are_found_in_order_and_in_pages(self, each_database: Database) -> None:
        self.fill(each_database, {"a": 3, "b": 1, "c": 2})
        put(each_database, synced(1, host="https://bb", state=S.PENDING, next_attempt_at=NOW + 1))
        with each_database.transaction("hosts") as cur:
            assert repos.due_hosts(cur, NOW, 10) == ["https://a", "https://b", "https://c"]
            assert repos.due_hosts(cur, NOW, 2) == ["https://a", "https://b"]
            assert repos.due_hosts(cur, NOW, 2, after="https://b") == ["https://c"]
            assert repos.due_hosts(cur, NOW, 2, after="https://c") == []

    def test_discovered_repos_are_handed_out_without_those_in_work(self, database: Database) -> None:
        discover(database, [Discovered(did=did(number)) for number in range(3)])
        put(database, RepoRow(did=did(3), next_attempt_at=NOW + 1))
        with database.transaction("look") as cur:
            assert {row.did for row in repos.unresolved(cur, NOW, 10)} == {did(0), did(1), did(2)}
            assert {row.did for row in repos.unresolved(cur, NOW, 10, [did(1)])} == {did(0), did(2)}
            assert len(repos.unresolved(cur, NOW, 1)) == 1


class TestStore:
    def test_a_row_comes_back_as_it_was_stored(self, each_database: Database) -> None:
        row = RepoRow(
            did=did(1), host=HOST, state=S.FAILED, reason="http", rev="3ka", data=bytes(range(36)), rev_begun="3kb", rev_heard="3kc",
            covers="app.bsky.,com.example.x", told_active=False, told_status="takendown", told_time_us=5, tell_active=True,
            tell_status="", tell_time_us=6, told_identity_us=7, tell_handle="alice.example", tell_pds=HOST, tell_identity_us=8,
            check_due="status", attempts=3, next_attempt_at=NOW + 0.25, touched=True, shard="127.0.0.1:7000", records=2**40,
            bytes=2**41, last_error="it's \"broken\"\n\ttwice", synced_at=NOW - 0.5, seen_check_due="status",
        )  # fmt: skip
        found = put(each_database, row, batch=9)
        assert found == replace(row, partition=found.partition, batch=9, created_at=NOW, updated_at=found.updated_at)

    def test_what_a_text_column_refuses_is_replaced_in_an_error_text(self, database: Database) -> None:
        assert put(database, synced(1, last_error="a\0b\ud800c")).last_error == "a�b?c"

    def test_batch_and_tracked_are_not_written(self, database: Database) -> None:
        put(database, synced(1), batch=5)
        row = replace(get(database, did(1)), batch=6, tracked=False)
        with database.transaction("store") as cur:
            repos.store_rows(cur, [row])
        assert (get(database, did(1)).batch, get(database, did(1)).tracked) == (5, True)

    def test_revs_heard_and_begun_and_touched_never_fall(self, database: Database) -> None:
        put(database, synced(1, rev_begun="3kd", rev_heard="3kd", touched=True, state=S.PENDING))
        row = put(database, synced(1, rev_begun="3ka", rev_heard="3ka", touched=False, state=S.PENDING))
        assert (row.rev_begun, row.rev_heard, row.touched) == ("3kd", "3kd", True)

    def test_a_rev_heard_meanwhile_makes_a_repo_pending_instead_of_synced(self, each_database: Database) -> None:
        row = put(each_database, synced(1, state=S.ACTIVE, attempts=4))
        discover(each_database, [Discovered(did=did(1), rev="3kz", active=True)])
        row.state = S.SYNCED
        with each_database.transaction("store") as cur:
            assert repos.store_rows(cur, [row]) == [(did(1), S.PENDING)]
        stored = get(each_database, did(1))
        assert (stored.state, stored.reason, stored.rev_heard, stored.attempts) == (S.PENDING, "newer_rev", "3kz", 0)

    def test_what_others_made_pending_meanwhile_stays_so(self, each_database: Database) -> None:
        checked = put(each_database, synced(1, check_due="commit"))
        with each_database.transaction("widen") as cur:
            repos.requeue_uncovered(cur, [did(1)], ["app.bsky."], None, now=NOW)
        checked.check_due = None
        with each_database.transaction("store") as cur:
            assert repos.store_rows(cur, [checked]) == [(did(1), S.PENDING)]
        assert (get(each_database, did(1)).state, get(each_database, did(1)).reason) == (S.PENDING, "filter")

    @pytest.mark.parametrize(("rev", "known"), [("3kz", "3kb"), ("3kb", "3kz")])
    def test_a_rev_heard_that_the_writer_reached_or_knew_of_does_not(
        self, database: Database, rev: str, known: str
    ) -> None:
        row = put(database, synced(1, state=S.ACTIVE))
        discover(database, [Discovered(did=did(1), rev="3kz", active=True)])
        row.state, row.rev, row.rev_heard = S.SYNCED, rev, known
        with database.transaction("store") as cur:
            assert repos.store_rows(cur, [row]) == []
        assert get(database, did(1)).state is S.SYNCED

    def test_a_rev_heard_by_a_transaction_that_runs_at_the_same_time_counts_too(self, each_database: Database) -> None:
        row = put(each_database, synced(1, state=S.ACTIVE))
        row.state = S.SYNCED
        answer: list[list[tuple[str, RepoState]]] = []

        def store() -> None:
            with each_database.transaction("store") as cur:
                answer.append(repos.store_rows(cur, [row]))

        with each_database.transaction("discover") as cur:
            repos.upsert_discovered(
                cur, [Discovered(did=did(1), rev="3kz")], batch=None, named=False, partitions=64, now=NOW
            )
            thread = threading.Thread(target=store)
            thread.start()
            while True:  # until it waits for our row
                cur.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
                waiting = cur.fetchone()
                if waiting and waiting[0]:
                    break
        thread.join(30)
        assert answer == [[(did(1), S.PENDING)]]

    def test_a_mark_set_meanwhile_stays_and_one_that_was_seen_is_cleared(self, database: Database) -> None:
        row = put(database, synced(1))
        discover(database, [Discovered(did=did(1))])  # sets the mark
        with database.transaction("store") as cur:
            repos.store_rows(cur, [row])  # which this writer has not seen
        seen = get(database, did(1))
        assert seen.check_due == "commit"
        seen.check_due = None
        with database.transaction("store") as cur:
            repos.store_rows(cur, [seen])
        assert get(database, did(1)).check_due is None

    def test_one_row_that_does_not_exist_stores_nothing_and_is_loud(self, database: Database) -> None:
        put(database, synced(1))

        def store() -> None:
            with database.transaction("store") as cur:
                repos.store_rows(cur, [synced(1, records=5), synced(2)])

        with pytest.raises(StoreError, match=rf"1 of 2 repos have no row.*{did(2)}"):
            store()
        assert get(database, did(1)).records == 0

    def test_no_rows_are_no_statement(self, database: Database) -> None:
        with database.transaction("store") as cur:
            assert repos.store_rows(cur, []) == []

    def test_a_state_that_is_none_is_refused(self, database: Database) -> None:
        with pytest.raises(StoreError, match="repo_state"):
            put(database, synced(1, state="nonsense"))


class TestOthers:
    def test_what_is_due_again_becomes_pending(self, database: Database) -> None:
        put(database, synced(1, state=S.FAILED, attempts=2, reason="http"))
        put(database, synced(2, state=S.DESYNCED))
        put(database, synced(3, state=S.FAILED, next_attempt_at=NOW + 1))
        put(database, synced(4, state=S.FAILED, host=None))
        with database.transaction("requeue") as cur:
            assert repos.requeue_due(cur, NOW, 10) == Counter(
                {(S.FAILED, S.PENDING): 1, (S.DESYNCED, S.PENDING): 1, (S.FAILED, S.DISCOVERED): 1}
            )
        assert (get(database, did(1)).attempts, get(database, did(1)).reason) == (2, "http")

    def test_a_start_makes_active_repos_pending_and_homeless_ones_discovered(self, database: Database) -> None:
        put(database, synced(1, state=S.ACTIVE))
        put(database, synced(2, state=S.ACTIVE, host=None))
        put(database, synced(3, state=S.PENDING, host=None))
        put(database, synced(4))
        with database.transaction("reset") as cur:
            assert repos.reset_active(cur) == 3
        assert [get(database, did(n)).state for n in range(1, 5)] == [S.PENDING, S.DISCOVERED, S.DISCOVERED, S.SYNCED]

    def test_marks_are_listed_until_they_are_gone(self, database: Database) -> None:
        put(database, synced(1, check_due="commit"))
        put(database, synced(2, check_due="status"))
        put(database, synced(3))
        with database.transaction("look") as cur:
            assert [row.did for row in repos.checks_due(cur, 10)] == [did(1), did(2)]
            assert [row.did for row in repos.checks_due(cur, 10, after=did(1))] == [did(2)]

    def test_statuses_and_identities_wait_until_they_were_told(self, database: Database) -> None:
        put(database, synced(1, tell_active=False, tell_time_us=5))
        put(database, synced(2, tell_active=False, tell_time_us=5, told_active=False, told_time_us=5))
        put(database, synced(3, tell_handle="a.example", tell_identity_us=5))
        with database.transaction("look") as cur:
            assert [row.did for row in repos.tells_due(cur, 10)] == [did(1), did(3)]

    def test_counts_have_every_state_and_leave_out_what_was_removed(self, database: Database) -> None:
        for number, state in enumerate(S):
            put(database, synced(number, state=state), batch=number % 2)
        put(database, synced(100))
        with database.transaction("count") as cur:
            repos.remove(cur, [did(100)])
            assert repos.count_by_state(cur) == dict.fromkeys(S, 1)
            assert sum(repos.count_by_state(cur, 0).values()) == 4
            assert repos.count_by_state(cur, 99) == dict.fromkeys(S, 0)

    def test_a_batch_is_unfinished_while_one_of_its_repos_is(self, database: Database) -> None:
        for number, state in enumerate((S.SYNCED, S.INACTIVE, S.QUARANTINED)):
            put(database, synced(number, state=state, reason="too_large" if state is S.QUARANTINED else None), batch=1)
        put(database, synced(10, state=S.PENDING), batch=2)
        with database.transaction("count") as cur:
            assert repos.unfinished_of_batch(cur, 1) == 0
            assert repos.unfinished_of_batch(cur, 2) == 1
            assert repos.reasons_of_batch(cur, 1) == [(S.INACTIVE, None, 1), (S.QUARANTINED, "too_large", 1)]
            assert [row.did for row in repos.quarantined_of_batch(cur, 1, 10)] == [did(2)]
        put(database, synced(11, check_due="commit"), batch=1)
        with database.transaction("count") as cur:
            assert repos.unfinished_of_batch(cur, 1) == 1

    def test_totals_are_those_of_tracked_repos(self, database: Database) -> None:
        put(database, synced(1, records=3, bytes=100), batch=1)
        put(database, synced(2, records=4, bytes=200))
        with database.transaction("sum") as cur:
            assert repos.totals(cur) == (7, 300)
            assert repos.totals(cur, 1) == (3, 100)
            assert repos.totals(cur, 9) == (0, 0)

    def test_lists_are_filtered_and_paged_in_did_order(self, database: Database) -> None:
        put(database, synced(1, records=1))
        put(database, synced(2, state=S.FAILED, host="https://other"))
        put(database, synced(3, state=S.QUARANTINED))
        put(database, synced(4))
        with database.transaction("list") as cur:

            def dids(**filters: object) -> list[int]:
                return [int(row.did[-1]) for row in repos.list_repos(cur, **filters)]  # type: ignore[arg-type]

            assert dids() == [1, 2, 3, 4]
            assert dids(limit=2, after=did(1)) == [2, 3]
            assert dids(states=[S.FAILED]) == [2]
            assert dids(states=[S.FAILED, S.QUARANTINED]) == [2, 3]
            assert dids(host=HOST, states=[S.SYNCED]) == [1, 4]
            assert dids(collectionless=True) == [2, 3, 4]
            assert dids(collectionless=False) == [1]
            repos.remove(cur, [did(1)])
            assert dids() == [2, 3, 4]

    def test_a_resync_delivers_again_and_tells_the_status_again_first(self, each_database: Database) -> None:
        told = {"told_active": False, "told_status": "takendown", "told_time_us": 50}
        put(each_database, synced(1))
        put(each_database, synced(2, state=S.INACTIVE, reason="takendown", **told))
        put(each_database, synced(3, state=S.ACTIVE))
        put(each_database, synced(4, host="https://other"))
        with each_database.transaction("resync") as cur:
            changed = repos.resync(cur, now=NOW, host=HOST)
        assert changed == Counter({(S.SYNCED, S.PENDING): 1, (S.INACTIVE, S.INACTIVE): 1, (S.ACTIVE, S.ACTIVE): 1})
        assert (get(each_database, did(1)).state, get(each_database, did(1)).reason) == (S.PENDING, "resync")
        inactive = get(each_database, did(2))
        assert (inactive.tell_active, inactive.tell_status, inactive.tell_time_us, inactive.told_time_us) == (
            False,
            "takendown",
            51,
            50,
        )
        assert get(each_database, did(4)).state is S.SYNCED
        active = get(each_database, did(3))
        active.state = S.SYNCED  # its fetch ends, and another one follows
        with each_database.transaction("store") as cur:
            assert repos.store_rows(cur, [active]) == [(did(3), S.PENDING)]
        assert get(each_database, did(3)).reason == "resync"
        with each_database.transaction("store") as cur:
            active.state = S.ACTIVE
            repos.store_rows(cur, [active])  # it is claimed again
            active.state = S.SYNCED
            assert repos.store_rows(cur, [active]) == []  # once is enough

    def test_a_resync_takes_dids_or_a_time_or_everything(self, database: Database) -> None:
        for number in range(3):
            put(database, synced(number))
        with database.transaction("resync") as cur:
            assert sum(repos.resync(cur, now=NOW, dids=[did(0)]).values()) == 1
            assert sum(repos.resync(cur, now=NOW, dids=[]).values()) == 0
            assert sum(repos.resync(cur, now=NOW, changed_since=NOW * 2).values()) == 0
            assert sum(repos.resync(cur, now=NOW).values()) == 3


def test_rows_come_with_what_was_resolved_of_them(database: Database) -> None:
    one, other = put(database, synced(1)), put(database, synced(2))
    identity = Identity(did=one.did, signing_key="zKey", pds=HOST, handle="a.test", resolved_at=NOW)
    with database.transaction("resolve") as cur:
        identities.upsert_many(cur, [identity])
    with database.reading("load") as cur:
        found = repos.load_with_identities(cur, [one.did, other.did, did(3)])
    assert found == {one.did: (one, identity), other.did: (other, None)}
