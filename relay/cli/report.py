"""How a run shows itself: the live view on a terminal, lines elsewhere, and the closing summary."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TextIO

from relay.model import RepoState
from relay.observe.status import StatusSnapshot
from relay.supervisor.backfill import Reporter, Summary
from relay.tui import plain
from relay.tui.live import LiveView, StderrCapture, can_show_live
from relay.tui.plain import PlainReporter


class TerminalReporter(Reporter):
    """Shows snapshots on `out`: the live view where it is a terminal and `live` is wanted, else one line every few seconds.

    Enter it before anything is started: the live view takes over what goes to stderr.
    """

    def __init__(self, out: TextIO, *, live: bool) -> None:
        self._live = live and can_show_live(out, os.environ)
        self._stack = ExitStack()
        self._snapshot: StatusSnapshot | None = None
        self._service: LiveView | PlainReporter | None = None
        self._capture: StderrCapture | None = None
        self._out = out
        if self._live:
            # The picture goes to the terminal itself; descriptor 2 is the captured one from here on.
            self._out = self._stack.enter_context(os.fdopen(os.dup(out.fileno()), "w"))
            self._capture = self._stack.enter_context(StderrCapture())

    def waiting(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def started(self, addresses: dict[str, str]) -> None:
        text = ", ".join(f"{name} on {address}" for name, address in addresses.items())
        print(f"started: {text}", file=self._out, flush=True)

    def show(self, snapshot: StatusSnapshot) -> None:
        self._snapshot = snapshot
        if self._service is None:
            if self._capture is not None:
                self._service = LiveView(self._out, self._latest, log_lines=self._capture.lines)
            else:
                self._service = PlainReporter(self._out, self._latest)
            self._service.start()

    def ended(self) -> None:
        if self._service is not None:
            self._service.request_stop()
            self._service.join(time.monotonic() + 3.0)
            self._service = None
        self._stack.close()

    def summary(self, summary: Summary, out: TextIO) -> None:
        """Print what came of it."""
        lines = plain.summary_lines(
            plain.Summary(
                took_s=summary.took_s,
                repos={state.value: count for state, count in summary.counts.items()},
                records=summary.records,
                bytes_fetched=summary.bytes_fetched,
                failures={
                    reason or state.value: count
                    for state, reason, count in summary.reasons
                    if state is not RepoState.INACTIVE
                },
                quarantined=[(did, f"{reason}: {error}") for did, reason, error in summary.quarantined],
                dead_letters=summary.dead_letters,
                was_interrupted=summary.interrupted,
            )
        )
        for text in summary.failed_listings:
            lines.append(f"  not enumerated: {text}")
        if summary.why is not None:
            lines.append(f"cannot go on: {summary.why}")
        print("\n".join(lines), file=out, flush=True)

    def _latest(self) -> StatusSnapshot:
        assert self._snapshot is not None
        return self._snapshot
