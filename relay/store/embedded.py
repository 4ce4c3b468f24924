"""A private PostgreSQL under a folder of ours, for when no DSN is given: unix socket only, nothing to install.

    folder/  0700         ours
      data/               the cluster; its owner is the user that the server runs as
      socket/             .s.PGSQL.5432
      postgres.log        what the server says; cut at start when it has grown
      start.lock          held while somebody starts or stops the server
      users.lock          held shared by each user (process); who gets it alone is the last one, and stops the server
      server.lock         held by the server's own processes: they inherit the descriptor, so the kernel knows whether any still lives

Locks are `flock`s: they end with their holder, whatever ended it, so a `kill -9` of us or of the server leaves nothing to clean up, and
process ids (reused, or of another container) are never trusted alone. The next user adopts a server that a kill left running.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import psycopg2.extensions

from relay.errors import StoreAway
from relay.observe.log import get_logger
from relay.store.runas import RunAs, candidates, run_as_for
from relay.store.translate import StoreUnusable, first_line
from relay.store.wheel import BinFolder, bin_folders, minimal_environment, version_of

log = get_logger(__name__)

ROLE = "relay"
PORT = 5432  # only the name of the socket file
SOCKET_PATH_LIMIT = 107
"""Bytes of a unix socket's path, `sun_path` without its final NUL (unix(7))."""
LOG_LIMIT_BYTES = 4 * 1024 * 1024
POLL_S = 0.01
STOP_S = 20.0
RESTART_PATIENCE_S = 15.0
"""How long one call of `ensure_running` waits for a recovering server, which goes on meanwhile: the caller may want to stop."""

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "120",
    "shared_buffers": "64MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "1GB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "wal_compression": "on",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # statements carry other people's data
    "dynamic_shared_memory_type": "mmap",  # under data/, so that a kill leaves nothing in /dev/shm
}

_LOG_PREFIX = re.compile(r"^[\d-]+ [\d:.]+ \w+ \[\d+\] ")
"""`%m [%p] `, the default of log_line_prefix."""

_left_running: list[subprocess.Popen[bytes]] = []
"""Servers that we started and others still use, or are still stopping: kept, so that they are waited for when they end."""


@atexit.register
def _leave_running() -> None:
    """At our end: whoever has ended is waited for; the others stay on purpose, and nobody warns of them."""
    for process in _left_running:
        if process.poll() is None:
            process.returncode = 0
    _left_running.clear()


