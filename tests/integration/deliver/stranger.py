"""An ingester written from the contract alone, that can be told to misbehave. Run as a module it is one that can be killed.

python -m tests.integration.deliver.stranger PORT FILE      stores "did key" lines in FILE, then acknowledges
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from relay.pb.ingester_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    OperationError,
    OperationRequest,
    OperationResponse,
)
from relay.pb.ingester_pb2_grpc import IngesterServiceServicer, add_IngesterServiceServicer_to_server

Op = tuple[str, int]


@dataclass
class Stream:
    """One stream as the ingester saw it."""

    metadata: dict[str, str]
    batches: list[list[Op]] = field(default_factory=list)
    is_over: bool = False  # after RETRY nothing more of it is stored

    @property
    def operations(self) -> list[Op]:
        return [operation for batch in self.batches for operation in batch]


Answers = Iterator[OperationResponse]


class Stranger(IngesterServiceServicer):
    """`answer(stream, batch_id, operations)` is what it does with a batch: `store` it or not, and yield responses or nothing."""

    def __init__(self, answer: Callable[[Stranger, Stream, int, list[Op]], Answers] | None = None) -> None:
        self.answer = answer or acknowledge
        self.stored: list[Op] = []
        self.streams: list[Stream] = []
        self.health = HealthCheckResponse.SERVING
        self.has_health_check = True
        self.standard_health: HealthServicer | None = None  # of the server as a whole; to be set before it starts
        self.health_checks = 0
        self.closes_after: int | None = None  # batches of a stream; then it ends in good order
        self._server: grpc.Server | None = None
        self.port = 0

    def start(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> Stranger:
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        self._server = server = grpc.server(ThreadPoolExecutor(8, "stranger"), options=options)
        add_IngesterServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        if self.standard_health is not None:
            add_HealthServicer_to_server(self.standard_health, server)
        address = f"127.0.0.1:{port}"
        self.port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
        server.start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def store(self, operations: list[Op]) -> None:
        self.stored += operations

    def StreamOperations(self, requests: Iterator[OperationRequest], context: Any) -> Answers:  # noqa: N802
        stream = Stream(dict(context.invocation_metadata()))
        self.streams.append(stream)
        for request in requests:
            assert request.batch_id == len(stream.batches) + 1
            operations = [(operation.did, int(operation.rkey)) for operation in request.operations]
            stream.batches.append(operations)
            if not stream.is_over:
                yield from self.answer(self, stream, request.batch_id, operations)
            if self.closes_after == len(stream.batches):
                return

    def HealthCheck(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:  # noqa: N802
        self.health_checks += 1
        if not self.has_health_check:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        return HealthCheckResponse(status=self.health, message="told to say so")


def acknowledge(stranger: Stranger, stream: Stream, batch_id: int, operations: list[Op]) -> Answers:
    stranger.store(operations)
    yield OperationResponse(batch_id=batch_id)


def ask_again(stream: Stream, batch_id: int, index: int, message: str) -> OperationResponse:
    """RETRY: nothing of the batch is stored, nor of what follows on its stream."""
    stream.is_over = True
    return refuse(batch_id, index, OperationError.RETRY, message)


def refuse(batch_id: int, index: int, code: Any, message: str) -> OperationResponse:
    return OperationResponse(batch_id=batch_id, errors=[OperationError(index=index, code=code, message=message)])


def main(port: int, path: str) -> None:
    """Serve until killed. A line is in the file before the batch is acknowledged."""
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    lock = threading.Lock()

    def store(_stranger: Stranger, _stream: Stream, batch_id: int, operations: list[Op]) -> Answers:
        with lock:
            os.write(out, "".join(f"{did} {key}\n" for did, key in operations).encode())
        yield OperationResponse(batch_id=batch_id)

    stranger = Stranger(store).start(port)
    print(f"listening on {stranger.port}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
