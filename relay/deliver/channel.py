"""Opens the gRPC channel to an ingester; everything of gRPC's own vocabulary that is decided once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import grpc

from relay import __version__
from relay.config.schema import DeliverySettings, GrpcSettings, RelaySettings
from relay.errors import ConfigError
from relay.pb.ingester_pb2 import HealthCheckRequest, HealthCheckResponse, OperationResponse

STREAM_METHOD = "/ingester.v1.IngesterService/StreamOperations"
HEALTH_METHOD = "/ingester.v1.IngesterService/HealthCheck"
CONNECT_TIMEOUT_MS = 3_000  # TCP, TLS and HTTP/2's greeting together; gRPC's own is 20 s
KEEPALIVE_TIMEOUT_MS = 10_000  # a ping without an answer for this ends the connection

StreamMethod = Callable[..., "grpc.CallIterator[OperationResponse]"]


class Connector:
    """Knows how to reach ingesters: options, TLS, metadata. Reads the TLS files anew for each channel, so they can be renewed."""

    def __init__(self, delivery: DeliverySettings, grpc_settings: GrpcSettings, relay: RelaySettings) -> None:
        self._files = (delivery.tls_ca, delivery.tls_cert, delivery.tls_key)
        self.metadata: tuple[tuple[str, str], ...] = (
            # gRPC metadata are printable ASCII.
            ("relay-name", quote(relay.name, safe=" !#$&'()*+,/:;=?@[]")),
            ("relay-version", __version__),
        )
        if delivery.token_file:
            self.metadata += (("authorization", f"Bearer {_load_token(delivery.token_file)}"),)
        self._options: list[tuple[str, int | str]] = [
            # A channel is made anew for each attempt: no connection, back-off or address of an earlier one may live on.
            ("grpc.use_local_subchannel_pool", 1),
            # The time of one attempt, in spite of its name. A port may accept and never greet: a process that is about to end, or
            # a proxy whose other side is away.
            ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
            # Batches are kept by go-back-N; gRPC's own retries would keep a second copy of what is in flight.
            ("grpc.enable_retries", 0),
            # An ingester is the operator's own: never through the proxy that may be set for web pages.
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_send_message_length", -1),  # bounded by us
            ("grpc.max_receive_message_length", grpc_settings.max_message_size),
            ("grpc.keepalive_time_ms", int(grpc_settings.keepalive_time_sec * 1000)),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.primary_user_agent", f"tradr-relay/{__version__}"),
        ]
        if (delivery.tls_cert or delivery.tls_key) and not delivery.tls_ca:
            raise ConfigError(
                "delivery.tls_cert and delivery.tls_key need delivery.tls_ca: without it ingesters are spoken to in plain text"
            )
        if bool(delivery.tls_cert) != bool(delivery.tls_key):
            raise ConfigError("delivery.tls_cert and delivery.tls_key belong together: one of them is empty")
        if delivery.tls_ca:
            self._credentials()

    def open(self, address: str) -> grpc.Channel:
        """Open a channel; nothing is sent yet. Raises ConfigError when a TLS file cannot be read."""
        if not self._files[0]:
            return grpc.insecure_channel(address, options=self._options)
        return grpc.secure_channel(address, self._credentials(), options=self._options)

    def _credentials(self) -> grpc.ChannelCredentials:
        read: list[bytes | None] = []
        for key, path in zip(("tls_ca", "tls_cert", "tls_key"), self._files, strict=True):
            try:
                read.append(Path(path).read_bytes() if path else None)
            except OSError as exc:
                raise ConfigError(f"delivery.{key}: cannot read {path!r}: {exc.strerror}") from exc
        ca, cert, key_bytes = read
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key_bytes, certificate_chain=cert)


def _load_token(path: str) -> str:
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"delivery.token_file: cannot read {path!r}: {exc}") from exc
    if not (token and token.isascii() and token.isprintable()):
        raise ConfigError(f"delivery.token_file: {path!r} holds no token: printable ASCII characters in one line")
    return token


def stream_method(channel: grpc.Channel) -> StreamMethod:
    """StreamOperations: requests are finished bytes, answers are parsed."""
    method: StreamMethod = channel.stream_stream(
        STREAM_METHOD, request_serializer=None, response_deserializer=OperationResponse.FromString
    )
    return method


def ask_health(channel: grpc.Channel, timeout_s: float) -> grpc.CallFuture[HealthCheckResponse]:
    """Start a HealthCheck."""
    method = channel.unary_unary(
        HEALTH_METHOD,
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    return method.future(HealthCheckRequest(), timeout=timeout_s)


def code_of(exc: grpc.RpcError) -> grpc.StatusCode | None:
    """Return an RPC error's code. (Those that calls raise are calls themselves, which RpcError alone does not say.)"""
    code: grpc.StatusCode | None = exc.code() if callable(getattr(exc, "code", None)) else None
    return code


def words_of(exc: grpc.RpcError) -> str:
    """Return an RPC error's code and details in one line: `UNAVAILABLE: connection refused`."""
    code = code_of(exc)
    details = exc.details() if callable(getattr(exc, "details", None)) else None
    return f"{code.name if code is not None else type(exc).__name__}: {' '.join((details or '').split())[:300]}"


class Requests(Iterator[bytes]):
    """What gRPC's writing thread pulls from: a plain function behind an iterator."""

    def __init__(self, next_request: Callable[[], bytes]) -> None:
        self._next_request = next_request

    def __next__(self) -> bytes:
        return self._next_request()
