"""`ingester.v1.IngesterService` of the relay itself: operations from another relay or a tool, answered when the ingesters have them."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from relay.atproto.syntax import is_did
from relay.errors import StoreAway, StoreError
from relay.model import OpType
from relay.observe.log import get_logger
from relay.pb import ingester_pb2 as pb

log = get_logger(__name__)

MOST_OPEN_BATCHES = 64
MOST_OPEN_BYTES = 16 << 20
"""Of one stream: read, and not acknowledged. A batch larger than that is taken when it is alone."""

_TYPES = frozenset(kind.value for kind in OpType)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What HealthCheck says."""

    is_serving: bool
    message: str
    details: dict[str, str]


@dataclass(slots=True, kw_only=True)
class Passed:
    """One operation to be passed on. `index`: its place in the batch; `payload`: a whole `operations` field."""

    index: int
    did: str
    is_live: bool
    payload: bytes


@dataclass(slots=True, eq=False, kw_only=True)
class Batch:
    """A batch that is on its way. `errors`: (index, message) of refused operations, whoever refused them."""

    stream: PassedStream
    batch_id: int
    size: int
    operations: list[Passed]
    errors: list[tuple[int, str]] = field(default_factory=list)
    is_over: bool = False


class Chain(Protocol):
    """Passes operations on. Any thread."""

    def tracked(self, dids: Collection[str]) -> frozenset[str]:
        """Return those that this relay tracks itself. Raises StoreAway, StoreError."""

    def put(self, batch: Batch) -> None:
        """Route its operations; `batch.stream.finished(batch)` is called when every one is acknowledged or refused."""

    def forget(self, stream: PassedStream) -> None:
        """Nobody waits for the rest of a stream: what of it is not written yet is dropped."""


class PassedStream:
    """One stream's batches, in order. The lock guards all of it: gRPC's threads put and answer, the engine finishes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: deque[Batch] = deque()
        self._open_bytes = 0
        self._reads = True
        self._is_cut = False

    def take(self, batch: Batch) -> bool:
        """Wait for room and take it; False: the stream is over."""
        with self._changed:
            while not self._is_cut and self._open and self._is_full(batch.size):
                self._changed.wait(1.0)
            if self._is_cut:
                return False
            self._open.append(batch)
            self._open_bytes += batch.size
            return True

    def finished(self, batch: Batch) -> None:
        with self._changed:
            batch.is_over = True
            self._changed.notify_all()

    def read_to_end(self) -> None:
        """No batch follows: the answers end with the last one's."""
        with self._changed:
            self._reads = False
            self._changed.notify_all()

    def cut(self) -> None:
        """No more answers."""
        with self._changed:
            self._is_cut = True
            self._changed.notify_all()

    @property
    def is_cut(self) -> bool:
        return self._is_cut

    def next_answer(self) -> pb.OperationResponse | None:
        """Wait for the next acknowledgement; None: there is none any more."""
        with self._changed:
            while not self._is_cut:
                if self._open and self._open[0].is_over:
                    return self._answer()
                if not self._open and not self._reads:
                    return None
                self._changed.wait(1.0)
            return None

    def _is_full(self, size: int) -> bool:
        return len(self._open) >= MOST_OPEN_BATCHES or self._open_bytes + size > MOST_OPEN_BYTES

    def _answer(self) -> pb.OperationResponse:
        """One for all that are over; errors speak of the batch that they name, so that one is answered by itself."""
        while True:
            batch = self._open.popleft()
            self._open_bytes -= batch.size
            if batch.errors or not self._open or not self._open[0].is_over or self._open[0].errors:
                break
        self._changed.notify_all()
        errors = [
            pb.OperationError(index=index, code=pb.OperationError.REJECT, message=message)
            for index, message in sorted(batch.errors)
        ]
        return pb.OperationResponse(batch_id=batch.batch_id, errors=errors)


