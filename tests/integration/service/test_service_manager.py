"""The service manager is told when the start is over, what is done, that it goes on, and that it ends."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.backfill.scene import Scene
from tests.support.waiting import wait_until


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(Path(folder) / "notify"))
        door.setblocking(False)
        yield door


def test_the_manager_hears_of_start_work_and_end(scene: Scene, manager: socket.socket) -> None:
    heard: list[str] = []

    def hears(wanted: str) -> bool:
        try:
            while True:
                heard.append(manager.recv(4096).decode())
        except BlockingIOError:
            pass
        return any(each.startswith(wanted) for each in heard)

    program = scene.start("run", "--no-progress", env={"NOTIFY_SOCKET": manager.getsockname()})
    wait_until(lambda: hears("READY=1"), "ready")
    wait_until(lambda: hears("WATCHDOG=1"), "a fed watchdog")
    assert hears("STATUS=")
    os.kill(program.pid, signal.SIGTERM)
    assert program.wait() == 0, str(program)
    assert hears("STOPPING=1")
    assert heard.count("READY=1") == 1
    assert heard.index("READY=1") < heard.index("STOPPING=1")


def test_a_hang_that_the_manager_ends_leaves_the_stack_of_every_thread(scene: Scene, manager: socket.socket) -> None:
    # The dump reads the frames of threads that run on meanwhile: one that moves at that very moment can crash it. In a hang
    # none moves, but this service is well. So the first dump that came to its end counts.
    for _ in range(4):
        program = scene.start("run", "--no-progress", env={"NOTIFY_SOCKET": manager.getsockname()})
        program.wait_for_line("^metrics: ")
        os.kill(program.pid, signal.SIGABRT)  # what systemd sends when the watchdog was not fed
        code = program.wait()
        said = "\n".join(program.err)
        assert "Fatal Python error: Aborted" in said
        if code != -signal.SIGSEGV:
            break
    assert code == -signal.SIGABRT
    assert "relay/supervisor/session.py" in said
