"""Real children from a real forkserver: what they have loaded, how they end, and what happens when one dies.

A program of its own plays the supervisor: a test's process has threads and gRPC, which a forkserver must be started before.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT

_PROGRAM = '''
import json, os, signal, sys, time

def maps(pid):
    with open(f"/proc/{pid}/maps") as lines:
        return sorted({os.path.basename(line.split()[-1]) for line in lines if ".so" in line})

def main():
    from relay.supervisor.launch import launch
    launch()
    import tempfile
    from pathlib import Path
    from relay.config.schema import Settings
    from relay.atproto.limits import Limits
    from relay.backfill.fetcher import FetcherSettings, fetcher_main
    from relay.backfill.messages import CancelJob, FreeSlots, JobDone, VerifyFailed, VerifyRepo, from_wire, to_wire
    from relay.backfill.worker import WorkerSettings, worker_main
    from relay.ipc.arena import Arena
    from relay.ipc.child import ChildProcess, stop_forkserver
    from relay.model import RecordEncoding
    import grpc  # the supervisor has it, and its children must not
    from relay.supervisor.children import CannotStart, ChildSeats

    settings = Settings()
    cars, operations = Arena("cars", 1, 4096), Arena("operations", 2, 4096)
    worker = WorkerSettings(
        encoding=RecordEncoding.JSON, chunk_bytes=4096, chunk_operations=100, max_operation_bytes=1 << 20, limits=Limits(),
        log_level="info", log_format="text",
    )
    fetcher = FetcherSettings(
        backfiller=settings.backfiller, http=settings.http, identity=settings.identity, allow_private_hosts=True,
        operator_origins=(), spool_dir=tempfile.gettempdir(), downloads=2, log_level="info", log_format="text",
    )
    heard = []
    seats = ChildSeats(
        on_started=lambda role, seat: heard.append(["started", role, seat]),
        on_died=lambda role, seat, why: heard.append(["died", role, seat, why]),
        watch=lambda child: None,
        unwatch=lambda child: None,
    )
    seats.add("worker", 0, lambda seat: ChildProcess("worker", seat, worker_main, (cars, operations, worker)))
    seats.add("fetch", 0, lambda seat: ChildProcess("fetch", seat, fetcher_main, (cars, fetcher)))
    seats.start_due()
    children = {role: seat.child for (role, _), seat in seats._seats.items()}

    def round_trip(child):
        """The worker says that four bytes of nothing are no CAR."""
        cars.view(0, 4)[:] = b"none"
        job = VerifyRepo(7, "did:plc:" + "a" * 24, 0, None, 4, None, [], 1, 0, True, "", None, None, False)
        child.pipe.send(to_wire(FreeSlots([0, 1])))
        child.pipe.send(to_wire(job))
        return [from_wire(child.pipe.receive()) for _ in range(2)]

    failed, done = round_trip(children["worker"])
    result = {
        "failed": [type(failed).__name__, failed.reason], "done": [type(done).__name__, done.job],
        "mine": maps(os.getpid()), "worker": maps(children["worker"].pid),
    }
    # Ctrl-C and a SIGTERM reach the whole group: a child must outlive both.
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(children["worker"].pid, number)
    result["after signals"] = [type(each).__name__ for each in round_trip(children["worker"])]
    children["fetch"].pipe.send(to_wire(__import__("relay.backfill.messages", fromlist=["x"]).Resolve("did:web:127.0.0.1", False)))
    result["resolved"] = type(from_wire(children["fetch"].pipe.receive())).__name__
    result["fetch"] = maps(children["fetch"].pid)
    result["names"] = [open(f"/proc/{child.pid}/comm").read().strip() for child in children.values()]
    children["worker"].kill()
    try:
        children["worker"].pipe.receive()
    except EOFError:
        seats.ended(children["worker"])
    result["after death"] = seats.snapshot()[0][2:]
    deadline = time.monotonic() + 20
    while seats._seats["worker", 0].child is None and time.monotonic() < deadline:
        seats.start_due()
    replaced = seats._seats["worker", 0].child
    result["after replacement"] = [type(each).__name__ for each in round_trip(replaced)]
    result["replacement"] = maps(replaced.pid)
    pids = [child.pid for child in (replaced, children["fetch"])]
    seats.stop(time.monotonic() + 10)
    result["left"] = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    result["heard"] = heard
    broken = ChildSeats(
        on_started=lambda role, seat: None, on_died=lambda role, seat, why: None, watch=lambda child: None, unwatch=lambda child: None
    )
    broken.add("worker", 0, lambda seat: ChildProcess("worker", seat, os._exit, ()))  # called with a pipe: a TypeError at once
    starts = 0
    try:
        while starts < 50:
            starts += 1
            broken._seats["worker", 0].start_at = 0.0
            broken.start_due()
            child = broken._seats["worker", 0].child
            try:
                child.pipe.receive()
            except EOFError:
                broken.ended(child)
    except CannotStart as exc:
        result["broken"] = [starts, str(exc)]
    stop_forkserver()
    print(json.dumps(result))

if __name__ == "__main__":
    main()
'''


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    program = tmp_path_factory.mktemp("supervisor") / "program.py"
    program.write_text(_PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program)],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_no_child_has_grpc_loaded_not_even_a_replacement(result: dict[str, Any]) -> None:
    assert any("cygrpc" in name for name in result["mine"]), "the program itself has it, or this test proves nothing"
    for child in ("worker", "fetch", "replacement"):
        assert result[child]
        assert not [name for name in result[child] if "grpc" in name or "psycopg" in name]


def test_a_worker_answers_through_its_pipe_and_survives_what_reaches_the_whole_group(result: dict[str, Any]) -> None:
    assert result["failed"][0] == "VerifyFailed"
    assert result["done"] == ["JobDone", 7]
    assert result["after signals"] == ["VerifyFailed", "JobDone"]
    assert result["resolved"] == "Resolved"


def test_a_dead_child_is_replaced_in_its_seat_with_the_reason_told(result: dict[str, Any]) -> None:
    assert result["after death"] == [None, 1]
    assert result["heard"] == [
        ["started", "worker", 0], ["started", "fetch", 0], ["died", "worker", 0, "signal SIGKILL"], ["started", "worker", 0],
    ]  # fmt: skip
    assert result["after replacement"] == ["VerifyFailed", "JobDone"]


def test_children_show_what_they_are_and_none_is_left(result: dict[str, Any]) -> None:
    assert result["names"] == ["relay-worker", "relay-fetch"]
    assert result["left"] == []


def test_a_child_that_ends_at_every_start_is_not_started_for_ever(result: dict[str, Any]) -> None:
    starts, text = result["broken"]
    assert starts == 10
    assert "worker/0" in text
    assert "exit 1" in text


def test_the_launcher_imports_nothing_at_module_level() -> None:
    tree = ast.parse((Path(ROOT) / "bin" / "relay").read_text())
    statements = [type(node) for node in tree.body]
    assert statements == [ast.Expr, ast.If], "a docstring and the guard, nothing that a child would run"
