"""`status` and `repos`: of a running instance, of a stopped one, and when there is nothing to read."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.admin.http import AdminHttp
from relay.cli import db, repos, status
from relay.cli.exits import Exit
from relay.config.load import Loaded, load
from relay.errors import StoreAway, StoreError
from relay.model import RepoState
from relay.observe.metrics import Metrics
from relay.observe.status import Phase, StatusSnapshot
from relay.store import batches, incidents, instances, partitions
from relay.store import repos as repo_table
from relay.store.pool import Database

LAUNCHER = Path(__file__).parents[3] / "bin" / "relay"
NOW = 1_790_000_000.0


def _loaded(dsn: str, **environ: str) -> Loaded:
    return load(None, {"HOME": "/nonexistent", "DATABASE_DSN": dsn, **environ}, usual_files=())


def _run(module: Any, loaded: Loaded, *words: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_parser(parser.add_subparsers(dest="command", required=True))
    return int(module.run(parser.parse_args([module.__name__.rpartition(".")[2], *words]), loaded))


def _status(loaded: Loaded, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert _run(status, loaded, "--json") == Exit.OK
    (line,) = capsys.readouterr().out.splitlines()
    values: dict[str, Any] = json.loads(line)
    return values


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with five repos: two synced, one quarantined, one pending, one removed."""
    names = ["did:plc:a", "did:plc:b", "did:plc:c", "did:plc:d", "did:plc:e"]
    with database.transaction("fill") as cur:
        batch, _ = batches.open_batch(cur, "test", NOW)
        entries = [repo_table.Discovered(did=name, rev="3kaaaaaaaaa2a") for name in names]
        repo_table.upsert_discovered(cur, entries, batch=batch, named=True, partitions=64, now=NOW)
        rows = repo_table.load(cur, names)
        for name, state, reason, records in (
            ("did:plc:a", RepoState.SYNCED, None, 12),
            ("did:plc:b", RepoState.SYNCED, None, 30),
            ("did:plc:c", RepoState.QUARANTINED, "bad_signature", 0),
            ("did:plc:d", RepoState.PENDING, None, 0),
        ):
            row = rows[name]
            row.state, row.reason, row.records, row.rev = state, reason, records, "3kaaaaaaaaa2a"
            row.host = "https://one.example" if name < "did:plc:c" else "https://two.example"
            row.bytes, row.attempts, row.last_error = 1000, 3, "why"
            repo_table.store_rows(cur, [row])
        repo_table.remove(cur, ["did:plc:e"])
        partitions.store_cursor(cur, "wss://up.example", 77, None)
        incidents.open_incident(cur, "hole", "events are missing", time.time())
    return database


@pytest.fixture
def running(migrated_dsn: str) -> Iterator[AdminHttp]:
    """The HTTP side of a running instance, which shows 123 records."""
    snapshot = StatusSnapshot(instance="the running one", phase=Phase.RUNNING, records_delivered=123, pid=os.getpid())
    server = AdminHttp(
        "127.0.0.1",
        0,
        health=lambda: (200, "ok"),
        ready=lambda: (200, "ok"),
        snapshot=lambda: snapshot,
        metrics=Metrics(version="0").render,
    )
    server.start()
    yield server
    server.request_stop()
    assert server.join(time.monotonic() + 10)


def _register(database: Database, address: str | None, **changes: Any) -> int:
    values: dict[str, Any] = {
        "name": "x", "command": "run", "pid": os.getpid(), "host": "here", "version": "0", "phase": "running",
        "started_at": NOW, "metrics_address": address, **changes,
    }  # fmt: skip
    with database.transaction("register") as cur:
        return instances.register(cur, **values)


