"""The ingesters of docs/examples, in three languages, as programs. One whose toolchain or packages are not here is skipped, and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

import pytest
from psycopg2.extensions import parse_dsn

from tests.support.processes import ROOT, Program

FOLDER = ROOT / "docs" / "examples"
LANGUAGES = ("python", "go", "typescript")
_BUILD_DEADLINE_S = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """How one is started: `command` takes the address and the store (a file's path, or a DSN) as two more words."""

    language: str
    command: tuple[str, ...]

    @property
    def takes_dsn(self) -> bool:
        return self.language != "python"

    def start(self, address: str, store: str, *, env: Mapping[str, str] | None = None) -> Program:
        """Start it and return when it listens."""
        command = [*self.command, address, store]
        program = Program(command, env={"PYTHONPATH": str(ROOT), **dict(env or {})})
        program.wait_for_line(r"^listening on port \d+$")
        return program


@cache
def example(language: str) -> Example:
    """Return it, built. Skip the test when its toolchain or its packages are absent: nothing is downloaded here."""
    builders: dict[str, Callable[[], tuple[str, ...]]] = {
        "python": lambda: (sys.executable, "-W", "error", str(FOLDER / "python" / "ingester.py")),
        "go": _built_go,
        "typescript": _built_typescript,
    }
    return Example(language=language, command=builders[language]())


def url_of(dsn: str) -> str:
    """Return a libpq connection string as the URL that every language's driver reads."""
    parts = parse_dsn(dsn)
    return f"postgresql:///{parts.pop('dbname')}?{urlencode(parts)}"


def _built_go() -> tuple[str, ...]:
    if shutil.which("go") is None:
        pytest.skip("no go: the Go example is not tried")
    folder = FOLDER / "go"
    binary = _build_folder() / "ingester-go"
    offline = {**os.environ, "GOPROXY": "off", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local"}
    if _run(["go", "list", "-deps", "./..."], folder, offline).returncode != 0:
        pytest.skip("the Go example's packages are not here: run `go mod download` in docs/examples/go")
    built = _run(["go", "build", "-o", str(binary), "."], folder, offline)
    assert built.returncode == 0, built.stderr
    return (str(binary),)


def _built_typescript() -> tuple[str, ...]:
    folder = FOLDER / "typescript"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node: the TypeScript example is not tried")
    if not (folder / "node_modules").is_dir():
        pytest.skip("the TypeScript example's packages are not here: run `npm ci` in docs/examples/typescript")
    program = folder / "dist" / "ingester.js"
    sources = (folder / "ingester.ts", folder / "package-lock.json", ROOT / "proto" / "ingester.proto")
    if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        built = _run(["npm", "run", "build"], folder, dict(os.environ))
        assert built.returncode == 0, built.stdout + built.stderr
    return ("node", str(program))


def _build_folder() -> Path:
    folder = ROOT / "build" / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(command: list[str], folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=_BUILD_DEADLINE_S, check=False
    )
