"""What does delivery cost in the supervisor? One stream into an ingester process that only acknowledges.

    python -m tests.bench.deliver_bench [--seconds 5]

Cases: as fast as it goes; paced at 2,000 segments/s of 200 operations and 75 KB (400,000 operations/s, 150 MB/s); many small
repos; a live trickle (one operation a segment). For each: segments/s, operations/s, MB/s, the share of a core that this process used
(all threads, feeding included), CPU a batch, and the time from offer to acknowledgement. Beside it a reference loop: `hashlib.sha256`
over the same bytes, because machines differ. Asserts nothing.

At last three ingesters that store at most MB_PER_S each, then one of them at a tenth of it: what the others get.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from relay.config.schema import DeliverySettings, GrpcSettings, RelaySettings
from relay.deliver.delivery import Delivery
from relay.deliver.segment import Refused, Segment
from relay.model import Lane
from relay.pb.ingester_pb2 import CREATE, Operation, OperationRequest, OperationResponse

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
MB_PER_S = 10.0


@dataclass(frozen=True)
class Case:
    name: str
    operations: int  # of a segment
    operation_bytes: int
    segments_per_s: int | None  # None: as fast as it goes
    lane: Lane = Lane.BACKFILL


CASES = (
    Case("full speed, 75 KB segments", 200, 375, None),
    Case("400k operations/s, 150 MB/s", 200, 375, 2000),
    Case("small repos, 3.5 KB segments", 10, 350, None),
    Case("live, 2,000 operations/s", 1, 400, 2000, Lane.LIVE),
)


class Owner:
    """Counts acknowledgements."""

    def __init__(self) -> None:
        self.segments = 0
        self.bytes_of: Counter[str] = Counter()
        self.latencies_s: list[float] = []
        self.room = threading.Event()

    def acknowledged(self, address: str, segments: list[Segment]) -> None:
        now = time.monotonic()
        self.bytes_of[address] += sum(segment.size for segment in segments)
        self.segments += len(segments)
        self.latencies_s.append(now - segments[0].received_at)

    def refused(self, refused: Refused) -> None:
        raise AssertionError(refused)

    def ingester_changed(self, address: str, healthy: bool, reason: str) -> None:
        pass


def serve(bytes_per_s: float | None) -> None:
    """The ingester's process: reads nothing of a batch but its number, acknowledges every one, at its own pace."""

    def stream(requests: Iterator[bytes], _context: Any) -> Iterator[OperationResponse]:
        free_at = time.monotonic()
        for number, request in enumerate(requests, 1):
            if bytes_per_s is not None:
                free_at = max(free_at, time.monotonic()) + len(request) / bytes_per_s
                time.sleep(max(0.0, free_at - time.monotonic()))
            yield OperationResponse(batch_id=number)

    handler = grpc.stream_stream_rpc_method_handler(
        stream, request_deserializer=None, response_serializer=OperationResponse.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("ingester.v1.IngesterService", {"StreamOperations": handler}),)
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()


def run(case: Case, address: str, seconds: float) -> None:
    operation = Operation(
        type=CREATE, did="did:plc:" + "a" * 24, collection="app.bsky.feed.post", rkey="3" * 13, record_cbor=b"x"
    )
    operation.record_cbor = b"x" * (case.operation_bytes - operation.ByteSize() - 4)
    payload = OperationRequest(operations=[operation] * case.operations).SerializeToString()
    owner = Owner()
    delivery = Delivery(
        (address,),
        DeliverySettings(),
        GrpcSettings(),
        RelaySettings(),
        owner,
        on_room=lambda _address: owner.room.set(),
    )
    delivery.start()

    def offer(number: int) -> None:
        segment = Segment(
            did=f"did:plc:{number % 1000:024d}",
            lane=case.lane,
            payload=payload,
            size=len(payload),
            operations=case.operations,
            rev="3zzz",
            received_at=time.monotonic(),
        )
        while True:
            owner.room.clear()
            if delivery.offer(segment):
                return
            owner.room.wait(DEADLINE_S)

    for number in range(50):
        offer(number)
    delivery.drain(time.monotonic() + DEADLINE_S)
    owner.latencies_s.clear()
    before = delivery.status()[0]
    cpu_s, start, number = time.process_time(), time.monotonic(), 0
    while (now := time.monotonic()) - start < seconds:
        if case.segments_per_s is None:
            offer(number)
            number += 1
            continue
        due = int((now - start) * case.segments_per_s)
        while number < due:
            offer(number)
            number += 1
        time.sleep(0.002)
    delivery.drain(time.monotonic() + DEADLINE_S)
    took_s, cpu_s = time.monotonic() - start, time.process_time() - cpu_s
    status = delivery.status()[0]
    delivery.request_stop()
    delivery.join(time.monotonic() + DEADLINE_S)
    batches = status.sent_batches - before.sent_batches
    latencies = sorted(owner.latencies_s)
    print(
        f"{case.name:30} {number / took_s:8,.0f} segments/s {number * case.operations / took_s:10,.0f} operations/s"
        f" {(status.sent_bytes - before.sent_bytes) / took_s / 1e6:7,.1f} MB/s  {cpu_s / took_s:5.2f} cores"
        f" {cpu_s / max(1, batches) * 1e6:6.0f} us/batch ({batches / took_s:,.0f} batches/s)"
        f"  offer to ack p50 {latencies[len(latencies) // 2] * 1000:.1f} p99 {latencies[int(len(latencies) * 0.99)] * 1000:.1f} ms"
        f"  window {status.window_batches}",
        flush=True,
    )


