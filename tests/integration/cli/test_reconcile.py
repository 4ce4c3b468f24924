"""`reconcile` as a user runs it: without a service, beside one, interrupted, and what its exit code says."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.cli.exits import Exit
from relay.model import RepoState
from relay.simnet.faults import Fault, FaultKind
from relay.simnet.network import SimNetwork
from relay.store import incidents, partitions, repos
from relay.store.pool import Database
from relay.store.repos import Discovered
from relay.supervisor.reconcile import ReconcileLock
from tests.support.processes import Program


@pytest.fixture
def filled(database: Database, simnet: SimNetwork) -> Database:
    """Everybody is stored as they are."""
    fill(database, simnet)
    return database


def fill(database: Database, simnet: SimNetwork) -> None:
    with database.transaction("fill") as cur:
        truth = list(simnet.truth())
        entries = [Discovered(did=account.did) for account in truth]
        repos.upsert_discovered(cur, entries, batch=None, named=True, partitions=64, now=1.0)
        rows = repos.load(cur, [entry.did for entry in entries])
        for account in truth:
            row = rows[account.did]
            row.host, row.rev, row.state = account.pds, account.rev, RepoState.SYNCED
        repos.store_rows(cur, list(rows.values()))


@pytest.fixture
def reconcile(
    filled: Database, migrated_dsn: str, simnet: SimNetwork, run_relay: Callable[..., Program]
) -> Callable[..., Program]:
    """A function that starts the command on that database."""

    def start(*words: str, **environ: str) -> Program:
        env = {
            "DATABASE_DSN": migrated_dsn, "FIREHOSE_HOST": simnet.firehose_url, "ALLOW_PRIVATE_HOSTS": "true",
            "RELAY_RETRY_BACKOFF_MS": "10", "RELAY_MAX_RETRIES": "1",
            "BACKFILLER_HOST_BREAKER_SEC": "0.1", **environ,
        }  # fmt: skip
        return run_relay("reconcile", *words, env=env)

    return start


def pending(database: Database) -> set[str]:
    with database.transaction("look") as cur:
        return {row.did for row in repos.list_repos(cur, states=[RepoState.PENDING])}


def test_where_nothing_differs_it_says_so_and_ends_well(reconcile: Callable[..., Program], filled: Database) -> None:
    program = reconcile()
    assert program.wait() == Exit.OK
    assert program.out == ["12 repos compared on 3 hosts: 0 differ, 0 queued, 0 discovered"]
    assert pending(filled) == set()


def test_only_what_differs_is_queued_and_counted_in_json(
    reconcile: Callable[..., Program], filled: Database, simnet: SimNetwork
) -> None:
    with filled.transaction("open") as cur:
        incidents.open_incident(cur, "hole", "a hole", 1.0)
    written = simnet.dids()[:3]
    simnet.write(30, written)
    program = reconcile("--json")
    assert program.wait() == Exit.OK
    (line,) = program.out
    values = json.loads(line)
    assert pending(filled) <= set(written)
    assert {name: values[name] for name in ("hosts", "compared", "differed", "queued", "discovered", "incidents_closed")} == {
        "hosts": 3, "compared": 12, "differed": len(pending(filled)), "queued": len(pending(filled)), "discovered": 0,
        "incidents_closed": 1,
    }  # fmt: skip
    assert values["silent_hosts"] == []
    assert values["began_at"] < values["finished_at"]


def test_tracked_only_discovers_nobody_and_closes_no_incident(
    reconcile: Callable[..., Program], filled: Database, simnet: SimNetwork
) -> None:
    new = simnet.world.create_account(host=0)
    with filled.transaction("open") as cur:
        incidents.open_incident(cur, "hole", "a hole", 1.0)
    assert reconcile("--tracked-only").wait() == Exit.OK
    with filled.transaction("look") as cur:
        assert len(incidents.list_open(cur)) == 1
        assert repos.load(cur, [new]) == {}
    assert reconcile().wait() == Exit.OK
    with filled.transaction("look") as cur:
        assert incidents.list_open(cur) == []
        assert repos.load(cur, [new])[new].state is RepoState.DISCOVERED


def test_hosts_that_do_not_answer_are_listed_and_the_exit_code_tells(
    reconcile: Callable[..., Program], simnet: SimNetwork
) -> None:
    simnet.silence(0)
    program = reconcile()
    assert program.wait() == Exit.QUARANTINED
    assert f"no answer from {simnet.host_urls[0]}: host_down" in program.out
    simnet.silence(1)
    assert reconcile().wait() == Exit.CANNOT_GO_ON


def test_it_waits_for_another_process_that_reconciles(reconcile: Callable[..., Program], filled: Database) -> None:
    lock = ReconcileLock(filled)
    assert lock.try_take()
    program = reconcile()
    program.wait_for_line("another process reconciles already")
    assert program.is_running()
    lock.give_up()
    assert program.wait() == Exit.OK


def test_interrupted_it_goes_on_the_next_time(
    reconcile: Callable[..., Program], filled: Database, simnet: SimNetwork
) -> None:
    simnet.set_faults([Fault(kind=FaultKind.TOO_MANY, endpoint="listRepos", host=0, seconds=60)])
    program = reconcile()
    program.wait_for_line(r"2 of 3 hosts: \d+ repos compared", deadline_s=30)
    program.signal(signal.SIGINT)
    assert program.wait(15) == Exit.INTERRUPTED
    simnet.set_faults()
    program = reconcile()
    assert program.wait() == Exit.OK
    assert program.out == ["12 repos compared on 3 hosts: 0 differ, 0 queued, 0 discovered"]


def test_a_holder_keeps_its_lease_and_its_epoch(
    reconcile: Callable[..., Program], filled: Database, simnet: SimNetwork
) -> None:
    simnet.write(10)
    session = filled.session("holder")
    try:
        with session.transaction("take") as cur:
            assert partitions.try_lock(cur)
            epoch = partitions.take(cur, "run, process 1 on x", 3600)
        assert reconcile().wait() == Exit.OK
        with session.transaction("look") as cur:
            holder = partitions.holder(cur)
        assert (holder.epoch, holder.owner) == (epoch, "run, process 1 on x")
        assert pending(filled)
    finally:
        session.close()


def test_without_any_state_it_cannot_go_on(run_relay: Callable[..., Program], tmp_path: Path) -> None:
    program = run_relay("reconcile", env={"DATA_DIR": str(tmp_path / "nothing")})
    assert program.wait() == Exit.CANNOT_GO_ON
    assert "no state yet" in program.err[0]
