"""One child process: how it starts, how we talk to it, why it ended.

Children come from a forkserver that was started before any thread and before gRPC was imported: forking beside live
channels hangs (PERFORMANCE section 10 measured it), also for replacements.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

import msgpack

from relay.observe.log import get_logger

log = get_logger(__name__)

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
READ_BYTES = 256 * 1024
_BY_DESCRIPTOR = "/proc/self/fd/"

Message = list[Any]


def start_forkserver(preload: list[str]) -> None:
    """Start the forkserver now. To be called first thing, before threads and before anything imports gRPC.

    `preload` names modules that every child needs (never one that imports gRPC): they are imported once.
    """
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.forkserver.set_forkserver_preload(preload)
    server: Any = multiprocessing.forkserver._forkserver
    if not (server._forkserver_address or "").startswith(_BY_DESCRIPTOR):
        _run_without_a_name(server)


def _run_without_a_name(server: Any) -> None:
    """Start it, and take its socket's name away: we reach it by descriptor, and a `kill -9` leaves no file and no folder."""
    config: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    before = config.get("tempdir")
    # It would be started with the forkserver: most of the time in which a kill leaves the folder behind.
    multiprocessing.resource_tracker.ensure_running()
    with tempfile.TemporaryDirectory(prefix="relay-") as path:
        folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # By its descriptor too: a socket's address ends at 107 bytes, and TMPDIR may be longer.
        config["tempdir"] = f"{_BY_DESCRIPTOR}{folder}"
        try:
            multiprocessing.forkserver.ensure_running()
            address = server._forkserver_address
            if address.startswith(config["tempdir"]):
                server._forkserver_address = f"{_BY_DESCRIPTOR}{os.open(address, os.O_PATH | os.O_CLOEXEC)}"
        finally:
            config["tempdir"] = before
            os.close(folder)


def stop_forkserver() -> None:
    """End the forkserver process; for a clean exit that leaves no process behind."""
    server: Any = multiprocessing.forkserver._forkserver
    address = server._forkserver_address or ""
    if address.startswith(_BY_DESCRIPTOR):
        os.close(int(address.removeprefix(_BY_DESCRIPTOR)))
        server._forkserver_address = "\0"  # as of a socket without a file: nothing to unlink
    stop = getattr(server, "_stop", None)
    if stop is not None:
        stop()


class Pipe:
    """msgpack messages, one after the other, on a stream socket between two processes.

    Sending is locked, so that messages of several threads stay whole; receiving belongs to one thread. What has arrived is read in
    one go, and what is sent in one round can go in one call: a repo costs some ten messages, and a system call for each half of
    each cost the engine more than everything else that it does.
    """

    def __init__(self, connection: multiprocessing.connection.Connection) -> None:
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        connection.close()
        self._sending = threading.Lock()  # guards: the order of whole messages on the socket, and _later
        self._later: list[bytes] = []
        self._unpacker = msgpack.Unpacker(raw=False, use_list=True, max_buffer_size=MAX_MESSAGE_BYTES)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message) -> bool:
        """Send one message, and before it what was left for later; False when the other side is gone, which is reported elsewhere."""
        self.send_later(message)
        return self.flush()

    def send_later(self, message: Message) -> None:
        """Send one message with the next `flush` or `send`."""
        data = msgpack.packb(message, use_bin_type=True)
        with self._sending:
            self._later.append(data)

    def flush(self) -> bool:
        with self._sending:
            if not self._later:
                return True
            data, self._later = b"".join(self._later), []
            try:
                self._socket.sendall(data)
            except OSError:
                return False
        return True

    def receive(self) -> Message:
        """Return the next message, waiting for it; raises EOFError when the other side is gone."""
        while True:
            for message in self._unpacker:
                return _checked(message)
            self._read(0)

    def receive_ready(self) -> list[Message]:
        """Return the messages that are here, without waiting; raises EOFError when the other side is gone and nothing is left."""
        try:
            self._read(socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        return [_checked(message) for message in self._unpacker]

    def _read(self, flags: int) -> None:
        try:
            data = self._socket.recv(READ_BYTES, flags)
        except BlockingIOError:
            raise
        except OSError as exc:
            raise EOFError from exc
        if not data:
            # Whoever was killed in the middle of a message has said nothing.
            raise EOFError
        self._unpacker.feed(data)

    def close(self) -> None:
        self._socket.close()


def _checked(message: Any) -> Message:
    if not isinstance(message, list):
        raise EOFError("not a message")
    return message


class ChildProcess:
    """A started child with its pipe. `role` and `seat` name it in logs (`worker/1`); seats outlive processes."""

    def __init__(self, role: str, seat: int, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.role, self.seat = role, seat
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe(duplex=True)
        self.pipe = Pipe(ours)
        self.process: ForkServerProcess = context.Process(
            target=target, args=(theirs, *args), name=f"relay-{role}-{seat}", daemon=True
        )
        self.process.start()
        theirs.close()
        self.started_at = time.monotonic()

    @property
    def name(self) -> str:
        return f"{self.role}/{self.seat}"

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def kill(self, *, with_stack: bool = False) -> None:
        """End it for good: first SIGABRT when its stack is wanted in the log (faulthandler prints it), then SIGKILL."""
        if not self.process.is_alive():
            return
        try:
            if with_stack:
                os.kill(self.pid, signal.SIGABRT)
                self.process.join(1.0)
            self.process.kill()
        except ProcessLookupError:
            pass

    def join(self, deadline: float) -> bool:
        self.process.join(max(0.0, deadline - time.monotonic()))
        return not self.process.is_alive()

    def why_ended(self) -> str:
        """Return how it ended, for a log line or a repo's reason: `exit 1`, `signal SIGKILL`."""
        self.process.join(2.0)
        code = self.process.exitcode
        if code is None:
            return "still running"
        if code < 0:
            try:
                return f"signal {signal.Signals(-code).name}"
            except ValueError:
                return f"signal {-code}"
        return f"exit {code}"

    def close(self) -> None:
        self.pipe.close()
        if not self.process.is_alive():
            self.process.close()


def prepare_child(name: str) -> None:
    """What every child does first: signals are the supervisor's business, stacks on SIGABRT, die with the supervisor.

    SIGTERM reaches a whole service (systemd) or process group: the supervisor then drains, for which it needs its children,
    and tells them by their pipes when to end. `name` (15 characters) is what ps shows.
    """
    import ctypes
    import faulthandler

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    # The pipe's end tells us as well, but a child in a long computation would notice only afterwards.
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1
    libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
    # What ps and top show: a forked child has the command line of the forkserver.
    pr_set_name = 15
    libc.prctl(pr_set_name, name.encode()[:15])


def run_as_batch() -> None:
    """Have this thread, and those that it starts, wait for the end of others' time slice when they wake up, instead of interrupting them.

    Linux sched(7), SCHED_BATCH: the share of the processor stays the same. A policy that the operator chose (`chrt`) is left as it is.
    """
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    with contextlib.suppress(OSError):  # a sandbox may forbid it; it is a saving and no need
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
