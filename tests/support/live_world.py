"""A network that does not stand still, an ingester behind a witness, and `bin/relay run` or `tail`: started, killed, brought to rest, judged.

Nothing here trusts what the relay says of itself but for when to look: at rest the ingester's database is compared with the network.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from relay.simnet.delivered import Delivered, read_sink
from relay.simnet.faults import Fault, FaultKind
from relay.simnet.network import SimNetwork
from relay.simnet.oracle import Difference, DifferenceKind, compare, report
from relay.simnet.process import SimProcess
from tests.faults.stage import Stage, free_port, kill
from tests.support.processes import Program
from tests.support.waiting import NotInTime, wait_until
from tests.support.witness import Witness

UNFINISHED = ("discovered", "pending", "active", "failed", "desynced")
QUICK = {
    "NSID_FILTER": "",
    "GRPC_PORT": "0",
    "WORKERS": "1",
    "RELAY_RETRY_BACKOFF_MS": "100",
    "BACKFILLER_HOST_BREAKER_SEC": "1",
    "BACKFILLER_HOST_REQUESTS_PER_SEC": "1000",
    "IDENTITY_REQUESTS_PER_SEC": "1000",
    "FIREHOSE_RECONNECT_DELAY_MS": "100",
    "FIREHOSE_IDLE_TIMEOUT_SEC": "4",
}
"""Short pauses, and limits of hosts that are out of the way. Everything else stands at its default."""

CHILDREN = ("relay-verify", "relay-worker", "relay-fetch")
VICTIMS = ("supervisor", *CHILDREN, "ingester", "postmaster", "backend")
STARTS_S = 60.0
# After these, events may be missing that nobody tells again.
_HOLES = (
    FaultKind.OUTDATED_CURSOR,
    FaultKind.FUTURE_CURSOR,
    FaultKind.SILENT_CURSOR,
    FaultKind.LOSE_WINDOW,
    FaultKind.STREAM_TOO_SLOW,
)
_SETTLES_S = 20.0  # what is stored at rest and not told yet
_LINES = 25
_TELL_EVERY_S = 5.0
_MURMUR_EVERY_S = 1.0
_LOOK_EVERY_S = 3.0
_SHOWN_DIDS = 3


class LiveWorld:
    """Everything of one test. A context manager inside of a stage."""

    def __init__(
        self,
        stage: Stage,
        network: SimProcess | SimNetwork,
        *,
        env: Mapping[str, str] | None = None,
        judge: bool = True,
    ) -> None:
        """`env`: settings of the relay beyond QUICK. `judge`: with a witness before the ingester."""
        self.stage, self.network = stage, network
        self.env = {**QUICK, "PLC_URL": network.plc_url, "FIREHOSE_HOST": network.firehose_url, **dict(env or {})}
        self.kills: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()
        self.misled: set[str] = set()  # DIDs of which the directory served an old document
        self._murmured_at = 0.0
        self._port = free_port()
        self._is_judged = judge
        self._contexts = contextlib.ExitStack()
        self.witness: Witness | None = None
        self.ingester: Program | None = None
        self.relays: list[Program] = []

    def __enter__(self) -> LiveWorld:
        self.ingester = self.stage.ingester(self._port)
        address = f"127.0.0.1:{self._port}"
        if self._is_judged:
            self.witness = self._contexts.enter_context(Witness(address))
            address = self.witness.address
        self.env["INGESTER_ADDRESSES"] = address
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        if kind is None and self.relays and self.relay.is_running():
            self.stop()
        else:
            for program in self.relays:
                program.stop()
            self._keep_logs()
            self.stage.has_failed = True
        self._contexts.close()

    def _keep_logs(self) -> None:
        for number, program in enumerate(self.relays):
            path = self.stage.folder / f"relay-{number}.log"
            path.write_text("\n".join([*program.out, *program.err]))
            print(f"what the relay said: {path}")

    @property
    def sim(self) -> SimNetwork:
        """The network, for a test that has it in its own process."""
        assert isinstance(self.network, SimNetwork)
        return self.network

    # The relay

    @property
    def relay(self) -> Program:
        """The relay that was started last."""
        return self.relays[-1]

    def start(self, *arguments: str, **env: str) -> Program:
        """Start the relay (`run` unless told otherwise) and return when it is up, or has ended."""
        program = self.launch(*arguments, **env)
        program.wait_for_line("^metrics: ", deadline_s=STARTS_S)
        return program

    def launch(self, *arguments: str, **env: str) -> Program:
        """Start the relay and do not wait."""
        self.relays.append(self.stage.start(*(arguments or ("run",)), "--no-progress", env={**self.env, **env}))
        return self.relay

    def backfill(self, *arguments: str) -> None:
        """Run a batch to its end."""
        program = self.launch("backfill", *(arguments or ("--all",)))
        assert program.wait(STARTS_S * 2) == 0, str(program)

    def stop(self) -> None:
        """SIGTERM; it must end by itself, with 0."""
        self.relay.signal(signal.SIGTERM)
        assert self.relay.wait(60.0) == 0, str(self.relay)
        told = "\n".join(self.relay.err)
        assert "Traceback" not in told, told[-20_000:]

    def status(self) -> dict[str, Any] | None:
        """Return `status.json` of the running relay; None while it does not answer."""
        found = next(
            (m for line in [*self.relay.err, *self.relay.out] if (m := re.search(r"^metrics: \S*?([\w.]+:\d+)", line))),
            None,
        )
        if found is None or not self.relay.is_running():
            return None
        connection = http.client.HTTPConnection(found[1], timeout=5.0)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/status.json")
                value: dict[str, Any] = json.loads(connection.getresponse().read())
            except (OSError, http.client.HTTPException, ValueError):
                return None
            return value

    def told_status(self) -> dict[str, Any]:
        """Return what `bin/relay status --json` says, with or without a running relay."""
        program = self.stage.start("status", "--json", env=self.env)
        assert program.wait() == 0, str(program)
        value: dict[str, Any] = json.loads(program.out[0])
        return value

    def incidents(self) -> list[dict[str, Any]]:
        """Return those that are shown; empty while the relay does not answer."""
        status = self.status()
        return [] if status is None else list(status["incidents"])

    def _control(self, **command: Any) -> dict[str, Any]:
        network = self.network
        return network.control(**command) if isinstance(network, SimProcess) else network.control(command)

    # What goes wrong

    def set_faults(self, faults: Sequence[Fault] = (), *, seed: int = 0) -> None:
        """Put others in force; what fired so far stays counted in `fired`."""
        self._count_faults()
        self.network.set_faults(faults, seed=seed)

    def _count_faults(self) -> None:
        self.fired.update(self.network.fault_counts())
        self.misled |= self.network.struck(FaultKind.STALE_DOCUMENT)

    def kill(self, victim: str, rng: random.Random) -> bool:
        """SIGKILL one of VICTIMS, and start again what does not start by itself. False: there was none at that moment."""
        match victim:
            case "supervisor":
                self.relay.kill()
                self.launch()
            case "ingester":
                assert self.ingester is not None
                self.ingester.kill()
                self.ingester = self.stage.ingester(self._port)
            case _:
                pids = [info.pid for info in self._victims(victim)]
                if not pids or not kill(rng.choice(pids)):
                    return False
        self.kills[victim] += 1
        return True

    def _victims(self, victim: str) -> Sequence[Any]:
        if victim == "postmaster":
            return self.stage.postmasters()
        return self.stage.backends() if victim == "backend" else self.stage.named(victim)

    # The end

    def come_to_rest(self, *, deadline_s: float = 60.0) -> int:
        """End faults and writers, tell what was told wrong, and wait until the relay has done everything; return the newest seq."""
        self.set_faults()
        self.network.disconnect()  # what a subscription holds back for a REORDER would wait for more events
        seq = self.network.quiesce(settle=True)
        self.wait_for(seq, deadline_s=deadline_s)
        return seq

    def catch_up(self, *, deadline_s: float = 60.0) -> None:
        """Wait until the relay has done everything that was told so far."""
        self.wait_for(self.network.quiesce(), deadline_s=deadline_s)

    def wait_for(self, seq: int, *, deadline_s: float = 60.0) -> None:
        """Wait until the stored cursor is at `seq` and nothing is unfinished; a relay that ended in good order is a failure."""
        last: dict[str, Any] = {}
        began = told_at = looked_at = time.monotonic()

        def is_at_rest() -> bool:
            assert self.relay.is_running(), f"the relay has ended: {self.relay}"
            status = self.status()
            if status is None:
                return False
            last.update(status)
            left = unfinished(status, seq)
            if left:
                self._murmur()
            nonlocal looked_at
            if left and not unfinished(dict(status, repos={}), seq) and time.monotonic() - looked_at > _LOOK_EVERY_S:
                # Counts are kept in memory, and corrected every half a minute: what is stored is what counts.
                looked_at = time.monotonic()
                return not self._unfinished_rows()
            nonlocal told_at
            if left and time.monotonic() - told_at > _TELL_EVERY_S:
                told_at = time.monotonic()
                print(f"after {told_at - began:.0f} s: {left}")
            return not left

        try:
            wait_until(is_at_rest, "rest", deadline_s=deadline_s)
        except NotInTime:
            raise AssertionError(
                f"not at rest within {deadline_s:g} s: {unfinished(last, seq)}\n{self._unfinished_repos()}"
            ) from None

    def _murmur(self) -> None:
        """Let something harmless happen, as it does all the time in a real network: a reconcile waits for a cursor that moves."""
        if time.monotonic() - self._murmured_at > _MURMUR_EVERY_S:
            self._murmured_at = time.monotonic()
            self.network.quiesce()

    def judge(self, *, live: bool = True) -> None:
        """The ingester equals the network, and the order held. What is stored and not told yet has a moment to be told."""
        found = self._lasting_differences(lambda found: not found or self._wait_for_identities(found), live)
        if found and self._wait_for_identities(found):
            dids = {difference.did for difference in found}
            print(
                f"{len(dids)} accounts that are right after their next #identity: {[str(each) for each in found[:5]]}"
            )
            for account in self.network.truth():
                if account.did in dids:
                    self._control(do="set_handle", did=account.did, handle=account.handle)
            found = self._lasting_differences(lambda found: not found, live)
        if found:
            raise AssertionError(self._explained(found))
        if self.witness is not None:
            self.witness.assert_in_order()

    def _wait_for_identities(self, found: Sequence[Difference]) -> bool:
        """Whether these stay until the accounts' next `#identity`, rightly.

        A handle that changed within a hole stands in no listing. And whose document the directory served as it was before, of that
        account nobody could know.
        """
        has_hole = any(self.fired[kind.value] for kind in _HOLES)
        return all(each.did in self.misled or (has_hole and _is_of_a_handle(each)) for each in found)

    def _lasting_differences(self, is_right: Callable[[list[Difference]], bool], live: bool) -> list[Difference]:
        """Return what differs when it is right, or when it has had its time."""
        found: list[Difference] = []

        def look() -> bool:
            found[:] = self.differences(live=live)
            return is_right(found)

        with contextlib.suppress(NotInTime):
            wait_until(look, "equality", deadline_s=_SETTLES_S)
        return found

    def differences(self, *, live: bool = True, **wanted: Any) -> list[Difference]:
        """Compare; `wanted`: `patterns` and `targets` of the oracle's `compare`."""
        return compare(self.network.truth(), self.delivered(), live=live, **wanted)

    def delivered(self) -> dict[str, Delivered]:
        return read_sink(self.stage.sink)

    # In words

    def summary(self) -> str:
        kills = ", ".join(f"{count} {victim}" for victim, count in sorted(self.kills.items())) or "none"
        fired = ", ".join(f"{count} {kind}" for kind, count in sorted(self.fired.items()) if count) or "none"
        return f"kills: {kills}\nfaults: {fired}"

    def _explained(self, found: Sequence[Difference]) -> str:
        dids = list(dict.fromkeys(difference.did for difference in found))[:_SHOWN_DIDS]
        return "\n".join([report(found), self.summary(), *(line for did in dids for line in self._story(did))])

    def _story(self, did: str) -> Iterator[str]:
        """Yield what witness and logs say of a DID."""
        yield f"--- {did}"
        if self.witness is not None:
            yield from (f"  {line}" for line in self.witness.history(did)[-_LINES:])
        lines = [
            f"  [{index}] {line}" for index, program in enumerate(self.relays) for line in program.err if did in line
        ]
        yield from lines[-_LINES:]
        yield from self._shown("repos", "show", did)

    def _unfinished_repos(self) -> str:
        lines = self._unfinished_rows()
        dids = re.findall(r"did:[\w:%.-]+", "\n".join(lines[:_SHOWN_DIDS]))
        log = self.relay.err[-_LINES:]
        return "\n".join(
            [self.summary(), *lines[:_LINES], *(line for did in dids for line in self._story(did)), "--- log", *log]
        )

    def _unfinished_rows(self) -> list[str]:
        """Return those lines of `repos list --json` that are not at rest; one that says so when there is no answer."""
        lines = self._shown("repos", "list", "--json")
        rows = [line for line in lines if line.startswith("  {")]
        return (
            [line for line in rows if any(f'"state":"{state}"' in line for state in UNFINISHED)]
            if rows
            else ["  no rows"]
        )

    def _shown(self, *arguments: str) -> list[str]:
        program = self.stage.start(*arguments, env=self.env)
        with contextlib.suppress(AssertionError):  # this is for a report of another failure
            program.wait(20.0)
        return [f"  {line}" for line in [*program.out, *program.err]]


def _is_of_a_handle(difference: Difference) -> bool:
    return difference.kind is DifferenceKind.IDENTITY and "://" not in difference.expected


def unfinished(status: Mapping[str, Any], seq: int) -> str:
    """Return what of a status is not at rest; empty: nothing is left to do up to `seq`."""
    if not status:
        return "no status"
    firehose = status["firehose"]
    left = [f"{count} {state}" for state, count in status["repos"].items() if state in UNFINISHED and count]
    if firehose["cursor"] is None or firehose["cursor"] < seq:
        left.append(
            f"cursor {firehose['cursor']} of {seq}, read {firehose['seq']}, last error {firehose['last_error']!r}"
        )
        left.append(
            f"{firehose['open_frames']} open frames, verifying {firehose['verifying']}, for a key {firehose['waiting_for_key']}"
        )
    left += [f"incident {each['kind']}" for each in status["incidents"] if each["closed_at"] is None]
    if status["reconcile"]["running"]:
        left.append("a reconcile runs")
    if status["listing"]["running"]:
        left.append("an enumeration runs")
    return "; ".join(left)
