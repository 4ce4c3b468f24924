"""The smallest relay: sends batches, and sends again what was not acknowledged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import grpc

from relay.ingester.faults import FaultPlan
from relay.ingester.server import IngesterServer, ServerOptions
from relay.ingester.sinks.choose import make_sink
from relay.pb import ingester_pb2 as pb
from relay.pb import ingester_pb2_grpc as pb_grpc


@contextlib.contextmanager
def serving(
    sink_url: str, *, faults: FaultPlan | None = None, check_order: bool = False, max_message_bytes: int = 64 << 20
) -> Iterator[tuple[IngesterServer, pb_grpc.IngesterServiceStub]]:
    options = ServerOptions(
        listen="127.0.0.1:0", faults=faults, check_order=check_order, max_message_bytes=max_message_bytes
    )
    server = IngesterServer(make_sink(sink_url), options)
    address = server.start()
    try:
        with grpc.insecure_channel(address) as channel:
            yield server, stub_of(channel)
    finally:
        stop(server)


def stub_of(channel: grpc.Channel) -> pb_grpc.IngesterServiceStub:
    return pb_grpc.IngesterServiceStub(channel)  # type: ignore[no-untyped-call]  # generated code has no types


def stop(server: IngesterServer) -> bool:
    return server.stop(time.monotonic() + 10)


def numbered(batches: Iterable[list[pb.Operation]]) -> list[pb.OperationRequest]:
    return [pb.OperationRequest(batch_id=number, operations=batch) for number, batch in enumerate(batches, 1)]


@dataclass
class Delivery:
    """Go-back-N. `rejected` names operations as (place of the batch in `batches`, index)."""

    batches: list[list[pb.Operation]]
    acknowledged: int = 0
    streams: int = 0
    retries: int = 0
    rejected: set[tuple[int, int]] = field(default_factory=set)

    def attempt(self, stub: pb_grpc.IngesterServiceStub) -> None:
        """One stream, to its end."""
        self.streams += 1
        start = self.acknowledged
        try:
            for response in stub.StreamOperations(iter(numbered(self.batches[start:])), timeout=30):
                codes = {error.code for error in response.errors}
                if pb.OperationError.RETRY in codes:
                    self.retries += 1
                    self.acknowledged = max(self.acknowledged, start + response.batch_id - 1)
                    return
                self.acknowledged = max(self.acknowledged, start + response.batch_id)
                self.rejected |= {(start + response.batch_id - 1, error.index) for error in response.errors}
        except grpc.RpcError as exc:
            if exc.code() != grpc.StatusCode.UNAVAILABLE:
                raise

    def run(self, stub: pb_grpc.IngesterServiceStub, *, most_streams: int = 200) -> None:
        while self.acknowledged < len(self.batches):
            assert self.streams < most_streams, (
                f"{self.acknowledged} of {len(self.batches)} after {self.streams} streams"
            )
            self.attempt(stub)
