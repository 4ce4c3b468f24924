"""Who may call what on grpc.port: the token, and the files of TLS."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from relay.config.addresses import is_loopback
from relay.config.schema import GrpcSettings
from relay.errors import ConfigError
from relay.observe.log import get_logger

log = get_logger(__name__)

# What monitors and load balancers ask, and what a client needs to find out what there is.
OPEN_METHODS = ("/ingester.v1.IngesterService/HealthCheck", "/grpc.health.v1.Health/", "/grpc.reflection.")
_LEAST_TOKEN_CHARS = 16

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only


def load_token(settings: GrpcSettings) -> str | None:
    """Return the token; None: calls need none. Raises ConfigError: off loopback there has to be one, and it has to be readable."""
    if not settings.token_file:
        if is_loopback(settings.host):
            return None
        raise ConfigError(
            f"grpc.host: {settings.host} can be reached from other machines, so calls need a token: put a secret of {_LEAST_TOKEN_CHARS} "
            "characters or more into a file and name it in grpc.token_file (or listen on 127.0.0.1)"
        )
    try:
        token = Path(settings.token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"grpc.token_file: cannot read {settings.token_file}: {exc}") from exc
    if len(token) < _LEAST_TOKEN_CHARS or not (token.isascii() and token.isprintable()):
        raise ConfigError(
            f"grpc.token_file: {settings.token_file} holds no token: {_LEAST_TOKEN_CHARS} or more printable ASCII characters in one line"
        )
    return token


class TokenInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Lets calls through that carry `authorization: Bearer TOKEN`, and the open methods; the others are UNAUTHENTICATED."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def set(self, token: str) -> None:
        """From now on this one. Any thread."""
        self._token = token.encode()

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Handler | None], details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = continuation(details)
        method = str(details.method)
        if handler is None or method.startswith(OPEN_METHODS) or self._is_right(details.invocation_metadata):
            return handler
        return _refusal(handler)

    def _is_right(self, metadata: Any) -> bool:
        for key, value in metadata or ():
            if key == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
                return hmac.compare_digest(value[7:].strip().encode(), self._token)
        return False


def _refusal(handler: Handler) -> Handler:
    """Return a handler of the same shape that refuses."""

    def refuse(_request: Any, context: Any) -> Any:
        context.abort(
            grpc.StatusCode.UNAUTHENTICATED, "this call needs the token of grpc.token_file: authorization: Bearer TOKEN"
        )

    if handler.request_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
    else:
        make = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
    return make(refuse)


class Certificates:
    """The server's key and certificate, and the CA of clients. `renew` has the files read again before the next handshake."""

    def __init__(self, settings: GrpcSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()  # guards _is_stale
        self._is_stale = False

    @property
    def is_wanted(self) -> bool:
        return bool(self._settings.tls_cert)

    def credentials(self) -> grpc.ServerCredentials:
        """Raises ConfigError when a file cannot be read."""
        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            self._fetch,  # type: ignore[arg-type]  # the stubs do not know that it may say None
            require_client_authentication=bool(self._settings.tls_client_ca),
        )

    def renew(self) -> None:
        """Any thread. A file that cannot be read is logged, and the old ones stay."""
        with self._lock:
            self._is_stale = True

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks at each handshake; None: nothing is new."""
        with self._lock:
            if not self._is_stale:
                return None
            self._is_stale = False
        try:
            return self._read()
        except ConfigError as exc:
            log.error("certificates_not_read", error=str(exc))
            return None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        settings = self._settings
        found: list[bytes | None] = []
        for name in ("tls_key", "tls_cert", "tls_client_ca"):
            path = str(getattr(settings, name))
            try:
                found.append(Path(path).read_bytes() if path else None)
            except OSError as exc:
                raise ConfigError(f"grpc.{name}: cannot read {path}: {exc.strerror}") from exc
        key, cert, client_ca = found
        assert key is not None
        assert cert is not None
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)
