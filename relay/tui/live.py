"""The live view: owns the terminal while it runs, gives it back as it was, whatever happens.

It draws on the alternate screen, so that scrolling back afterwards shows no remains. What this process and its children write to
stderr meanwhile would tear the picture: `StderrCapture` takes it, shows the newest lines in the view, and writes what matters of
it to the real stderr at the end.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.console import Console, ConsoleDimensions
from rich.live import Live

from relay.observe.status import StatusSnapshot
from relay.runtime.service import ServiceThread
from relay.tui.views import dashboard

_ROUTINE = re.compile(r'\S+Z (debug|info) |\{"at":"[^"]*","level":"(debug|info)"')
_LEAVE_ALTERNATE_SCREEN = b"\x1b[?1049l\x1b[?25h"

_live_terminals: set[int] = set()  # file descriptors that a view draws on now


def can_show_live(out: TextIO, environ: Mapping[str, str]) -> bool:
    """Tell whether `out` is a terminal that a live view works on."""
    try:
        return out.isatty() and environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    except ValueError:  # closed
        return False


def tolerant(out: TextIO) -> TextIO:
    """Let a terminal that is not UTF-8 show a `?` where it has no letter, instead of ending the view."""
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="replace")
    return out


def restore_terminal_now() -> None:
    """Give the terminal back at once: for a second signal, right before the process exits without unwinding."""
    for descriptor in tuple(_live_terminals):
        try:
            os.write(descriptor, _LEAVE_ALTERNATE_SCREEN)
        except OSError:
            pass  # The terminal is gone; there is nothing left to restore.


class LiveView(ServiceThread):
    """Draws the snapshot `1 / interval_s` times a second on `out`, in a thread of its own.

    The size of the terminal is asked for each time, so a resize shows with the next picture. NO_COLOR is obeyed.
    """

    def __init__(
        self,
        out: TextIO,
        snapshot: Callable[[], StatusSnapshot],
        *,
        log_lines: Callable[[], list[str]] = list,
        interval_s: float = 0.5,
        on_death: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        super().__init__("live-view", on_death)
        self._snapshot, self._log_lines, self._interval_s = snapshot, log_lines, interval_s
        self._descriptor = out.fileno()
        self._console = Console(file=tolerant(out), highlight=False)

    def run(self) -> None:
        _live_terminals.add(self._descriptor)
        self._fit()
        try:
            with Live(
                console=self._console,
                screen=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            ) as live:
                while not self.stopping.is_set():
                    width, height = self._fit()
                    live.update(dashboard(self._snapshot(), width, height, self._log_lines()), refresh=True)
                    self.stopping.wait(self._interval_s)
        finally:
            _live_terminals.discard(self._descriptor)

    def _fit(self) -> tuple[int, int]:
        """Return the terminal's size, after telling it to the console, which would ask descriptors 0 to 2: none may be it."""
        try:
            width, height = os.get_terminal_size(self._descriptor)
        except OSError:
            width, height = 0, 0
        self._console.size = ConsoleDimensions(width or 80, height or 24)
        return self._console.size


class StderrCapture:
    """Takes file descriptor 2 of this process, and of the children started after `take`, while the view is up.

    `take` starts no thread, so it can stand before the forkserver's start; `read` has to follow soon, because until then only the
    pipe holds what is written (64 KiB). Memory: the newest `most_lines` lines, and as many that are more than routine.
    """

    # What no program writes as a line: everything before it in the pipe was written before `give_back`.
    _END = b"\0end of capture\0"

    def __init__(self, most_lines: int = 200, longest_line: int = 4000) -> None:
        self._newest: deque[str] = deque(maxlen=most_lines)
        self._notable: deque[str] = deque(maxlen=most_lines)
        self._lock = threading.Lock()  # guards both
        self._longest_line = longest_line
        self._real = self._read_end = self._write_end = -1
        self._has_ended = threading.Event()
        self._reader: threading.Thread | None = None

    def lines(self) -> list[str]:
        """Return the newest lines, oldest first."""
        with self._lock:
            return list(self._newest)

    def take(self) -> None:
        """Put a pipe in the place of stderr."""
        sys.stderr.flush()
        self._read_end, self._write_end = os.pipe()
        self._real = os.dup(2)
        os.dup2(self._write_end, 2)

    def read(self) -> None:
        """Start to read the pipe; a second call does nothing."""
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name="stderr-capture", daemon=True)
            self._reader.start()

    def give_back(self) -> None:
        """Put the real stderr back, and write to it what was more than routine. Once."""
        sys.stderr.flush()
        os.dup2(self._real, 2)
        os.close(self._real)
        self.read()
        os.write(self._write_end, b"\n" + self._END + b"\n")
        os.close(self._write_end)
        self._has_ended.wait(5.0)
        with self._lock:
            for line in self._notable:
                os.write(2, line.encode(errors="replace") + b"\n")
            self._notable.clear()

    def _read(self) -> None:
        """Take lines until the end mark; those of children that live on go straight to the real stderr after that."""
        rest = b""
        with os.fdopen(self._read_end, "rb", buffering=0) as pipe:
            while chunk := pipe.read(65536):
                *whole, rest = (rest + chunk).split(b"\n")
                if len(rest) > self._longest_line:
                    whole.append(rest)
                    rest = b""
                for line in whole:
                    if line == self._END:
                        self._has_ended.set()
                    elif self._has_ended.is_set():
                        os.write(2, line + b"\n")
                    elif line:
                        self._take(line)

    def _take(self, line: bytes) -> None:
        text = line[: self._longest_line].decode(errors="replace").rstrip("\r")
        with self._lock:
            self._newest.append(text)
            if not _ROUTINE.match(text):
                self._notable.append(text)
