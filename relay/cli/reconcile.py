"""`reconcile`: what upstream lists against what is stored; what differs is queued. Beside a running service, or without one."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from typing import Any, TextIO

import orjson

from relay.cli.exits import Exit
from relay.cli.reading import reading
from relay.config.load import Loaded
from relay.config.schema import Settings
from relay.discovery.progress import ReconcileView
from relay.discovery.reconcile import Reconcile, ReconcileResult
from relay.net.gate import HostGate
from relay.net.hosts import HostPolicy, HostTable
from relay.observe import words
from relay.observe.status import rfc3339
from relay.runtime.clock import SystemClock
from relay.runtime.service import ServiceThread
from relay.runtime.signals import StopSignals
from relay.store import migrate
from relay.store.pool import Database

_LINE_EVERY_S = 5.0


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "reconcile",
        help="compare every tracked repo with upstream, and queue those that differ",
        description="Lists the repos of every host that tracked repos live on, and compares rev and status with what is stored. Those that "
        "differ are queued: a running `run` or `tail` fetches them, else the next one does. What a running one is about to "
        "receive anyway does not count. A listed DID that discovery.mode wants and nobody knows is discovered.",
        epilog="Exit codes: 0 every host was compared; 3 some hosts did not answer (listed); 1 most did not, or it cannot go on; "
        "130 interrupted: run it again to continue.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    parser.add_argument("--tracked-only", action="store_true", help="discover nothing, whatever discovery.mode says")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run one pass to its end, or go on with the one that was interrupted. Raises StoreError when there is no state."""
    with reading(loaded.settings) as database:
        migrate.migrate(database.transaction)
        return _reconcile(loaded.settings, database, args, sys.stdout, sys.stderr)


def result_entry(result: ReconcileResult) -> dict[str, object]:
    """Return the object of `reconcile --json`."""
    counts = result.counts
    return {
        "began_at": rfc3339(counts.began_at),
        "finished_at": None if counts.finished_at is None else rfc3339(counts.finished_at),
        "hosts": counts.hosts_total,
        "silent_hosts": [{"host": host, "reason": reason} for host, reason in result.silent],
        "compared": counts.compared,
        "differed": counts.differed,
        "queued": counts.queued,
        "discovered": counts.found,
        "incidents_closed": len(result.closed),
    }


def exit_code(result: ReconcileResult) -> Exit:
    if result.stopped:
        return Exit.INTERRUPTED
    if not result.answered:
        return Exit.CANNOT_GO_ON
    return Exit.QUARANTINED if result.silent else Exit.OK


class _Pass(ServiceThread):
    """The pass, in a thread of its own: the main one waits for signals."""

    def __init__(self, reconcile: Reconcile, lock: Any, out: TextIO) -> None:
        super().__init__("reconcile")
        self.reconcile, self._lock, self._out = reconcile, lock, out
        self.over = threading.Event()
        self.result: ReconcileResult | None = None

    def wake(self) -> None:
        self.reconcile.request_stop()

    def run(self) -> None:
        from relay.supervisor.reconcile import wait_for_lock

        try:
            if wait_for_lock(self._lock, self.stopping, self._waiting):
                self.result = self.reconcile.run()
        finally:
            self.over.set()

    def _waiting(self) -> None:
        print("another process reconciles already: waiting until it ends", file=self._out, flush=True)


def _reconcile(settings: Settings, database: Database, args: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    from relay.supervisor.reconcile import ReconcileLock, make_reconcile

    clock, lock = SystemClock(), ReconcileLock(database)
    reconcile = make_reconcile(
        settings,
        database,
        epoch=lambda: None,
        gate=HostGate(HostTable(HostPolicy.from_settings(settings.backfiller)), clock),
        clock=clock,
        tracked_only=args.tracked_only,
    )
    signals = StopSignals()
    signals.install()
    running = _Pass(reconcile, lock, err)
    running.start()
    try:
        _follow(running, signals, err)
    finally:
        lock.give_up()
    if running.death is not None:
        raise running.death
    if running.result is None:
        return Exit.INTERRUPTED
    _print_end(running.result, out, err, as_json=args.json)
    return exit_code(running.result)


def _follow(running: _Pass, signals: StopSignals, err: TextIO) -> None:
    """Print a line now and then until it is over; the first signal stops it."""
    next_line_at = time.monotonic() + _LINE_EVERY_S
    while not running.over.is_set():
        if signals.wait(0.1) is not None:
            running.request_stop()
        if time.monotonic() >= next_line_at:
            print(progress_line(running.reconcile.view()), file=err, flush=True)
            next_line_at += _LINE_EVERY_S


def progress_line(view: ReconcileView) -> str:
    """Return how far it is, in one line."""
    silent = f", {words.count(view.hosts_failed)} did not answer" if view.hosts_failed else ""
    found = f", {words.count(view.found)} discovered" if view.found else ""
    return (
        f"{words.count(view.hosts_done)} of {words.count(view.hosts_total)} hosts{silent}: {words.count(view.compared)} repos compared, "
        f"{words.count(view.differed)} differ, {words.count(view.queued)} queued{found}"
    )


def _print_end(result: ReconcileResult, out: TextIO, err: TextIO, *, as_json: bool) -> None:
    if as_json:
        out.write(orjson.dumps(result_entry(result)).decode() + "\n")
        out.flush()
        return
    counts = result.counts
    if result.stopped:
        print("interrupted: run it again to continue", file=err)
        return
    out.write(
        f"{words.count(counts.compared)} repos compared on {words.count(counts.hosts_total)} hosts: "
        f"{words.count(counts.differed)} differ, {words.count(counts.queued)} queued, {words.count(counts.found)} discovered"
        f"{f', {len(result.closed)} incidents closed' if result.closed else ''}\n"
    )
    out.writelines(f"no answer from {host}: {reason}\n" for host, reason in result.silent)
    if result.silent:
        out.write("their repos were not compared: run it again, or wait for the next interval\n")
    out.flush()