def _closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def test_without_an_instance_the_database_speaks(
    filled: Database, migrated_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = _loaded(migrated_dsn, INGESTER_ADDRESSES="one:1", RELAY_NAME="mine")
    values = _status(loaded, capsys)
    assert (values["instance"], values["phase"]) == ("mine", "stopped")
    counts = {"synced": 2, "quarantined": 1, "pending": 1}
    assert values["repos"] == {state.value: counts.get(state.value, 0) for state in RepoState}
    assert (values["records_delivered"], values["bytes_fetched"]) == (42, 4000)
    assert values["rates"] == {"repos_per_s": None, "records_per_s": None, "bytes_per_s": None}
    assert (values["firehose"]["cursor"], values["firehose"]["seq"], values["firehose"]["connected"]) == (
        77,
        None,
        False,
    )
    assert [(each["address"], each["healthy"]) for each in values["ingesters"]] == [("one:1", False)]
    (incident,) = values["incidents"]
    assert (incident["kind"], incident["text"], incident["closed_at"]) == ("hole", "events are missing", None)


def test_a_running_instance_speaks_for_itself(
    filled: Database, migrated_dsn: str, running: AdminHttp, capsys: pytest.CaptureFixture[str]
) -> None:
    _register(filled, f"127.0.0.1:{_closed_port()}")  # one that was killed
    _register(filled, f"0.0.0.0:{running.address[1]}")
    values = _status(_loaded(migrated_dsn), capsys)
    assert (values["instance"], values["records_delivered"]) == ("the running one", 123)


def test_somebody_else_on_the_port_of_a_dead_instance_is_not_believed(
    filled: Database, migrated_dsn: str, running: AdminHttp, capsys: pytest.CaptureFixture[str]
) -> None:
    _register(filled, f"127.0.0.1:{running.address[1]}", pid=os.getpid() + 1)
    assert _status(_loaded(migrated_dsn), capsys)["phase"] == "stopped"


def test_a_stand_by_does_not_speak_for_the_one_that_works(
    filled: Database, migrated_dsn: str, running: AdminHttp, capsys: pytest.CaptureFixture[str]
) -> None:
    _register(filled, f"127.0.0.1:{running.address[1]}", started_at=NOW - 100)
    told = json.loads(StatusSnapshot(instance="the stand-by", phase=Phase.STANDBY).to_json())
    standby = _register(filled, None, phase="standby", started_at=NOW)
    with filled.transaction("heartbeat") as cur:
        instances.heartbeat(cur, standby, "standby", status=told)
    assert _status(_loaded(migrated_dsn), capsys)["instance"] == "the running one"


def test_an_instance_that_cannot_be_reached_is_shown_as_of_its_heartbeat(
    filled: Database, migrated_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads(StatusSnapshot(instance="far away", phase=Phase.RUNNING, records_delivered=5).to_json())
    instance = _register(filled, f"127.0.0.1:{_closed_port()}", host="elsewhere")
    with filled.transaction("heartbeat") as cur:
        instances.heartbeat(cur, instance, "running", status=told, metrics_address=f"127.0.0.1:{_closed_port()}")
    values = _status(_loaded(migrated_dsn), capsys)
    assert (values["instance"], values["phase"], values["records_delivered"]) == ("far away", "running", 5)
    assert "elsewhere does not answer from here" in values["reason"]


def test_a_killed_instance_of_this_machine_does_not_live_on_in_its_heartbeat(
    filled: Database, migrated_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    told = json.loads(StatusSnapshot(instance="killed", phase=Phase.RUNNING).to_json())
    address = f"127.0.0.1:{_closed_port()}"
    instance = _register(filled, address, host=socket.gethostname(), pid=int(gone.stdout))
    with filled.transaction("heartbeat") as cur:
        instances.heartbeat(cur, instance, "running", status=told, metrics_address=address)
    assert _status(_loaded(migrated_dsn), capsys)["phase"] == "stopped"


def test_for_people_the_status_is_plain_text_when_piped(
    filled: Database, migrated_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(status, _loaded(migrated_dsn)) == Exit.OK
    out = capsys.readouterr().out
    assert "tradr-relay stopped" in out
    assert "2 synced" in out
    assert "1 quarantined" in out
    assert "events are missing" in out
    assert "\x1b" not in out


def test_an_empty_database_has_a_status(
    database: Database, migrated_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = _status(_loaded(migrated_dsn), capsys)
    assert (values["phase"], values["records_delivered"], values["firehose"]["cursor"]) == ("stopped", 0, None)


def test_no_state_is_an_error_that_says_where_it_was_looked_for(tmp_path: Path) -> None:
    loaded = load(None, {"HOME": "/nonexistent", "DATA_DIR": str(tmp_path)}, usual_files=())
    for module, words in ((status, ()), (repos, ("list",)), (repos, ("show", "did:plc:a"))):
        with pytest.raises(StoreError, match=f"no state yet: there is no database in {tmp_path}/pg"):
            _run(module, loaded, *words)
    assert list(tmp_path.iterdir()) == []  # looking creates nothing


def test_a_database_that_does_not_answer_is_an_error_without_its_password(tmp_path: Path) -> None:
    loaded = _loaded(f"postgresql://u:hunter2@127.0.0.1:{_closed_port()}/d")
    with pytest.raises(StoreAway) as caught:
        _run(status, loaded)
    assert "hunter2" not in str(caught.value)


def test_repos_list_is_one_object_a_line(
    filled: Database, migrated_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(repos, _loaded(migrated_dsn), "list", "--json") == Exit.OK
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["did"] for each in objects] == ["did:plc:a", "did:plc:b", "did:plc:c", "did:plc:d"]
    assert objects[2] == {
        "did": "did:plc:c", "state": "quarantined", "reason": "bad_signature", "rev": "3kaaaaaaaaa2a",
        "host": "https://two.example", "attempts": 3, "records": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--state", "synced"], "ab"),
        (["--state", "quarantined", "--state", "pending"], "cd"),
        (["--host", "https://one.example"], "ab"),
        (["--host", "two.example"], "cd"),
        (["--host", "two.example", "--state", "pending"], "d"),
        (["--limit", "3"], "abc"),
        (["--state", "failed"], ""),
    ],
)
def test_repos_list_selects(
    words: list[str], expected: str, filled: Database, migrated_dsn: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(repos, "_PAGE", 2)  # so that there is more than one page
    assert _run(repos, _loaded(migrated_dsn), "list", *words) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert "".join(line.split()[0][-1] for line in lines) == expected


@pytest.mark.parametrize("words", [["--state", "asleep"], ["--limit", "0"], ["--limit", "x"], ["--host", "a b"]])
def test_a_wrong_flag_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _run(repos, _loaded("host=nowhere"), "list", *words)
    assert caught.value.code == Exit.USAGE


def test_repos_show_tells_everything_and_names_what_is_not_known(
    filled: Database, migrated_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = _run(repos, _loaded(migrated_dsn), "show", "did:plc:c", "did:plc:nobody", "did:plc:e")
    out, err = capsys.readouterr()
    assert code == Exit.CANNOT_GO_ON
    assert err == "did:plc:nobody: not known here\n"
    for text in (
        "did:plc:c\n",
        "bad_signature",
        "https://two.example",
        "last_error         why",
        "did:plc:e  (removed",
    ):
        assert text in out
    assert _run(repos, _loaded(migrated_dsn), "show", "--json", "did:plc:a") == Exit.OK
    entry = json.loads(capsys.readouterr().out)
    assert (entry["state"], entry["records"], entry["tracked"]) == ("synced", 12, True)


def test_db_migrate_brings_an_empty_database_up_to_date_once(
    database_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(db, _loaded(database_dsn), "migrate") == Exit.OK
    assert capsys.readouterr().out.startswith("applied 0001 ")
    assert _run(db, _loaded(database_dsn), "migrate") == Exit.OK
    assert capsys.readouterr().out == "the schema is up to date\n"


def test_watching_without_a_terminal_is_a_line_a_second_until_ctrl_c(database: Database, migrated_dsn: str) -> None:
    program = subprocess.Popen(
        [sys.executable, str(LAUNCHER), "status", "--watch", "--json"],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "DATABASE_DSN": migrated_dsn},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        assert [json.loads(program.stdout.readline())["phase"] for _ in range(2)] == ["stopped", "stopped"]
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=30)
    finally:
        program.kill()
        program.communicate()
    assert (program.returncode, err) == (0, "")
