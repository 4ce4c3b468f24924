"""A relay, an ingester and a network as processes; killing them; and the judge at the end.

Nothing here trusts what the relay says of itself but for its exit code: the ingester's database is compared with the network.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from relay.simnet.corpus import Corpus
from relay.simnet.delivered import Delivered, read_sink
from relay.simnet.faults import Fault, FaultKind
from relay.simnet.oracle import Difference, compare, compare_digests, report
from relay.simnet.process import SimProcess
from tests.support.processes import ROOT, ProcessInfo, Program, processes
from tests.support.waiting import NotInTime, wait_until
from tests.support.witness import Witness

MARK = "RELAY_FAULT_TEST"
RUN_DEADLINE_S = 100.0
SETTLE_S = 10.0
_LOOK_EVERY_S = 0.1
_PORT_RANGES, _PORTS = 10, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """A network, how the relay is asked to backfill it, and what must come of it.

    `refused`: DIDs that must end quarantined, all of them and no others. `requests`: getRepo answers that a whole run needs at least.
    """

    network: SimProcess
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    refused: frozenset[str]
    requests: int
    records: int
    judge: Callable[[Mapping[str, Delivered]], list[Difference]]

    @property
    def exit_code(self) -> int:
        return 3 if self.refused else 0

    def slow_down(self, seconds: float, *, seed: int = 0) -> None:
        """Let every getRepo answer take `seconds`, and listings and documents a part of it, so that kills find every phase running."""
        faults = [
            Fault(kind=FaultKind.HANG, endpoint="getRepo", seconds=seconds),
            Fault(kind=FaultKind.HANG, endpoint="listRepos", seconds=min(0.3, seconds)),
            Fault(kind=FaultKind.HANG, endpoint="plc", seconds=min(0.1, seconds / 2)),
        ]
        self.network.set_faults(faults if seconds else (), seed=seed)


def world_expectation(network: SimProcess) -> Expectation:
    """Every account of a made-up world, found by enumeration."""
    network.set_faults()
    truth = network.truth()
    return Expectation(
        network=network,
        arguments=("--all",),
        environment={"PLC_URL": network.plc_url, "FIREHOSE_HOST": network.relay_url},
        refused=frozenset(),
        requests=sum(1 for account in truth if account.status != "deleted"),
        records=sum(len(account.records) for account in truth if not account.status),
        judge=lambda delivered: compare(truth, delivered),
    )


def corpus_expectation(network: SimProcess, corpus: Corpus, folder: Path) -> Expectation:
    """The real repositories, named in a file: the acceptable ones arrive with the digests of the golden answers."""
    network.set_faults()
    dids_file = folder / "dids.txt"
    dids_file.write_text("\n".join(corpus.dids()) + "\n")
    return Expectation(
        network=network,
        arguments=("--dids-file", str(dids_file)),
        environment={
            "PLC_URL": network.plc_url,
            "FIREHOSE_HOST": "",
            "RELAY_MAX_RETRIES": "3",
            "PARALLEL_BACKFILLS": "2",
        },
        refused=frozenset(corpus.refused()),
        requests=len(corpus.dids()),
        records=sum(account.current.records for account in corpus.accounts if account.current.acceptable),
        judge=lambda delivered: compare_digests(corpus.digests(), delivered),
    )


@dataclass(slots=True)
class Stage:
    """Starts programs in `folder`, marks them so that none is lost sight of, and ends them.

    Leaving it without an exception checks that nothing is left behind: processes, shared memory, spool files, temporary files.
    """

    folder: Path
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    programs: list[Program] = field(default_factory=list)
    has_failed: bool = False  # set by who sees the failure before us: what is left behind is no news then
    witness: Witness | None = None  # before the ingester, where a test asked for it
    temp: Path = field(
        default_factory=lambda: Path(tempfile.mkdtemp(prefix="st"))
    )  # a socket in it has little room for its name
    _shared_memory: frozenset[str] = frozenset()
    _contexts: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def sink(self) -> str:
        return f"sqlite://{self.data}/records.sqlite"

    def __enter__(self) -> Stage:
        self.data.mkdir()
        self._shared_memory = _shared_memory()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for program in self.programs:
                if "ingester" in program.command and program.is_running():
                    program.signal(signal.SIGTERM)
                    code = program.wait(30.0)
                    assert code == 0 or kind is not None or self.has_failed, (
                        f"the ingester found fault with the relay: {program}"
                    )
            if kind is None and not self.has_failed:
                self._assert_nothing_left()
        finally:
            for info in self.ours():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(info.pid, signal.SIGKILL)
            for program in self.programs:
                program.stop()
            self._contexts.close()
            shutil.rmtree(self.temp, ignore_errors=True)

    # Programs

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> Program:
        environment = {
            "DATA_DIR": str(self.data),
            "TMPDIR": str(self.temp),
            "METRICS_PORT": "0",
            "ALLOW_PRIVATE_HOSTS": "true",
            MARK: self.mark,
            **dict(env or {}),
        }
        program = Program([sys.executable, str(ROOT / "bin" / "relay"), *arguments], env=environment, cwd=self.folder)
        self.programs.append(program)
        return program

    def backfill(self, what: Expectation, **env: str) -> Program:
        """Start the relay; retries come soon, and the hosts' limits are out of the way."""
        environment = {
            "NSID_FILTER": "",
            "RELAY_RETRY_BACKOFF_MS": "50",
            "BACKFILLER_HOST_REQUESTS_PER_SEC": "1000",
            "IDENTITY_REQUESTS_PER_SEC": "1000",
            "WORKERS": "2",
            **what.environment,
            **env,
        }
        return self.start("backfill", *what.arguments, "--no-progress", env=environment)

    def ingester(self, port: int, *faults: str) -> Program:
        """Start the reference ingester where the relay expects it; it checks the order of what it is told."""
        options = [option for fault in faults for option in ("--fault", fault)]
        listen = f"127.0.0.1:{port}"
        program = self.start("ingester", "--listen", listen, "--sink", self.sink, "--check-order", *options)
        program.wait_for_line("^listening on ")
        return program

    def watched_ingester(self) -> str:
        """Start the reference ingester behind a witness, and return where: `judge` looks at the order too, and counts."""
        port = free_port()
        self.ingester(port)
        self.witness = self._contexts.enter_context(Witness(f"127.0.0.1:{port}"))
        return self.witness.address

    def ours(self) -> list[ProcessInfo]:
        """Return every process that this stage started, and theirs: by the mark in the environment, or by our folder."""
        found = []
        for info in processes().values():
            if info.pid == os.getpid():
                continue
            if str(self.folder) in info.command or self.mark.encode() in _environment(info.pid):
                found.append(info)
        return found

    def named(self, name: str) -> list[ProcessInfo]:
        return [info for info in self.ours() if info.name.startswith(name)]

    def postmasters(self) -> list[ProcessInfo]:
        """Return the embedded PostgreSQL's first process, where it runs (and not its children, which show their parent's words at birth)."""
        masters = [info for info in self.ours() if f"-D {self.data}" in info.command]
        known = {info.pid for info in masters}
        return [info for info in masters if info.parent not in known]

    def backends(self) -> list[ProcessInfo]:
        """Return the processes that serve the relay's connections."""
        masters = {info.pid for info in self.postmasters()}
        return [info for info in processes().values() if info.parent in masters and " [local] " in info.command]

    # The end

    def judge(self, what: Expectation, program: Program, *, sink: str | None = None) -> None:
        """The run has ended as it should, and the ingester's database equals the network."""
        code = program.wait(RUN_DEADLINE_S)
        assert code == what.exit_code, str(program)
        told = "\n".join(program.err)
        listed = set(re.findall(r"^ {4}(did:\S+) ", told, re.MULTILINE))
        assert listed == what.refused, str(program)
        differences = what.judge(read_sink(sink or self.sink))
        if self.witness is not None:
            print(f"operations: {self.witness.figures()}, {len(differences)} lost")
            self.witness.assert_in_order()
        assert differences == [], report(differences)

    def stored_records(self) -> int:
        """Return how many records the ingester holds at the moment."""
        return records_in(self.data / "records.sqlite")

    def ends_before(self, program: Program, mark: int, pause_s: float) -> bool:
        """Let the run come to where the ingester holds `mark` records, and `pause_s` further; True when it has ended."""
        wait_until(
            lambda: self.stored_records() >= mark or ends_within(program, _LOOK_EVERY_S),
            f"{mark} records stored by {program}",
            deadline_s=RUN_DEADLINE_S,
        )
        return ends_within(program, pause_s)

    def _assert_nothing_left(self) -> None:
        left: list[str] = []

        def clean() -> bool:
            left[:] = [f"process {info.pid} {info.name} {info.command}" for info in self.ours()]
            left.extend(f"/dev/shm/{name}" for name in _shared_memory() - self._shared_memory)
            left.extend(str(path) for path in self.temp.rglob("*"))
            left.extend(str(path) for path in (self.data / "spool").rglob("*"))
            left.extend(str(path) for path in self.folder.rglob("*") if path.is_socket())
            return not left

        try:
            wait_until(clean, "nothing left behind", deadline_s=SETTLE_S)
        except NotInTime:
            raise AssertionError("left behind:\n  " + "\n  ".join(left)) from None


