"""Every sink that keeps something, against the naive ingester: any history, cut into any batches and transactions."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings

from relay.ingester.errors import SinkAway, SinkFailed
from relay.ingester.sinks.base import Sink, SinkUrl
from relay.ingester.sinks.choose import make_sink
from relay.ingester.sinks.jsonl import JsonlSink
from relay.ingester.sinks.postgresql import PostgresqlSink
from relay.pb import ingester_pb2 as pb
from tests.integration.ingester.tables import (
    jsonl_operations,
    jsonl_tables,
    postgresql_tables,
    prepared,
    sqlite_tables,
)
from tests.support.postgres import Server
from tests.unit.ingester.naive import PATHS, Accounts, NaiveIngester, Rows, cut, groupings, histories

DID = "did:plc:aaa"

# The fixtures are emptied for each example by the test itself.
against_real_files = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def store(sink: Sink, *groups: list[list[pb.Operation]]) -> None:
    for group in groups:
        sink.store([prepared(sink, batch) for batch in group])


def naive_after(history: list[pb.Operation]) -> tuple[Rows, Accounts]:
    naive = NaiveIngester()
    for op in history:
        naive.apply(op)
    return naive.rows, naive.accounts()


def create(path: str, rev: str, cid: str = "bafy1", did: str = DID, record: str = "{}") -> pb.Operation:
    collection, _, rkey = path.partition("/")
    return pb.Operation(
        type=pb.CREATE, did=did, collection=collection, rkey=rkey, rev=rev, cid=cid, record_json=record, time_us=1
    )


def snapshot(rev: str, paths: tuple[str, ...] = PATHS, did: str = DID) -> list[pb.Operation]:
    begin = pb.Operation(type=pb.REPO_BEGIN, did=did, rev=rev)
    end = pb.Operation(type=pb.REPO_END, did=did, rev=rev)
    return [begin, *(create(path, rev, did=did) for path in paths), end]


@pytest.fixture
def postgresql(database_dsn: str) -> Iterator[PostgresqlSink]:
    sink = PostgresqlSink(database_dsn)
    sink.open()
    yield sink
    sink.close()


@against_real_files
@given(history=histories(), grouping=groupings())
def test_postgresql_ends_where_one_operation_after_the_other_ends(
    postgresql: PostgresqlSink, database_dsn: str, history: list[pb.Operation], grouping: list[int]
) -> None:
    empty(database_dsn)
    postgresql.open()
    store(postgresql, *cut(history, grouping))
    assert postgresql_tables(database_dsn) == naive_after(history)


def empty(dsn: str) -> None:
    with contextlib.closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE account, record")


@against_real_files
@given(history=histories(), grouping=groupings())
def test_sqlite_ends_where_one_operation_after_the_other_ends(history: list[pb.Operation], grouping: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        sink = make_sink(f"sqlite://{path}")
        sink.open()
        store(sink, *cut(history, grouping))
        sink.close()
        assert sqlite_tables(path) == naive_after(history)


@against_real_files
@given(history=histories(), grouping=groupings())
def test_the_jsonl_log_read_back_by_the_rules_ends_there_too(history: list[pb.Operation], grouping: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sink = make_sink(f"jsonl:{folder}")
        sink.open()
        store(sink, *cut(history, grouping))
        sink.close()
        assert jsonl_tables(Path(folder)) == naive_after(history)


# PostgreSQL: the fast way in


def test_a_snapshot_of_a_new_did_is_copied_and_a_second_one_merged(postgresql: PostgresqlSink) -> None:
    half = len(PATHS) // 2
    first = snapshot("3ka")
    store(postgresql, [first[:half]], [first[half:]])
    assert postgresql.details()["rows_copied"] == str(len(PATHS))
    store(postgresql, [snapshot("3kb")])
    assert postgresql.details() == {
        "late_operations": "0",
        "rows_copied": str(len(PATHS)),
        "rows_merged": str(len(PATHS)),
    }


def test_every_kind_of_statement_runs_on_every_installed_version(each_postgres_server: Server) -> None:
    name = each_postgres_server.create()
    dsn = each_postgres_server.dsn(name)
    sink = PostgresqlSink(dsn)
    sink.open()
    delete = pb.Operation(type=pb.DELETE, did=DID, collection="a.b.c", rkey="k1", rev="3kc")
    partly = pb.Operation(type=pb.REPO_END, did=DID, rev="3kd", nsid_filter=["a.b.c", "a.x."])
    gone = pb.Operation(type=pb.ACCOUNT, did="did:plc:gone", account=pb.AccountStatus(status="deleted"))
    run = [*snapshot("3ka"), *snapshot("3kb"), delete, partly, *snapshot("3ka", did="did:plc:gone"), gone]
    for op in run:
        store(sink, [[op]])
    sink.close()
    assert postgresql_tables(dsn) == naive_after(run)
    each_postgres_server.drop(name)


def test_a_snapshot_that_begins_again_is_not_copied_twice(postgresql: PostgresqlSink, database_dsn: str) -> None:
    run = snapshot("3ka")
    store(postgresql, [run[:4]], [run])
    assert postgresql_tables(database_dsn) == naive_after(run[:4] + run)


def test_the_end_of_a_newer_snapshot_sweeps_what_an_interrupted_one_copied(
    postgresql: PostgresqlSink, database_dsn: str
) -> None:
    interrupted, newer = snapshot("3ka", PATHS[:2])[:-1], snapshot("3kb", PATHS[3:])
    store(postgresql, [interrupted], [newer])
    assert postgresql_tables(database_dsn) == naive_after(interrupted + newer)


def test_the_end_of_a_snapshot_sweeps_older_live_rows_of_a_new_did(
    postgresql: PostgresqlSink, database_dsn: str
) -> None:
    live = [create(PATHS[0], "3ka"), create(PATHS[1], "3kb")]
    end = pb.Operation(type=pb.REPO_END, did=DID, rev="3kb")
    store(postgresql, [live], [[end]])
    assert postgresql_tables(database_dsn) == naive_after([*live, end])


def test_rows_that_another_ingester_wrote_meanwhile_do_not_stop_a_copy(
    postgresql: PostgresqlSink, database_dsn: str
) -> None:
    run = snapshot("3ka")
    store(postgresql, [run[:3]])
    other = PostgresqlSink(database_dsn)
    other.open()
    store(other, [run])
    other.close()
    store(postgresql, [run[3:]])
    assert postgresql_tables(database_dsn) == naive_after(run)


def test_rows_without_their_account_row_do_not_stop_a_copy(postgresql: PostgresqlSink, database_dsn: str) -> None:
    store(postgresql, [snapshot("3ka")])
    with contextlib.closing(psycopg2.connect(database_dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM account")
    store(postgresql, [snapshot("3kb", PATHS[:2])])
    assert len(postgresql_tables(database_dsn)[0]) == 2


def test_two_ingesters_on_one_database_do_not_lose_or_mix_anything(database_dsn: str) -> None:
    runs = [snapshot(f"3k{number:02}", did=f"did:plc:d{number % 4}") for number in range(40)]
    problems: list[BaseException] = []

    def work(mine: list[list[pb.Operation]]) -> None:
        sink = PostgresqlSink(database_dsn)
        try:
            sink.open()
            for place in range(0, len(mine), 4):
                store(sink, mine[place : place + 4])
        except BaseException as exc:
            problems.append(exc)
        finally:
            sink.close()

    # Both write the same DIDs, in opposite orders.
    threads = [threading.Thread(target=work, args=(half,)) for half in (runs, runs[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems
    rows, accounts = postgresql_tables(database_dsn)
    assert {did: account[0] for did, account in accounts.items()} == {f"did:plc:d{n}": f"3k{36 + n}" for n in range(4)}
    assert {row[1] for (did, _, _), row in rows.items() if did == "did:plc:d1"} == {"3k37"}
    assert len(rows) == 4 * len(PATHS)


def test_json_that_jsonb_cannot_hold_is_stored_as_it_came(postgresql: PostgresqlSink, database_dsn: str) -> None:
    text = '{"a": "\\u0000",\n "b": 1.0e2, "b": "\\ud83e\\udd8b", "n": 123456789012345678901234567890}'
    store(postgresql, [[create(PATHS[0], "3ka", record=text)]])
    rows, _ = postgresql_tables(database_dsn)
    assert [row[3] for row in rows.values()] == [text]


def test_keys_of_the_greatest_length_fit_into_the_index(postgresql: PostgresqlSink, database_dsn: str) -> None:

    rng = random.Random(1)  # PostgreSQL compresses what repeats

    def letters(count: int) -> str:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=count))

    collection = ".".join(letters(63) for _ in range(4)) + "." + letters(61)
    assert len(collection) == 317
    did = "did:web:" + letters(1016)
    store(postgresql, [[create(f"{collection}/{letters(512)}", "3ka", did=did)]])
    assert len(postgresql_tables(database_dsn)[0]) == 1


def test_an_operation_that_postgresql_does_not_take_is_refused_alone(
    postgresql: PostgresqlSink, database_dsn: str
) -> None:
    with contextlib.closing(psycopg2.connect(database_dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("ALTER TABLE record ALTER cid TYPE varchar(9)")
    batches = [
        prepared(postgresql, [pb.Operation(), create(PATHS[0], "3ka"), create(PATHS[1], "3ka", cid="bafy123456")]),
        prepared(postgresql, [create(PATHS[2], "3ka", cid="bafy654321"), create(PATHS[3], "3ka")]),
    ]
    postgresql.store(batches)
    assert {(row[1], row[2]) for row in postgresql_tables(database_dsn)[0]} == {
        tuple(PATHS[0].split("/")),
        tuple(PATHS[3].split("/")),
    }
    assert [[refusal.index for refusal in batch.refusals] for batch in batches] == [[0, 2], [0]]
    assert "value too long" in batches[1].refusals[0].message


def test_tables_of_somebody_else_are_refused_and_left_alone(database_dsn: str) -> None:
    with contextlib.closing(psycopg2.connect(database_dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE account (money int)")
    with pytest.raises(SinkFailed, match=r"table account exists and is not ours.*search_path"):
        PostgresqlSink(database_dsn).open()


def test_a_server_that_does_not_answer_is_away_and_the_password_stays_secret() -> None:
    with pytest.raises(SinkAway, match="does not answer") as caught:
        make_sink("postgresql://me:hunter2@127.0.0.1:1/x").open()
    assert "hunter2" not in str(caught.value)


def test_a_url_that_cannot_be_used_is_told_without_its_password() -> None:
    with pytest.raises(SinkFailed, match="the URL cannot be used") as caught:
        make_sink("postgresql://me:hunter2@h/x?nonsense=1").open()
    assert "hunter2" not in str(caught.value)


def test_a_terminated_session_is_away_and_stores_again_when_opened(
    postgresql: PostgresqlSink, database_dsn: str
) -> None:
    store(postgresql, [snapshot("3ka")[:3]])
    with contextlib.closing(psycopg2.connect(database_dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'relay-ingester'"
        )
    with pytest.raises(SinkAway):
        store(postgresql, [snapshot("3ka")])
    postgresql.open()
    store(postgresql, [snapshot("3ka")])
    assert postgresql_tables(database_dsn) == naive_after(snapshot("3ka"))


# SQLite


def test_sqlite_rolls_back_and_is_away_while_somebody_else_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.db"
    sink = make_sink(f"sqlite://{path}")
    real_connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: real_connect(*args, **{**options, "timeout": 0}))
    sink.open()
    with contextlib.closing(real_connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SinkAway, match="locked"):
            store(sink, [snapshot("3ka")])
    store(sink, [snapshot("3ka")])
    assert sqlite_tables(path) == naive_after(snapshot("3ka"))
    sink.close()


def test_a_file_that_is_no_database_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database at all, but a text of some length\n" * 40)
    with pytest.raises(SinkFailed, match="not a database"):
        make_sink(f"sqlite://{tmp_path}/text.db").open()
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(SinkFailed, match="schema 0"):
        make_sink(f"sqlite://{tmp_path}/other.db").open()


# jsonl


def test_a_line_that_a_crash_cut_short_is_removed_at_the_next_start(tmp_path: Path) -> None:
    sink = make_sink(f"jsonl:{tmp_path}")
    sink.open()
    store(sink, [snapshot("3ka")])
    sink.close()
    file = tmp_path / "operations-00000001.jsonl"
    with file.open("ab") as torn:
        torn.write(b'{"type":"CREATE","did":"' + b"x" * 200_000)
    sink = make_sink(f"jsonl:{tmp_path}")
    sink.open()
    store(sink, [[create(PATHS[0], "3kb")]])
    sink.close()
    assert jsonl_operations(tmp_path) == [*snapshot("3ka"), create(PATHS[0], "3kb")]


def test_the_log_goes_on_in_a_new_file_when_one_is_full(tmp_path: Path) -> None:
    sink = make_sink(f"jsonl:{tmp_path}?rotate_mb=1")
    sink.open()
    record = '{"t":"%s"}' % ("x" * 400_000)
    for number in range(7):
        store(sink, [[create(PATHS[0], f"3k{number}", record=record)]])
    sink.close()
    assert [path.name for path in sorted(tmp_path.glob("*.jsonl"))] == [
        f"operations-0000000{number}.jsonl" for number in (1, 2, 3)
    ]
    assert [op.rev for op in jsonl_operations(tmp_path)] == [f"3k{number}" for number in range(7)]


def test_a_disk_that_is_full_is_away_and_leaves_no_half_line(tmp_path: Path) -> None:
    sink = make_sink(f"jsonl:{tmp_path}")
    sink.open()
    store(sink, [[create(PATHS[0], "3ka")]])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = create(PATHS[1], "3kb", record='{"t":"%s"}' % ("x" * 100_000))

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(SinkAway, match="File too large"):
            store(sink, [[big]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    sink.open()
    store(sink, [[big]])
    sink.close()
    assert jsonl_operations(tmp_path) == [create(PATHS[0], "3ka"), big]


def test_two_ingesters_cannot_write_one_log(tmp_path: Path) -> None:
    first, second = JsonlSink(SinkUrl(f"jsonl:{tmp_path}")), JsonlSink(SinkUrl(f"jsonl:{tmp_path}"))
    first.open()
    with pytest.raises(SinkFailed, match="in use by another ingester"):
        second.open()
    first.close()
    second.open()
    second.close()


@pytest.mark.parametrize("url", ["sqlite:///proc/nowhere/x.db", "jsonl:/proc/nowhere"])
def test_a_place_where_nothing_can_be_written_is_named(url: str) -> None:
    with pytest.raises((SinkFailed, SinkAway), match="/proc/nowhere"):
        make_sink(url).open()


def test_null_counts_by_type_when_asked() -> None:
    sink = make_sink("null:?count=1")
    sink.open()
    store(sink, [snapshot("3ka")])
    assert sink.details() == {"stored_create": str(len(PATHS)), "stored_repo_begin": "1", "stored_repo_end": "1"}
