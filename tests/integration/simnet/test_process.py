"""A network in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from relay.simnet.faults import Fault, FaultKind
from relay.simnet.network import SimNetwork, UnknownCommand
from relay.simnet.process import SimProcess, SimProcessFailed
from relay.simnet.world import World, WorldSpec
from tests.support.data import data_path, needs_data
from tests.support.processes import ROOT, Program, is_alive
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")
_SPEC = WorldSpec(accounts=6, hosts=2, median_records=8, max_records=50, seed=9, sizes=(0, 12))


def test_it_is_the_same_world_as_in_this_process() -> None:
    with SimProcess(_SPEC) as process:
        here = World(_SPEC)
        here.host_urls[:] = process.host_urls
        assert process.truth() == list(here.truth())
        assert process.dids() == here.dids()
        assert process.records == sum(len(account.repo.records) for account in here.accounts)
        account = here.accounts[1]
        url = f"{process.host_urls[account.host]}/xrpc/com.atproto.sync.getRepo?did={account.did}"
        assert requests.get(url, timeout=10).content == account.car()


def test_faults_writes_and_counters_go_through_the_control_port() -> None:
    with SimProcess(_SPEC) as process:
        url = f"{process.plc_url}/{process.dids()[0]}"
        process.set_faults([Fault(kind=FaultKind.STATUS, endpoint="plc", status=500, times=1)], seed=4)
        assert [requests.get(url, timeout=10).status_code for _ in range(2)] == [500, 200]
        assert process.fault_counts() == {"status": 1}
        assert process.struck(FaultKind.STATUS) == {process.dids()[0]}
        before = {account.did: account.rev for account in process.truth()}
        written = process.write(5)
        assert written.creates + written.updates + written.deletes == 5
        assert {account.did: account.rev for account in process.truth()} != before
        assert process.control(do="traffic")["requests"] == {"plc/plc": 2}
        did = process.dids()[1]
        path = process.control(do="add_large_record", did=did, bytes=1_048_577)["path"]
        process.control(do="set_status", did=did, status="suspended")
        account = next(account for account in process.truth() if account.did == did)
        assert (account.status, account.refused) == ("suspended", frozenset({path}))
        assert process.cpu_s() > 0


@pytest.mark.parametrize(
    ("command", "error", "named"),
    [
        ({"do": "nothing"}, UnknownCommand, "nothing"),
        ({"do": "write"}, KeyError, "commits"),
        ({"do": "migrate", "did": "did:plc:x", "host": 0}, KeyError, "did:plc:x"),
        ({"do": "set_faults", "faults": [{"kind": "rain"}]}, ValueError, "rain"),
    ],
)
def test_a_wrong_command_is_refused_with_its_reason(
    command: dict[str, object], error: type[Exception], named: str
) -> None:
    with SimNetwork(_SPEC) as network, pytest.raises(error, match=named):
        network.control(command)


def test_a_refusal_reaches_the_client() -> None:
    with SimProcess(_SPEC) as process, pytest.raises(SimProcessFailed, match="no control command"):
        process.control(do="dance")


def _free_ports(count: int) -> int:
    """Return the first of some free ports in a row, below those that the system hands out by itself."""
    for base in range(20_000, 32_000, count):
        with ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return base
    raise AssertionError("no free ports")


def test_it_can_be_started_again_where_it_was() -> None:
    base = _free_ports(2 + _SPEC.hosts)
    with SimProcess(_SPEC, base_port=base) as second:
        addresses, truth = second.addresses, second.truth()
    with SimProcess(_SPEC, base_port=base) as third:
        assert {**third.addresses, "control": ""} == {**addresses, "control": ""}
        assert third.truth() == truth


@needs_data
def test_it_serves_a_corpus() -> None:
    with SimProcess(corpus=data_path("expected.json").parent) as process:
        assert "did:plc:4uz2445cjiw7w4nobfgnu35f" in process.dids()
        assert len(process.host_urls) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    program = Program([sys.executable, "-m", "relay.simnet", "--accounts", "2", "--size", "1", "--size", "1"], cwd=ROOT)
    try:
        program.wait_for_line('"plc"')
        program.signal(number)
        assert program.wait(10) == 0
        assert program.err == []
    finally:
        program.stop()


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from relay.simnet.process import SimProcess\n"
        "from relay.simnet.world import WorldSpec\n"
        "process = SimProcess(WorldSpec(accounts=1, sizes=(1,)))\n"
        "print(process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, timeout=60, cwd=tmp_path, check=False
    )
    pid = int(ended.stdout)
    wait_until(lambda: not is_alive(pid), "the network to end with its parent", deadline_s=10)


def test_a_bad_option_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(SimProcessFailed, match="did not start"):
        SimProcess(corpus=tmp_path)


def test_a_taken_port_is_an_error_that_leaves_nothing_open() -> None:
    with SimNetwork(_SPEC) as network:
        taken = int(network.relay_url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            SimNetwork(_SPEC, base_port=taken)
        with pytest.raises(SimProcessFailed, match="exit code 1"):
            SimProcess(_SPEC, base_port=taken)


def test_a_network_that_never_started_can_be_stopped() -> None:
    SimNetwork(_SPEC).stop()


def test_a_compact_process_serves_and_refuses_to_write() -> None:
    with SimProcess(_SPEC, plain=True, compact=True) as process:
        whole = World(_SPEC)
        account = whole.accounts[1]
        url = f"{process.host_urls[account.host]}/xrpc/com.atproto.sync.getRepo?did={account.did}"
        assert requests.get(url, timeout=10).content == account.car()
        with pytest.raises(SimProcessFailed, match="compact"):
            process.write(1)
