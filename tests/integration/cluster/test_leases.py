"""The lease: one holder at a time, taken over when it is gone or silent, kept through a restart of PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay.cluster.leases import LEASE_S, POLL_S, RENEWAL_S, TAKE_PATIENCE_MS, Lease
from relay.config.schema import DatabaseSettings
from relay.errors import StoreAway, StoreError, StoreFenced
from relay.store import partitions
from relay.store.partitions import Holder
from relay.store.pool import Database
from tests.support.postgres import database_of

REPOSITORY = Path(__file__).resolve().parents[3]
HOLDER_PROGRAM = """
import sys, threading
from pathlib import Path
from relay.cluster.leases import Lease
from relay.config.schema import DatabaseSettings
from relay.errors import StoreError
from relay.store.pool import Database
database = Database(DatabaseSettings(dsn=sys.argv[1]), Path("/nonexistent"))
database.open()
lost = threading.Event()
lease = Lease(database, "other process", on_lost=lambda exc: lost.set(), lease_s=1.5, renewal_s=0.2, poll_s=0.05)
lease.acquire(threading.Event(), lambda holder, text: None)
try:
    if sys.argv[2] == "in_transaction":
        with database.transaction("write", epoch=lease.epoch) as cur:
            cur.execute("INSERT INTO incident (kind, text, at) VALUES ('late', '', now())")
            print("holding", flush=True)
            lost.wait(60)
    else:
        print("holding", flush=True)
        lost.wait(60)
except StoreError as exc:
    print("refused", type(exc).__name__, flush=True)
lost.wait(60)
try:
    with database.transaction("write", epoch=lease.epoch) as cur:
        cur.execute("INSERT INTO incident (kind, text, at) VALUES ('late', '', now())")
except StoreError as exc:
    print("refused", type(exc).__name__, flush=True)
"""


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


class Instance:
    """A lease with what it was told; `acquire` runs in a thread of its own."""

    def __init__(self, database: Database, name: str, *, lease_s: float = 1.5) -> None:
        self.lost: list[StoreFenced] = []
        self.away: list[str | None] = []
        self.waited: list[tuple[Holder | None, str | None]] = []
        self.stop = threading.Event()
        self.answer: bool | None = None
        self.lease = Lease(
            database,
            name,
            on_lost=self.lost.append,
            on_away=self.away.append,
            lease_s=lease_s,
            renewal_s=0.1,
            poll_s=0.02,
        )
        self._thread = threading.Thread(target=self._acquire)

    def start(self) -> Instance:
        self._thread.start()
        return self

    def _acquire(self) -> None:
        self.answer = self.lease.acquire(self.stop, lambda holder, text: self.waited.append((holder, text)))

    def end(self) -> None:
        self.stop.set()
        if self._thread.ident is not None:
            self._thread.join(30)
        assert self.lease.release(time.monotonic() + 30)

    @property
    def has_it(self) -> bool:
        return self.answer is True


@pytest.fixture
def instances(database: Database) -> Iterator[Callable[[str], Instance]]:
    made: list[Instance] = []

    def make(name: str) -> Instance:
        made.append(Instance(database, name))
        return made[-1]

    yield make
    for instance in made:
        instance.end()


@pytest.fixture
def other_process(migrated_dsn: str) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Another process that holds the lease, `quiet` or `in_transaction`."""
    started: list[subprocess.Popen[str]] = []

    def start(doing: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER_PROGRAM, migrated_dsn, doing],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def lock_pids(database: Database) -> list[int]:
    with database.transaction("look") as cur:
        cur.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")
        return [row[0] for row in cur.fetchall()]


def test_a_silent_holder_is_replaced_within_15_seconds() -> None:
    assert LEASE_S + POLL_S + TAKE_PATIENCE_MS / 1000 + 1 < 15
    assert RENEWAL_S * 3 < LEASE_S


def test_the_first_takes_it_and_the_second_waits_and_is_told_for_whom(instances: Callable[[str], Instance]) -> None:
    first = instances("first").start()
    wait_until(lambda: first.has_it)
    second = instances("second").start()
    wait_until(lambda: bool(second.waited))
    holder, trouble = second.waited[0]
    assert holder is not None
    assert (holder.owner, holder.epoch, holder.is_expired, trouble) == ("first", first.lease.epoch, False, None)
    assert not second.has_it
    assert not second.lease.is_held
    with pytest.raises(StoreError, match="has not been acquired"):
        _ = second.lease.epoch


def test_a_lease_that_is_given_up_goes_to_the_next_with_a_higher_epoch(
    instances: Callable[[str], Instance], database: Database
) -> None:
    first = instances("first").start()
    wait_until(lambda: first.has_it)
    epoch = first.lease.epoch
    second = instances("second").start()
    wait_until(lambda: bool(second.waited))
    first.end()
    wait_until(lambda: second.has_it)
    assert second.lease.epoch == epoch + 1
    with pytest.raises(StoreFenced), database.transaction("write", epoch=epoch):
        pass
    with database.transaction("write", epoch=second.lease.epoch):
        pass


