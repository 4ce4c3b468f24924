"""The reconciler of a service: when it makes a pass, which incidents that closes, and that a stop or a kill loses none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from relay.config.load import load
from relay.config.schema import Settings
from relay.discovery.notebook import Decided
from relay.model import RepoState
from relay.net.gate import HostGate
from relay.net.hosts import HostPolicy, HostTable
from relay.simnet.faults import Fault, FaultKind
from relay.simnet.network import SimNetwork
from relay.store import incidents, reconcile, repos
from relay.store.pool import Database
from relay.store.repos import Discovered
from relay.supervisor.reconcile import ReconcileLock, Reconciler, scope_of
from tests.support.waiting import wait_until

TOO_MANY = Fault(kind=FaultKind.TOO_MANY, endpoint="listRepos", host=0, seconds=1)


def settings_for(simnet: SimNetwork, **environ: str) -> Settings:
    values = {
        "HOME": "/nonexistent", "FIREHOSE_HOST": simnet.firehose_url, "ALLOW_PRIVATE_HOSTS": "true",
        "RELAY_RETRY_BACKOFF_MS": "10", "RELAY_MAX_RETRIES": "1", **environ,
    }  # fmt: skip
    return load(None, values, usual_files=()).settings


class Service:
    """What a service has around the reconciler."""

    def __init__(self, database: Database, simnet: SimNetwork) -> None:
        self.database, self.simnet = database, simnet
        self.decided: list[Decided] = []
        self.deaths: list[BaseException] = []
        self.running: list[Reconciler] = []
        with database.transaction("fill") as cur:
            entries = [Discovered(did=account.did) for account in simnet.truth()]
            repos.upsert_discovered(cur, entries, batch=None, named=True, partitions=64, now=1.0)
            rows = repos.load(cur, [entry.did for entry in entries])
            for account in simnet.truth():
                row = rows[account.did]
                row.host, row.rev, row.state = account.pds, account.rev, RepoState.SYNCED
            repos.store_rows(cur, list(rows.values()))

    def start(self, **environ: str) -> Reconciler:
        policy = HostPolicy(requests_per_s=1000, burst=30, connections=4, breaker_s=0)
        started = Reconciler(
            settings_for(self.simnet, **environ),
            self.database,
            epoch=lambda: 0,
            gate=HostGate(HostTable(policy)),
            on_death=lambda _name, exc: self.deaths.append(exc),
            on_decided=self.decided.append,
            rounds_s=(),
        )
        started.start()
        self.running.append(started)
        return started

    def passes(self) -> int:
        """How many were finished."""
        with self.database.transaction("look") as cur:
            cur.execute(
                "SELECT count(*) FROM reconcile WHERE finished_at IS NOT NULL AND note IS DISTINCT FROM 'baseline'"
            )
            row = cur.fetchone()
            assert row is not None
            return int(row[0])

    def open_incidents(self) -> int:
        with self.database.transaction("look") as cur:
            return len(incidents.list_open(cur))

    def open(self, kind: str = "hole") -> int:
        with self.database.transaction("open") as cur:
            return incidents.open_incident(cur, kind, "a hole", time.time())

    def pending(self) -> set[str]:
        with self.database.transaction("look") as cur:
            return {row.did for row in repos.list_repos(cur, states=[RepoState.PENDING])}

    def stop(self) -> None:
        for each in self.running:
            each.request_stop()
            assert each.join(time.monotonic() + 20)


@pytest.fixture
def service(database: Database, simnet: SimNetwork) -> Iterator[Service]:
    made = Service(database, simnet)
    yield made
    made.stop()
    assert made.deaths == []


def test_an_incident_of_an_earlier_run_is_answered_at_the_start(service: Service) -> None:
    service.open()
    written = service.simnet.dids()[:2]
    service.simnet.write(10, written)
    reconciler = service.start()
    wait_until(lambda: service.open_incidents() == 0, "the incident is closed")
    assert service.passes() == 1
    assert service.pending() <= set(written)
    assert sum(each.requeued for each in service.decided) == len(service.pending()) > 0
    wait_until(lambda: not reconciler.view().running and bool(reconciler.view().last_completed_at), "the view says so")
    view = reconciler.view()
    assert (view.hosts_total, view.hosts_done, view.compared) == (3, 3, 12)
    assert view.queued == view.differed == len(service.pending())


def test_without_an_incident_nothing_is_done_before_the_interval_is_over(service: Service) -> None:
    reconciler = service.start()
    wait_until(lambda: reconciler.is_alive() and _has_baseline(service), "its first look")
    assert service.passes() == 0
    assert reconciler.view().last_completed_at is None
    with service.database.transaction("long ago") as cur:
        cur.execute("UPDATE reconcile SET finished_at = finished_at - interval '169 hours'")
    service.stop()
    service.start()
    wait_until(lambda: service.passes() == 1, "the pass that is due")


def test_an_interval_of_nothing_means_only_after_incidents(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    look = Reconciler._look
    monkeypatch.setattr("relay.supervisor.reconcile.LOOK_EVERY_S", 0.05)

    def counted(self: Reconciler) -> object:
        looks.append(time.monotonic())
        return look(self)

    monkeypatch.setattr(Reconciler, "_look", counted)
    service.start(RECONCILE_INTERVAL_H="0")
    wait_until(lambda: _has_baseline(service), "its first look")
    with service.database.transaction("long ago") as cur:
        cur.execute("UPDATE reconcile SET finished_at = finished_at - interval '9999 hours'")
    service.stop()
    seen = len(looks)
    reconciler = service.start(RECONCILE_INTERVAL_H="0")
    wait_until(lambda: len(looks) > seen + 2, "looks that find nothing to do")
    assert service.passes() == 0
    service.open()
    wait_until(lambda: service.open_incidents() == 0, "the incident is closed")
    wait_until(lambda: not reconciler.view().running, "the end")
    assert service.passes() == 1


def test_what_happens_while_a_pass_runs_is_answered_by_another_one(service: Service) -> None:
    first = service.open()
    service.simnet.set_faults([TOO_MANY])  # the first pass waits here for a second
    reconciler = service.start()
    wait_until(lambda: reconciler.view().running, "a pass")
    assert service.open() == first
    service.open("consumer_too_slow")
    reconciler.ask([first])
    service.simnet.set_faults()
    wait_until(lambda: service.open_incidents() == 0, "both are closed")
    assert service.passes() >= 2


def test_a_stop_in_the_middle_goes_on_at_the_next_start(service: Service) -> None:
    service.open()
    service.simnet.set_faults([replace(TOO_MANY, seconds=60)])
    reconciler = service.start()
    wait_until(lambda: reconciler.view().hosts_done == 2, "the other hosts")
    service.stop()
    assert service.passes() == 0
    assert service.open_incidents() == 1
    service.simnet.set_faults()
    service.start()
    wait_until(lambda: service.open_incidents() == 0, "the incident is closed")
    with service.database.transaction("look") as cur:
        last = reconcile.find_last(cur)
    assert last is not None
    assert last.compared == 12  # in all: the hosts of before are not listed again


def test_only_one_process_reconciles_at_a_time(service: Service) -> None:
    other = ReconcileLock(service.database)
    assert other.try_take()
    service.open()
    service.start()
    wait_until(lambda: _has_baseline(service), "its first look")
    assert service.passes() == 0
    other.give_up()
    wait_until(lambda: service.open_incidents() == 0, "its turn")


@pytest.mark.parametrize(
    ("environ", "finds_all", "collections"),
    [
        ({}, True, ()),
        ({"DISCOVERY_MODE": "tracked"}, False, ()),
        ({"DISCOVERY_MODE": "collection", "DISCOVERY_COLLECTIONS": "a.b.c,a.b.d"}, False, ("a.b.c", "a.b.d")),
    ],
)
def test_the_mode_of_discovery_says_what_is_found(
    simnet: SimNetwork, environ: dict[str, str], finds_all: bool, collections: tuple[str, ...]
) -> None:
    settings = settings_for(simnet, **environ)
    scope = scope_of(settings)
    assert (scope.finds_all, scope.collections) == (finds_all, collections)
    assert scope.upstream == (simnet.relay_url if finds_all else "")
    assert scope.collection_host == (simnet.relay_url if collections else "")
    assert scope_of(settings, tracked_only=True).text == scope_of(settings_for(simnet, DISCOVERY_MODE="tracked")).text


def _has_baseline(service: Service) -> bool:
    with service.database.transaction("look") as cur:
        return reconcile.find_last(cur) is not None
