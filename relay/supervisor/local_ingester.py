"""The reference ingester as a process of ours, for those who have not named one: `sqlite:///` under the data directory."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from relay.errors import DeliveryError
from relay.observe.log import get_logger

log = get_logger(__name__)

START_WITHIN_S = 30.0
ROOT = Path(__file__).resolve().parents[2]  # where this program's modules are, wherever we were started


class LocalIngester:
    """Started with `start() -> address`; ends when its standard input does, so also when we are killed."""

    def __init__(self, sink: str, *, log_level: str = "info", log_format: str = "text") -> None:
        self.sink = sink
        self._log_level, self._log_format = log_level, log_format
        self.address = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, listen: str = "127.0.0.1:0") -> str:
        """Return the address once it listens. Raises DeliveryError when it does not."""
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",  # a folder named relay where we were started is not this program
                "-m",
                "relay.cli.main",
                "ingester",
                "--listen",
                listen,
                "--sink",
                self.sink,
                "--stop-with-stdin",
                "--log-level",
                self._log_level,
                "--log-format",
                self._log_format,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))},
            start_new_session=True,  # Ctrl-C is for us: it must outlive the flush
        )
        assert self._process.stdout is not None
        deadline = time.monotonic() + START_WITHIN_S
        line = b""
        while not line.endswith(b"\n") and time.monotonic() < deadline:
            if not select.select([self._process.stdout], [], [], 0.2)[0]:
                continue
            more = os.read(self._process.stdout.fileno(), 4096)
            if not more:
                break
            line += more
        prefix = b"listening on "
        if not line.startswith(prefix):
            self.stop(time.monotonic() + 1.0)
            raise DeliveryError(f"the reference ingester ({self.sink}) did not start: see its message above")
        self.address = line[len(prefix) :].decode().strip()
        log.info("reference_ingester_started", address=self.address, sink=self.sink, pid=self._process.pid)
        return self.address

    def restart_if_dead(self) -> bool:
        """Start it again, on the same port, when it has ended by itself; True: it had."""
        if self._process is None or self._process.poll() is None:
            return False
        log.warning("reference_ingester_died", code=self._process.returncode)
        self._close_pipes()
        self.start(self.address)
        return True

    def stop(self, deadline: float) -> None:
        """Let it store what it has, and end; killed at `deadline` (monotonic seconds)."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _close_pipes(self) -> None:
        assert self._process is not None
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def default_sink(data_dir: Path) -> str:
    return f"sqlite://{data_dir.absolute() / 'records.sqlite'}"
