"""The test support itself: a proxy that cuts where it says, programs that end, leaks that are seen."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.leaks import checked_for_leaks
from tests.support.processes import Program, descendants, is_alive, processes
from tests.support.proxy import Proxy
from tests.support.waiting import NotInTime, wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")


class _Echo(threading.Thread):
    """Answers each connection with what it says."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="echo")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._answer, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _answer(self, client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(65536):
                    client.sendall(data)
            except OSError:
                return

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self, *self._threads):
            thread.join(5)


@pytest.fixture
def echo() -> Iterator[_Echo]:
    server = _Echo()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def dial() -> Iterator[Callable[[Proxy], socket.socket]]:
    with ExitStack() as stack:

        def connect(proxy: Proxy) -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=5))

        yield connect


Dial = Callable[[Proxy], socket.socket]
StartProxy = Callable[[int], Proxy]


def _round(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    received = b""
    while len(received) < len(data):
        piece = client.recv(65536)
        if not piece:
            break
        received += piece
    return received


def test_the_proxy_passes_everything_on(echo: _Echo, start_proxy: StartProxy, dial: Dial) -> None:
    proxy = start_proxy(echo.port)
    data = os.urandom(300_000)
    clients = [dial(proxy) for _ in range(3)]
    assert [_round(client, data) for client in clients] == [data] * 3
    assert (proxy.connections, proxy.bytes_up, proxy.bytes_down) == (3, 900_000, 900_000)
    clients[0].shutdown(socket.SHUT_WR)
    assert clients[0].recv(10) == b""


def test_a_cut_resets_what_there_is_and_takes_new_connections(echo: _Echo, start_proxy: StartProxy, dial: Dial) -> None:
    proxy = start_proxy(echo.port)
    client = dial(proxy)
    assert _round(client, b"x") == b"x"
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert _round(dial(proxy), b"y") == b"y"


def test_a_cut_after_bytes_lets_them_pass_first(echo: _Echo, start_proxy: StartProxy, dial: Dial) -> None:
    proxy = start_proxy(echo.port)
    proxy.cut_after(100)
    client = dial(proxy)
    assert _round(client, b"x" * 40) == b"x" * 40
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        _round(client, b"y" * 200)
    assert _round(dial(proxy), b"z" * 500) == b"z" * 500


def test_a_refusing_proxy_seems_dead_until_it_accepts(echo: _Echo, start_proxy: StartProxy, dial: Dial) -> None:
    proxy = start_proxy(echo.port)
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        dial(proxy)
    proxy.accept()
    assert _round(dial(proxy), b"x") == b"x"


def test_a_stalled_proxy_holds_everything_back_and_loses_nothing(
    echo: _Echo, start_proxy: StartProxy, dial: Dial
) -> None:
    proxy = start_proxy(echo.port)
    client = dial(proxy)
    assert _round(client, b"x") == b"x"
    proxy.stall()
    client.sendall(b"later")
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(10)
    proxy.resume()
    client.settimeout(5)
    assert client.recv(10) == b"later"


def test_a_slow_proxy_passes_little_at_a_time(echo: _Echo, start_proxy: StartProxy, dial: Dial) -> None:
    proxy = start_proxy(echo.port)
    client = dial(proxy)
    proxy.slow(2000)
    client.sendall(b"x" * 20_000)
    first = client.recv(65536)
    assert 0 < len(first) <= 2000
    proxy.resume()
    rest = len(first)
    while rest < 20_000:
        rest += len(client.recv(65536))
    assert rest == 20_000


def test_nobody_behind_the_proxy_is_a_reset(start_proxy: StartProxy, dial: Dial) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    client = dial(start_proxy(free))
    with pytest.raises(ConnectionResetError):
        client.recv(1)


_TREE = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600) # grandchild'])\n"
    "print('ready', child.pid, flush=True)\n"
    "print('also here', file=sys.stderr, flush=True)\n"
    "child.wait()\n"
)


def _tree() -> Program:
    return Program([sys.executable, "-c", _TREE])


def test_a_program_shows_its_output_and_children_and_stop_ends_them_all() -> None:
    program = _tree()
    try:
        grandchild = int(program.wait_for_line(r"ready (\d+)")[1])
        program.wait_for_line("also here")
        assert [info.pid for info in program.children()] == [grandchild]
        assert program.kill_child("nobody of this name") is None
        assert program.is_running()
    finally:
        program.stop()
    wait_until(lambda: not is_alive(grandchild), "the grandchild to end", deadline_s=5)
    assert program.pid not in processes()


def test_one_child_can_be_killed_by_its_role() -> None:
    program = _tree()
    try:
        grandchild = int(program.wait_for_line(r"ready (\d+)")[1])
        assert program.kill_child("grandchild") == grandchild
        assert program.wait(10) == 0
        assert descendants(program.pid) == []
    finally:
        program.stop()


def test_a_program_that_ends_without_the_line_fails_with_its_output() -> None:
    program = Program([sys.executable, "-c", "print('something else')"])
    try:
        with pytest.raises(AssertionError, match="something else"):
            program.wait_for_line("never printed")
        assert program.wait(10) == 0
    finally:
        program.stop()


def test_ctrl_c_reaches_the_whole_group() -> None:
    program = _tree()
    try:
        grandchild = int(program.wait_for_line(r"ready (\d+)")[1])
        program.interrupt()
        assert program.wait(10) in (1, -signal.SIGINT)
        wait_until(lambda: not is_alive(grandchild), "the grandchild to end", deadline_s=5)
    finally:
        program.stop()


def test_waiting_has_an_end_that_names_what_was_awaited() -> None:
    with pytest.raises(NotInTime, match="the impossible"):
        wait_until(lambda: False, "the impossible", deadline_s=0.01)


def test_each_kind_of_leak_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.leaks._SETTLE_S", 0.1)
    ends = threading.Event()
    thread = threading.Thread(target=ends.wait, name="leaked")
    program: list[Program] = []
    held: list[object] = []
    leaks: list[tuple[Callable[[], object], str]] = [
        (thread.start, "thread leaked"),
        (lambda: held.append((tmp_path / "file").open("w")), "open file .*/file"),
        (lambda: held.append(socket.socket()), r"open file socket:\["),
        (lambda: Path("/dev/shm/relay-leak-test").touch(), "/dev/shm/relay-leak-test"),
        (lambda: program.append(_tree()), "child process"),
    ]
    try:
        for leak, pattern in leaks:
            with pytest.raises(AssertionError, match=pattern), checked_for_leaks():
                leak()
    finally:
        ends.set()
        thread.join(5)
        Path("/dev/shm/relay-leak-test").unlink(missing_ok=True)
        for item in held:
            item.close()  # type: ignore[attr-defined]
        for left in program:
            left.stop()
    with checked_for_leaks():
        pass
