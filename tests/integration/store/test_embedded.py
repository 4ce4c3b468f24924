"""The private server: starting, sharing, dying, being adopted; as root, as a plain user, and on every installed version."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from relay.errors import StoreAway
from relay.store import embedded as module
from relay.store.embedded import EmbeddedPostgres
from relay.store.runas import candidates, run_as_for
from relay.store.translate import StoreUnusable
from relay.store.wheel import BinFolder, bin_folders
from tests.support.postgres import installations, is_root

REPOSITORY = Path(__file__).resolve().parents[3]
USER_PROGRAM = """
import sys, pathlib
from relay.store.embedded import EmbeddedPostgres
server = EmbeddedPostgres(pathlib.Path(sys.argv[1]))
server.open()
print(server.dsn, flush=True)
sys.stdin.readline()
server.close()
"""


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def server_pid(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def ask(dsn: str, statement: str) -> str:
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cur:
            cur.execute(statement)
            row = cur.fetchone()
            connection.commit()
            return str(row[0]) if row else ""
    finally:
        connection.close()


class User:
    """Another process that uses the server of a folder; `command` may make it another user."""

    def __init__(self, folder: Path, command: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*command, sys.executable, "-c", USER_PROGRAM, str(folder)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.dsn = self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate("\n", timeout=60)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def server(short_folder: Path) -> Iterator[EmbeddedPostgres]:
    opened = EmbeddedPostgres(short_folder / "s")
    opened.open()
    yield opened
    opened.close()


@pytest.mark.parametrize("binaries", installations(), ids=lambda binaries: f"pg{binaries.version}")
def test_a_server_starts_stops_and_keeps_its_data(short_folder: Path, binaries: BinFolder) -> None:
    server = EmbeddedPostgres(short_folder / "s", bin_folder=binaries.path)
    server.open()
    assert ask(server.dsn, "SHOW server_version").startswith(str(binaries.version))
    assert ask(server.dsn, "CREATE TABLE kept AS SELECT 41 + 1 AS n; SELECT n FROM kept") == "42"
    pid = server_pid(server.folder)
    server.close()
    assert not lives(pid)
    assert not (server.folder / "data" / "postmaster.pid").exists()
    server.open()
    assert ask(server.dsn, "SELECT n FROM kept") == "42"
    server.close()


def test_closing_twice_and_opening_twice_are_harmless(server: EmbeddedPostgres) -> None:
    server.open()
    server.close()
    server.close()
    server.open()
    assert ask(server.dsn, "SELECT 1") == "1"


def test_the_server_listens_on_no_port_and_keeps_every_safety_on(server: EmbeddedPostgres) -> None:
    assert ask(server.dsn, "SHOW listen_addresses") == ""
    assert ask(server.dsn, "SELECT current_setting('fsync') || current_setting('synchronous_commit')") == "onon"
    assert (
        ask(server.dsn, "SELECT pg_encoding_to_char(encoding) || datcollate FROM pg_database WHERE datname = 'relay'")
        == "UTF8C"
    )


def test_nobody_else_may_enter_the_folder(server: EmbeddedPostgres) -> None:
    assert server.folder.stat().st_mode & 0o777 == 0o700


def test_the_server_is_in_a_session_of_its_own_without_our_descriptors(short_folder: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)  # the worst case: even an inheritable descriptor must not get through
    server = EmbeddedPostgres(short_folder / "s")
    server.open()
    try:
        assert os.getpgid(server_pid(server.folder)) != os.getpgid(0)
        assert os.getsid(server_pid(server.folder)) != os.getsid(0)
        os.close(writer)
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""  # end of file: nobody else has the writing end
    finally:
        os.close(reader)
        server.close()


def test_a_killed_server_is_started_again_with_all_that_was_committed(server: EmbeddedPostgres) -> None:
    ask(server.dsn, "CREATE TABLE kept AS SELECT 42 AS n; SELECT 1")
    pid = server_pid(server.folder)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not lives(pid))
    server.ensure_running()
    assert server_pid(server.folder) != pid
    assert ask(server.dsn, "SELECT n FROM kept") == "42"


def test_a_server_that_was_killed_leaves_no_socket_behind_when_its_last_user_goes(short_folder: Path) -> None:
    server = EmbeddedPostgres(short_folder / "s")
    server.open()
    pid = server_pid(server.folder)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not lives(pid))
    assert list((server.folder / "socket").iterdir())
    server.close()
    assert not list((server.folder / "socket").iterdir())


def test_a_server_whose_starter_was_killed_is_adopted_and_then_stopped(short_folder: Path) -> None:
    folder = short_folder / "s"
    user = User(folder)
    pid = server_pid(folder)
    user.kill()
    assert lives(pid)
    server = EmbeddedPostgres(folder)
    server.open()
    assert server_pid(folder) == pid
    server.close()
    assert not lives(pid)


def test_server_and_starter_killed_together_leave_nothing_in_the_way(short_folder: Path) -> None:
    folder = short_folder / "s"
    user = User(folder)
    pid = server_pid(folder)
    user.kill()
    os.kill(pid, signal.SIGKILL)
    server = EmbeddedPostgres(folder)
    server.open()
    assert ask(server.dsn, "SELECT 1") == "1"
    server.close()


def test_the_last_of_several_users_stops_the_server(short_folder: Path) -> None:
    folder = short_folder / "s"
    first, second = EmbeddedPostgres(folder), EmbeddedPostgres(folder)
    first.open()
    second.open()
    third = User(folder)
    pid = server_pid(folder)
    first.close()
    assert ask(second.dsn, "SELECT 1") == "1"
    second.close()
    assert ask(third.dsn, "SELECT 1") == "1"
    third.end()
    wait_until(lambda: not lives(pid))


def test_users_that_start_at_the_same_moment_share_one_server(short_folder: Path) -> None:
    servers = [EmbeddedPostgres(short_folder / "s") for _ in range(4)]
    threads = [threading.Thread(target=server.open) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len({ask(server.dsn, "SELECT pg_postmaster_start_time()") for server in servers}) == 1
    finally:
        for server in servers:
            server.close()


def test_a_process_id_that_was_given_to_somebody_else_does_not_stop_a_start(short_folder: Path) -> None:
    folder = short_folder / "s"
    server = EmbeddedPostgres(folder)
    server.open()
    pid = server_pid(folder)
    lines = (folder / "data" / "postmaster.pid").read_text().splitlines()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not lives(pid))
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        (folder / "data" / "postmaster.pid").write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        server.ensure_running()
        assert ask(server.dsn, "SELECT 1") == "1"
    finally:
        server.close()
        assert stranger.poll() is None  # and it was not stopped in place of the server
        stranger.kill()
        stranger.wait()


def test_a_kill_during_initdb_leaves_nothing_that_looks_like_a_cluster(short_folder: Path) -> None:
    folder = short_folder / "s"
    (folder / "data.new").mkdir(parents=True)
    (folder / "data.new" / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(folder)
    server.open()
    assert ask(server.dsn, "SELECT 1") == "1"
    server.close()


def test_a_folder_with_a_long_name_works(short_folder: Path) -> None:
    server = EmbeddedPostgres(short_folder / ("long" * 20) / ("name" * 20))
    server.open()
    try:
        assert ask(server.dsn, "SELECT 1") == "1"
    finally:
        server.close()


def test_data_of_another_version_is_refused_by_name(short_folder: Path) -> None:
    server = EmbeddedPostgres(short_folder / "s")
    server.open()
    server.close()
    (server.folder / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(StoreUnusable, match=r"was made by PostgreSQL 9, and the installed binaries are 18"):
        server.open()


def test_a_damaged_cluster_is_reported_with_the_servers_own_words(short_folder: Path) -> None:
    server = EmbeddedPostgres(short_folder / "s")
    server.open()
    server.close()
    (server.folder / "data" / "global" / "pg_control").unlink()
    with pytest.raises(StoreUnusable, match=r"ended with code \d+ at its start: .*pg_control"):
        server.open()


def test_a_server_that_somebody_else_started_on_the_data_is_left_alone(short_folder: Path) -> None:
    server = EmbeddedPostgres(short_folder / "s")
    server.open()
    server.close()
    program = str(bin_folders()[0].path / "postgres")
    run_as = run_as_for((server.folder / "data").stat().st_uid, server.folder)
    stranger = subprocess.Popen(
        [*run_as.prefix, program, "-D", str(server.data), "-c", "listen_addresses=",
         "-c", f"unix_socket_directories={short_folder}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until((short_folder / ".s.PGSQL.5432").exists)
        with pytest.raises(StoreUnusable, match="a PostgreSQL server that is not ours runs on it"):
            server.open()
        assert stranger.poll() is None
    finally:
        stranger.send_signal(signal.SIGINT)
        stranger.wait()


def test_a_place_that_is_no_folder_is_named(short_folder: Path) -> None:
    (short_folder / "file").write_text("")
    with pytest.raises(StoreUnusable, match=r"database.path .*/file/s: cannot be used .*: Not a directory"):
        EmbeddedPostgres(short_folder / "file" / "s").open()


def with_a_program_that(folder: Path, does: str) -> EmbeddedPostgres:
    """Return the user of a real cluster whose server's program is replaced."""
    server = EmbeddedPostgres(folder / "s")
    server.open()
    server.close()
    fake = folder / "bin"
    fake.mkdir(mode=0o755)
    os.chmod(folder, 0o755)
    (fake / "postgres").write_text(
        f'#!/bin/sh\n[ "$1" = -V ] && {{ echo "postgres (PostgreSQL) 18.0"; exit 0; }}\n{does}\n'
    )
    os.chmod(fake / "postgres", 0o755)
    return EmbeddedPostgres(server.folder, bin_folder=fake)


