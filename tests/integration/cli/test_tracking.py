"""`repos add`, `remove` and `resync`, and `deadletter requeue`: straight in the database, and told to whoever holds the lease."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pytest

from relay.cli import deadletter, repos
from relay.cli.exits import Exit
from relay.config.load import Loaded, load
from relay.errors import ConfigError
from relay.model import RepoState
from relay.pb import ingester_pb2 as pb
from relay.store import dead_letters, notices
from relay.store import repos as repo_table
from relay.store.dead_letters import FRAME, DeadLetter
from relay.store.notices import Kind
from relay.store.pool import Database
from relay.store.repos import Discovered, RepoRow

A, B, C = (f"did:plc:{letter * 24}" for letter in "abc")
HOST = "https://pds.example"
REV, OLDER = "3kbbbbbbbbb2a", "3kaaaaaaaaa2a"


@pytest.fixture
def loaded(database: Database, migrated_dsn: str, tmp_path: Path) -> Loaded:
    env = {"HOME": "/nonexistent", "DATABASE_DSN": migrated_dsn, "DATA_DIR": str(tmp_path)}
    return load(None, env, usual_files=())


def _put(database: Database, *rows: RepoRow) -> None:
    with database.transaction("fill") as cur:
        found = [Discovered(did=row.did) for row in rows]
        repo_table.upsert_discovered(cur, found, batch=None, named=True, partitions=64, now=1.0)
        repo_table.store_rows(cur, rows)


def _synced(did: str, **more: object) -> RepoRow:
    return RepoRow(did=did, host=HOST, state=RepoState.SYNCED, rev=REV, data=b"\1" * 36, **more)  # type: ignore[arg-type]


def _rows(database: Database) -> dict[str, tuple[str, str | None, bool]]:
    with database.transaction("look") as cur:
        rows = repo_table.load(cur, [A, B, C])
    return {did: (row.state.value, row.reason, row.tracked) for did, row in rows.items()}


def _told(database: Database) -> list[tuple[Kind, tuple[str, ...]]]:
    with database.transaction("look") as cur:
        return [(notice.kind, notice.dids) for notice in notices.waiting(cur, 100)]


def _hold_lease(database: Database) -> None:
    with database.transaction("hold") as cur:
        cur.execute("UPDATE partition SET owner = 'run, process 1 on here'")


def _run(loaded: Loaded, *words: str) -> int:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(dest="command", required=True)
    repos.add_parser(subparsers)
    deadletter.add_parser(subparsers)
    args = parser.parse_args(list(words))
    return repos.run(args, loaded) if args.command == "repos" else deadletter.run(args, loaded)


def test_add_tracks_new_removed_and_given_up_repos(
    loaded: Loaded, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    _put(database, _synced(A), RepoRow(did=B, host=HOST, state=RepoState.QUARANTINED))
    assert _run(loaded, "repos", "remove", A) == Exit.OK
    assert _run(loaded, "repos", "add", A, B, C) == Exit.OK
    assert "1 added, 2 tracked or tried again, 0 tracked already" in capsys.readouterr().out
    assert _rows(database) == {
        A: ("discovered", None, True),
        B: ("pending", None, True),
        C: ("discovered", None, True),
    }
    assert _told(database) == [], "nobody holds the lease, so nobody has rows in memory"


def test_remove_keeps_the_row_and_names_what_was_not_tracked(
    loaded: Loaded, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    _put(database, _synced(A))
    assert _run(loaded, "repos", "remove", A, B) == Exit.CANNOT_GO_ON
    written = capsys.readouterr()
    assert (written.out, written.err) == ("1 removed\n", f"{B}: not tracked here\n")
    assert _rows(database) == {A: ("synced", None, False)}


def test_resync_takes_dids_a_host_a_time_or_everything(
    loaded: Loaded, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    def reset() -> None:
        _put(database, _synced(A), _synced(B), _synced(C))
        with database.transaction("age") as cur:
            cur.execute("UPDATE repo SET state = 'synced', reason = NULL, updated_at = now()")
            cur.execute("UPDATE repo SET host = 'https://other.example' WHERE did = %s", (B,))
            cur.execute("UPDATE repo SET updated_at = now() - interval '2 days' WHERE did = %s", (C,))

    for words, expected in (
        ((A,), {A}),
        (("--all",), {A, B, C}),
        (("--host", HOST), {A, C}),
        (("--changed-since", "1d"), {A, B}),
        (("--changed-since", "1d", "--host", HOST), {A}),
        (("--changed-since", "2020-01-01T00:00:00Z"), {A, B, C}),
        (("--changed-since", "2999-01-01"), set()),
    ):
        reset()
        assert _run(loaded, "repos", "resync", *words) == Exit.OK
        assert f"{len(expected)} will be delivered again" in capsys.readouterr().out
        found = {did for did, row in _rows(database).items() if row == ("pending", "resync", True)}
        assert found == expected, words


def test_resync_goes_page_by_page(loaded: Loaded, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.supervisor.commands.DIDS_AT_A_TIME", 2)
    _put(database, _synced(A), _synced(B), _synced(C))
    _hold_lease(database)
    assert _run(loaded, "repos", "resync", "--all") == Exit.OK
    assert _told(database) == [(Kind.RESYNC, (A, B)), (Kind.RESYNC, (C,))]


@pytest.mark.parametrize(
    "words", [(), ("--all", A), ("--all", "--host", HOST), ("--collection", "no nsid"), ("did:plc:short",)]
)
def test_what_cannot_be_meant_changes_nothing(loaded: Loaded, database: Database, words: tuple[str, ...]) -> None:
    _put(database, _synced(A))
    with pytest.raises(ConfigError):
        _run(loaded, "repos", "resync", *words)
    assert _rows(database) == {A: ("synced", None, True)}


def test_the_holder_of_the_lease_is_told_in_the_same_transaction(loaded: Loaded, database: Database) -> None:
    _put(database, _synced(A), _synced(B))
    _hold_lease(database)
    _run(loaded, "repos", "add", C)
    _run(loaded, "repos", "resync", A)
    _run(loaded, "repos", "remove", A, B)
    assert _told(database) == [(Kind.ADDED, (C,)), (Kind.RESYNC, (A,)), (Kind.REMOVED, (A, B))]


def test_a_take_over_waits_for_a_change_beside_it(loaded: Loaded, database: Database) -> None:
    with database.transaction("change") as cur:
        assert notices.hold(cur) is False
        waiting = database.session("other")
        try:
            with waiting.transaction("take") as other:
                other.execute("SELECT 1 FROM partition WHERE id = 0 FOR UPDATE SKIP LOCKED")
                assert other.fetchone() is None
        finally:
            waiting.close()


class TestRequeue:
    def _letter(self, did: str, rkey: str, *, rev: str | None = REV, kind: str = "CREATE") -> DeadLetter:
        operation = pb.Operation(
            type=pb.CREATE, did=did, collection="a.b.c", rkey=rkey, rev=rev or "", record_json="{}"
        )
        return DeadLetter(
            at=time.time(), did=did, collection="a.b.c", rkey=rkey, cid="bafy", rev=rev, type=kind, source="BACKFILL",
            reason="rejected", message="because", ingester="one:1", attempts=1, size=9, operation=operation.SerializeToString(),
        )  # fmt: skip

    def _fill(self, database: Database) -> None:
        _put(database, _synced(A), _synced(B))
        with database.transaction("fill") as cur:
            dead_letters.add_many(
                cur,
                [
                    self._letter(A, "newest"),
                    self._letter(A, "older", rev=OLDER),
                    self._letter(B, "end", kind="REPO_END"),
                    self._letter(C, "stranger"),
                    self._letter(A, "77", rev=None, kind=FRAME),
                ],
            )

    def _left(self, database: Database) -> dict[str, bool]:
        with database.transaction("look") as cur:
            cur.execute("SELECT rkey, requeued_at IS NOT NULL FROM dead_letter")
            return dict(cur.fetchall())

    def test_what_its_repo_stands_at_is_sent_and_what_is_older_is_delivered_again_with_its_repo(
        self, loaded: Loaded, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._fill(database)
        assert _run(loaded, "deadletter", "requeue", "--all") == Exit.CANNOT_GO_ON, "two of them cannot be"
        written = capsys.readouterr()
        assert written.out == "1 to be sent again, 2 with their 2 repos, which will be delivered again\n"
        assert "a frame of the firehose cannot be sent" in written.err
        assert "its repo is not tracked" in written.err
        assert self._left(database) == {"newest": True, "stranger": False, "77": False}
        assert _rows(database) == {A: ("pending", "resync", True), B: ("pending", "resync", True)}

    def test_letters_are_chosen_by_id_did_and_reason(
        self, loaded: Loaded, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._fill(database)
        assert _run(loaded, "deadletter", "requeue", "--did", B, "--reason", "rejected") == Exit.OK
        assert "0 to be sent again, 1 with their 1 repo," in capsys.readouterr().out
        assert _run(loaded, "deadletter", "requeue", "1") == Exit.OK
        assert _run(loaded, "deadletter", "requeue", "999") == Exit.CANNOT_GO_ON
        assert "999: there is no such dead letter" in capsys.readouterr().err
        assert self._left(database)["newest"] is True
        with pytest.raises(ConfigError, match="name the letters"):
            _run(loaded, "deadletter", "requeue")

    def test_a_refusal_ends_the_wish(self, loaded: Loaded, database: Database) -> None:
        self._fill(database)
        _run(loaded, "deadletter", "requeue", "1")
        with database.transaction("refused again") as cur:
            dead_letters.add_many(cur, [self._letter(A, "newest")])
        assert self._left(database)["newest"] is False
