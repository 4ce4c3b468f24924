"""What the hot statements cost on a table of 200,000 rows: the index, by name, that makes each of them cheap."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from relay.model import RepoState
from relay.store import identities, reconcile, repos
from relay.store.pool import Database
from relay.store.repos import Discovered
from relay.store.statements import Cursor
from tests.support.postgres import TEMPLATE, Server, database_of

NOW = 1_700_000_000.0
ROWS = 200_000


@pytest.fixture(scope="module")
def filled(each_postgres_server: Server) -> Iterator[str]:
    """A database with mostly synced repos of 500 hosts; of every other state a few thousand or hundred, as once a relay has caught up."""
    name = each_postgres_server.create(TEMPLATE)
    database = database_of(each_postgres_server.dsn(name))
    database.open()
    with database.transaction("fill") as cur:
        cur.execute(
            "ALTER TABLE repo SET (autovacuum_enabled = off); ALTER TABLE identity SET (autovacuum_enabled = off)"
        )
        cur.execute(
            """
            INSERT INTO repo (did, partition, host, state, rev, rev_heard, covers, batch, next_attempt_at, check_due, tell_time_us)
            SELECT 'did:plc:' || md5(n::text), n %% 64, CASE WHEN n %% 40 = 1 THEN NULL ELSE 'https://pds' || n %% 500 || '.example' END,
                   CASE WHEN n %% 40 = 0 THEN 'pending' WHEN n %% 40 = 1 THEN 'discovered' WHEN n %% 1000 = 2 THEN 'failed'
                        WHEN n %% 1000 = 3 THEN 'desynced' WHEN n %% 1000 = 4 THEN 'quarantined' WHEN n %% 1000 = 5 THEN 'active'
                        WHEN n %% 1000 = 6 THEN 'inactive' ELSE 'synced' END,
                   '3kb', '3kb', 'app.bsky.', n %% 10, to_timestamp(%s), CASE WHEN n %% 1000 = 7 THEN 'commit' END,
                   CASE WHEN n %% 1000 = 8 THEN 5 END
            FROM generate_series(1, %s) n
            """,
            (NOW - 1, ROWS),
        )
        cur.execute("INSERT INTO identity (did, resolved_at) SELECT did, now() FROM repo LIMIT 20000")
    database.close()
    yield name
    each_postgres_server.drop(name)


@pytest.fixture(scope="module", params=["analyzed", "never_analyzed"])
def large(each_postgres_server: Server, filled: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A copy of `filled`, open. Never analyzed: as a table that was filled faster than autovacuum looked at it."""
    name = each_postgres_server.create(f"{filled} STRATEGY file_copy")
    database = database_of(each_postgres_server.dsn(name))
    database.open()
    if request.param == "analyzed":
        with database.transaction("analyze") as cur:
            cur.execute("ANALYZE repo; ANALYZE identity")
    yield database
    database.close()
    each_postgres_server.drop(name)


def plan_of(database: Database, call: Callable[[Cursor], object]) -> str:
    """Run `call`, and return the plan of the (last) statement that it ran; nothing is kept."""
    session = database.session("plan")
    try:
        with session.transaction("plan") as cur:
            call(cur)
            statement = cur.query
            assert statement is not None
            cur.connection.rollback()
            cur.execute(b"EXPLAIN " + statement)
            plan = "\n".join(row[0] for row in cur.fetchall())
            cur.connection.rollback()
            return plan
    finally:
        session.close()


def scanned(plan: str) -> set[str]:
    """Return the indexes that a plan uses."""
    return set(re.findall(r"(?:Index (?:Only )?Scan(?: Backward)? using|Bitmap Index Scan on) (\w+)", plan))


def assert_uses(plan: str, *indexes: str) -> None:
    assert scanned(plan) == set(indexes), plan
    assert not re.search(r"Seq Scan on (repo|identity)\b", plan), plan


DIDS = [f"did:plc:{number:032x}" for number in range(1000)]


def test_finding_hosts_probes_the_pending_index_once_a_host(large: Database) -> None:
    assert_uses(plan_of(large, lambda cur: repos.due_hosts(cur, NOW, 100)), "repo_pending")


def test_a_claim_reads_the_pending_index_of_its_hosts(large: Database) -> None:
    wants = [(f"https://pds{number * 40}.example", 4) for number in range(12)]
    plan = plan_of(large, lambda cur: repos.claim(cur, wants, NOW))
    assert_uses(plan, "repo_pending", "repo_pkey")
    assert not re.search(r"Sort\s+\(", plan), plan  # the index has the order already


def test_what_is_to_be_resolved_comes_from_the_discovered_index(large: Database) -> None:
    plan = plan_of(large, lambda cur: repos.unresolved(cur, NOW, 100, DIDS[:100]))
    assert_uses(plan, "repo_discovered")


