"""The live half on this machine: a firehose made beforehand -> verified -> gRPC -> ingester with a null sink, state in PostgreSQL.

    python -m tests.bench.live_end_to_end [--quick] [--rate 2000] [--seconds 15] [--backlog 40000] [--soak 180] [--accounts 5000]

Prints the time from a frame's arrival to the acknowledgement of its operations (p50, p99, p99.9; from the relay's own histogram, so
between two of its bounds they are interpolated) for the live lane alone and for both lanes while a backfill runs beside it; then
how fast a backlog is read, and the CPU of each process and thread per event, with the reference loop (hashlib.sha256 over 231
bytes, one core). The firehose is sent by a process of its own out of a file. The simulated PDSes, the ingester and PostgreSQL
share the machine's cores with the relay: what is printed is the whole. `--soak` adds a run of so many seconds at half the rate, and
what the supervisor's memory does in it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.config.schema import DatabaseSettings
from relay.model import Identity, RepoState
from relay.simnet.process import SimProcess
from relay.simnet.world import WorldSpec
from relay.store import identities, partitions, repos
from relay.store.embedded import EmbeddedPostgres
from relay.store.pool import Database
from relay.store.repos import Discovered, RepoRow
from tests.bench import stream
from tests.bench.end_to_end import ROOT, TICKS, ingester, reference_loop

PARTITIONS = 64
# From a frame received to its acknowledgement, milliseconds at p99 (PERFORMANCE, "Targets").
MUST_MS, GOAL_MS = 200, 50
_CONFIG = "reconcile:\n  interval_h: 0\n"
_CHILDREN = {"relay-fetch": "fetch", "relay-worker": "workers", "relay-verify": "verify"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is counted, at one time. `cpu_s` by process or thread; `lanes`: counts of the latency histogram by lane and bound."""

    at: float
    events: int
    cpu_s: Mapping[str, float]
    lanes: Mapping[str, Mapping[float, float]]


