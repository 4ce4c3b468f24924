"""`doctor` on a simulated network: all well, and then with one thing after the other broken."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.cli.doctor import examine
from relay.cli.doctor_services import (
    check_clock,
    check_database,
    check_firehose,
    check_ingester,
    check_plc,
    check_upstream,
)
from relay.config.load import Loaded, load
from relay.pb.ingester_pb2 import HealthCheckResponse
from relay.simnet.faults import Fault, FaultKind
from relay.store import instances, partitions
from relay.store.pool import Database
from tests.integration.deliver.stranger import Stranger
from tests.support.simnet import StartNetwork

LAUNCHER = Path(__file__).parents[3] / "bin" / "relay"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def ingester() -> Iterator[Stranger]:
    stranger = Stranger().start()
    yield stranger
    stranger.stop()


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    return {
        "HOME": "/nonexistent", "DATA_DIR": str(tmp_path), "HTTP_CONTACT": "ops@example.org", "METRICS_PORT": "0", "GRPC_PORT": "0",
        "FIREHOSE_HOST": NOWHERE, "PLC_URL": NOWHERE, "WORKERS": "1", "BACKFILLER_MAX_REPO_BYTES": "1048576", **more,
    }  # fmt: skip


def configured(tmp_path: Path, **more: str) -> Loaded:
    return load(None, environ(tmp_path, **more), usual_files=())


def test_with_everything_in_order_there_is_no_problem_and_nothing_was_changed(
    start_simnet: StartNetwork, ingester: Stranger, database: Database, migrated_dsn: str, tmp_path: Path
) -> None:
    network = start_simnet(accounts=2, hosts=1)
    network.write(5)
    with database.transaction("fill") as cur:
        partitions.store_cursor(cur, network.firehose_url, 1, None)
        instances.register(
            cur, name="x", command="run", pid=7, host="here", version="0", phase="running", started_at=1.0,
            metrics_address="127.0.0.1:9090",
        )  # fmt: skip
    loaded = configured(
        tmp_path, FIREHOSE_HOST=network.firehose_url, PLC_URL=network.plc_url, DATABASE_DSN=migrated_dsn,
        INGESTER_ADDRESSES=ingester.address, METRICS_PORT="9090",
    )  # fmt: skip
    found = {each.check: each for each in examine(loaded)}
    assert {
        name: each.text for name, each in found.items() if each.level != "ok" and name not in ("memory", "connections")
    } == {}
    assert found["firehose"].text.startswith("from cursor 1: event ")
    assert "run runs as process 7" in found["instance"].text
    assert "a running instance listens here" in found["metrics port"].text
    assert list(tmp_path.iterdir()) == []
    assert ingester.streams == []


def test_what_is_broken_is_named_each_by_its_own_line(tmp_path: Path) -> None:
    loaded = configured(tmp_path, DATABASE_DSN="postgresql://127.0.0.1:9/none", INGESTER_ADDRESSES="127.0.0.1:9")
    problems = {each.check for each in examine(loaded) if each.level == "problem"}
    assert problems >= {"database", "upstream", "firehose", "plc", "ingester 127.0.0.1:9"}


def test_a_schema_that_waits_for_migrations_is_a_warning_and_stays_as_it_is(database_dsn: str, tmp_path: Path) -> None:
    for _ in range(2):
        findings, known = check_database(configured(tmp_path, DATABASE_DSN=database_dsn).settings)
        (schema,) = [each for each in findings if each.check == "schema"]
        assert schema.level == "warning"
        assert "0001 initial" in schema.text
        assert known.cursor is None


def test_a_schema_of_a_newer_version_is_a_problem(database: Database, migrated_dsn: str, tmp_path: Path) -> None:
    with database.transaction("future") as cur:
        cur.execute("INSERT INTO schema_migration (number, name, checksum) VALUES (9999, 'future', 'x')")
    findings, _ = check_database(configured(tmp_path, DATABASE_DSN=migrated_dsn).settings)
    assert [each.level for each in findings if "9999 future" in each.text] == ["problem"]


def test_more_connections_than_the_server_allows_are_a_warning(migrated_dsn: str, tmp_path: Path) -> None:
    settings = configured(tmp_path, DATABASE_DSN=migrated_dsn, DATABASE_MAX_OPEN_CONNS="5000").settings
    findings, _ = check_database(settings)
    assert [each.level for each in findings if each.check == "connections"] == ["warning"]


def test_an_embedded_database_that_was_never_started_is_not_made(tmp_path: Path) -> None:
    findings, _ = check_database(configured(tmp_path).settings)
    assert [each.level for each in findings] == ["warning"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "level", "words"),
    [(FaultKind.FUTURE_CURSOR, "problem", "FutureCursor"), (FaultKind.OUTDATED_CURSOR, "warning", "older than what")],
)
def test_a_cursor_outside_of_the_window_is_told(
    start_simnet: StartNetwork, tmp_path: Path, kind: FaultKind, level: str, words: str
) -> None:
    network = start_simnet(accounts=2, hosts=1)
    network.write(3)
    network.set_faults([Fault(kind=kind)])
    (found,) = check_firehose(configured(tmp_path, FIREHOSE_HOST=network.firehose_url).settings, 1)
    assert found.level == level
    assert words in found.text


def test_an_upstream_and_a_directory_that_answer_with_errors_are_problems(tmp_path: Path) -> None:
    with answering(500) as url:
        settings = configured(tmp_path, FIREHOSE_HOST=url, PLC_URL=url).settings
        assert [each.level for each in check_upstream(settings)] == ["problem"]
        assert [each.level for each in check_plc(settings)] == ["problem"]
        assert [each.level for each in check_firehose(settings, None)] == ["problem"]


def test_an_upstream_that_limits_us_is_a_warning(tmp_path: Path) -> None:
    with answering(429) as url:
        assert [each.level for each in check_upstream(configured(tmp_path, FIREHOSE_HOST=url).settings)] == ["warning"]


@pytest.mark.parametrize(
    ("date", "level"),
    [
        ("Wed, 21 Oct 2015 07:28:00 GMT", "problem"),
        ("once upon a time", "ok"),
        ("", "ok"),
    ],
)
def test_the_clock_is_compared_with_the_date_of_upstream_whatever_its_status(
    tmp_path: Path, date: str, level: str
) -> None:
    with answering(404, date) as url:
        assert [each.level for each in check_clock(configured(tmp_path, FIREHOSE_HOST=url).settings)] == [level]


def test_without_a_firehose_nothing_is_asked_of_it(tmp_path: Path) -> None:
    settings = configured(tmp_path, FIREHOSE_HOST="").settings
    assert [each.level for each in check_upstream(settings)] == ["ok"]
    assert list(check_firehose(settings, None)) == []


def test_an_ingester_that_does_not_serve_or_does_not_speak_our_proto_is_told(
    ingester: Stranger, tmp_path: Path
) -> None:
    settings = configured(tmp_path, INGESTER_ADDRESSES=ingester.address).settings
    assert [each.level for each in check_ingester(settings, ingester.address)] == ["ok"]
    ingester.health = HealthCheckResponse.NOT_SERVING
    (found,) = check_ingester(settings, ingester.address)
    assert (found.level, found.text) == ("problem", "says that it is not serving told to say so")
    ingester.has_health_check = False
    (found,) = check_ingester(settings, ingester.address)
    assert found.level == "warning"
    assert "HealthCheck" in found.text


def test_the_command_exits_1_with_a_problem_and_2_with_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    env = {**os.environ, **environ(tmp_path)}
    sick = subprocess.run(
        [sys.executable, LAUNCHER, "doctor", "--json"], env=env, capture_output=True, text=True, timeout=90
    )
    assert sick.returncode == 1, sick.stderr
    answer = json.loads(sick.stdout)
    assert answer["ok"] is False
    assert {"check", "level", "text", "advice"} == set(answer["findings"][0])
    wrong = subprocess.run(
        [sys.executable, LAUNCHER, "doctor"], env={**env, "WORKERS": "many"}, capture_output=True, text=True, timeout=90
    )
    assert wrong.returncode == 2
    assert "backfiller.workers" in wrong.stderr


@contextlib.contextmanager
def answering(status: int, date: str | None = None) -> Iterator[str]:
    """A server that answers everything with `status`, and with `date` where it is given ('': without a Date)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if date is None:
                self.send_response(status)
            else:
                self.send_response_only(status)
                if date:
                    self.send_header("Date", date)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
