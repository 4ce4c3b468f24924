"""Opens the gRPC channel to an ingester; everything of gRPC's own vocabulary that is decided once."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

import grpc
from grpc_health.v1 import health_pb2

from relay import __version__
from relay.config.schema import DeliverySettings, GrpcSettings, RelaySettings
from relay.errors import ConfigError
from relay.pb.ingester_pb2 import HealthCheckRequest, HealthCheckResponse, OperationResponse

STREAM_METHOD = "/ingester.v1.IngesterService/StreamOperations"
HEALTH_METHOD = "/ingester.v1.IngesterService/HealthCheck"
STANDARD_HEALTH_METHOD = "/grpc.health.v1.Health/Check"
CONNECT_TIMEOUT_MS = 3_000  # TCP, TLS and HTTP/2's greeting together; gRPC's own is 20 s
KEEPALIVE_TIMEOUT_MS = 10_000  # a ping without an answer for this ends the connection

HealthAnswer: TypeAlias = "HealthCheckResponse | health_pb2.HealthCheckResponse"
HealthCall: TypeAlias = "grpc.CallFuture[HealthAnswer]"
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


class HealthWay(enum.Enum):
    """How an ingester is asked for its health, in this order: the contract's own call, else the standard one, of the server as a whole."""

    OWN = (HEALTH_METHOD, HealthCheckRequest, HealthCheckResponse)
    STANDARD = (STANDARD_HEALTH_METHOD, health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse)


# It has no such call, or has never heard of the server as a whole.
NOBODY_TO_ASK = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)


def ask_health(channel: grpc.Channel, way: HealthWay, timeout_s: float) -> HealthCall:
    """Start a check."""
    name, request, response = way.value
    method = channel.unary_unary(
        name, request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )
    return method.future(request(), timeout=timeout_s)


def refuses(answer: HealthAnswer) -> bool:
    """Does it say that it does not serve? The number is the same in both ways."""
    return answer.status == HealthCheckResponse.NOT_SERVING


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