def run_three(rates: tuple[float, ...], seconds: float) -> list[float]:
    """Return what each of three ingesters took, MB/s. Segments of 100 operations for whoever has room, 20 KB each."""
    operation = Operation(type=CREATE, did="did:plc:" + "a" * 24, collection="app.bsky.feed.post", rkey="3" * 13)
    operation.record_cbor = b"x" * 130
    payload = OperationRequest(operations=[operation] * 100).SerializeToString()
    owner = Owner()
    with serving(rates[0]) as one, serving(rates[1]) as two, serving(rates[2]) as three:
        addresses = (one, two, three)
        delivery = Delivery(
            addresses,
            DeliverySettings(),
            GrpcSettings(),
            RelaySettings(),
            owner,
            on_room=lambda _address: owner.room.set(),
        )
        delivery.start()
        dids = deque(f"did:plc:{number:024d}" for number in range(600))
        start, warm_s, before = time.monotonic(), seconds / 2, Counter[str]()
        while (now := time.monotonic()) - start < warm_s + seconds:
            if not before and now - start >= warm_s:
                before = Counter(owner.bytes_of)
            owner.room.clear()
            for _ in range(len(dids)):
                did = dids[0]
                dids.rotate(-1)
                if delivery.has_room(did):
                    delivery.offer(
                        Segment(
                            did=did,
                            lane=Lane.BACKFILL,
                            payload=payload,
                            size=len(payload),
                            operations=100,
                            rev="3zzz",
                            received_at=now,
                        )
                    )
            owner.room.wait(0.05)
        taken = [(owner.bytes_of[address] - before[address]) / seconds / 1e6 for address in addresses]
        delivery.request_stop()
        delivery.join(time.monotonic() + DEADLINE_S)
    return taken


def slow_one(seconds: float) -> None:
    """Print what two ingesters get while the third is as fast as they are, and while it is slowed to a tenth."""
    even = run_three((MB_PER_S, MB_PER_S, MB_PER_S), seconds)
    uneven = run_three((MB_PER_S, MB_PER_S, MB_PER_S / 10), seconds)
    for name, taken in (("three alike", even), ("the third at a tenth", uneven)):
        print(f"{name:30} {', '.join(f'{each:.2f}' for each in taken)} MB/s", flush=True)
    print(f"{'the others kept':30} {sum(uneven[:2]) / sum(even[:2]):.1%} of what they had")


@contextmanager
def serving(mb_per_s: float | None = None) -> Iterator[str]:
    """An ingester's process; its address."""
    command = [sys.executable, "-m", "tests.bench.deliver_bench", "--serve", str(mb_per_s or 0)]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each case runs")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        return serve(args.serve * 1e6 or None)
    blob = bytes(256 * 1024)
    start = time.process_time()
    for _ in range(400):
        hashlib.sha256(blob)
    took_s = time.process_time() - start
    print(f"reference: SHA-256 {400 * len(blob) / took_s / 1e6:,.0f} MB/s on one core")
    with serving() as address:
        for case in CASES:
            run(case, address, args.seconds)
    slow_one(args.seconds)
    return None


if __name__ == "__main__":
    main()
