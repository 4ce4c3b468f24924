"""How fast is each sink of the reference ingester? Feeds it batches of 256 KiB: directly, or over gRPC with --grpc.

    python -m tests.bench.ingester_bench [--records 200000] [--dsn postgresql://...] [--grpc] [SINK...]

Sinks: null, null-count, jsonl, sqlite, postgresql (with --dsn its tables account and record are dropped first). For each:
records/s of snapshots that are new, then of the same snapshots a second time (upserts), and the ingester's CPU a record;
beside it a reference loop (SHA-256 of 256 bytes), because machines differ. Asserts nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import grpc
import psutil
import psycopg2
import psycopg2.extensions

from relay.ingester.operations import Prepared, parse_batch, split_batch
from relay.ingester.sinks.choose import make_sink
from relay.pb import ingester_pb2 as pb
from relay.store.embedded import EmbeddedPostgres

BATCH_BYTES = 256 << 10
RECORDS_PER_REPO = 457  # the average of the mix in which the targets are given
ROOT = Path(__file__).resolve().parents[2]
WINDOW = 32
GROUP = 4  # batches a transaction: what gathers while the last one runs

_LIKE = (
    '{"$type":"app.bsky.feed.like","subject":{"cid":"%s","uri":"at://did:plc:%024x/app.bsky.feed.post/3k%011d"},'
    '"createdAt":"2024-01-01T00:00:00.000Z"}'
)
_POST = '{"$type":"app.bsky.feed.post","text":"%s","langs":["en"],"createdAt":"2024-01-01T00:00:00.000Z"}'


def snapshots(records: int, rev: str) -> Iterator[pb.Operation]:
    """Yield whole snapshots of about `records` records, always the same ones."""
    rng = random.Random(7)
    for _ in range(max(1, records // RECORDS_PER_REPO)):
        did = f"did:plc:{rng.getrandbits(96):024x}"
        yield pb.Operation(type=pb.REPO_BEGIN, did=did, rev=rev, source=pb.BACKFILL, time_us=1)
        for collection, share in (("app.bsky.feed.like", 300), ("app.bsky.feed.post", 157)):
            for number in range(share):
                cid = f"bafyrei{rng.getrandbits(200):052x}"
                if collection == "app.bsky.feed.like":
                    record = _LIKE % (cid, rng.getrandbits(96), number)
                else:
                    record = _POST % ("one two three " * rng.randrange(1, 18))
                yield pb.Operation(
                    type=pb.CREATE,
                    did=did,
                    collection=collection,
                    rkey=f"3k{number:011d}",
                    cid=cid,
                    rev=rev,
                    source=pb.BACKFILL,
                    time_us=1_700_000_000_000_000,
                    record_json=record,
                )
        yield pb.Operation(type=pb.REPO_END, did=did, rev=rev, source=pb.BACKFILL, record_count=RECORDS_PER_REPO)


def batches_of(operations: Iterator[pb.Operation]) -> list[bytes]:
    """Return OperationRequests of about BATCH_BYTES each."""
    batches: list[bytes] = []
    request = pb.OperationRequest()
    size = 0
    for op in operations:
        size += op.ByteSize()
        request.operations.append(op)
        if size >= BATCH_BYTES:
            request.batch_id = len(batches) + 1
            batches.append(request.SerializeToString())
            request, size = pb.OperationRequest(), 0
    if request.operations:
        request.batch_id = len(batches) + 1
        batches.append(request.SerializeToString())
    return batches


class Direct:
    """The sink in this process."""

    def __init__(self, sink_url: str) -> None:
        self._sink = make_sink(sink_url)
        self._sink.open()

    def feed(self, batches: list[bytes]) -> tuple[float, float]:
        """Return seconds, and CPU seconds of this process."""
        started, cpu = time.perf_counter(), time.process_time()
        for place in range(0, len(batches), GROUP):
            self._sink.store([self._prepared(raw) for raw in batches[place : place + GROUP]])
        return time.perf_counter() - started, time.process_time() - cpu

    def _prepared(self, raw: bytes) -> Prepared:
        if not self._sink.reads_operations:
            return self._sink.prepare_raw(raw)[1]
        _, operations, count = parse_batch(raw)
        return self._sink.prepare(operations, count, None)

    def close(self) -> None:
        self._sink.close()


class OverGrpc:
    """`bin/relay ingester` as a process of its own, and a stream with a window of WINDOW batches."""

    def __init__(self, sink_url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "bin" / "relay"), "ingester", "--listen", "127.0.0.1:0", "--sink", sink_url],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._address = self._process.stdout.readline().split()[-1]
        self._stat = psutil.Process(self._process.pid)

    def feed(self, batches: list[bytes]) -> tuple[float, float]:
        """Return seconds, and CPU seconds of the ingester."""
        window = threading.Semaphore(WINDOW)

        def requests() -> Iterator[bytes]:
            for raw in batches:
                window.acquire()
                yield raw

        started, cpu = time.perf_counter(), sum(self._stat.cpu_times()[:2])
        with grpc.insecure_channel(self._address, options=[("grpc.max_send_message_length", -1)]) as channel:
            call = channel.stream_stream("/ingester.v1.IngesterService/StreamOperations", bytes, bytes)
            acknowledged = 0
            for raw in call(requests()):
                response = pb.OperationResponse.FromString(raw)
                assert not response.errors
                window.release(response.batch_id - acknowledged)
                acknowledged = response.batch_id
        assert acknowledged == len(batches)
        return time.perf_counter() - started, sum(self._stat.cpu_times()[:2]) - cpu

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def reference(batches: list[bytes]) -> float:
    """Return nanoseconds for one SHA-256 of 256 bytes on this machine, now."""
    data = batches[0][:256]
    started = time.perf_counter()
    for _ in range(200_000):
        hashlib.sha256(data).digest()
    return (time.perf_counter() - started) / 200_000 * 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--dsn", default="", help="without it a private server with the defaults of the product")
    parser.add_argument("--grpc", action="store_true")
    parser.add_argument("sinks", nargs="*", default=["null", "null-count", "jsonl", "sqlite", "postgresql"])
    args = parser.parse_args()
    rounds = [("new", snapshots(args.records, "3kaaaaaaaaa2a")), ("again", snapshots(args.records, "3kaaaaaaaab2a"))]
    loads = [(name, batches_of(operations)) for name, operations in rounds]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        urls: dict[str, Callable[[], str]] = {
            "null": lambda: "null:",
            "null-count": lambda: "null:?count=1",
            "jsonl": lambda: f"jsonl:{folder}/jsonl",
            "sqlite": lambda: f"sqlite://{folder}/bench.db",
            "postgresql": lambda: empty_database(args.dsn) if args.dsn else private_database(folder, stack),
        }
        for sink in args.sinks:
            url = urls[sink]()
            ingester = OverGrpc(url) if args.grpc else Direct(url)
            for name, batches in loads:
                beat = reference(batches)
                operations = sum(len(split_batch(raw)[1]) for raw in batches)
                took_s, cpu_s = ingester.feed(batches)
                print(
                    f"{sink:12} {name:6} {operations / took_s:11,.0f} records/s  {cpu_s / operations * 1e6:5.2f} us CPU a record"
                    f"   (sha256 {beat:.0f} ns, ratio {took_s / operations * 1e9 / beat:.2f})",
                    flush=True,
                )
            ingester.close()


def empty_database(dsn: str) -> str:
    with contextlib.closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS account, record")
    return dsn


def private_database(folder: str, stack: contextlib.ExitStack) -> str:
    server = EmbeddedPostgres(Path(folder) / "pg")
    server.open()
    stack.callback(server.close)
    parts = psycopg2.extensions.parse_dsn(server.dsn)
    return f"postgresql:///{parts.pop('dbname')}?{urlencode(parts)}"


if __name__ == "__main__":
    main()