def test_waiting_ends_when_asked_to(instances: Callable[[str], Instance]) -> None:
    first = instances("first").start()
    wait_until(lambda: first.has_it)
    second = instances("second").start()
    wait_until(lambda: bool(second.waited))
    second.stop.set()
    wait_until(lambda: second.answer is False)


def test_a_killed_holder_is_replaced_although_its_lease_runs_on(
    instances: Callable[[str], Instance], other_process: Callable[[str], subprocess.Popen[str]], database: Database
) -> None:
    holder = other_process("quiet")
    holder.send_signal(signal.SIGSTOP)  # no renewal from now on
    with database.transaction("prolong") as cur:
        cur.execute("UPDATE partition SET lease_until = now() + interval '1 hour'")
    second = instances("second").start()
    wait_until(lambda: bool(second.waited))
    holder.kill()
    wait_until(lambda: second.has_it)


@pytest.mark.parametrize("doing", ["quiet", "in_transaction"])
def test_a_stopped_holder_is_replaced_after_its_lease_and_changes_nothing_when_it_wakes(
    instances: Callable[[str], Instance],
    other_process: Callable[[str], subprocess.Popen[str]],
    database: Database,
    doing: str,
) -> None:
    holder = other_process(doing)
    holder.send_signal(signal.SIGSTOP)
    second = instances("second").start()
    wait_until(lambda: second.has_it)
    holder.send_signal(signal.SIGCONT)
    output, _ = holder.communicate(timeout=60)
    assert output.splitlines()[-1] == "refused StoreFenced"
    with database.transaction("look") as cur:
        cur.execute("SELECT count(*) FROM incident")
        assert cur.fetchone() == (0,)
    assert second.lease.is_held


def test_a_holder_whose_session_broke_goes_on_with_its_epoch(
    instances: Callable[[str], Instance], database: Database
) -> None:
    first = instances("first").start()
    wait_until(lambda: first.has_it)
    epoch = first.lease.epoch
    [pid] = lock_pids(database)
    with database.transaction("break") as cur:
        cur.execute("SELECT pg_terminate_backend(%s)", (pid,))
    wait_until(lambda: first.away[-1:] == [None])
    assert first.away[0] is not None  # said that it could not renew, and then that it can again
    assert first.lease.epoch == epoch
    assert lock_pids(database) != [pid]
    assert first.lost == []


def test_a_holder_that_finds_its_own_old_session_in_the_way_ends_it(
    instances: Callable[[str], Instance], database: Database
) -> None:
    first = instances("first").start()
    wait_until(lambda: first.has_it)
    [pid] = lock_pids(database)
    # As after a cut that the server has not noticed: we connect anew, and the server still has our old session with the lock.
    old, first.lease._session = first.lease._session, None
    wait_until(lambda: lock_pids(database) not in ([pid], []))
    assert first.lease.is_held
    assert old is not None
    old.close()


def test_a_holder_that_was_replaced_is_told_once_and_has_no_epoch(
    instances: Callable[[str], Instance], database: Database
) -> None:
    first = instances("first").start()
    wait_until(lambda: first.has_it)
    with database.transaction("steal") as cur:
        partitions.take(cur, "thief", 10)
    wait_until(lambda: bool(first.lost))
    with pytest.raises(StoreFenced):
        _ = first.lease.epoch
    assert not first.lease.is_held
    assert len(first.lost) == 1


def test_a_restart_of_postgres_leaves_the_lease_with_its_holder_while_another_waits(short_folder: Path) -> None:
    database = Database(DatabaseSettings(), short_folder)
    database.open()
    first, second = Instance(database, "first", lease_s=20.0), Instance(database, "second", lease_s=20.0)
    try:
        first.start()
        wait_until(lambda: first.has_it)
        epoch = first.lease.epoch
        second.start()
        wait_until(lambda: bool(second.waited))
        pid = int((short_folder / "pg" / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: first.away[-1:] == [None])
        assert first.lease.epoch == epoch
        assert first.lease.is_held
        assert not second.has_it
        assert not first.lost
    finally:
        second.end()
        first.end()
        database.close()


def test_while_the_database_is_away_the_reason_is_told_and_waiting_goes_on() -> None:
    database = database_of("postgresql://relay@127.0.0.1:1/relay")
    instance = Instance(database, "first")
    instance.start()
    wait_until(lambda: bool(instance.waited))
    holder, trouble = instance.waited[0]
    assert holder is None
    assert trouble is not None
    assert "does not answer" in trouble
    instance.end()


def test_an_epoch_that_was_never_taken_is_refused(database: Database) -> None:
    with pytest.raises((StoreFenced, StoreAway)), database.transaction("write", epoch=99):
        pass
