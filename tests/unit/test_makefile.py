"""The Makefile has the targets that are promised, each is understood, and each says what it is for."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Makefile").read_text("utf-8")
TARGETS = (
    "deps", "proto-deps", "proto", "build", "run", "test", "test-coverage", "fmt", "lint", "check", "docker-build",
    "docker-run", "docker-compose-up", "docker-compose-logs", "docker-compose-down", "health", "install", "uninstall",
    "setup", "demo", "test-faults", "test-interop", "bench", "clean",
)  # fmt: skip


def _make(*words: str) -> subprocess.CompletedProcess[str]:
    # Started by make itself it would be told that it is a part of that one.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *words], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_there_and_can_be_planned(target: str) -> None:
    planned = _make("--dry-run", target)
    assert planned.returncode == 0, planned.stderr


def test_help_lists_every_target() -> None:
    listed = set(re.findall(r"^  ([a-z-]+) ", _make("help").stdout, re.MULTILINE))
    assert set(TARGETS) <= listed


def test_no_file_of_that_name_can_stand_in_the_way() -> None:
    phony = set(re.sub(r"\\\n", " ", TEXT).split(".PHONY:")[1].split("\n")[0].split())
    assert set(re.findall(r"^([a-z-]+):", TEXT, re.MULTILINE)) == phony


def test_run_without_arguments_is_the_service() -> None:
    plan = _make("--dry-run", "run", "--old-file=.venv/.installed").stdout.strip()
    assert plan.splitlines()[-1].strip() == "bin/relay"
