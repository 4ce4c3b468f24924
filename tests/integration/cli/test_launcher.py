"""bin/relay as a user runs it: which Python, which exit code, what is said when something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LAUNCHER = ROOT / "bin" / "relay"
BARE = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}


def _run(*words: str, program: Path = LAUNCHER, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), *words],
        env={**BARE, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        check=False,
    )


def test_a_wrong_configuration_is_exit_code_2_with_every_mistake(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text("relay:\n  nmae: x\nbackfiller: {slots: 1}\n")
    result = _run("--config", str(file), "config", "check")
    assert result.returncode == 2
    assert f"{file}:2: relay.nmae: no such key (did you mean name?)" in result.stderr
    assert f"{file}:3: backfiller.slots: 1 is too small" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "ftp://pds.example"], "--host ftp://pds.example: scheme ftp://"),
        (["--did", "did:plc:x"], "--did: not a did:plc or did:web: 'did:plc:x'"),
        (["--collection", "app.bsky."], "--collection: not an NSID: app.bsky."),
        (["--dids-file", "/nonexistent/dids"], "/nonexistent/dids: cannot be read"),
        (["--all"], "nobody to ask"),
    ],
    ids=lambda each: each[0],
)
def test_targets_that_cannot_be_are_exit_code_2_before_anything_is_started(
    words: list[str], said: str, tmp_path: Path
) -> None:
    result = _run("backfill", *words, DATA_DIR=str(tmp_path), FIREHOSE_HOST="")
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_that_cannot_be_made_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _run("backfill", "--all", DATA_DIR=str(tmp_path / "file" / "data"))
    assert result.returncode == 2
    assert f"relay.data_dir: {tmp_path}/file/data cannot be made" in result.stderr
    assert "Traceback" not in result.stderr


def test_config_show_prints_what_is_in_force(tmp_path: Path) -> None:
    result = _run("config", "show", WORKERS="3", DATABASE_DSN="postgresql://u:hunter2@h/d")
    assert result.returncode == 0
    assert "environment WORKERS" in result.stdout
    assert "hunter2" not in result.stdout + result.stderr


def test_no_state_is_exit_code_1_with_the_reason(tmp_path: Path) -> None:
    result = _run("status", "--json", DATA_DIR=str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert "no state yet" in result.stderr
    assert "Traceback" not in result.stderr


def test_imported_as_a_child_does_it_does_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("")
    code = (
        f"import runpy, sys; runpy.run_path({str(empty)!r})\n"
        "before = set(sys.modules)\n"
        f"runpy.run_path({str(LAUNCHER)!r}, run_name='__mp_main__')\n"
        "print(sorted(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the launcher and the package, without an environment beside it."""
    (tmp_path / "bin").mkdir()
    shutil.copy(LAUNCHER, tmp_path / "bin" / "relay")
    os.symlink(ROOT / "relay", tmp_path / "relay")
    return tmp_path


def test_without_the_dependencies_it_says_what_to_do(checkout: Path) -> None:
    system_python = sys.base_prefix + f"/bin/python3.{sys.version_info.minor}"
    result = subprocess.run(
        [system_python, "-I", str(checkout / "bin" / "relay"), "config", "show"],
        env=BARE, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "run `make setup` first" in result.stderr
    assert "Traceback" not in result.stderr


def test_it_continues_in_the_environment_beside_it(checkout: Path) -> None:
    environment = checkout / ".venv" / "bin"
    environment.mkdir(parents=True)
    python = environment / "python"
    python.write_text('#!/bin/sh\necho "in the environment: $2 $3"\n')
    python.chmod(0o755)
    result = _run("config", "show", program=checkout / "bin" / "relay")
    assert result.stdout == "in the environment: config show\n"


def test_an_environment_that_is_not_one_does_not_start_itself_for_ever(checkout: Path) -> None:
    environment = checkout / ".venv" / "bin"
    environment.mkdir(parents=True)
    os.symlink(sys.executable, environment / "python")
    result = _run("config", "check", program=checkout / "bin" / "relay")
    assert result.returncode in (0, 1)
