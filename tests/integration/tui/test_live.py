"""The live view on a real (pseudo-)terminal: what it does to it, and that it gives it back."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("batch_program.py")
ROOT = Path(__file__).parents[3]
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
SHOW_CURSOR = b"\x1b[?25h"


class _Terminal:
    """A program whose stderr is a pseudo-terminal; `seen` is everything that it has written there."""

    def __init__(self, columns: int, lines: int, environ: dict[str, str]) -> None:
        self._master, slave = os.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.seen = b""
        self._changed = threading.Condition()
        self.program = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=slave,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "TERM": "xterm-256color",
                "LANG": "C.UTF-8",
                **environ,
            },
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def tell(self, command: str) -> str:
        """Have the program do something, and return its answer, which says that it has."""
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(command.encode() + b"\n")
        self.program.stdin.flush()
        return self.program.stdout.readline().decode().strip()

    def tell_last(self, command: str) -> int:
        """Have the program do something that ends it; return its exit code, with all of its output seen."""
        assert self.program.stdin is not None
        self.program.stdin.write(command.encode() + b"\n")
        self.program.stdin.close()
        code = self.program.wait(20)
        os.write(self._slave, b"<end>")
        self.wait_for(b"<end>")
        return code

    def wait_for(self, text: bytes, after: int = 0) -> int:
        """Wait until `text` is on the terminal behind place `after`; return where it begins."""
        deadline = time.monotonic() + 20
        with self._changed:
            while (place := self.seen.find(text, after)) < 0:
                assert self._changed.wait(deadline - time.monotonic()), f"no {text!r} in {self.seen[-2000:]!r}"
        return place

    def attributes(self) -> Any:
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        if self.program.poll() is None:
            self.program.kill()
        self.program.wait(20)
        for stream in (self.program.stdin, self.program.stdout):
            if stream is not None:
                stream.close()
        os.close(self._slave)
        self._reader.join(20)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return  # the last user of the other side is gone
            with self._changed:
                self.seen += data
                self._changed.notify_all()


@pytest.fixture
def make() -> Iterator[Any]:
    terminals: list[_Terminal] = []

    def start(columns: int = 80, lines: int = 24, **environ: str) -> _Terminal:
        terminals.append(_Terminal(columns, lines, environ))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def test_the_view_is_drawn_on_the_alternate_screen_and_the_terminal_comes_back_as_it_was(make: Any) -> None:
    terminal = make()
    terminal.tell("start")
    entered = terminal.wait_for(ENTER)
    terminal.wait_for(b"tester", entered)
    terminal.wait_for(b"70.0%", entered)
    terminal.tell("end")
    left = terminal.wait_for(LEAVE, entered)
    terminal.wait_for(SHOW_CURSOR, entered)
    assert terminal.seen.count(ENTER) == terminal.seen.count(LEAVE) == 1
    assert terminal.attributes() == terminal.before
    assert terminal.tell_last("quit") == 0
    assert b"tester" not in terminal.seen[left:]


def test_what_is_written_to_stderr_meanwhile_shows_in_the_view_and_what_matters_of_it_afterwards(make: Any) -> None:
    terminal = make(160, 60)
    terminal.tell("start")
    terminal.wait_for(ENTER)
    terminal.tell("child")
    terminal.wait_for(b"did=routine")  # in the log of the view
    terminal.tell("end")
    left = terminal.wait_for(LEAVE)
    terminal.wait_for(b"child_speaks did=notable\r\n", left)
    terminal.wait_for(b"Traceback of a child\r\n", left)
    assert b"routine" not in terminal.seen[left:]


def test_a_resize_shows_with_the_next_picture(make: Any) -> None:
    terminal = make(80, 24)
    terminal.tell("start")
    terminal.wait_for(b"host-0.example")
    assert b"host-29.example" not in terminal.seen
    terminal.resize(120, 60)
    terminal.wait_for(b"host-29.example")
    terminal.tell("end")


def test_no_color_is_obeyed(make: Any) -> None:
    coloured, plain = make(), make(NO_COLOR="1")
    for terminal in (coloured, plain):
        terminal.tell("start")
        terminal.wait_for(b"tester")
        terminal.tell("end")
        terminal.wait_for(LEAVE)
    colour = re.compile(rb"\x1b\[(\d+;)*(3[0-7]|9[0-7]|38)[;m]")
    assert colour.search(coloured.seen)
    assert not colour.search(plain.seen)


def test_a_dumb_terminal_gets_lines(make: Any) -> None:
    terminal = make(TERM="dumb")
    terminal.tell("start")
    terminal.wait_for(b"running, 7 of 10 repos (70.0%)")
    terminal.tell("end")
    terminal.tell_last("quit")
    assert b"\x1b" not in terminal.seen


def test_an_exit_without_unwinding_still_gives_the_screen_back(make: Any) -> None:
    terminal = make()
    terminal.tell("start")
    entered = terminal.wait_for(ENTER)
    assert terminal.tell_last("exit") == 130
    assert LEAVE in terminal.seen[entered:]
    assert SHOW_CURSOR in terminal.seen[entered:]


def test_an_error_that_ends_the_program_is_seen_after_the_view_is_gone(make: Any) -> None:
    terminal = make()
    terminal.tell("start")
    terminal.wait_for(ENTER)
    assert terminal.tell_last("raise") == 1
    left = terminal.wait_for(LEAVE)
    assert b"the message that must not get lost" in terminal.seen[left:]


def test_before_the_view_is_up_an_error_is_seen_too(make: Any) -> None:
    terminal = make()
    assert terminal.tell_last("raise") == 1
    assert b"the message that must not get lost" in terminal.seen
    assert ENTER not in terminal.seen


def test_a_child_that_outlives_the_view_speaks_to_the_real_stderr(make: Any) -> None:
    terminal = make(160, 60)
    terminal.tell("start")
    terminal.tell("lasting child")
    terminal.wait_for(b"child is there")
    terminal.tell("end")
    left = terminal.wait_for(LEAVE)
    terminal.tell("let the child speak")
    terminal.wait_for(b"child outlived the view\r\n", left)


def test_no_thread_is_started_before_the_batch_is(make: Any) -> None:
    terminal = make()
    assert terminal.tell("threads") == "1 threads"
