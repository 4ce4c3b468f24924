"""The gRPC service: a reader thread a stream feeds the writer, gRPC's own thread sends what was stored.

Threads: one `ingester-stream-N` for each stream (reads and checks batches), one of gRPC's pool for each stream (sends
responses), one `ingester-writer`. A stream whose batches do not fit into the queue is not read: HTTP/2 flow control holds
the relay back.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from relay.ingester.errors import BadBatch, ListenFailed
from relay.ingester.faults import FaultPlan, StreamFaults
from relay.ingester.operations import Prepared, parse_batch
from relay.ingester.order import OrderChecker
from relay.ingester.sinks.base import Sink
from relay.ingester.streams import Stream
from relay.ingester.writer import Intake, QueuedBatch, Writer
from relay.observe.log import get_logger
from relay.pb import ingester_pb2 as pb

log = get_logger(__name__)

# Each stream keeps one thread of gRPC's pool; the rest answers HealthCheck and Ingest.
MAX_STREAMS = 48
POOL_THREADS = MAX_STREAMS + 16
STOP_GRACE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """`listen` is HOST:PORT (port 0: any free one) or unix:PATH. TLS with `tls_cert` and `tls_key` (PEM files)."""

    listen: str
    max_message_bytes: int = 64 << 20
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    faults: FaultPlan | None = None
    check_order: bool = False


class IngesterServer:
    """Serves `ingester.v1.IngesterService` over one sink.

    `start` opens the sink and listens (raises SinkAway, SinkFailed, ListenFailed); `stop` stores and acknowledges what has
    been received, and returns. `failure` is set, and `on_failure` called, when the writer died: the process must end.
    """

    def __init__(self, sink: Sink, options: ServerOptions, on_failure: Callable[[], None] | None = None) -> None:
        self.sink = sink
        self.options = options
        self.failure: BaseException | None = None
        self._on_failure = on_failure
        self._intake = Intake()
        self._writer = Writer(sink, self._intake, self._writer_died)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards _streams
        self._streams: set[Stream] = set()
        self._stopping = False
        self._started_at = time.monotonic()
        self._arrived = itertools.count(1)
        self._order_ended = 0  # violations of streams that are gone; guarded by _lock, as the two below
        self._order_first = ""
        self._checkers: dict[int, OrderChecker] = {}
        self._server: grpc.Server | None = None
        self._pool: ThreadPoolExecutor | None = None
        self.address = ""

    def start(self) -> str:
        """Return the address that we listen on, with the real port."""
        self.sink.open()
        try:
            self._listen()
        except BaseException:
            self.sink.close()
            raise
        self._writer.start()
        return self.address

    def _listen(self) -> None:
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="ingester-grpc")
        self._server = grpc.server(
            self._pool,
            handlers=[self._handlers()],
            options=[
                ("grpc.max_receive_message_length", self.options.max_message_bytes),
                # Two ingesters on one port would share its connections between them without a word.
                ("grpc.so_reuseport", 0),
                # Relays ping idle streams every 30 s; the library's default is to cut those that ping within 5 minutes.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
                ("grpc.http2.max_ping_strikes", 0),
            ],
        )
        self.address = self._bind(self._server)
        self._server.start()

    def _bind(self, server: grpc.Server) -> str:
        listen = self.options.listen
        try:
            if self.options.tls_cert:
                port = server.add_secure_port(listen, self._credentials())
            else:
                port = server.add_insecure_port(listen)
        except RuntimeError as exc:
            raise ListenFailed(f"cannot listen on {listen}: the address is in use, or not one of this machine") from exc
        if listen.startswith("unix:"):
            return listen
        return f"{listen.rpartition(':')[0]}:{port}"

    def _credentials(self) -> grpc.ServerCredentials:
        options = self.options
        try:
            with open(options.tls_key, "rb") as key, open(options.tls_cert, "rb") as cert:
                pair = (key.read(), cert.read())
            ca = None
            if options.tls_client_ca:
                with open(options.tls_client_ca, "rb") as file:
                    ca = file.read()
        except OSError as exc:
            raise ListenFailed(f"TLS: {exc}") from exc
        return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)

    def stop(self, deadline: float) -> bool:
        """Take nothing more, store and acknowledge what is queued, until `deadline` (monotonic seconds). False: cut short."""
        self._stopping = True
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.read_to_end()
        self._writer.request_stop()
        stored = self._writer.join(deadline)
        if self._server is not None:
            # Streams whose batches are all answered end by themselves; the others are cut.
            self._server.stop(max(0.0, min(STOP_GRACE_S, deadline - time.monotonic()))).wait()
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.end()
        self._intake.wake()
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        return stored

    def _writer_died(self, name: str, exc: BaseException) -> None:
        self.failure = exc
        self._intake.close()
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.end()
        if self._on_failure is not None:
            self._on_failure()

    # What gRPC calls

    def _handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        # Requests stay bytes: the null sink never reads the operations, and broken ones shall not spoil a batch.
        return grpc.method_handlers_generic_handler(
            "ingester.v1.IngesterService",
            {
                "StreamOperations": grpc.stream_stream_rpc_method_handler(
                    self._stream_operations, None, pb.OperationResponse.SerializeToString
                ),
                "Ingest": grpc.unary_unary_rpc_method_handler(
                    self._ingest, None, pb.OperationResponse.SerializeToString
                ),
                "HealthCheck": grpc.unary_unary_rpc_method_handler(
                    self._health_check, pb.HealthCheckRequest.FromString, pb.HealthCheckResponse.SerializeToString
                ),
            },
        )

    def _stream_operations(self, requests: Iterator[bytes], context: Any) -> Iterator[pb.OperationResponse]:
        stream = self._new_stream(context)
        problem: list[str] = []

        def read() -> None:
            try:
                self._read(stream, requests)
            except BadBatch as exc:
                problem.append(str(exc))
                stream.end()
            except Exception as exc:  # the top of this thread
                # grpc raises a bare Exception from the iterator when the stream is cut under it.
                if context.is_active():
                    log.error("stream_died", peer=stream.peer, error=f"{type(exc).__name__}: {exc}", exc_info=True)
                    problem.append("internal error")
                stream.end()
            finally:
                self._retire_checker(stream)
                self._intake.wake()

        # However the call ends, gRPC says so; it is too late already when it returns False.
        if not context.add_callback(lambda: self._forget(stream)):
            self._forget(stream)
        reader = threading.Thread(target=read, name=f"ingester-stream-{stream.number}", daemon=True)
        reader.start()
        log.info("stream_opened", peer=stream.peer, stream=stream.number)
        try:
            yield from self._responses(stream, context)
            if problem:
                log.warning("stream_refused", peer=stream.peer, stream=stream.number, error=problem[0])
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem[0])
        finally:
            self._forget(stream)
            log.info("stream_closed", peer=stream.peer, stream=stream.number)

    def _responses(self, stream: Stream, context: Any) -> Iterator[pb.OperationResponse]:
        plan = self.options.faults
        if plan is None:
            while (response := stream.next_response()) is not None:
                yield response
            return
        faults = StreamFaults(plan, stream.number)
        while (response := stream.next_response()) is not None:
            if plan.ack_delay_s:
                stream.wait_for_end(plan.ack_delay_s)
            answer = faults.answer(response)
            yield from answer.responses
            if answer.cut:
                context.abort(grpc.StatusCode.UNAVAILABLE, "fault: close-every")

    def _new_stream(self, context: Any) -> Stream:
        with self._lock:
            if self._stopping or self.failure is not None:
                context.abort(grpc.StatusCode.UNAVAILABLE, "this ingester is stopping")
            if len(self._streams) >= MAX_STREAMS:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"this ingester has {MAX_STREAMS} streams already")
            stream = Stream(next(self._numbers), str(context.peer()))
            self._streams.add(stream)
            return stream

    def _forget(self, stream: Stream) -> None:
        stream.end()
        self._intake.wake()
        with self._lock:
            self._streams.discard(stream)

    def _retire_checker(self, stream: Stream) -> None:
        with self._lock:
            checker = self._checkers.pop(stream.number, None)
            if checker is not None:
                self._order_ended += checker.violations
                self._order_first = self._order_first or checker.first

    def _read(self, stream: Stream, requests: Iterator[bytes]) -> None:
        """Take batches in until the relay ends the stream, or nothing more is taken of it."""
        checker = self._new_checker(stream)
        for raw in requests:
            batch_id, prepared = self._prepare(raw, checker)
            if not stream.receive(batch_id):
                return
            batch = QueuedBatch(
                stream=stream,
                batch_id=batch_id,
                prepared=prepared,
                received_at=time.monotonic(),
                retry_because=self._retry_because(),
            )
            if not self._intake.put(batch):
                stream.not_queued()
                return
        stream.read_to_end()

    def _new_checker(self, stream: Stream) -> OrderChecker | None:
        if not self.options.check_order:
            return None
        checker = OrderChecker()
        with self._lock:
            self._checkers[stream.number] = checker
        return checker

    def _retry_because(self) -> str | None:
        plan = self.options.faults
        if plan is None:
            return None
        if plan.retry_every and next(self._arrived) % plan.retry_every == 0:
            return "fault: retry-every"
        if time.monotonic() - self._started_at < plan.retry_for_s:
            return "fault: retry-for"
        return None

    def _prepare(self, raw: bytes, checker: OrderChecker | None = None) -> tuple[int, Prepared]:
        plan = self.options.faults
        refuse = plan.refuse if plan is not None and plan.refuses else None
        if not self.sink.reads_operations and refuse is None and checker is None:
            return self.sink.prepare_raw(raw)
        batch_id, operations, count = parse_batch(raw)
        if checker is not None:
            checker.observe(operations)
        prepared = self.sink.prepare(operations, count, refuse)
        prepared.size_bytes = len(raw)
        return batch_id, prepared

    def _ingest(self, raw: bytes, context: Any) -> pb.OperationResponse:
        """A stream of one batch; any batch_id will do, and comes back."""
        stream = self._new_stream(context)
        try:
            if not context.add_callback(lambda: self._forget(stream)):
                self._forget(stream)
            try:
                batch_id, prepared = self._prepare(raw)
            except BadBatch as exc:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
            stream.receive(1)
            batch = QueuedBatch(stream=stream, batch_id=1, prepared=prepared, received_at=time.monotonic())
            if not self._intake.put(batch):
                stream.not_queued()
            response = stream.next_response()
            if response is not None:
                response.batch_id = batch_id
                return response
            context.abort(grpc.StatusCode.UNAVAILABLE, "this ingester is stopping")
            raise AssertionError("abort raises")
        finally:
            self._forget(stream)

    def _health_check(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        writer = self._writer
        away = writer.away_because
        if self.failure is not None:
            status, message = pb.HealthCheckResponse.NOT_SERVING, f"the writer died: {self.failure}"
        elif self.options.faults is not None and self.options.faults.not_serving:
            status, message = pb.HealthCheckResponse.NOT_SERVING, "fault: not-serving"
        elif self._stopping:
            status, message = pb.HealthCheckResponse.NOT_SERVING, "stopping"
        elif away is not None:
            status, message = pb.HealthCheckResponse.NOT_SERVING, f"the sink is away: {away}"
        else:
            status, message = pb.HealthCheckResponse.SERVING, "ok"
        return pb.HealthCheckResponse(status=status, message=message, details=self.details())

    def details(self) -> dict[str, str]:
        """Return the counters that HealthCheck shows. `lag_s`: age of the oldest batch that is not stored."""
        writer = self._writer
        oldest = self._intake.oldest_received_at()
        lag_s = 0.0 if oldest is None else time.monotonic() - oldest
        violations, first = self.order_violations()
        checked = {"order_violations": str(violations), "order_first": first} if self.options.check_order else {}
        return {
            "sink": self.sink.name,
            "operations": str(writer.operations),
            "batches": str(writer.batches),
            "refused": str(writer.refused),
            "transactions": str(writer.transactions),
            "queued_batches": str(len(self._intake)),
            "lag_s": f"{lag_s:.3f}",
            "streams": str(len(self._streams)),
            "uptime_s": f"{time.monotonic() - self._started_at:.1f}",
            **checked,
            **self.sink.details(),
        }

    def order_violations(self) -> tuple[int, str]:
        """Return how often the relay broke its order (with `check_order`), and the first case."""
        with self._lock:
            checkers = list(self._checkers.values())
            violations, first = self._order_ended, self._order_first
        violations += sum(checker.violations for checker in checkers)
        return violations, first or next((checker.first for checker in checkers if checker.first), "")
