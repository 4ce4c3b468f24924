"""What a killed child says, and what a killed parent leaves: nothing."""

from __future__ import annotations

import multiprocessing
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from relay.ipc.child import Pipe
from tests.support.processes import ROOT

_START_AND_DIE = """
import os, signal, sys
if __name__ == "__main__":
    from multiprocessing import get_context
    from relay.ipc.child import start_forkserver
    start_forkserver(["relay.ipc.preload"])
    child = get_context("forkserver").Process(target=print, args=("child",))
    child.start()
    child.join()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_message_that_was_cut_by_a_kill_is_the_end_and_no_failure_of_ours() -> None:
    ours, theirs = multiprocessing.Pipe(duplex=True)
    os.write(theirs.fileno(), struct.pack("!i", 1000) + b"half of it")
    theirs.close()
    with pytest.raises(EOFError):
        Pipe(ours).receive()
    ours.close()


def test_a_killed_parent_leaves_no_socket_of_the_forkserver(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_START_AND_DIE)
    temporary = tmp_path / "t"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, str(program)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    assert done.stdout == b"child\n"
    assert list(temporary.iterdir()) == []