@dataclass(slots=True)
class Relay:
    """A `bin/relay tail` under observation."""

    process: subprocess.Popen[str]
    roots: Mapping[int, str]
    lines: list[str] = field(default_factory=list)
    address: str = ""

    def await_start(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        self.wait_until(lambda: bool(self._find_address()), "start", 30)

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.address}/status.json", timeout=5) as answer:
            value: dict[str, Any] = json.load(answer)
            return value

    def lanes(self) -> dict[str, dict[float, float]]:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        found: dict[str, dict[float, float]] = {}
        pattern = r'^relay_operation_duration_seconds_bucket\{(?=[^}]*lane="(\w+)")[^}]*le="([^"]+)"[^}]*\} (\S+)'
        for lane, bound, count in re.findall(pattern, text, re.MULTILINE):
            found.setdefault(lane, {})[float(bound)] = float(count)
        return found

    def moment(self) -> Moment:
        events = sum(self.status()["firehose"]["events"].values())
        return Moment(at=time.monotonic(), events=events, cpu_s=self.cpu_s(), lanes=self.lanes())

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far: of each kind of process, and of the supervisor's threads by name."""
        used: dict[str, float] = {}
        parents = _parents()
        for pid in parents:
            kind = self._kind(pid, parents)
            if kind is None:
                continue
            used[kind] = used.get(kind, 0.0) + _cpu_of(Path(f"/proc/{pid}"))
            if pid == self.process.pid:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    name = _comm(task)
                    name = "deliver" if name.startswith("deliver") else name
                    name = name if name in _THREADS else "main and gRPC"
                    used[f"  {name}"] = used.get(f"  {name}", 0.0) + _cpu_of(task)
        return used

    def rss(self) -> float:
        """Resident MB of the supervisor, without what is shared memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+)", status, re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{what}: did not come about\n{''.join(self.lines[-30:])}")
            time.sleep(0.05)

    def is_through(self, events: int) -> bool:
        firehose = self.status()["firehose"]
        return sum(firehose["events"].values()) >= events and not firehose["open_frames"]

    def _find_address(self) -> str:
        self.address = next((m[1] for line in self.lines if (m := re.search(r"metrics: (\S+:\d+)", line))), "")
        return self.address

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def _kind(self, pid: int, parents: Mapping[int, int]) -> str | None:
        at: int | None = pid
        while at is not None and at not in self.roots and at != self.process.pid:
            at = parents.get(at)
        if at is None:
            return None
        if at in self.roots:
            return self.roots[at]
        return "supervisor" if pid == at else _CHILDREN.get(_comm(Path(f"/proc/{pid}")), "forkserver")


_THREADS = frozenset({"engine", "tailer", "checkpointer", "store-rows", "store-tasks", "deliver"})


def _parents() -> dict[int, int]:
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    return found


def _cpu_of(folder: Path) -> float:
    try:
        # Nanoseconds on a core: stat counts in hundredths of a second.
        return int((folder / "schedstat").read_text().split()[0]) / 1e9 if "task" in folder.parts else _ticks(folder)
    except OSError:
        return 0.0


def _ticks(folder: Path) -> float:
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _comm(folder: Path) -> str:
    try:
        return (folder / "comm").read_text().strip()
    except OSError:
        return ""


def percentile(buckets: Mapping[float, float], share: float) -> float:
    """Return seconds below which that share lies; `buckets` cumulative, by upper bound."""
    total = max(buckets.values(), default=0.0)
    low = below = 0.0
    for bound, count in sorted(buckets.items()):
        if count >= share * total:
            if bound == float("inf") or count == below:
                return low
            return low + (bound - low) * (share * total - below) / (count - below)
        low, below = bound, count
    return low


def latencies(before: Moment, after: Moment, lane: str) -> str:
    old, new = before.lanes.get(lane, {}), after.lanes.get(lane, {})
    buckets = {bound: count - old.get(bound, 0.0) for bound, count in new.items()}
    total = max(buckets.values(), default=0.0)
    if not total:
        return f"{lane} lane: nothing acknowledged"
    values = [percentile(buckets, share) * 1e3 for share in (0.5, 0.99, 0.999)]
    late = total - buckets.get(0.25, total)
    return f"{lane} lane: p50 {values[0]:,.1f} ms, p99 {values[1]:,.1f} ms, p99.9 {values[2]:,.1f} ms of {total:,.0f} operations, {late:,.0f} above 250 ms"


def costs(before: Moment, after: Moment, events: int) -> str:
    used = {name: after.cpu_s[name] - before.cpu_s.get(name, 0.0) for name in after.cpu_s}
    lines = []
    for name in sorted((n for n in used if not n.startswith(" ")), key=lambda n: -used[n]):
        text = f"{name} {used[name] / events * 1e6:,.0f}"
        if name == "supervisor":
            threads = sorted((n for n in used if n.startswith(" ")), key=lambda n: -used[n])
            text += " (" + ", ".join(f"{n.strip()} {used[n] / events * 1e6:,.0f}" for n in threads) + ")"
        lines.append(text)
    return "CPU us/event: " + ", ".join(lines)


class Stage:
    """Everything that runs, and how many events were sent so far."""

    def __init__(self, relay: Relay, feed: stream.StreamProcess, *, is_watched: bool) -> None:
        self.relay, self.feed, self.is_watched = relay, feed, is_watched
        self.sent = 0

    def send(self, rate: float, count: int) -> None:
        self.feed.send(rate, count)
        self.sent += count

    def paced(self, name: str, rate: float, seconds: float, lanes: tuple[str, ...]) -> None:
        """Send at a rate, and say how long operations took: without the first second, in which caches fill."""
        self.send(rate, int(rate * (seconds + 2)))
        time.sleep(1)
        before = last = self.relay.moment()
        while last.at - before.at < seconds:
            time.sleep(min(1.0, seconds))
            now = self.relay.moment()
            if self.is_watched:
                print(f"{name}, second {now.at - before.at:.0f}: {latencies(last, now, 'live')}", flush=True)
            last = now
        after = last
        took = after.at - before.at
        events = after.events - before.events
        for lane in lanes:
            print(f"{name}: {latencies(before, after, lane)}", flush=True)
        print(f"{name}: {events / took:,.0f} events/s; {costs(before, after, events)}", flush=True)
        self.relay.wait_until(lambda: self.relay.is_through(self.sent), name, 60)

    def backlog(self, count: int, reference: float) -> None:
        before = self.relay.moment()
        self.send(0, count)
        self.relay.wait_until(lambda: self.relay.is_through(self.sent), "the backlog", 60 + count / 500)
        after = self.relay.moment()
        took = after.at - before.at
        events = after.events - before.events
        busy = max(
            (after.cpu_s[name] - before.cpu_s.get(name, 0.0), name.strip())
            for name in after.cpu_s
            if name.strip() in ("engine", "verify", "ingester", "postgres", "tailer")
        )
        supervisor = (after.cpu_s["supervisor"] - before.cpu_s["supervisor"]) / events
        verify = (after.cpu_s["verify"] - before.cpu_s.get("verify", 0.0)) / events
        print(
            f"backlog: {events:,} events in {took:.1f} s, {events / took:,.0f} events/s; busiest {busy[1]}, {busy[0] / took:.0%} of a core; "
            f"of its own core: supervisor {1 / supervisor:,.0f} events/s {supervisor * reference:.0f} x reference, verify worker {1 / verify:,.0f} events/s {verify * reference:.0f} x reference"
        )
        print(f"backlog: {costs(before, after, events)}", flush=True)

    def soak(self, rate: float, seconds: int) -> None:
        self.send(rate, int(rate * (seconds + 1)))
        points = []
        began = time.monotonic()
        while (at := time.monotonic() - began) < seconds:
            points.append((at, self.relay.rss()))
            time.sleep(min(1.0, seconds / 20))
        late = [point for point in points if point[0] >= seconds / 2]
        firehose = self.relay.status()["firehose"]
        print(
            f"soak: {seconds} s at {rate:,.0f} events/s: supervisor {points[0][1]:.1f} MB at first, {points[-1][1]:.1f} at the end, "
            f"slope of the second half {_slope(late) * 60:+.2f} MB/min; distance of the cursor {firehose['distance']} frames"
        )


def _slope(points: list[tuple[float, float]]) -> float:
    """Return the least-squares slope, MB a second."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


