"""What the worker costs: CAR bytes in, verified operations out, one core, no I/O.

    python -m tests.bench.worker_stage [--quick] [--million] [--peers]

Every figure stands beside a reference loop (`hashlib.sha256` over the same blocks), timed in the same rounds: compare ratios, not
seconds, because machines differ and this one may be shared. CPU time of this process; the least of some rounds. --quick: the mix
and fewer rounds; --million: the one repo of a million records too (made on first use); --peers: other libraries on the same CARs.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from relay.atproto import car as cars
from relay.atproto import mst_columns
from relay.atproto.commit import parse_commit
from relay.atproto.jsonform import record_to_json
from relay.atproto.keys import parse_multikey
from relay.atproto.limits import Limits
from relay.atproto.mst import Tally
from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.verify import verify_repo
from relay.backfill.snapshot import SnapshotSpec, take_snapshot
from relay.model import RecordEncoding, Source
from relay.pb.encode import CreateEncoder
from tests.bench import mkcars

LIMITS = Limits()
TENTH = ("app.bsky.feed.repost", "app.bsky.graph.block")  # 9 % of the records
ALL = NsidFilter.parse(())
# Targets in records/s (PERFORMANCE, "Targets"), and what the reference loop took there: ratios follow from it.
TARGETS = {"raw": (250_000, 330_000), "JSON": (170_000, 230_000), "filter 9 %": (500_000, 800_000)}
REFERENCE_NS = 450


@dataclass(frozen=True, slots=True)
class Loaded:
    """A repo of the set with all that the steps need."""

    repo: mkcars.Repo
    car: bytes


def spec(repo: mkcars.Repo, encoding: RecordEncoding, patterns: tuple[str, ...] = ()) -> SnapshotSpec:
    return SnapshotSpec(
        did=repo.did,
        key=repo.key,
        patterns=patterns,
        encoding=encoding,
        source=Source.BACKFILL,
        time_us=1_700_000_000_000_000,
        status=None,
        handle=None,
        pds=None,
        touched=False,
        chunk_bytes=256 << 10,
        chunk_operations=1000,
        max_operation_bytes=16 << 20,
        limits=LIMITS,
    )


def stage(loaded: Iterable[Loaded], encoding: RecordEncoding, patterns: tuple[str, ...] = ()) -> Callable[[], None]:
    """Return the whole stage: what a worker does between two slots."""

    def run() -> None:
        for one in loaded:
            for chunk in take_snapshot(one.car, spec(one.repo, encoding, patterns)).chunks():
                b"".join(chunk.parts)

    return run


def reference(loaded: Iterable[Loaded]) -> Callable[[], None]:
    blocks = [block for one in loaded for block in _index(one.car).values()]

    def run() -> None:
        sha256 = hashlib.sha256
        for block in blocks:
            sha256(block).digest()

    return run


def _index(car: bytes) -> dict[bytes, bytes]:
    return cars.hash_blocks(car, cars.read_header(car).size)


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the least CPU seconds of each step; the steps take turns, so that all meet the same machine."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            gc.collect()
            began = time.process_time()
            step()
            best[name] = min(best[name], time.process_time() - began)
    return best


def report(title: str, loaded: list[Loaded], rounds: int) -> None:
    records = sum(one.repo.records for one in loaded)
    size = sum(len(one.car) for one in loaded)
    took = measure(
        {
            "reference": reference(loaded),
            "raw": stage(loaded, RecordEncoding.DAG_CBOR),
            "JSON": stage(loaded, RecordEncoding.JSON),
            "filter 9 %": stage(loaded, RecordEncoding.DAG_CBOR, TENTH),
        },
        rounds,
    )
    base = took["reference"] / records * 1e9
    print(f"\n{title}: {len(loaded)} repos, {records:,} records, {size / 1e6:.1f} MB")
    print(
        f"  {'':<12}{'ns/record':>10}{'records/s':>12}{'MB/s':>8}{'repos/s':>9}{'ratio':>8}   at a reference of {REFERENCE_NS} ns"
    )
    for name, seconds in took.items():
        ns = seconds / records * 1e9
        line = f"  {name:<12}{ns:>10.0f}{records / seconds:>12,.0f}{size / seconds / 1e6:>8.0f}"
        line += f"{len(loaded) / seconds:>9,.0f}{ns / base:>8.2f}"
        if name in TARGETS:
            adjusted = 1e9 / (ns / base * REFERENCE_NS)
            must, goal = TARGETS[name]
            verdict = "goal" if adjusted >= goal else "must" if adjusted >= must else "BELOW"
            line += f"   {adjusted:>9,.0f} records/s: {verdict} ({must:,} / {goal:,})"
        print(line, flush=True)


def profile(title: str, loaded: list[Loaded], rounds: int) -> None:
    """Print where the time of the stage goes. The steps run one by one on cold data, so their sum is above the stage."""
    records = sum(one.repo.records for one in loaded)
    heads = [(one.car, cars.read_header(one.car)) for one in loaded]
    indexes = [_index(car) for car, _ in heads]
    commits = [index[head.commit_cid[4:]] for index, (_, head) in zip(indexes, heads, strict=True)]
    roots = [parse_commit(commit).data for commit in commits]
    repos = [verify_repo(one.car, did=one.repo.did, key=None, wanted=ALL) for one in loaded]
    keys = [
        f"{collection}/".encode() + rkey
        for repo in repos
        for batch in repo.batches()
        for collection, rkey, _, _ in batch.records()
    ]

    def framing() -> None:
        for car, head in heads:
            cars.StatedBlocks(car, head.size)

    def index() -> None:
        for car, _ in heads:
            _index(car)

    def key_hashes() -> None:
        for key in keys:
            hashlib.sha256(key).digest()

    def pages() -> None:
        for index, root in zip(indexes, roots, strict=True):
            layer = mst_columns._top_layer(root, index, LIMITS)
            if layer is not None:
                for _ in mst_columns._walk_all(root[4:], layer, index, Tally(), LIMITS):
                    pass

    def walk() -> None:
        for index, root in zip(indexes, roots, strict=True):
            for page in mst_columns.walk_columns(root, index, Tally()):
                list(map(index.__getitem__, page.digests))

    def signatures() -> None:
        for one, commit in zip(loaded, commits, strict=True):
            parsed = parse_commit(commit)
            assert parse_multikey(one.repo.key).verify(parsed.unsigned, parsed.sig)

    def encode() -> None:
        for repo in repos:
            encoder = CreateEncoder(did=repo.did, rev=repo.rev, source=Source.BACKFILL, time_us=1)
            for batch in repo.batches():
                pieces, _ = encoder.encode(*batch, as_cbor=True)
                b"".join(pieces)

    def to_json() -> None:
        for repo in repos:
            for batch in repo.batches():
                list(map(record_to_json, batch.blocks))

    took = measure(
        {
            "reference": reference(loaded),
            "framing": framing,
            "framing + hash + index": index,
            "walk: nodes, keys, order": pages,
            "walk + layers, syntax, records": walk,
            "of it SHA-256 of keys": key_hashes,
            "commit, key, signature": signatures,
            "encode + join": encode,
            "JSON": to_json,
        },
        rounds,
    )
    base = took["reference"]
    print(f"\nprofile, {title}: ns/record, ratio to the reference loop")
    for name, seconds in took.items():
        print(f"  {name:<32}{seconds / records * 1e9:>8.0f}{seconds / base:>8.2f}", flush=True)


# ---- one repo of a million records, in a process of its own ---------------------------------------------------------


def million(encoding: RecordEncoding) -> None:
    """Print time and memory of the largest repo; run in a fresh process, because its peak is the figure."""
    (repo,) = mkcars.load("r1m")
    gc.disable()
    gc.freeze()
    before = _resident_mb()
    with repo.path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    view = memoryview(mapped)
    began, cpu = time.monotonic(), time.process_time()
    snapshot = take_snapshot(view, spec(repo, encoding))
    verified = time.monotonic() - began
    operations = sum(chunk.operations for chunk in snapshot.chunks() if b"".join(chunk.parts))
    took = time.monotonic() - began
    peak = _peak_mb()
    print(
        f"  {encoding.value:<10}{len(view) / 1e6:.0f} MB, {operations:,} operations: {took:.1f} s, of it {verified:.1f} s to verify "
        f"(CPU {time.process_time() - cpu:.1f} s), {repo.records / took:,.0f} records/s; peak RSS {peak:.0f} MB "
        f"(before: {before:.0f} MB)",
        flush=True,
    )


def _peak_mb() -> float:
    """The peak of this program alone: `ru_maxrss` would bring along that of the process that started it."""
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def _resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="What the worker costs")
    parser.add_argument("--quick", action="store_true", help="the mix only, fewer rounds")
    parser.add_argument("--million", action="store_true", help="the one repo of a million records too")
    parser.add_argument("--peers", action="store_true", help="other libraries on the same CARs too")
    parser.add_argument("--child", choices=list(RecordEncoding), help=argparse.SUPPRESS)
    options: Any = parser.parse_args(arguments)
    if options.child:
        million(RecordEncoding(options.child))
        return
    sets = ["mix"] if options.quick else ["mix", "r1k", "r10k"]
    loaded = {name: [Loaded(repo, repo.car()) for repo in mkcars.load(name)] for name in sets}
    # As a worker does: the walk makes no cycles, so the collector only costs time.
    gc.disable()
    gc.freeze()
    rounds = 3 if options.quick else 7
    for name, repos in loaded.items():
        report(name, repos, rounds if name != "r1k" else 10 * rounds)
    profile("mix", loaded["mix"], rounds)
    if options.million:
        mkcars.load("r1m")
        print("\none repo of a million records:")
        for encoding in RecordEncoding:
            subprocess.run([sys.executable, "-m", "tests.bench.worker_stage", "--child", encoding.value], check=True)
    if options.peers:
        subprocess.run([sys.executable, "-m", "tests.bench.peers"], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
