"""What a killed child says, and what a killed parent leaves: nothing."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import msgpack
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
    whole = msgpack.packb(["whole"])
    os.write(theirs.fileno(), whole + msgpack.packb(["cut", b"x" * 1000])[:500])
    theirs.close()
    pipe = Pipe(ours)
    assert pipe.receive() == ["whole"]
    with pytest.raises(EOFError):
        pipe.receive()
    pipe.close()


def test_messages_arrive_whole_and_in_order_however_they_are_sent_and_read() -> None:
    ours, theirs = map(Pipe, multiprocessing.Pipe(duplex=True))
    sent = [[number, "text", b"\xff" * (number * 700)] for number in range(40)]
    for message in sent[:3]:
        theirs.send_later(message)
    assert ours.receive_ready() == []
    writer = threading.Thread(target=lambda: [theirs.send(message) for message in sent[3:]])
    writer.start()
    found = [ours.receive()]
    while len(found) < len(sent):
        found += ours.receive_ready()
    writer.join()
    assert found == sent
    theirs.close()
    with pytest.raises(EOFError):
        ours.receive_ready()
    assert not ours.send(["nobody there"])
    ours.close()


@pytest.mark.parametrize("name", ["t", "t" * 200], ids=["short", "longer-than-a-socket-may-be-named"])
def test_a_killed_parent_leaves_no_socket_of_the_forkserver(tmp_path: Path, name: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(_START_AND_DIE)
    temporary = tmp_path / name
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