class Backfill(threading.Thread):
    """Keeps a backfill going: as soon as most repos are synced, all are to be delivered again."""

    def __init__(self, database: Database, dids: list[str]) -> None:
        super().__init__(daemon=True)
        self._database, self._dids = database, dids
        self._stopping = threading.Event()

    def run(self) -> None:
        with self._database.transaction("discover") as cur:
            entries = [Discovered(did=did) for did in self._dids]
            repos.upsert_discovered(cur, entries, batch=None, named=True, partitions=PARTITIONS, now=time.time())
        while not self._stopping.wait(0.25):
            with self._database.transaction("look") as cur:
                counts = repos.count_by_state(cur)
                left = sum(counts[s] for s in (RepoState.DISCOVERED, RepoState.PENDING, RepoState.ACTIVE))
                if left < len(self._dids) / 4:
                    repos.resync(cur, now=time.time(), dids=self._dids)

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def is_over(self) -> bool:
        with self._database.transaction("look") as cur:
            counts = repos.count_by_state(cur)
        return not sum(counts[s] for s in (RepoState.DISCOVERED, RepoState.PENDING, RepoState.ACTIVE))


@contextmanager
def stored(folder: Path, starts: list[stream.Start], upstream: str, cursor: int) -> Iterator[tuple[str, int, Database]]:
    """A server with every account synced where it stands before the first event. Yields (DSN, the server's PID, ...)."""
    server = EmbeddedPostgres(folder)
    server.open()
    database = Database(DatabaseSettings(dsn=server.dsn), folder)
    try:
        database.open()
        now = time.time()
        rows = [
            RepoRow(
                did=each.did,
                partition=partitions.partition_of(each.did, PARTITIONS),
                host=each.pds,
                state=RepoState.SYNCED,
                rev=each.rev,
                data=each.data,
                rev_begun=each.rev,
                covers="",
                touched=True,
                next_attempt_at=now,
                synced_at=now,
            )
            for each in starts
        ]
        known = [
            Identity(did=each.did, signing_key=each.key, pds=each.pds, handle=None, resolved_at=now) for each in starts
        ]
        with database.transaction("fill") as cur:
            repos.insert_streamed(cur, rows)
            repos.store_rows(cur, rows)
            identities.upsert_many(cur, known)
            partitions.store_first_cursor(cur, upstream, cursor, None)
        pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        yield server.dsn, pid, database
    finally:
        database.close()
        server.close()


