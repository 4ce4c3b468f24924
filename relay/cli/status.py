"""`status`: asks the running instance; without one the database, phase `stopped`."""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import os
import socket
import sys
import threading
import time
from typing import Any, TextIO

import orjson
from rich.console import Console

from relay import __version__
from relay.cli.exits import Exit
from relay.cli.reading import reading
from relay.config.addresses import parse_host_port
from relay.config.load import Loaded
from relay.config.schema import Settings
from relay.errors import RelayError
from relay.model import RepoState
from relay.observe.log import get_logger
from relay.observe.status import (
    FirehoseStatus,
    IncidentView,
    IngesterView,
    Phase,
    StatusSnapshot,
    Targets,
    rfc3339,
)
from relay.store import batches, dead_letters, incidents, instances, partitions, repos
from relay.store.instances import Instance
from relay.store.pool import Database
from relay.store.statements import Cursor
from relay.tui.live import LiveView, can_show_live, tolerant
from relay.tui.plain import progress_line
from relay.tui.views import dashboard

log = get_logger(__name__)

_ASK_TIMEOUT_S = 2.0
_LARGEST_ANSWER_BYTES = 16 * 1024 * 1024
# A heartbeat older than this is that of a process that is gone: three are missed.
_SILENT_S = 30.0
_WATCH_S = 1.0
_PIPED_WIDTH = 120
_FINISHED = (RepoState.SYNCED, RepoState.INACTIVE, RepoState.QUARANTINED)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser("status", help="states, rates, lag, hosts, ingesters, incidents")
    parser.add_argument("--json", action="store_true", help="one JSON object (with --watch: one a line, each second)")
    parser.add_argument("--watch", action="store_true", help="keep showing it until Ctrl-C")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Print the status. Raises StoreError only when no state can be read (exit code 1)."""
    with reading(loaded.settings) as database:
        source = StatusSource(database, loaded.settings)
        if args.watch:
            return _watch(source, sys.stdout, as_json=args.json)
        _print(source.read(), sys.stdout, as_json=args.json)
        sys.stdout.flush()
        return Exit.OK


class StatusSource:
    """Reads the newest snapshot: from the instance that works, else its last heartbeat, else the tables. Raises StoreError."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings

    def read(self) -> StatusSnapshot:
        with self._database.transaction("list the instances") as cur:
            found = instances.list_instances(cur)
        for instance in sorted(found, key=lambda each: (each.phase == Phase.STANDBY, each.silent_s)):
            snapshot = _ask(instance) or _last_told(instance)
            if snapshot is not None:
                return snapshot
        with self._database.transaction("read the status") as cur:
            return stopped_snapshot(cur, self._settings, time.time())

    def read_calmly(self) -> StatusSnapshot:
        """Return the newest snapshot; where none can be had, one that says why: for a view that stays up meanwhile."""
        try:
            return self.read()
        except RelayError as exc:
            return StatusSnapshot(instance=self._settings.relay.name, phase=Phase.STOPPED, reason=str(exc))


def stopped_snapshot(cur: Cursor, settings: Settings, now: float) -> StatusSnapshot:
    """Return what the tables say of an instance that does not run: counts and cursor; no rates, nobody connected."""
    counts = repos.count_by_state(cur)
    records, size = repos.totals(cur)
    partition = partitions.read(cur)
    targets = Targets()
    unfinished = batches.list_unfinished(cur)
    if unfinished:
        in_batch = repos.count_by_state(cur, unfinished[-1].id)
        targets = Targets(
            total=sum(in_batch.values()),
            done=sum(in_batch[state] for state in _FINISHED),
            synced=in_batch[RepoState.SYNCED],
            inactive=in_batch[RepoState.INACTIVE],
            quarantined=in_batch[RepoState.QUARANTINED],
        )
    return StatusSnapshot(
        instance=settings.relay.name,
        phase=Phase.STOPPED,
        repos={state.value: number for state, number in counts.items()},
        records_delivered=records,
        bytes_fetched=size,
        firehose=FirehoseStatus(cursor=partition.cursor, upstream=partition.upstream or ""),
        ingesters=tuple(IngesterView(address=each, healthy=False, reason="not running") for each in settings.ingesters),
        incidents=tuple(IncidentView.of(each) for each in incidents.list_recent(cur, now)),
        at=rfc3339(now),
        version=__version__,
        targets=targets,
        dead_letters=sum(dead_letters.count_by_reason(cur).values()),
    )


def _ask(instance: Instance) -> StatusSnapshot | None:
    """Return what a running instance answers; None when it does not, or when somebody else listens there now."""
    if instance.metrics_address is None:
        return None
    try:
        host, port = parse_host_port(instance.metrics_address)
        # Listening everywhere includes here; on another machine the heartbeat has to do.
        connection = http.client.HTTPConnection(
            {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, timeout=_ASK_TIMEOUT_S
        )
        try:
            connection.request("GET", "/status.json")
            response = connection.getresponse()
            body = response.read(_LARGEST_ANSWER_BYTES)
        finally:
            connection.close()
        if response.status != 200:
            return None
        snapshot = StatusSnapshot.from_json(body)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        log.debug("instance_not_answering", address=instance.metrics_address, error=str(exc))
        return None
    return snapshot if snapshot.pid in (None, instance.pid) else None


def _last_told(instance: Instance) -> StatusSnapshot | None:
    """Return the status of an instance's last heartbeat, if that is recent enough to be its own."""
    if instance.status is None or instance.silent_s > _SILENT_S or _is_dead(instance):
        return None
    try:
        snapshot = StatusSnapshot.from_json(orjson.dumps(instance.status))
    except ValueError as exc:
        log.debug("stored_status_unreadable", instance=instance.name, error=str(exc))
        return None
    note = f"as of {instance.silent_s:.0f} s ago, {instance.host} does not answer from here"
    return dataclasses.replace(snapshot, reason=f"{snapshot.reason}; {note}" if snapshot.reason else note)


def _is_dead(instance: Instance) -> bool:
    """Say whether we can see that the process is gone: after a kill on this machine nobody has to wait for the heartbeat."""
    return instance.host == socket.gethostname() and not os.path.exists(f"/proc/{instance.pid}")


def _print(snapshot: StatusSnapshot, out: TextIO, *, as_json: bool) -> None:
    if as_json:
        out.write(snapshot.to_json().decode() + "\n")
        return
    # Where there is no terminal its width is not 80: nothing is cut off that would fit on a page.
    console = Console(file=tolerant(out), highlight=False, width=None if out.isatty() else _PIPED_WIDTH)
    width = console.width
    console.print(dashboard(snapshot, width, 1000), width=width)


def _watch(source: StatusSource, out: TextIO, *, as_json: bool) -> int:
    """Show it until Ctrl-C: a live view on a terminal, a line a second elsewhere."""
    stop = threading.Event()
    view = None
    try:
        if not as_json and can_show_live(out, os.environ):
            view = LiveView(out, source.read_calmly, interval_s=_WATCH_S, on_death=lambda name, exc: stop.set())
            view.start()
            stop.wait()
        while not stop.is_set():
            snapshot = source.read_calmly()
            out.write((snapshot.to_json().decode() if as_json else progress_line(snapshot)) + "\n")
            out.flush()
            stop.wait(_WATCH_S)
    except KeyboardInterrupt:
        pass  # It is how a watch ends.
    finally:
        if view is not None:
            view.request_stop()
            view.join(time.monotonic() + 5)
    return Exit.OK