def records_in(path: Path) -> int:
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM record").fetchone()[0])
        except sqlite3.OperationalError:  # no table yet
            return 0


def free_port() -> int:
    """Return a port that nobody listens on, below those that the system hands out: it stays free while our program is away.

    Test processes that run beside one another draw from ports of their own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + worker % _PORT_RANGES * _PORTS
    while True:
        port = random.SystemRandom().randrange(first, first + _PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def kill(pid: int) -> bool:
    """SIGKILL; False when it was gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def first_at_work(pids: Sequence[int], within_s: float) -> int | None:
    """Return the first of these processes that is seen computing, and not waiting; None: none within `within_s`."""
    ends_at = time.monotonic() + within_s
    pause = threading.Event()
    while time.monotonic() < ends_at:
        for pid in pids:
            with contextlib.suppress(OSError):  # gone meanwhile
                stat = Path(f"/proc/{pid}/stat").read_bytes()
                if stat[stat.rindex(b")") + 2 :].startswith(b"R"):
                    return pid
        pause.wait(0.0002)  # a small repo keeps a worker for a millisecond
    return None


def ends_within(program: Program, seconds: float) -> bool:
    """Let time pass while the program runs; True when it has ended."""
    ends_at = time.monotonic() + seconds
    with contextlib.suppress(NotInTime):
        wait_until(lambda: not program.is_running(), "its end", deadline_s=max(0.0, ends_at - time.monotonic()))
    return not program.is_running()


def moments(rng: random.Random, count: int, longest_s: float) -> Iterator[float]:
    """Yield `count` pauses, of random length."""
    for _ in range(count):
        yield rng.uniform(0.05, longest_s)


def marks(rng: random.Random, count: int, whole: int) -> list[int]:
    """Return `count` numbers of records, rising, one at random in each part of the whole: where in a run something is to happen."""
    return [int(whole * (part + rng.random()) / count) for part in range(count)]


def lines_with(programs: Sequence[Program], text: str) -> int:
    """Return in how many lines of all outputs `text` occurs."""
    return sum(text in line for program in programs for line in (*program.out, *program.err))


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _shared_memory() -> frozenset[str]:
    return frozenset(name for name in os.listdir("/dev/shm") if not name.startswith("PostgreSQL."))
