"""Running `bin/relay` as a user does: a process group of its own, its output line by line, its children, and kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
_MAX_LINES = 50_000
_CLEAN = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TERM", "VIRTUAL_ENV", "COVERAGE_PROCESS_CONFIG")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A process as /proc shows it. `name` is what it calls itself (15 characters at most)."""

    pid: int
    parent: int
    name: str
    state: str
    command: str


def processes() -> dict[int, ProcessInfo]:
    """Return every process of the machine that is not a zombie, by pid."""
    found: dict[int, ProcessInfo] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # gone meanwhile
                stat = Path(f"/proc/{entry}/stat").read_text()
                command = (
                    Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
                name = stat[stat.index("(") + 1 : stat.rindex(")")]
                state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
                if state not in "ZX":
                    found[int(entry)] = ProcessInfo(
                        pid=int(entry), parent=int(parent), name=name, state=state, command=command
                    )
    return found


def descendants(pid: int) -> list[ProcessInfo]:
    """Return the children of a process, their children, and so on, parents first."""
    everything = processes()
    found: list[ProcessInfo] = []
    parents = [pid]
    while parents:
        generation = [info for info in everything.values() if info.parent in parents]
        found += generation
        parents = [info.pid for info in generation]
    return found


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] not in "ZX"


class Program:
    """A started program. Output is read by two threads, at most 50,000 lines each; `stop` ends the whole process group."""

    def __init__(self, command: list[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        """`env`: in addition to PATH, HOME and the like of this process; nothing else is passed on."""
        environment = {name: os.environ[name] for name in _CLEAN if name in os.environ} | dict(env or {})
        self.command = command
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.out: list[str] = []
        self.err: list[str] = []
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=_read_lines, args=(stream, lines), daemon=True, name=f"reader-{self.pid}")
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def wait(self, deadline_s: float = 60.0) -> int:
        """Wait for its end and return the exit code (negative: the signal). Raise with its output when it does not end."""
        try:
            code = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline_s:g} s: {self}") from None
        for reader in self._readers:
            reader.join(5.0)
        return code

    def wait_for_line(self, pattern: str, *, deadline_s: float = 30.0) -> re.Match[str]:
        """Return the first match in the lines of either output. Raise with the output when it ends or none comes."""
        found: list[re.Match[str]] = []

        def seen() -> bool:
            lines = [*self.out, *self.err]
            found.extend(match for line in lines if (match := re.search(pattern, line)))
            return bool(found) or self.process.poll() is not None

        wait_until(seen, f"a line matching {pattern!r} in the output of {self}", deadline_s=deadline_s)
        if not found:
            for reader in self._readers:
                reader.join(5.0)
            seen()
        assert found, f"ended without a line matching {pattern!r}: {self}"
        return found[0]

    def is_running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program itself, as `kill` does."""
        self.process.send_signal(number)

    def interrupt(self) -> None:
        """Ctrl-C: SIGINT to the whole process group, as a terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the program alone; its children are on their own."""
        self.process.kill()
        self.process.wait(10.0)

    def children(self) -> list[ProcessInfo]:
        return descendants(self.pid)

    def kill_child(self, role: str) -> int | None:
        """SIGKILL one descendant whose name or command line contains `role`; its pid, or None when there is none."""
        for info in self.children():
            if role in info.name or role in info.command:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(info.pid, signal.SIGKILL)
                    return info.pid
        return None

    def stop(self) -> None:
        """End the program, and every process that it has left behind."""
        left = [info.pid for info in self.children()]
        for pid in (self.pid, *left):
            with contextlib.suppress(ProcessLookupError):
                if pid != self.pid or self.is_running():
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(10.0)
        for reader in self._readers:
            reader.join(5.0)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def __str__(self) -> str:
        state = "running" if self.is_running() else f"exit code {self.process.returncode}"
        tail = "\n".join(["stdout:", *self.out[-20:], "stderr:", *self.err[-40:]])
        return f"{' '.join(self.command)} ({state})\n{tail}"


def _read_lines(stream: IO[bytes], lines: list[str]) -> None:
    with contextlib.suppress(ValueError):  # closed by `stop`
        for line in stream:
            if len(lines) < _MAX_LINES:
                lines.append(line.decode(errors="replace").rstrip("\n"))


RunRelay = Callable[..., Program]


@pytest.fixture
def run_relay(tmp_path: Path) -> Iterator[RunRelay]:
    """A function that starts `bin/relay` with arguments in a folder of the test, with DATA_DIR there; all end with the test."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Program:
            base = {
                "DATA_DIR": str(tmp_path / "data"),
                "ALLOW_PRIVATE_HOSTS": "true",
                "METRICS_PORT": "0",
                "GRPC_PORT": "0",
            }
            command = [sys.executable, str(ROOT / "bin" / "relay"), *arguments]
            program = Program(command, env={**base, **dict(env or {})}, cwd=cwd or tmp_path)
            stack.callback(program.stop)
            return program

        yield run


def json_of(program: Program) -> Any:
    """Return what a program that has ended printed as one JSON document."""
    return json.loads("\n".join(program.out))