class EmbeddedPostgres:
    """One user of the private server under `folder`; any number of them, in any processes, share it.

    `open()` starts or adopts the server, `ensure_running()` starts it again if it died, `close()` stops it when nobody else uses it.
    Not for several threads at once: `Database` calls it under a lock. Raises StoreUnusable when somebody has to change something
    (folder not writable or not ours, disk full, no way to drop root), StoreAway when waiting may help.
    `bin_folder` names another installation's `bin` (tests run on PostgreSQL 15 too); `settings` add to or replace ours.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bin_folder: Path | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self.start_timeout_s = start_timeout_s
        self._bin_folder = bin_folder
        self._settings = {**SETTINGS, **(settings or {})}
        self._users_fd: int | None = None
        self._socket_fd: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0  # where what this start wrote begins in postgres.log

    @property
    def dsn(self) -> str:
        """A libpq connection string, for this process while the server is open."""
        return self._dsn_of("relay")

    def open(self) -> None:
        """Become a user of the server, and make sure that it runs."""
        if self._users_fd is not None:
            return
        self._make_folder()
        with self._start_lock(self.start_timeout_s):
            users = _open_lock(self.folder / "users.lock")
            fcntl.flock(users, fcntl.LOCK_SH)  # at once: alone it is held only under start.lock
            self._users_fd = users
            try:
                self._run_locked(self.start_timeout_s)
            except BaseException:
                self._leave()
                raise

    def ensure_running(self) -> None:
        """Start the server again if it died; return at once when it answers. Raises StoreAway while it recovers: call again."""
        if not self._answers():
            patience_s = min(self.start_timeout_s, RESTART_PATIENCE_S)
            with self._start_lock(patience_s):
                self._run_locked(patience_s)

    def close(self) -> None:
        """Stop using the server; the last user stops it. Never raises for a server that is gone already."""
        users = self._users_fd
        if users is None:
            return
        try:
            with self._start_lock(self.start_timeout_s):
                fcntl.flock(users, fcntl.LOCK_UN)
                if _try_lock(users):
                    self._stop()
                else:
                    log.debug("embedded_postgres_left_to_others", folder=str(self.folder))
        except StoreAway as exc:
            log.warning("embedded_postgres_not_stopped", folder=str(self.folder), error=str(exc))
        finally:
            self._leave()

    # --- what holds and what runs ---------------------------------------------------------------------------------------

    def _leave(self) -> None:
        for fd in (self._users_fd, self._socket_fd):
            if fd is not None:
                os.close(fd)
        self._users_fd = self._socket_fd = None
        if self._process is not None and self._process.poll() is None:
            _left_running[:] = [each for each in _left_running if each.poll() is None]
            _left_running.append(self._process)
        self._process = None

    def _reap(self) -> None:
        """Take the end of a server that we started, when its lock says that it is over: no zombie, where we are process 1."""
        if self._process is not None:
            self._process.wait()
            self._process = None

    @contextmanager
    def _start_lock(self, patience_s: float) -> Iterator[None]:
        fd = _open_lock(self.folder / "start.lock")
        try:
            deadline = time.monotonic() + patience_s
            _wait_until(
                lambda: _try_lock(fd),
                deadline,
                lambda: StoreAway(f"{self.folder}: another process is starting or stopping the embedded PostgreSQL"),
            )
            yield
        finally:
            os.close(fd)

    def _run_locked(self, patience_s: float) -> None:
        """Bring the server to where it answers. Called under start.lock."""
        if self._answers():
            return
        deadline = time.monotonic() + patience_s
        server = _open_lock(self.folder / "server.lock")
        try:
            if self._await_server_or_its_end(server, deadline):
                self._make_database()  # whoever started it may have been killed before
                return
            if not (self.data / "PG_VERSION").exists():
                self._create()
            self._reap()
            self._remove_stale_lock_files()
            self._launch(server)
        finally:
            os.close(server)  # the server's own copy keeps the lock
        self._await_start(deadline)
        self._make_database()

    def _await_server_or_its_end(self, server: int, deadline: float) -> bool:
        """Return True when a server that somebody started answers; False when no process of any is left (the lock is ours)."""
        told = False
        while not _try_lock(server):
            if self._answers():
                log.info("embedded_postgres_adopted", folder=str(self.folder))
                return True
            if time.monotonic() > deadline:
                raise StoreAway(
                    f"{self.folder}: the embedded PostgreSQL runs but does not answer (recovering?); "
                    f"see {self.folder}/postgres.log"
                )
            if not told:
                log.info("embedded_postgres_awaited", folder=str(self.folder))
                told = True
            time.sleep(POLL_S)
        return False

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self._dsn_of("template1"), connect_timeout=2).close()
        except psycopg2.Error:
            return False
        return True

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.stat(self.folder).st_uid == os.geteuid():
                os.chmod(self.folder, 0o700)
            (self.folder / "socket").mkdir(mode=0o700, exist_ok=True)
            os.close(_open_lock(self.folder / "users.lock"))
        except OSError as exc:
            raise self._unusable(f"cannot be used for the embedded PostgreSQL: {exc.strerror}") from exc

    def _unusable(self, text: str) -> StoreUnusable:
        return StoreUnusable(f"database.path {self.folder}: {text}")

    # --- creating, starting, stopping -----------------------------------------------------------------------------------

    def _create(self) -> None:
        """Run initdb, beside its final place: a kill in the middle leaves nothing that looks like a cluster."""
        binaries = self._binaries(None)
        failures = []
        for run_as in candidates():
            fresh = self.folder / "data.new"
            _remove_tree(fresh)
            started = time.monotonic()
            failure = run_as.refusal(binaries.path / "postgres") or self._initdb(binaries, run_as, fresh)
            if failure is None:
                os.rename(fresh, self.data)
                log.info("embedded_postgres_created", folder=str(self.folder), version=binaries.version, run_as=run_as.name,
                         took_s=round(time.monotonic() - started, 2))  # fmt: skip
                return
            failures.append(f"{run_as.name}: {failure}")
            _remove_tree(fresh)
        raise self._unusable("initdb failed: " + "; ".join(failures))

    def _initdb(self, binaries: BinFolder, run_as: RunAs, fresh: Path) -> str | None:
        """Return None, or why it failed."""
        try:
            fresh.mkdir(mode=0o700)
            run_as.hand_over(fresh)
            done = subprocess.run(
                [*run_as.prefix, str(binaries.path / "initdb"), "-D", str(fresh), "-U", ROLE, "-A", "trust", "-E", "UTF8",
                 "--locale=C", "--no-instructions"],
                env=minimal_environment(), cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )  # fmt: skip
        except OSError as exc:
            return str(exc)
        return None if done.returncode == 0 else _failure_text(done.stdout + done.stderr)

    def _binaries(self, version: int | None) -> BinFolder:
        if self._bin_folder is not None:
            found = [BinFolder(path=self._bin_folder, version=version_of(self._bin_folder))]
        else:
            found = bin_folders()
        if version is None:
            return found[0]
        for binaries in found:
            if binaries.version == version:
                return binaries
        have = ", ".join(str(binaries.version) for binaries in found)
        raise self._unusable(
            f"was made by PostgreSQL {version}, and the installed binaries are {have}: install the matching ones, "
            "or name another folder"
        )

    def _launch(self, server: int) -> None:
        """Start the server with the lock `server` (held by us) in its hands, in a session of its own."""
        binaries = self._binaries(int((self.data / "PG_VERSION").read_text("ascii")))
        run_as = run_as_for(os.stat(self.data).st_uid, self.folder)
        try:
            run_as.hand_over(self.folder / "socket")
            log_path = self.folder / "postgres.log"
            if log_path.exists() and log_path.stat().st_size > LOG_LIMIT_BYTES:
                log_path.replace(self.folder / "postgres.log.old")
            arguments = [str(binaries.path / "postgres"), "-D", str(self.data)]
            for key, value in {"unix_socket_directories": "../socket", **self._settings}.items():
                arguments += ["-c", f"{key}={value}"]
            with open(log_path, "ab") as output:
                self._log_from = output.tell()
                self._process = subprocess.Popen(
                    [*run_as.prefix, *arguments],
                    env=minimal_environment(), cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True, pass_fds=(server,),
                )  # fmt: skip
        except OSError as exc:
            raise self._unusable(f"the embedded PostgreSQL cannot be started: {exc}") from exc

    def _await_start(self, deadline: float) -> None:
        process = self._process
        assert process is not None
        while not self._answers():
            if process.poll() is not None:
                text = _failure_text(_read_from(self.folder / "postgres.log", self._log_from))
                if "No space left" in text:
                    raise StoreAway(
                        f"{self.folder}: the disk is full, the embedded PostgreSQL cannot start; free some space ({text})"
                    )
                if process.returncode < 0:  # it did not give up, it was killed: the next start may come through
                    raise StoreAway(
                        f"{self.folder}: the embedded PostgreSQL was killed at its start (signal {-process.returncode})"
                    )
                raise self._unusable(
                    f"the embedded PostgreSQL ended with code {process.returncode} at its start: {text}"
                )
            if time.monotonic() > deadline:
                raise StoreAway(
                    f"{self.folder}: the embedded PostgreSQL is not ready yet (recovering?); "
                    f"see {self.folder}/postgres.log"
                )
            time.sleep(POLL_S)
        log.info("embedded_postgres_started", folder=str(self.folder), pid=process.pid)

    def _make_database(self) -> None:
        try:
            connection = psycopg2.connect(self._dsn_of("template1"), connect_timeout=10)
            try:
                connection.autocommit = True
                with connection.cursor() as cur:
                    cur.execute("SELECT 1 FROM pg_database WHERE datname = %s", (ROLE,))
                    if cur.fetchone() is None:
                        cur.execute(f"CREATE DATABASE {ROLE} TEMPLATE template0")
            finally:
                connection.close()
        except psycopg2.Error as exc:
            raise StoreAway(f"{self.folder}: embedded PostgreSQL: {first_line(exc)}") from exc

    def _pid(self) -> int | None:
        """Return the server's process id, if its file names a living server of this folder."""
        try:
            lines = (self.data / "postmaster.pid").read_text("utf-8", "replace").splitlines()
            pid = int(lines[0])
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            return None
        return pid if os.fsencode(self.data) in arguments else None

    def _remove_stale_lock_files(self) -> None:
        """Called with server.lock in our hands: none of our servers lives, and the pid may be anybody's by now."""
        if self._pid() is not None:  # not started by us, so without our lock
            raise self._unusable("a PostgreSQL server that is not ours runs on it: stop that first")
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (self.folder / "socket" / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)

    def _remove_socket(self) -> None:
        """A server that was killed leaves it behind. Called with server.lock in our hands."""
        for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
            (self.folder / "socket" / name).unlink(missing_ok=True)

    def _stop(self) -> None:
        """Stop the server: fast, then immediately (it recovers at its next start). Called as the only user, under start.lock."""
        server = _open_lock(self.folder / "server.lock")
        try:
            for number, patience_s in ((signal.SIGINT, STOP_S), (signal.SIGQUIT, STOP_S / 2)):
                deadline = time.monotonic() + patience_s
                pid = self._pid()
                if pid is not None:
                    try:
                        os.kill(pid, number)
                    except OSError as exc:
                        if exc.errno != errno.ESRCH:
                            log.warning(
                                "embedded_postgres_not_stopped", folder=str(self.folder), pid=pid, error=str(exc)
                            )
                            return
                while time.monotonic() < deadline:
                    if _try_lock(server):
                        self._reap()
                        self._remove_socket()
                        log.info("embedded_postgres_stopped", folder=str(self.folder))
                        return
                    time.sleep(POLL_S)
            log.warning("embedded_postgres_not_stopped", folder=str(self.folder), error="it does not end")
        finally:
            os.close(server)

    def _dsn_of(self, database: str) -> str:
        return psycopg2.extensions.make_dsn(host=self._socket_folder(), port=PORT, user=ROLE, dbname=database)

    def _socket_folder(self) -> str:
        path = self.folder / "socket"
        if len(os.fsencode(path / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_LIMIT:
            return str(path)
        # A descriptor of the folder makes a short name for it, without anything in a shared temporary folder. (The server itself names
        # it relative to its data folder, where it runs.)
        if self._socket_fd is None:
            self._socket_fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._socket_fd}"


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_until(condition: Callable[[], bool], deadline: float, otherwise: Callable[[], Exception]) -> None:
    while not condition():
        if time.monotonic() > deadline:
            raise otherwise()
        time.sleep(POLL_S)


def _read_from(path: Path, offset: int, size: int = 100_000) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size).decode("utf-8", "replace")
    except OSError as exc:
        return str(exc)


def _failure_text(output: str) -> str:
    """Return the line that says what went wrong, of what a PostgreSQL program printed, without its time and process."""
    lines = [_LOG_PREFIX.sub("", line).strip() for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if "the database system is" not in line]  # what it told those who asked too early
    for marker in ("No space left", "FATAL:", "PANIC:", "error:", "could not"):
        for line in reversed(lines):
            if marker in line:
                return line[:300]
    return lines[-1][:300] if lines else "it printed nothing"


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
