"""What a batch shows while it runs: the live view on a terminal, lines elsewhere, and the summary at the end."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Mapping
from typing import TextIO

from relay.observe.status import Phase, StatusSnapshot
from relay.tui.live import LiveView, StderrCapture, can_show_live, restore_terminal_now
from relay.tui.plain import BatchSummary, ProgressLines, closing_lines, summary_lines


class TerminalReporter:
    """Shows a batch on `out`, which is stderr: stdout is for what a script reads.

    Make it before the forkserver is started: with a live view it takes stderr from here on, so that no line of ours or of a child
    tears the picture. It starts no thread before `waiting` or `started`. `ended` (or, at the latest, the end of the process) gives
    both back and lets out what was more than routine.
    """

    def __init__(self, out: TextIO, live: bool, environ: Mapping[str, str] | None = None) -> None:
        self._out = out
        self._snapshot = StatusSnapshot(instance="", phase=Phase.STARTING)
        self._last: StatusSnapshot | None = None
        self._lines = ProgressLines(out)
        self._capture: StderrCapture | None = None
        self._terminal: TextIO | None = None
        self._view: LiveView | None = None
        if live and can_show_live(out, os.environ if environ is None else environ):
            self._terminal = os.fdopen(os.dup(out.fileno()), "w", encoding=out.encoding, errors="replace")
            self._capture = StderrCapture()
            self._capture.take()
            atexit.register(self.ended)

    def waiting(self, text: str) -> None:
        """It waits for something before it can begin."""
        self._say(f"waiting: {text}")

    def started(self, addresses: Mapping[str, str]) -> None:
        """It runs; what listens where."""
        self._say(", ".join(f"{name}: {address}" for name, address in addresses.items()))
        if self._terminal is not None and self._capture is not None and self._view is None:
            self._view = LiveView(self._terminal, lambda: self._snapshot, log_lines=self._capture.lines)
            self._view.start()

    def show(self, snapshot: StatusSnapshot) -> None:
        """Take the newest snapshot, as often as there is one."""
        self._snapshot = snapshot
        if self._terminal is None:
            self._lines.show(snapshot, time.monotonic())

    def last(self, snapshot: StatusSnapshot) -> None:
        """Take the snapshot that `closing` tells of."""
        self._last = snapshot

    def ended(self) -> None:
        """No more snapshots: give terminal and stderr back. May be called more than once."""
        if self._view is not None:
            self._view.request_stop()
            self._view.join(time.monotonic() + 5.0)
            self._view = None
        if self._capture is not None:
            self._capture.give_back()
            self._capture = None
            atexit.unregister(self.ended)
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None

    def give_back_terminal(self) -> None:
        """In a signal handler, right before the process ends without unwinding."""
        restore_terminal_now()

    def summary(self, summary: BatchSummary) -> None:
        """Tell what came of it."""
        self.ended()
        for line in summary_lines(summary):
            self._out.write(line + "\n")
        self._out.flush()

    def closing(self, why: str | None) -> None:
        """Tell what a service did, and what is left; `why` it could not go on. Nothing, if it never worked."""
        self.ended()
        if self._last is not None:
            self._out.writelines(line + "\n" for line in closing_lines(self._last, why))
        elif why is not None:
            self._out.write(f"relay: cannot go on: {why}\n")
        self._out.flush()

    def _say(self, text: str) -> None:
        if self._capture is not None:
            self._capture.read()
        out = self._terminal or self._out
        out.write(text + "\n")
        out.flush()
