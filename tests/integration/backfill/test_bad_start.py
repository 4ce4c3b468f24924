"""What keeps a backfill from beginning: each with a message that names it, and the exit code of the manual."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.processes import Program, RunRelay

UNREACHABLE = {"PLC_URL": "http://localhost:9", "FIREHOSE_HOST": "http://localhost:9"}
NOBODY = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody listens on, and never answers at."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]


def _message(program: Program, code: int) -> str:
    """Return what it said to people, once it has ended with `code`: no traceback."""
    assert program.wait(60) == code, str(program)
    text = "\n".join(program.err)
    assert "Traceback" not in text, text
    return text


def test_a_bad_line_of_a_dids_file_is_named_with_its_number(run_relay: RunRelay, tmp_path: Path) -> None:
    path = tmp_path / "dids.txt"
    path.write_text(f"# good ones\n\n{NOBODY}\n{NOBODY}  # twice\nat://{NOBODY}\n")
    said = _message(run_relay("backfill", "--dids-file", str(path), env=UNREACHABLE), 2)
    assert f"{path}:5:" in said
    assert f"'at://{NOBODY}'" in said
    assert not (tmp_path / "data" / "pg").exists(), "a mistake must be found before anything is started"


def test_a_key_that_does_not_exist_is_named_with_its_place(run_relay: RunRelay, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("relay:\n  name: mine\nbackfiller:\n  paralel_backfills: 3\n")
    said = _message(run_relay("backfill", "--did", NOBODY, "--config", str(path), env=UNREACHABLE), 2)
    assert f"{path}:4: backfiller.paralel_backfills: no such key" in said
    assert "parallel_backfills" in said.replace("paralel_backfills", "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--dids-file"),
        (("--did", "did:plc:short"), "did:plc:short"),
        (("--collection", "not an nsid"), "not an nsid"),
        (("--did", NOBODY, "--all"), "--all"),
        (("--dids-file", "/nonexistent/dids"), "/nonexistent/dids"),
    ],
    ids=["no target", "bad DID", "bad collection", "two kinds of targets", "no such file"],
)
def test_a_wrong_command_line_is_told_and_ends_with_2(
    run_relay: RunRelay, arguments: tuple[str, ...], named: str
) -> None:
    assert named in _message(run_relay("backfill", *arguments, env=UNREACHABLE), 2)


def test_a_database_that_refuses_is_named_without_its_password(run_relay: RunRelay) -> None:
    dsn = "postgresql://relay:verysecret@127.0.0.1:9/relay"
    said = _message(run_relay("backfill", "--did", NOBODY, env={**UNREACHABLE, "DATABASE_DSN": dsn}), 1)
    assert "127.0.0.1" in said
    assert "refused" in said.lower()
    assert "verysecret" not in said


def test_a_database_that_accepts_and_is_silent_is_given_up(run_relay: RunRelay, taken_port: int) -> None:
    dsn = f"postgresql://relay:verysecret@127.0.0.1:{taken_port}/relay"
    said = _message(run_relay("backfill", "--did", NOBODY, env={**UNREACHABLE, "DATABASE_DSN": dsn}), 1)
    assert str(taken_port) in said
    assert "timeout" in said.lower()
    assert "verysecret" not in said


def test_a_metrics_port_that_is_in_use_is_named_and_nothing_is_left_behind(
    run_relay: RunRelay, migrated_dsn: str, taken_port: int
) -> None:
    program = run_relay(
        "backfill",
        "--did",
        NOBODY,
        env={**UNREACHABLE, "DATABASE_DSN": migrated_dsn, "METRICS_PORT": str(taken_port)},
    )
    children = {info.pid: info.name for info in program.children()}
    said = _message(program, 1)
    assert f"127.0.0.1:{taken_port}" in said
    assert "in use" in said.lower()
    assert not program.children(), children
