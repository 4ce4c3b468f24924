"""How others see this process: HTTP on metrics.port, and its row among the instances, from the first moment to the last."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping

from relay import __version__
from relay.admin.http import AdminHttp, CannotListen
from relay.config.schema import Settings
from relay.observe.log import get_logger
from relay.observe.metrics import Metrics
from relay.observe.processes import Process
from relay.observe.status import Phase, StatusSnapshot, rfc3339
from relay.repos.story import story_entry
from relay.store import instances, stories
from relay.store.pool import Database
from relay.store.statements import Cursor
from relay.supervisor.observer import Observer
from relay.supervisor.wiring import Machine

log = get_logger(__name__)

LISTEN_AGAIN_S = 2.0
# Counting 50 M repos, behind which a heartbeat may wait, takes half of it.
SILENT_S = 30.0


class Presence:
    """Before there is a machine it shows the phase and reason that were said last; from `plug` on what the observer sees.

    `say`, `listen` and `close` belong to the main thread; what HTTP asks is answered in HTTP's threads.
    """

    def __init__(self, settings: Settings, metrics: Metrics, database: Database, *, command: str) -> None:
        self._settings, self._metrics, self._database, self._command = settings, metrics, database, command
        self._http: AdminHttp | None = None
        self._listen_at = 0.0  # monotonic: when to try again
        self._machine: Machine | None = None
        self._observer: Observer | None = None
        self._answered_at: float | None = None  # monotonic
        self._early = self._snapshot(Phase.STARTING, "")
        self.instance: int | None = None
        self.grpc_address: str | None = None  # `host:port` that the management API listens on

    @property
    def address(self) -> str | None:
        """`host:port` that HTTP listens on; None: it does not."""
        return None if self._http is None else f"{self._http.address[0]}:{self._http.address[1]}"

    @property
    def snapshot(self) -> StatusSnapshot:
        return self._observer.snapshot if self._observer is not None else self._early

    def say(self, phase: Phase, reason: str = "") -> None:
        """While there is no machine: what this process does, or waits for."""
        self._early = self._snapshot(phase, reason)

    def answered(self, now: float) -> None:
        """The database has answered a heartbeat at `now`, monotonic seconds."""
        self._answered_at = now

    def silence(self, now: float) -> str | None:
        """Say for how long the database has not answered, once that is more than slow: nobody else notices while it just hangs."""
        silent_s = 0.0 if self._answered_at is None else now - self._answered_at
        return f"it has not answered for {silent_s:.0f} s" if silent_s > SILENT_S else None

    def plug(self, machine: Machine, observer: Observer) -> None:
        """From now on these are what is shown."""
        self._answered_at = time.monotonic()
        self._machine, self._observer = machine, observer
        self._metrics.watch_children(self._children)

    # --- HTTP -----------------------------------------------------------------------------------------------------------

    def listen(self, *, required: bool) -> None:
        """Serve HTTP, if it is not served yet.

        The port in use: raises CannotListen when `required`; else it is tried again by `listen_again`. (The holder that a stand-by
        waits for may be on this machine, and have the port until it ends.)
        """
        if self._http is not None:
            return
        try:
            http = AdminHttp(
                self._settings.metrics.host,
                self._settings.metrics.port,
                health=self.health,
                ready=self._ready,
                snapshot=lambda: self.snapshot,
                metrics=self._metrics_page,
                story=self._story,
            )
        except CannotListen as exc:
            if required:
                raise
            if not self._listen_at:
                log.warning("http_not_served", reason=str(exc))
            self._listen_at = time.monotonic() + LISTEN_AGAIN_S
            return
        http.start()
        self._http = http
        if self._listen_at:
            log.info("http_served", address=self.address)

    def listen_again(self) -> None:
        """Try again to serve HTTP, now and then, where that was not possible."""
        if self._http is None and self._listen_at and time.monotonic() >= self._listen_at:
            self.listen(required=False)

    def close(self) -> None:
        """Serve no more."""
        http, self._http = self._http, None
        if http is not None:
            http.request_stop()
            http.join(time.monotonic() + 2.0)

    # --- the row --------------------------------------------------------------------------------------------------------

    def register(self, cursor: Cursor) -> None:
        """Add this process to the instances."""
        self.instance = instances.register(
            cursor,
            name=self._settings.relay.name,
            command=self._command,
            pid=os.getpid(),
            host=socket.gethostname(),
            version=__version__,
            phase=self.snapshot.phase.value,
            started_at=time.time(),
            metrics_address=self.address,
            grpc_address=self.grpc_address,
        )

    def beat(self, cursor: Cursor) -> None:
        """Show that the process lives, and how it is."""
        snapshot = self.snapshot
        known = self.instance is not None and instances.heartbeat(
            cursor,
            self.instance,
            snapshot.phase.value,
            metrics_address=self.address,
            grpc_address=self.grpc_address,
            status=json.loads(snapshot.to_json()),
        )
        if not known:
            self.register(cursor)

    def unregister(self, cursor: Cursor) -> None:
        if self.instance is not None:
            instances.unregister(cursor, self.instance)
            self.instance = None

    # --- answers --------------------------------------------------------------------------------------------------------

    def health(self) -> tuple[int, str]:
        """Return the HTTP status and the words of /health. Any thread."""
        stuck = self._machine.is_stuck() if self._machine is not None else None
        if stuck is not None:
            return 503, stuck
        phase, reason = self._phase()
        if phase is Phase.STOPPED:
            return 503, "stopping"
        return 200, f"{phase.value}{': ' + reason if reason else ''}"

    def _ready(self) -> tuple[int, str]:
        phase, reason = self._phase()
        return (200 if phase is Phase.RUNNING else 503), f"{phase.value}{': ' + reason if reason else ''}"

    def _story(self, did: str) -> Mapping[str, object] | None:
        """Return everything that is stored of a repo. Raises StoreError."""
        with self._database.transaction("look up a repo") as cursor:
            story = stories.load_story(cursor, did)
        return None if story is None else story_entry(story)

    def _phase(self) -> tuple[Phase, str]:
        # Not the snapshot's: when the engine is stuck, nobody makes a new one.
        shown: Observer | StatusSnapshot = self._observer if self._observer is not None else self._early
        return shown.phase, shown.reason

    def _metrics_page(self) -> bytes:
        self._metrics.healthy.set(self.health()[0] == 200)
        self._metrics.ready.set(self._ready()[0] == 200)
        self._metrics.phase(self._phase()[0])
        return self._metrics.render()

    def _children(self) -> list[Process]:
        """Return the children that live, as they were seen last. Any thread."""
        workers = self.snapshot.workers
        return [Process(role=each.role, number=each.number, pid=each.pid) for each in workers if each.pid is not None]

    def _snapshot(self, phase: Phase, reason: str) -> StatusSnapshot:
        return StatusSnapshot(
            instance=self._settings.relay.name,
            phase=phase,
            reason=reason,
            at=rfc3339(time.time()),
            version=__version__,
            command=self._command,
            pid=os.getpid(),
        )
