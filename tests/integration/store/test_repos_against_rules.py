"""`upsert_discovered` against the same rules written plainly, on any rows and any listing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import booleans, builds, dictionaries, integers, just, lists, none, sampled_from

from relay.model import RepoState
from relay.store import repos
from relay.store.pool import Database
from relay.store.repos import Discovered, RepoRow

NOW = 1_700_000_000.0
DIDS = [f"did:web:{letter}.example" for letter in "abcdef"]
REVS = ["3ka", "3kb", "3kc"]
FETCHED_ANYWAY = (RepoState.DISCOVERED, RepoState.PENDING, RepoState.ACTIVE, RepoState.DESYNCED)

stored_rows = builds(
    RepoRow,
    did=just(""),
    host=none() | just("https://pds.example"),
    state=sampled_from(RepoState),
    reason=none() | just("http"),
    rev=none() | sampled_from(REVS),
    rev_heard=none() | sampled_from(REVS),
    check_due=none() | sampled_from(["status", "commit"]),
    covers=none() | just("app.bsky."),
    attempts=integers(0, 3),
    next_attempt_at=just(NOW - 100),
    tracked=booleans(),
)
listed = lists(
    builds(Discovered, did=sampled_from(DIDS), rev=none() | sampled_from(REVS), active=none() | booleans()), max_size=12
)


def expected(
    row: RepoRow, rev: str | None, active: bool | None, speaker: str | None, *, batch: int | None, named: bool
) -> RepoRow | None:
    """Return what becomes of a row that a listing of `speaker` names, None if it is ignored."""
    is_foreign = speaker is not None and row.host is not None and speaker != row.host
    if not row.tracked and not named:
        return None
    after = replace(row, tracked=True, batch=batch if batch is not None else row.batch)
    if rev is not None and not is_foreign:
        after.rev_heard = max(rev, row.rev_heard or "")
    again = RepoState.PENDING if row.host else RepoState.DISCOVERED
    if not row.tracked:
        return replace(after, state=RepoState.DISCOVERED, reason=None, attempts=0, next_attempt_at=NOW)
    if row.state in FETCHED_ANYWAY:
        return after
    if row.state in (RepoState.FAILED, RepoState.QUARANTINED) or (row.state is RepoState.INACTIVE and active):
        return replace(after, state=again, reason=None, attempts=0, next_attempt_at=NOW)
    if row.state is RepoState.INACTIVE:
        return after if active is False else replace(after, check_due="status")
    assert row.state is RepoState.SYNCED
    if is_foreign:
        return (
            replace(after, check_due=row.check_due or "commit") if rev is not None and rev > (row.rev or "") else after
        )
    if rev is not None and rev > (row.rev or ""):
        return replace(after, state=again, reason="newer_rev", attempts=0, next_attempt_at=NOW)
    if active is False:
        return replace(after, check_due="status")
    if rev is None:
        return replace(after, check_due=row.check_due or "commit")
    return after


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=dictionaries(sampled_from(DIDS), stored_rows, max_size=6),
    entries=listed,
    speaker=sampled_from([None, "https://pds.example", "https://other.example"]),
    batch=none() | just(7),
    named=booleans(),
)
def test_a_listing_does_to_every_row_what_the_rules_say(
    database: Database,
    rows: dict[str, RepoRow],
    entries: list[Discovered],
    speaker: str | None,
    batch: int | None,
    named: bool,
) -> None:
    entries = [replace(entry, host=speaker) for entry in entries]
    with database.transaction("example") as cur:
        cur.execute("TRUNCATE repo")
        repos.upsert_discovered(
            cur, [Discovered(did=did) for did in rows], batch=None, named=True, partitions=64, now=NOW - 50
        )
        repos.store_rows(cur, [replace(row, did=did) for did, row in rows.items()])
        repos.remove(cur, [did for did, row in rows.items() if not row.tracked])
        before = repos.load(cur, DIDS)
        result = repos.upsert_discovered(cur, entries, batch=batch, named=named, partitions=64, now=NOW)
        after = repos.load(cur, DIDS)

    told: dict[str, tuple[str | None, bool | None]] = {}
    for entry in entries:
        rev, active = told.get(entry.did, (None, None))
        revs = [known for known in (rev, entry.rev) if known is not None]
        told[entry.did] = (max(revs, default=None), active if entry.active is None else entry.active)
    transitions: Counter[tuple[RepoState | None, RepoState]] = Counter()
    ignored = unchanged = 0
    for did, (rev, active) in told.items():
        if did not in before:
            transitions[None, RepoState.DISCOVERED] += 1
            found = after[did]
            assert (found.state, found.rev_heard, found.batch, found.host) == (RepoState.DISCOVERED, rev, batch, None)
            continue
        row = before[did]
        becomes = expected(row, rev, active, speaker, batch=batch, named=named)
        if becomes is None:
            ignored += 1
            becomes = row
        elif becomes.state is row.state and row.tracked:
            unchanged += 1
        else:
            transitions[row.state if row.tracked else None, becomes.state] += 1
        found = after[did]
        assert found == replace(becomes, updated_at=found.updated_at, seen_check_due=found.check_due)
    for did in set(before) - set(told):
        assert after[did] == before[did]
    assert result.transitions == transitions
    assert (result.ignored, result.unchanged) == (ignored, unchanged)
    assert result.new + result.requeued == sum(transitions.values())
