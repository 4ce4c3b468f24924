"""`bin/relay run` under load, and its PostgreSQL restarted, away or without room; then the judge.

Backfill and stream both: the first fetches are slow enough to be under way. `--long`: away for a minute.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.cli.exits import Exit
from relay.simnet.faults import Fault, FaultKind
from relay.simnet.process import SimProcess
from relay.store.embedded import EmbeddedPostgres
from tests.faults.stage import Stage
from tests.support.delivery_world import DeliveryWorld
from tests.support.waiting import let_pass, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

RESTARTS, LONG_RESTARTS = 3, 10
MOST_WAITING = 5000
"""Frames that are read in a minute without the database, at most: the rows of most are not in memory, and some batches wait for theirs."""
DISK_BYTES = 200 << 20
_SLOW = Fault(kind=FaultKind.HANG, endpoint="getRepo", seconds=0.4)
_PIECE = bytes(1 << 20)


def said_phase(world: DeliveryWorld) -> tuple[str, str]:
    """Return phase and reason; nothing while the relay does not answer."""
    status = world.status()
    return ("", "") if status is None else (status["phase"], status["reason"])


def read_to(world: DeliveryWorld) -> int:
    """Return the newest seq that the relay has read."""
    status = world.status()
    assert status is not None
    return int(status["firehose"]["seq"])


def begin_slowly(world: DeliveryWorld) -> None:
    world.set_faults([_SLOW])
    world.begin()


def test_postgresql_restarted_under_load(
    network: SimProcess, stage: Stage, rng: random.Random, server: EmbeddedPostgres, is_long: bool
) -> None:
    with DeliveryWorld(stage, network, env={"DATABASE_DSN": server.dsn}) as world:
        begin_slowly(world)
        restarts = LONG_RESTARTS if is_long else RESTARTS
        for _ in range(restarts):
            let_pass(rng.uniform(0.2, 1.5))
            server.close()
            server.open()
        world.set_faults()
        print(f"{restarts} restarts")
        world.end()


def test_postgresql_away_under_load(
    network: SimProcess, stage: Stage, server: EmbeddedPostgres, seconds: float, is_long: bool
) -> None:
    with DeliveryWorld(stage, network, env={"DATABASE_DSN": server.dsn}) as world:
        begin_slowly(world)
        server.close()
        wait_until(lambda: said_phase(world)[0] == "waiting", "it waits")
        assert said_phase(world)[1].startswith("database away: "), said_phase(world)
        first = read_to(world)
        let_pass(seconds)
        last = read_to(world)
        assert said_phase(world)[1].startswith("database away: "), said_phase(world)
        print(f"while away: {last - first} read, {network.newest_seq() - last} told and not read")
        if is_long:
            assert last - first < MOST_WAITING, "it reads on and on"
        server.open()
        world.set_faults()
        wait_until(lambda: said_phase(world) == ("running", ""), "it goes on by itself")
        world.end()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own for the database."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("a small disk needs mount and root")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0755", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)  # those that were killed a moment ago may still have it


def fill(disk: Path) -> Path:
    """Leave no room, whatever was freed since the last time; return the file that takes it."""
    path = disk / "ballast"
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(_PIECE) == len(_PIECE):
            pass
    return path


def test_the_disk_of_the_embedded_postgresql_full(disk: Path, network: SimProcess, stage: Stage) -> None:
    env = {"DATABASE_PATH": str(disk / "pg"), "DATABASE_DSN": "", "RELAY_SHUTDOWN_TIMEOUT_SEC": "2"}
    with DeliveryWorld(stage, network, env=env) as world:
        begin_slowly(world)
        ballast = fill(disk)
        wait_until(lambda: said_phase(world)[0] == "waiting", "it waits", deadline_s=60.0)
        wait_until(lambda: "full" in said_phase(world)[1], "it says that the disk is full", deadline_s=60.0)
        print(f"while full: {said_phase(world)[1]}")
        ballast.unlink()
        wait_until(lambda: said_phase(world)[0] == "running", "it goes on by itself", deadline_s=60.0)
        ballast = fill(disk)
        wait_until(lambda: "full" in said_phase(world)[1], "full again", deadline_s=60.0)
        world.relay.signal(signal.SIGTERM)
        assert world.relay.wait(60.0) == 0, str(world.relay)
        assert "Traceback" not in "\n".join(world.relay.err), str(world.relay)
        fill(disk)
        started = world.launch()
        assert started.wait(60.0) == Exit.CANNOT_GO_ON, str(started)
        assert "the disk is full" in started.err[-1], str(started)
        assert "Traceback" not in "\n".join(started.err), str(started)
        ballast.unlink()
        world.set_faults()
        world.start()
        world.end()