def test_a_full_disk_at_a_start_is_waited_for(short_folder: Path) -> None:
    says = 'echo "FATAL:  could not write lock file \\"postmaster.pid\\": No space left on device" >&2\nexit 1'
    with pytest.raises(StoreAway, match="the disk is full"):
        with_a_program_that(short_folder, says).open()


def test_a_server_that_is_killed_at_its_start_is_waited_for(short_folder: Path) -> None:
    with pytest.raises(StoreAway, match="was killed at its start"):
        with_a_program_that(short_folder, "kill -9 $$").open()


def test_a_log_that_has_grown_is_set_aside(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_LIMIT_BYTES", 10)
    server.close()
    server.open()
    assert (server.folder / "postgres.log.old").exists()
    assert (server.folder / "postgres.log").stat().st_size < (
        server.folder / "postgres.log.old"
    ).stat().st_size + 10_000


@pytest.mark.skipif(not is_root(), reason="needs root, to become another user")
class TestAsRoot:
    def test_the_server_runs_as_nobody_below_a_closed_folder(self, server: EmbeddedPostgres) -> None:
        assert os.stat(f"/proc/{server_pid(server.folder)}").st_uid == pwd.getpwnam("nobody").pw_uid

    def test_a_user_namespace_serves_where_setpriv_does_not(
        self, short_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unshare = candidates()[1]
        if unshare.refusal(bin_folders()[0].path / "postgres") is not None:
            pytest.skip("user namespaces are not allowed here")
        monkeypatch.setattr(module, "candidates", lambda: [unshare])
        server = EmbeddedPostgres(short_folder / "s")
        server.open()
        try:
            assert ask(server.dsn, "SELECT 1") == "1"
            assert server.data.stat().st_uid == 0  # the files stay root's, which is how the next start knows
        finally:
            server.close()
        server.open()
        server.close()

    def test_no_way_to_drop_root_names_the_folder_and_every_way(
        self, short_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/nonexistent")
        with pytest.raises(StoreUnusable, match=r"database.path .*/s: initdb failed: setpriv: .*; unshare: ") as caught:
            EmbeddedPostgres(short_folder / "s").open()
        assert "No such file or directory: 'setpriv'" in str(caught.value)
        assert not (short_folder / "s" / "data").exists()

    def test_a_plain_user_has_a_server_too(self, short_folder: Path) -> None:
        home = short_folder / "home"
        home.mkdir(mode=0o700)
        os.chmod(short_folder, 0o755)
        shutil.chown(home, "nobody")
        user = User(home / "s", ("setpriv", "--reuid", "nobody", "--clear-groups"))
        try:
            assert ask(user.dsn, "SELECT 1") == "1"
        finally:
            user.end()

    def test_root_may_use_the_server_of_a_plain_user_and_leaves_its_files_with_that_user(
        self, short_folder: Path
    ) -> None:
        home = short_folder / "home"
        home.mkdir(mode=0o700)
        os.chmod(short_folder, 0o755)
        shutil.chown(home, "nobody")
        as_nobody = ("setpriv", "--reuid", "nobody", "--clear-groups")
        User(home / "s", as_nobody).end()
        server = EmbeddedPostgres(home / "s")
        server.open()
        server.close()
        user = User(home / "s", as_nobody)
        try:
            assert user.dsn, "nobody can use its own folder again"
        finally:
            user.end()

    def test_a_plain_user_is_told_whose_folder_it_is(self, short_folder: Path) -> None:
        server = EmbeddedPostgres(short_folder / "s")
        server.open()
        server.close()
        os.chmod(short_folder, 0o755)
        done = subprocess.run(
            ["setpriv", "--reuid", "1", "--clear-groups", sys.executable, "-c", USER_PROGRAM, str(server.folder)],
            cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "StoreUnusable: database.path" in done.stderr
        assert "Permission denied" in done.stderr