def test_what_is_due_again_comes_from_the_retry_index(large: Database) -> None:
    assert_uses(plan_of(large, lambda cur: repos.requeue_due(cur, NOW, 100)), "repo_retry", "repo_pkey")


def test_rows_are_stored_by_primary_key(large: Database) -> None:
    with large.transaction("load") as cur:
        rows = repos.list_repos(cur, limit=1000)
    assert_uses(plan_of(large, lambda cur: repos.store_rows(cur, rows)), "repo_pkey")


def test_a_page_of_a_listing_is_compared_by_primary_key(large: Database) -> None:
    with large.transaction("load") as cur:
        known = [Discovered(did=row.did, rev="3kb", active=True) for row in repos.list_repos(cur, limit=1000)]
    plan = plan_of(large, lambda cur: repos.upsert_discovered(cur, known, batch=1, named=False, partitions=64, now=NOW))
    assert_uses(plan, "repo_pkey")


def test_rows_are_loaded_by_primary_key(large: Database) -> None:
    assert_uses(plan_of(large, lambda cur: repos.load(cur, DIDS)), "repo_pkey")


def test_identities_are_loaded_by_primary_key(large: Database) -> None:
    assert_uses(plan_of(large, lambda cur: identities.load_many(cur, DIDS[:100])), "identity_pkey")


def test_rows_for_the_stream_are_loaded_by_primary_keys(large: Database) -> None:
    plan = plan_of(large, lambda cur: repos.load_with_identities(cur, DIDS))
    assert_uses(plan, "repo_pkey", "identity_pkey")


def test_marks_come_from_their_index(large: Database) -> None:
    assert_uses(plan_of(large, lambda cur: repos.checks_due(cur, 100)), "repo_check")


def test_what_is_to_be_told_comes_from_its_index(large: Database) -> None:
    assert_uses(plan_of(large, lambda cur: repos.tells_due(cur, 100)), "repo_tell")


def test_active_repos_are_found_by_the_index_of_rare_states(large: Database) -> None:
    def reset(cur: Cursor) -> None:
        cur.execute(repos._SQL["reset_active"])

    assert_uses(plan_of(large, reset), "repo_rare")


def test_pending_repos_without_a_host_are_found_by_the_pending_index(large: Database) -> None:
    assert_uses(plan_of(large, lambda cur: repos.reset_active(cur)), "repo_pending")


@pytest.mark.parametrize("state", [RepoState.QUARANTINED, RepoState.INACTIVE])
def test_a_list_of_a_rare_state_reads_the_index_of_rare_states(large: Database, state: RepoState) -> None:
    assert_uses(plan_of(large, lambda cur: repos.list_repos(cur, states=[state], limit=100)), "repo_rare")


def test_a_list_of_a_host_reads_the_index_of_hosts(large: Database) -> None:
    plan = plan_of(large, lambda cur: repos.list_repos(cur, host="https://pds7.example", limit=100))
    assert_uses(plan, "repo_host")


def test_a_batch_is_counted_by_its_index(large: Database) -> None:
    plan = plan_of(large, lambda cur: repos.unfinished_of_batch(cur, 3))
    assert "repo_batch" in scanned(plan)
    assert "Seq Scan" not in plan
    assert "repo_batch" in scanned(plan_of(large, lambda cur: repos.quarantined_of_batch(cur, 4, 100)) + plan)


def test_a_page_of_a_reconcile_is_compared_and_marked_by_primary_key(large: Database) -> None:
    assert_uses(plan_of(large, lambda cur: reconcile.load(cur, DIDS)), "repo_pkey")
    assert_uses(plan_of(large, lambda cur: cur.execute(reconcile._SQL["lock"], {"dids": DIDS})), "repo_pkey")
    verdicts = [(did, "newer", "3kc") for did in DIDS]
    assert_uses(plan_of(large, lambda cur: reconcile.mark(cur, verdicts, NOW)), "repo_pkey")


def test_the_hosts_and_repos_of_a_reconcile_come_from_the_host_index(large: Database) -> None:
    assert_uses(plan_of(large, lambda cur: reconcile.tracked_hosts(cur, after="https://pds1", enough=50)), "repo_host")
    plan = plan_of(large, lambda cur: reconcile.dids_of_host(cur, "https://pds7.example", after="did:plc:3", limit=20))
    assert_uses(plan, "repo_host")


def test_what_a_listing_did_not_have_is_joined_and_not_looked_up_one_by_one(large: Database) -> None:
    with large.transaction("seen") as cur:
        for page in range(3):
            reconcile.add_seen(cur, "https://pds7.example", page, DIDS)
        reconcile.put_missing(cur, "https://pds7.example")
        assert cur.query is not None
        cur.execute(b"EXPLAIN " + cur.query)  # in the same transaction: it asks for this join
        plan = "\n".join(row[0] for row in cur.fetchall())
    assert "repo_host" in scanned(plan), plan
    assert re.search(r"(Hash|Merge)( Right)? Anti Join", plan), plan
