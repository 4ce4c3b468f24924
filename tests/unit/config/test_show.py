"""`config check` and `config show`."""

from __future__ import annotations

import io
from pathlib import Path

from relay.cli.config import run_check, run_show
from relay.cli.exits import Exit
from relay.config.keys import KEYS
from relay.config.load import load


def test_show_prints_every_key_with_its_origin_and_no_secret(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hunter2")
    environ = {"HOME": "/h", "DATABASE_DSN": "postgresql://u:hunter2@h/d", "GRPC_TOKEN_FILE": str(token)}
    out = io.StringIO()
    assert run_show(load(None, environ, usual_files=()), out) == Exit.OK
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == list(KEYS)
    assert "hunter2" not in out.getvalue()
    dsn = next(line for line in lines if line.startswith("database.dsn"))
    assert dsn.split() == ["database.dsn", "=", "postgresql://u:***@h/d", "#", "environment", "DATABASE_DSN"]


def test_check_says_that_all_is_in_order() -> None:
    out = io.StringIO()
    assert run_check(load(None, {"HOME": "/h", "RELAY_NAMES": "x"}, usual_files=()), out) == Exit.OK
    assert out.getvalue().splitlines() == [
        "warning: environment RELAY_NAMES: no such setting (did you mean RELAY_NAME?)",
        "no configuration file; defaults, environment and flags: in order",
    ]


def test_check_names_a_file_that_is_not_there() -> None:
    out = io.StringIO()
    assert run_check(load(None, {"HOME": "/h", "GRPC_TOKEN_FILE": "/no/such/token"}, usual_files=()), out) == Exit.USAGE
    first = out.getvalue().splitlines()[0]
    assert first == "environment GRPC_TOKEN_FILE: grpc.token_file: /no/such/token: there is no such file"
