"""A network in a process of its own, and the client that starts, asks and stops it: what `SimNetwork` offers, over the control port."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relay.simnet.author import Mix
from relay.simnet.faults import Fault, FaultKind
from relay.simnet.upstream import OUTBOX_EVENTS
from relay.simnet.world import AccountTruth, WorldSpec, Written

_STOP_S = 10.0
_CONTROL_S = 120.0  # the truth of a large world takes a while


class SimProcessFailed(Exception):
    """The process did not start, or refused a command."""


class SimProcess:
    """`python -m relay.simnet` as a child. It ends when this object's `stop` is called, and when this process dies."""

    def __init__(
        self,
        spec: WorldSpec | None = None,
        *,
        corpus: Path | None = None,
        plain: bool = False,
        compact: bool = False,
        base_port: int = 0,
        blind_to: int = 0,
        outbox_events: int = OUTBOX_EVENTS,
        start_deadline_s: float = 120.0,
    ) -> None:
        """Start it and wait until everything is built. `compact`: CARs only, nothing can be written (least memory)."""
        command = [sys.executable, "-m", "relay.simnet", "--until-stdin-closes", "--base-port", str(base_port)]
        command += ["--blind-to", str(blind_to), "--outbox-events", str(outbox_events)]
        if corpus is not None:
            command += ["--corpus", str(corpus)]
        elif spec is not None:
            command += ["--spec", json.dumps(spec_to_json(spec))]
        command += ["--plain"] if plain else []
        command += ["--compact"] if compact else []
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root), os.environ.get("PYTHONPATH", "")))}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        self.pid = self._process.pid
        try:
            self.addresses = self._read_addresses(start_deadline_s)
        except SimProcessFailed:
            self.stop()
            raise
        self.plc_url: str = self.addresses["plc"]
        self.relay_url: str = self.addresses["relay"]
        self.firehose_url: str = self.addresses["firehose"]
        self.host_urls: list[str] = self.addresses["hosts"]
        self.records: int = self.addresses["records"]

    def _read_addresses(self, deadline_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        # Ends the read below with an empty line when the child takes too long.
        guard = threading.Timer(deadline_s, self._process.kill)
        guard.start()
        try:
            line = self._process.stdout.readline()
        finally:
            guard.cancel()
        if not line:
            raise SimProcessFailed(f"the simulated network did not start (exit code {self._process.wait(_STOP_S)})")
        addresses: dict[str, Any] = json.loads(line)
        return addresses

    def __enter__(self) -> SimProcess:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process; killed if it does not end by itself."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def cpu_s(self) -> float:
        """Return the CPU time that the process has used so far, seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # What SimNetwork offers

    def dids(self) -> list[str]:
        dids: list[str] = self.control(do="dids")["dids"]
        return dids

    def truth(self) -> list[AccountTruth]:
        accounts = self.control(do="truth")["accounts"]
        return [AccountTruth(**{**account, "refused": frozenset(account["refused"])}) for account in accounts]

    def set_faults(self, faults: Sequence[Fault] = (), *, seed: int = 0) -> None:
        self.control(do="set_faults", faults=[fault.to_json() for fault in faults], seed=seed)

    def fault_counts(self) -> dict[str, int]:
        return self.control(do="fault_counts")

    def struck(self, kind: FaultKind) -> set[str]:
        return set(self.control(do="struck", kind=kind.value)["dids"])

    def write(self, commits: int, dids: Sequence[str] | None = None) -> Written:
        return Written(**self.control(do="write", commits=commits, dids=dids))

    def start_writers(
        self, rate: float, *, threads: int = 1, mix: Mix | None = None, dids: Sequence[str] | None = None, seed: int = 0
    ) -> None:
        told = None if mix is None else mix.to_json()
        self.control(do="start_writers", rate=rate, threads=threads, mix=told, dids=dids, seed=seed)

    def stop_writers(self) -> dict[str, int]:
        return self.control(do="stop_writers")

    def written(self) -> dict[str, int]:
        return self.control(do="written")

    def quiesce(self, *, settle: bool = False) -> int:
        seq: int = self.control(do="quiesce", settle=settle)["seq"]
        return seq

    def newest_seq(self) -> int:
        seq: int = self.control(do="newest_seq")["seq"]
        return seq

    def lose_window(self, keep: int = 0) -> int:
        lost: int = self.control(do="lose_window", keep=keep)["lost"]
        return lost

    def renumber(self, first_seq: int) -> None:
        self.control(do="renumber", first_seq=first_seq)

    def disconnect(self) -> None:
        self.control(do="disconnect")

    def create_account(self, *, host: int = 0, changes: dict[str, Any] | None = None) -> str:
        did: str = self.control(do="create_account", host=host, changes=changes)["did"]
        return did

    def silence(self, host: int) -> None:
        self.control(do="silence", host=host)

    def restore(self, host: int) -> None:
        self.control(do="restore", host=host)

    def control(self, **command: Any) -> dict[str, Any]:
        """Send a command (see `SimNetwork.control`) and return the answer. Raise SimProcessFailed when it is refused."""
        url = self.addresses["control"] + "/_control"
        request = urllib.request.Request(url, data=json.dumps(command).encode(), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=_CONTROL_S) as answer:
                value: dict[str, Any] = json.load(answer)
                return value
        except urllib.error.HTTPError as exc:
            with exc:
                raise SimProcessFailed(f"{command['do']}: {exc.read().decode()}") from exc


def spec_to_json(spec: WorldSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in WorldSpec.__dataclass_fields__}
