"""The whole way, everything on this machine: simulated PDSes -> fetch -> verify -> gRPC -> ingester, state in PostgreSQL.

    python -m tests.bench.end_to_end [--accounts 3000] [--quick] [--only null-raw ...]

Prints records/s, MB/s and repos/s for each sink and encoding, the CPU of each kind of process per record, peak memory, and the
reference loop (hashlib.sha256 over record-sized blocks, one core) with the ratio to it: machines differ, ratios less so.
`steady` leaves out the start of the processes and the last repos. The network, the ingester and PostgreSQL share the machine's cores with the relay: what is printed is the whole, not the relay alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from relay.simnet.process import SimProcess
from relay.simnet.world import WorldSpec
from relay.store.embedded import EmbeddedPostgres

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
_CHILDREN = {
    "relay-fetch": "fetch",
    "relay-worker": "workers",
}  # by the names that they give themselves; else the forkserver


@dataclass(slots=True)
class Usage:
    """CPU seconds and peak resident bytes, by kind of process."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    peak_total: int = 0


class Sampler(threading.Thread):
    """Samples /proc for a process and all its descendants, and names them by their command line."""

    def __init__(self, roots: dict[int, str]) -> None:
        super().__init__(daemon=True)
        self._roots = roots
        self._last: dict[int, tuple[str, float]] = {}
        self._stop_event = threading.Event()
        self.usage = Usage()
        self._before: dict[int, float] = {}  # what a process had used before: the network has built its repos

    def run(self) -> None:
        self.sample()
        self._before = {pid: cpu_s for pid, (kind, cpu_s) in self._last.items() if kind == "network"}
        while not self._stop_event.wait(0.2):
            self.sample()

    def finish(self) -> Usage:
        self._stop_event.set()
        self.join()
        for pid, (kind, cpu_s) in self._last.items():
            self.usage.cpu_s[kind] = self.usage.cpu_s.get(kind, 0.0) + cpu_s - self._before.get(pid, 0.0)
        return self.usage

    def sample(self) -> None:
        parents: dict[int, int] = {}
        stats: dict[int, tuple[float, int]] = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry)] = int(fields[1])
            stats[int(entry)] = ((int(fields[11]) + int(fields[12])) / TICKS, 0)
        memory: dict[str, int] = {}
        for pid in parents:
            kind = self._kind(pid, parents)
            if kind is None:
                continue
            self._last[pid] = (kind, stats[pid][0])
            # Of the network only the CPU is wanted: to walk its gigabyte of pages five times a second took 4 % of the machine.
            if kind != "network":
                memory[kind] = memory.get(kind, 0) + _pss(pid)
        for kind, size in memory.items():
            self.usage.peak_bytes[kind] = max(self.usage.peak_bytes.get(kind, 0), size)
        product = sum(size for kind, size in memory.items() if kind != "ingester")
        self.usage.peak_total = max(self.usage.peak_total, product)

    def _kind(self, pid: int, parents: dict[int, int]) -> str | None:
        at: int | None = pid
        while at is not None and at not in self._roots:
            at = parents.get(at)
            if at in (0, 1):
                return None
        if at is None:
            return None
        root = self._roots[at]
        if root != "relay" or pid == at:
            return root if root != "relay" else "supervisor"
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            return None
        if "postgres" in command:
            return "postgres"
        if "forkserver" in command:
            return _CHILDREN.get(name, "supervisor")
        return "supervisor"


