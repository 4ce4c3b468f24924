"""The fold of `relay.ingester.rules`, against the naive ingester and rule by rule."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.ingester.operations import prepare_changes
from relay.ingester.rules import Account, Changes, covers
from relay.pb import ingester_pb2 as pb
from tests.unit.ingester.naive import FILTERS, PATHS, Accounts, NaiveIngester, Rows, cut, groupings, histories

DID = "did:plc:aaa"


class MemoryTables:
    """Two tables, and what a sink does with the changes, in the order that RepoChanges asks for."""

    def __init__(self) -> None:
        self.rows: Rows = {}
        self.known: dict[str, Account] = {}
        self.late = 0

    def store(self, batches: list[list[pb.Operation]]) -> None:
        changes = Changes(self.known)
        for batch in batches:
            prepared, _ = prepare_changes(batch, lambda *row: row)
            changes.apply(prepared)
        for did, repo in changes.repos.items():
            self.known[did] = repo.account
            for key in [key for key in self.rows if key[0] == did]:
                rev = self.rows[key][1]
                if repo.wipe or any(rev < sweep.rev and covers(sweep.patterns, key[1]) for sweep in repo.sweeps):
                    del self.rows[key]
            for path, (_, row) in repo.rows.items():
                collection, _, rkey = path.partition("/")
                if row is None:
                    self.rows.pop((did, collection, rkey), None)
                else:
                    assert isinstance(row, tuple)
                    self.rows[did, collection, rkey] = row[3:]
        self.late += changes.late

    def accounts(self) -> Accounts:
        return {
            did: (a.rev, a.active, a.status, a.status_time_us, a.handle, a.pds, a.identity_time_us)
            for did, a in self.known.items()
        }


@settings(max_examples=300)
@given(history=histories(), grouping=groupings())
def test_folding_any_history_in_any_groups_equals_applying_its_operations_one_by_one(
    history: list[pb.Operation], grouping: list[int]
) -> None:
    naive, tables = NaiveIngester(), MemoryTables()
    for op in history:
        naive.apply(op)
    for group in cut(history, grouping):
        tables.store(group)
    assert tables.rows == naive.rows
    assert tables.accounts() == naive.accounts()


@given(history=histories(), grouping=groupings(), data=st.data())
def test_resending_a_tail_of_the_history_changes_nothing(
    history: list[pb.Operation], grouping: list[int], data: st.DataObject
) -> None:
    once, resent = MemoryTables(), MemoryTables()
    # What a relay sends again is in order; so is a history whose operations of one DID never fall.
    history = in_order(history)
    start = data.draw(st.integers(0, len(history)))
    for group in cut(history, grouping):
        once.store(group)
        resent.store(group)
    for group in cut(history[start:], grouping):
        resent.store(group)
    assert resent.rows == once.rows
    assert resent.accounts() == once.accounts()


def in_order(history: list[pb.Operation]) -> list[pb.Operation]:
    """Drop what a relay would never send in this order."""
    kept: list[pb.Operation] = []
    revs: dict[str, str] = {}
    times: dict[tuple[str, int], int] = {}
    gone: set[str] = set()
    for op in history:
        if op.type in (pb.ACCOUNT, pb.IDENTITY):
            if op.time_us <= times.get((op.did, op.type), 0):
                continue
            times[op.did, op.type] = op.time_us
            if op.did in gone:
                # An account that comes back is fetched again: until then a copy of its last commit may show.
                continue
            if op.type == pb.ACCOUNT and op.account.status == "deleted":
                gone.add(op.did)
        elif op.rev <= revs.get(op.did, ""):
            continue  # one operation a rev: within one the order of several is not that of a commit
        else:
            revs[op.did] = op.rev
        kept.append(op)
    return kept


def make(kind: int, rev: str = "", path: str = "", **fields: Any) -> pb.Operation:
    collection, _, rkey = path.partition("/")
    op = pb.Operation(type=kind, did=DID, rev=rev, collection=collection, rkey=rkey, **fields)  # type: ignore[arg-type]
    if kind in (pb.CREATE, pb.UPDATE):
        op.cid = op.cid or "bafy1"
        op.record_json = "{}"
    return op


def account(status: str, time_us: int) -> pb.Operation:
    return make(pb.ACCOUNT, time_us=time_us, account=pb.AccountStatus(active=not status, status=status))


def paths_after(*transactions: list[pb.Operation]) -> set[str]:
    tables = MemoryTables()
    for operations in transactions:
        tables.store([operations])
    return {f"{collection}/{rkey}" for _, collection, rkey in tables.rows}


def test_a_late_copy_of_a_create_does_not_bring_a_deleted_record_back() -> None:
    created, deleted = make(pb.CREATE, "3ka", "a.b.c/k1"), make(pb.DELETE, "3kb", "a.b.c/k1")
    assert paths_after([created], [deleted], [created]) == set()
    assert paths_after([created, deleted, created]) == set()


def test_the_end_of_a_snapshot_deletes_older_rows_in_the_covered_collections_only() -> None:
    old = [make(pb.CREATE, "3ka", path) for path in PATHS]
    end = make(pb.REPO_END, "3kb", nsid_filter=["a.b.*"])
    kept = {path for path in PATHS if not path.startswith("a.b.")}
    assert paths_after(old, [end]) == kept
    assert paths_after([*old, end]) == kept


def test_the_end_of_a_snapshot_keeps_the_rows_of_its_own_rev() -> None:
    run = [make(pb.CREATE, "3ka", PATHS[0]), make(pb.CREATE, "3kb", PATHS[1]), make(pb.REPO_END, "3kb")]
    assert paths_after(run) == {PATHS[1]}
    assert paths_after(run[:1], run[1:]) == {PATHS[1]}


def test_an_empty_filter_covers_all_collections() -> None:
    assert paths_after([make(pb.CREATE, "3ka", path) for path in PATHS], [make(pb.REPO_END, "3kb")]) == set()


def test_an_exact_pattern_does_not_cover_its_sub_collections() -> None:
    assert not covers(("a.b.c",), "a.b.c.d")
    assert not covers(("a.b.c",), "a.b.cc")
    assert covers(("a.b.c.",), "a.b.c.d")
    assert not covers(("a.b.c.",), "a.b.c")


def test_a_late_end_of_a_snapshot_changes_nothing() -> None:
    newer = [make(pb.CREATE, "3ka", "a.b.c/k1"), make(pb.CREATE, "3kc", "a.b.c/k2")]
    assert paths_after(newer, [make(pb.REPO_END, "3kb")]) == {"a.b.c/k1", "a.b.c/k2"}


def test_a_deleted_account_has_no_rows_and_takes_none_until_the_next_account() -> None:
    create = make(pb.CREATE, "3ka", "a.b.c/k1")
    assert paths_after([create], [account("deleted", 5)]) == set()
    assert paths_after([account("deleted", 5)], [create]) == set()
    assert paths_after([account("deleted", 5), account("", 6), create]) == {"a.b.c/k1"}
    assert paths_after([create, account("deleted", 5), account("", 6)]) == set()


def test_a_takedown_keeps_the_rows() -> None:
    assert paths_after([make(pb.CREATE, "3ka", "a.b.c/k1"), account("takendown", 5)]) == {"a.b.c/k1"}


def test_an_account_with_a_lower_time_than_the_last_one_changes_nothing() -> None:
    create = make(pb.CREATE, "3ka", "a.b.c/k1")
    assert paths_after([account("", 6)], [create], [account("deleted", 5)]) == {"a.b.c/k1"}


def test_a_late_operation_is_counted() -> None:
    tables = MemoryTables()
    tables.store([[make(pb.CREATE, "3kb", "a.b.c/k1"), make(pb.CREATE, "3ka", "a.b.c/k2")]])
    assert tables.late == 1


@given(patterns=st.sampled_from(FILTERS), path=st.sampled_from(PATHS))
def test_covers_agrees_with_the_naive_reading(patterns: tuple[str, ...], path: str) -> None:
    op = pb.Operation(nsid_filter=patterns)
    collection = path.partition("/")[0]
    assert covers(patterns, collection) == NaiveIngester.is_covered(op, collection)
