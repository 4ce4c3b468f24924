"""The gRPC server on grpc.port: ingest, management, health and reflection; TLS and the token."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from relay.admin.auth import Certificates, TokenInterceptor, load_token
from relay.admin.control import AdminService
from relay.admin.http import CannotListen
from relay.admin.ingest import IngestService
from relay.config.schema import GrpcSettings
from relay.errors import ConfigError
from relay.observe.log import get_logger
from relay.pb import admin_pb2, ingester_pb2
from relay.pb.admin_pb2_grpc import add_RelayAdminServicer_to_server

log = get_logger(__name__)

POOL_THREADS = 64
"""Each call has one while it lasts; more calls than that are RESOURCE_EXHAUSTED."""

INGEST = ingester_pb2.DESCRIPTOR.services_by_name["IngesterService"].full_name
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["RelayAdmin"].full_name


class GrpcServer:
    """Listens from its making on; `stop` ends it. `stopping` is the event that the services were given.

    Raises CannotListen, and ConfigError for a token or certificate that cannot be read, or a missing token off loopback.
    """

    def __init__(
        self, settings: GrpcSettings, ingest: IngestService, admin: AdminService, stopping: threading.Event
    ) -> None:
        self._settings, self._ingest, self._stopping = settings, ingest, stopping
        token = load_token(settings)
        self._token = None if token is None else TokenInterceptor(token)
        self._certificates = Certificates(settings)
        credentials = self._certificates.credentials() if self._certificates.is_wanted else None
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="grpc")
        self._server = grpc.server(
            self._pool,
            interceptors=[] if self._token is None else [self._token],
            maximum_concurrent_rpcs=POOL_THREADS,
            options=[
                ("grpc.max_receive_message_length", settings.max_message_size),
                # Two relays on one port would share its connections between them without a word.
                ("grpc.so_reuseport", 0),
                # Relays ping idle streams every 30 s; the library's default is to cut those that ping within 5 minutes.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_time_ms", int(settings.keepalive_time_sec * 1000)),
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
        )
        self._health = health.HealthServicer(experimental_non_blocking=True)
        self._server.add_generic_rpc_handlers((ingest.handlers(),))
        add_RelayAdminServicer_to_server(admin, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((INGEST, ADMIN, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.say(is_serving=False)
        try:
            self.port = self._listen(credentials)
        except BaseException:
            self._pool.shutdown(wait=False)
            raise
        self._server.start()

    @property
    def address(self) -> str:
        """`host:port`, with the real port."""
        host = self._settings.host
        return f"[{host}]:{self.port}" if ":" in host and not host.startswith("[") else f"{host}:{self.port}"

    def say(self, *, is_serving: bool) -> None:
        """What grpc.health.v1 answers from now on, for the relay and each of its services."""
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", INGEST, ADMIN):
            self._health.set(service, status)

    def renew(self) -> None:
        """The files of TLS and of the token are read again. What cannot be read is logged, and the old ones stay."""
        self._certificates.renew()
        try:
            token = load_token(self._settings)
        except ConfigError as exc:
            log.error("token_not_read", error=str(exc))
            return
        if self._token is not None and token is not None:
            self._token.set(token)
        log.info("grpc_files_renewed", tls=self._certificates.is_wanted, token=token is not None)

    def stop(self, deadline: float) -> None:
        """End every call and listen no more; `deadline` is monotonic seconds."""
        self._stopping.set()
        self._health.enter_graceful_shutdown()
        self._ingest.cut_all()
        self._server.stop(max(0.0, min(1.0, deadline - time.monotonic()))).wait(max(0.1, deadline - time.monotonic()))
        self._pool.shutdown(wait=False)

    def _listen(self, credentials: grpc.ServerCredentials | None) -> int:
        host, port = self._settings.host, self._settings.port
        at = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
        try:
            bound = (
                self._server.add_insecure_port(at)
                if credentials is None
                else self._server.add_secure_port(at, credentials)
            )
        except RuntimeError as exc:
            raise CannotListen("grpc.port", host, port, _why(host, port)) from exc
        return int(bound)


def _why(host: str, port: int) -> OSError:
    """gRPC does not say why it could not; ask the kernel."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as exc:
        return exc
    return OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