class IngestService:
    """The servicer. Requests come as bytes; `stopping` is set when the server ends."""

    def __init__(self, chain: Chain, health: Callable[[], Health], stopping: threading.Event) -> None:
        self._chain, self._health, self._stopping = chain, health, stopping
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards _streams
        self._streams: set[PassedStream] = set()

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
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

    def cut_all(self) -> None:
        """End every stream: their senders try again later, or elsewhere."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            self._close(stream)

    def _health_check(self, _request: pb.HealthCheckRequest, _context: Any) -> pb.HealthCheckResponse:
        health = self._health()
        status = pb.HealthCheckResponse.SERVING if health.is_serving else pb.HealthCheckResponse.NOT_SERVING
        return pb.HealthCheckResponse(status=status, message=health.message, details=health.details)

    def _ingest(self, raw: bytes, context: Any) -> pb.OperationResponse:
        stream = self._open(context)
        try:
            try:
                request = pb.OperationRequest.FromString(raw)
                self._pass_on(stream, request, len(raw))
            except DecodeError:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not an OperationRequest")
            except StoreAway as exc:
                context.abort(grpc.StatusCode.UNAVAILABLE, str(exc))
            except StoreError as exc:
                context.abort(grpc.StatusCode.INTERNAL, str(exc))
            answer = stream.next_answer()
            if answer is None:
                context.abort(grpc.StatusCode.UNAVAILABLE, "this relay is stopping")
                raise AssertionError("abort raises")
            return answer
        finally:
            self._close(stream)

    def _stream_operations(self, requests: Iterator[bytes], context: Any) -> Iterator[pb.OperationResponse]:
        stream = self._open(context)
        problem: list[tuple[grpc.StatusCode, str]] = []
        number = next(self._numbers)

        def read() -> None:
            try:
                for batch_id, raw in zip(itertools.count(1), requests, strict=False):
                    request = pb.OperationRequest.FromString(raw)
                    if request.batch_id != batch_id:
                        problem.append(
                            (grpc.StatusCode.INVALID_ARGUMENT, f"batch_id {request.batch_id}, expected {batch_id}")
                        )
                        return
                    if not self._pass_on(stream, request, len(raw)):
                        return
                stream.read_to_end()
            except DecodeError:
                problem.append((grpc.StatusCode.INVALID_ARGUMENT, "not an OperationRequest"))
            except StoreAway as exc:
                problem.append((grpc.StatusCode.UNAVAILABLE, str(exc)))
            except Exception as exc:  # the top of this thread
                # gRPC raises a bare Exception from the iterator when the stream is cut under it.
                if context.is_active() and not stream.is_cut:
                    log.error("stream_died", peer=context.peer(), error=f"{type(exc).__name__}: {exc}", exc_info=True)
                    problem.append((grpc.StatusCode.INTERNAL, "internal error"))
            finally:
                if problem:
                    stream.cut()

        log.info("chained_stream_opened", peer=context.peer(), stream=number)
        threading.Thread(target=read, name=f"chained-{number}", daemon=True).start()
        try:
            while (answer := stream.next_answer()) is not None:
                yield answer
            if problem:
                log.warning("chained_stream_refused", peer=context.peer(), stream=number, error=problem[0][1])
                context.abort(*problem[0])
            if self._stopping.is_set():
                context.abort(grpc.StatusCode.UNAVAILABLE, "this relay is stopping")
        finally:
            self._close(stream)
            log.info("chained_stream_closed", peer=context.peer(), stream=number)

    def _open(self, context: Any) -> PassedStream:
        stream = PassedStream()
        with self._lock:
            if self._stopping.is_set():
                context.abort(grpc.StatusCode.UNAVAILABLE, "this relay is stopping")
            self._streams.add(stream)
        # However the call ends, gRPC says so; it is too late already when it returns False.
        if not context.add_callback(lambda: self._close(stream)):
            self._close(stream)
        return stream

    def _close(self, stream: PassedStream) -> None:
        stream.cut()
        with self._lock:
            if stream not in self._streams:
                return
            self._streams.discard(stream)
        self._chain.forget(stream)

    def _pass_on(self, stream: PassedStream, request: pb.OperationRequest, size: int) -> bool:
        """Raises StoreAway, StoreError. False: the stream is over."""
        batch = Batch(stream=stream, batch_id=request.batch_id, size=size, operations=[])
        ours = self._chain.tracked({op.did for op in request.operations if is_did(op.did)})
        for index, op in enumerate(request.operations):
            if op.type not in _TYPES or not is_did(op.did):
                batch.errors.append((index, "not an operation: it has no known type, or no DID"))
            elif op.did in ours:
                batch.errors.append((index, f"{op.did} is tracked by this relay itself"))
            else:
                payload = pb.OperationRequest(operations=[op]).SerializeToString()
                is_live = op.source == pb.FIREHOSE
                batch.operations.append(Passed(index=index, did=op.did, is_live=is_live, payload=payload))
        if not stream.take(batch):
            return False
        if batch.operations:
            self._chain.put(batch)
        else:
            stream.finished(batch)
        return True