@contextmanager
def tail(environ: Mapping[str, str], roots: Mapping[int, str], folder: Path) -> Iterator[Relay]:
    config = folder / "config.yaml"
    config.write_text(_CONFIG)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "bin/relay"), "tail", "--no-progress", "--log-level", "warning", "--config", str(config)],
        env={**os.environ, **environ},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    relay = Relay(process, roots)
    try:
        relay.await_start()
        yield relay
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        problems = [line for line in relay.lines if "warning" in line or "error" in line]
        if problems or process.returncode:
            print(f"exit code {process.returncode}; {''.join(problems[:10])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="5 seconds a stage, a backlog of 10,000, 300 repos")
    parser.add_argument("--rate", type=float, default=2000, help="events/s of the stages that measure latency")
    parser.add_argument("--seconds", type=float, default=15, help="of the stage beside a backfill; a third of it alone")
    parser.add_argument("--backlog", type=int, default=40_000, help="events; 500000 is what the target names")
    parser.add_argument("--soak", type=int, default=0, help="seconds")
    parser.add_argument("--accounts", type=int, default=5000, help="that write")
    parser.add_argument("--repos", type=int, default=800, help="that are fetched meanwhile")
    parser.add_argument("--only", nargs="*", default=["alone", "beside", "backlog"])
    parser.add_argument("--watch", action="store_true", help="latencies of each second too")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="environment of the relay")
    args = parser.parse_args()
    seconds, backlog, count = args.seconds, args.backlog, args.repos
    if args.quick:
        seconds, backlog, count = 5.0, 10_000, 300
    reference = reference_loop()
    print(f"reference loop: {reference:,.0f} sha256 of 231 bytes a second on one core")
    print(f"targets: p99 of the live lane beside a backfill: must {MUST_MS} ms, goal {GOAL_MS} ms", flush=True)
    alone = seconds / 3
    needed = (
        int(args.rate * (alone + seconds + 4)) + backlog + (int(args.rate / 2 * (args.soak + 1)) if args.soak else 0)
    )
    made = stream.load(args.accounts, needed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        feed = stack.enter_context(stream.StreamProcess(made))
        spec = WorldSpec(
            accounts=count, hosts=8, seed=3, median_records=170, sigma=1.45, max_records=20_000, inactive_share=0.0
        )
        network = stack.enter_context(SimProcess(spec, plain=True, compact=True, start_deadline_s=600))
        address, ingester_pid = stack.enter_context(ingester("null:"))
        cursor = stream.first_seq(made) - 1
        dsn, server_pid, database = stack.enter_context(stored(folder / "pg", stream.starts(made), feed.url, cursor))
        environ = {
            "FIREHOSE_HOST": feed.url,
            "PLC_URL": network.plc_url,
            "DISCOVERY_MODE": "tracked",
            "ALLOW_PRIVATE_HOSTS": "true",
            "DATA_DIR": str(folder / "relay"),
            "DATABASE_DSN": dsn,
            "METRICS_PORT": "0",
            "GRPC_PORT": "0",
            "RECORD_ENCODING": "json",
            "INGESTER_ADDRESSES": address,
            "IDENTITY_REQUESTS_PER_SEC": "100000",
            "BACKFILLER_HOST_REQUESTS_PER_SEC": "100000",
            **dict(item.split("=", 1) for item in args.set),
        }
        roots = {feed.pid: "stream", network.pid: "network", ingester_pid: "ingester", server_pid: "postgres"}
        relay = stack.enter_context(tail(environ, roots, folder))
        stage = Stage(relay, feed, is_watched=args.watch)
        if "alone" in args.only:
            stage.paced("alone", args.rate, alone, ("live",))
        if "beside" in args.only:
            backfill = Backfill(database, network.dids())
            backfill.start()
            stage.paced("beside a backfill", args.rate, seconds, ("live", "backfill"))
            backfill.stop()
            relay.wait_until(backfill.is_over, "the end of the backfill", 60)
        if "backlog" in args.only and backlog:
            stage.backlog(backlog, reference)
        if args.soak:
            stage.soak(args.rate / 2, args.soak)
        outcomes = relay.status()["firehose"]["outcomes"]
        print("frames: " + ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items())))


if __name__ == "__main__":
    main()
