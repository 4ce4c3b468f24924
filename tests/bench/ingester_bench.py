"""How fast is each sink of the reference ingester? Feeds it batches of 256 KiB directly, without gRPC.

    python -m tests.bench.ingester_bench [--records 200000] [--dsn postgresql://...] [SINK...]

Sinks: null, null-count, jsonl, sqlite, postgresql (with --dsn: its tables account and record are dropped first). For each:
records/s of snapshots that are new, then of the same snapshots a second time (upserts), and the CPU of this process a record;
beside it a reference loop (SHA-256 of the same records), because machines differ. Asserts nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator

import psycopg2

from relay.ingester.operations import Prepared, parse_batch
from relay.ingester.sinks.base import Sink, make_sink
from relay.pb import ingester_pb2 as pb

BATCH_BYTES = 256 << 10
RECORDS_PER_REPO = 457  # the average of the mix in which the targets are given
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


def feed(sink: Sink, batches: list[bytes]) -> tuple[int, float, float]:
    """Return operations, seconds, and CPU seconds of this process."""
    operations = 0
    started, cpu = time.perf_counter(), time.process_time()
    group: list[Prepared] = []
    for raw in batches:
        if sink.reads_operations:
            _, parsed, count = parse_batch(raw)
            prepared = sink.prepare(parsed, count, None)
        else:
            _, prepared = sink.prepare_raw(raw)
        operations += prepared.operations
        group.append(prepared)
        if len(group) == GROUP:
            sink.store(group)
            group = []
    if group:
        sink.store(group)
    return operations, time.perf_counter() - started, time.process_time() - cpu


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
    parser.add_argument("--dsn", default="")
    parser.add_argument("sinks", nargs="*", default=["null", "null-count", "jsonl", "sqlite", "postgresql"])
    args = parser.parse_args()
    first = batches_of(snapshots(args.records, "3kaaaaaaaaa2a"))
    again = batches_of(snapshots(args.records, "3kaaaaaaaab2a"))
    with tempfile.TemporaryDirectory() as folder:
        urls: dict[str, Callable[[], str]] = {
            "null": lambda: "null:",
            "null-count": lambda: "null:?count=1",
            "jsonl": lambda: f"jsonl:{folder}/jsonl",
            "sqlite": lambda: f"sqlite://{folder}/bench.db",
            "postgresql": lambda: empty_database(args.dsn),
        }
        for name in args.sinks:
            if name == "postgresql" and not args.dsn:
                print("postgresql    needs --dsn")
                continue
            sink = make_sink(urls[name]())
            sink.open()
            for what, batches in (("new", first), ("again", again)):
                beat = reference(batches)
                operations, took_s, cpu_s = feed(sink, batches)
                print(
                    f"{name:12} {what:6} {operations / took_s:10,.0f} records/s   {cpu_s / operations * 1e6:6.2f} us CPU a record"
                    f"   sha256 {beat:5.0f} ns, ratio {took_s / operations * 1e9 / beat:6.2f}",
                    flush=True,
                )
            sink.close()


def empty_database(dsn: str) -> str:
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS account, record")
    connection.close()
    return dsn


if __name__ == "__main__":
    main()
