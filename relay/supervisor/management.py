"""grpc.port of a running service: from the first call that is answered to the last."""

from __future__ import annotations

import threading
import time

from relay.admin.control import AdminService, Control
from relay.admin.http import CannotListen
from relay.admin.ingest import Chain, Health, IngestService
from relay.admin.server import GrpcServer
from relay.observe.log import get_logger
from relay.observe.status import Phase
from relay.supervisor.session import Session

log = get_logger(__name__)

LISTEN_AGAIN_S = 2.0
# A relay that an operator paused still passes on what others send.
SERVING = (Phase.RUNNING, Phase.PAUSED)


class Management:
    """Belongs to the main thread. Made after the machine, closed before it stops: calls of others end first."""

    def __init__(self, session: Session, control: Control, chain: Chain) -> None:
        self._session, self._settings = session, session.settings.grpc
        self._control = control
        self._stopping = threading.Event()
        self._ingest = IngestService(chain, self._health, self._stopping)
        self._admin = AdminService(control, self._stopping)
        self._server: GrpcServer | None = None
        self._listen_at = 0.0  # monotonic: when to try again

    @property
    def address(self) -> str | None:
        """`host:port`; None: it is not served."""
        return None if self._server is None else self._server.address

    def listen(self, *, required: bool) -> None:
        """Serve, if it is not served yet. The port in use: raises CannotListen when `required`; else `look` tries again."""
        if self._server is not None:
            return
        try:
            self._server = GrpcServer(self._settings, self._ingest, self._admin, self._stopping)
        except CannotListen as exc:
            if required:
                raise
            if not self._listen_at:
                log.warning("grpc_not_served", reason=str(exc))
            self._listen_at = time.monotonic() + LISTEN_AGAIN_S
            return
        self._session.presence.grpc_address = self._server.address
        log.info("grpc_served", address=self._server.address, tls=bool(self._settings.tls_cert))

    def look(self) -> None:
        """A few times a second: say how we are, and try again to listen where that was not possible."""
        if self._server is None:
            if self._listen_at and time.monotonic() >= self._listen_at:
                self.listen(required=False)
            return
        self._server.say(is_serving=self._session.presence.snapshot.phase in SERVING)

    def renew(self) -> None:
        """SIGHUP: certificates and token are read again."""
        if self._server is not None:
            self._server.renew()

    def close(self) -> None:
        server, self._server = self._server, None
        self._session.presence.grpc_address = None
        if server is not None:
            server.stop(time.monotonic() + 2.0)

    def _health(self) -> Health:
        snapshot = self._session.presence.snapshot
        firehose = snapshot.firehose
        details = {
            "name": snapshot.instance,
            "version": snapshot.version,
            "command": snapshot.command,
            "phase": snapshot.phase.value,
            "uptime_s": f"{snapshot.uptime_s:.0f}",
            "repos": str(sum(max(0, count) for count in snapshot.repos.values())),
            "ingesters": str(len(snapshot.ingesters)),
            "healthy_ingesters": str(sum(1 for each in snapshot.ingesters if each.healthy)),
            "seq": "" if firehose.seq is None else str(firehose.seq),
            "cursor": "" if firehose.cursor is None else str(firehose.cursor),
        }
        return Health(
            is_serving=snapshot.phase in SERVING, message=snapshot.reason or snapshot.phase.value, details=details
        )