class Meter(threading.Thread):
    """Reads the relay's messages, and from the address that they name how many operations are delivered, five times a second."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        self._process = process
        self.lines: list[str] = []
        self.points: list[tuple[float, int]] = []

    def run(self) -> None:
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        while reader.is_alive():
            reader.join(0.2)
            address = next((m[1] for line in self.lines if (m := re.search(r"metrics: (\S+:\d+)", line))), None)
            if address is None:
                continue
            try:
                with urllib.request.urlopen(f"http://{address}/status.json", timeout=2) as answer:
                    delivered = json.load(answer)["operations_delivered"]
            except (OSError, ValueError):
                continue
            self.points.append((time.monotonic(), delivered or 0))

    def _read(self) -> None:
        assert self._process.stderr is not None
        self.lines.extend(self._process.stderr)

    def steady_rate(self, total: int) -> float:
        """Return operations/s between 15 % and 90 % of `total`: without the start of processes and the last repos."""
        inside = [(at, count) for at, count in self.points if 0.15 * total <= count <= 0.9 * total]
        if len(inside) < 2 or inside[-1][0] == inside[0][0]:
            return 0.0
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def _pss(pid: int) -> int:
    """Proportional set size: shared pages count once in all."""
    try:
        match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0


def reference_loop(block_bytes: int = 231, blocks: int = 200_000) -> float:
    """Return blocks a second of one core: hashlib.sha256 over record-sized blocks."""
    payloads = [os.urandom(block_bytes) for _ in range(2000)]
    sha256 = hashlib.sha256
    best = 0.0
    for _ in range(5):
        began = time.process_time()
        for _ in range(blocks // 2000):
            for payload in payloads:
                sha256(payload).digest()
        best = max(best, blocks / (time.process_time() - began))
    return best


@contextmanager
def ingester(sink: str) -> Iterator[tuple[str, int]]:
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "bin/relay"),
            "ingester",
            "--listen",
            "127.0.0.1:0",
            "--sink",
            sink,
            "--stop-with-stdin",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().decode().removeprefix("listening on ").strip(), process.pid
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def run_once(
    name: str, network: SimProcess, *, encoding: str, sink: str, roots: dict[int, str], extra: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder, ingester(sink) as (address, ingester_pid):
        environ = {
            **os.environ,
            "PLC_URL": network.plc_url,
            "FIREHOSE_HOST": network.relay_url,
            "ALLOW_PRIVATE_HOSTS": "true",
            "DATA_DIR": folder,
            "METRICS_PORT": "0",
            "NSID_FILTER": "",
            "RECORD_ENCODING": encoding,
            "INGESTER_ADDRESSES": address,
            "IDENTITY_REQUESTS_PER_SEC": "100000",
            "BACKFILLER_HOST_REQUESTS_PER_SEC": "100000",
            "PARALLEL_BACKFILLS": "16",
            "BACKFILLER_HOST_CONNECTIONS": "16",
            **extra,
        }
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "bin/relay"), "backfill", "--all", "--no-progress", "--log-level", "warning"],
            env=environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        sampler = Sampler({**roots, process.pid: "relay", ingester_pid: "ingester"})
        sampler.start()
        meter = Meter(process)
        meter.start()
        process.wait()
        meter.join()
        told = "".join(meter.lines)
        usage = sampler.finish()
    match = re.search(r"this run\s+([\d,]+) repos synced, ([\d,.]+\w*) records", told)
    took = re.search(r"rates\s+(\S+)/s repos, (\S+)/s records, (\S+ \S+)/s", told)
    seconds = re.search(r"finished after (\S+)", told)
    if process.returncode != 0 or match is None or took is None or seconds is None:
        print(f"{name}: failed with exit code {process.returncode}\n{told}")
        return
    records = network.records
    print(
        f"{name:18} {took[2]:>8} records/s  {took[3]:>10}/s  {took[1]:>6} repos/s  in {seconds[1]}, steady {meter.steady_rate(records):,.0f} records/s; CPU us/record: "
        + ", ".join(f"{kind} {cpu / records * 1e6:.2f}" for kind, cpu in sorted(usage.cpu_s.items()))
        + f"; memory {usage.peak_total / 1e6:,.0f} MB ("
        + ", ".join(f"{kind} {size / 1e6:,.0f}" for kind, size in sorted(usage.peak_bytes.items()))
        + ")",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--accounts", type=int, default=3000)
    parser.add_argument("--quick", action="store_true", help="300 accounts")
    parser.add_argument("--only", nargs="*", default=["null-raw", "null-json", "postgresql-json"])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="environment of the relay")
    args = parser.parse_args()
    accounts = 300 if args.quick else args.accounts
    reference = reference_loop()
    print(f"reference loop: {reference:,.0f} sha256 of 231 bytes a second on one core")
    extra = dict(item.split("=", 1) for item in args.set)
    spec = WorldSpec(
        accounts=accounts, hosts=8, seed=3, median_records=170, sigma=1.45, max_records=20_000, inactive_share=0.0
    )
    with SimProcess(spec, plain=True, compact=True, start_deadline_s=600) as network:
        print(f"network: {accounts:,} repos, {network.records:,} records ({network.records / accounts:.0f} a repo)")
        roots = {network.pid: "network"}
        if "null-raw" in args.only:
            run_once("null, raw", network, encoding="dag-cbor", sink="null:", roots=roots, extra=extra)
        if "null-json" in args.only:
            run_once("null, JSON", network, encoding="json", sink="null:", roots=roots, extra=extra)
        if "postgresql-json" in args.only:
            with tempfile.TemporaryDirectory(prefix="relay-bench-pg-") as folder:
                server = EmbeddedPostgres(Path(folder) / "pg")
                server.open()
                try:
                    sink = _url(server.dsn)
                    run_once("PostgreSQL, JSON", network, encoding="json", sink=sink, roots=roots, extra=extra)
                finally:
                    server.close()


def _url(dsn: str) -> str:
    from psycopg2.extensions import parse_dsn

    parts = parse_dsn(dsn)
    return f"postgresql://{parts.get('user', 'postgres')}@/{parts.get('dbname', 'postgres')}?host={parts['host']}"


if __name__ == "__main__":
    main()
