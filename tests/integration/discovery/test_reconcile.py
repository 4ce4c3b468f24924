"""Reconciles over HTTP into a real database: what differs is marked, once, and nothing else; among lying, slow and absent hosts; killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from relay.discovery.notebook import Decided, Notebook
from relay.discovery.pages import PagePolicy
from relay.discovery.reconcile import Reconcile, ReconcileResult, Scope
from relay.errors import StoreFenced
from relay.model import RepoState
from relay.net.gate import HostGate
from relay.net.guard import Guard
from relay.net.hosts import HostPolicy, HostTable
from relay.net.http import Fetcher
from relay.net.xrpc import HostPage, RepoPage, RepoStatus, Xrpc
from relay.runtime.clock import SystemClock
from relay.simnet.author import Mix
from relay.simnet.faults import Fault, FaultKind
from relay.simnet.network import SimNetwork
from relay.store import incidents, instances, partitions, reconcile, repos
from relay.store.pool import Database
from relay.store.repos import Discovered, RepoRow
from tests.support.simnet import StartNetwork
from tests.support.waiting import wait_until

POLICY = PagePolicy(max_retries=2, first_delay_s=0.01, longest_delay_s=0.02)
ONLY_COMMITS = Mix(status=0, rotate=0, migrate=0, handle=0, newcomer=0, imported=0)
HOST_POLICY = HostPolicy(requests_per_s=1000, burst=30, connections=4, breaker_s=0)


class Killed(BaseException):
    """The process ends here."""


class SmallPages:
    """Asks for pages of `size`; `before(number)` is called before each question, counted from 1."""

    def __init__(self, xrpc: Xrpc, before: Callable[[int], None] = lambda number: None, *, size: int = 2) -> None:
        self._xrpc, self._before, self._size = xrpc, before, size
        self.asked: list[tuple[str, str | None]] = []

    def list_repos(self, origin: str, *, cursor: str | None = None) -> RepoPage:
        self._count(origin, cursor)
        return self._xrpc.list_repos(origin, cursor=cursor, limit=self._size)

    def list_repos_by_collection(self, origin: str, collection: str, *, cursor: str | None = None) -> RepoPage:
        self._count(f"{origin} {collection}", cursor)
        return self._xrpc.list_repos_by_collection(origin, collection, cursor=cursor, limit=self._size)

    def get_repo_status(self, origin: str, did: str) -> RepoStatus:
        self._count(f"{origin} status", did)
        return self._xrpc.get_repo_status(origin, did)

    def list_hosts(self, origin: str, *, cursor: str | None = None) -> HostPage:
        return self._xrpc.list_hosts(origin, cursor=cursor)

    def _count(self, origin: str, cursor: str | None) -> None:
        self.asked.append((origin, cursor))
        self._before(len(self.asked))


class Desk:
    """A database that has a network as it was when `fill` was called, and reconciles of it."""

    def __init__(self, database: Database, fetcher: Fetcher, simnet: SimNetwork) -> None:
        self.database, self.simnet = database, simnet
        self.xrpc = Xrpc(fetcher)
        self.epoch: int | None = None
        self.decided: list[Decided] = []

    def fill(self, *, but: frozenset[str] = frozenset()) -> None:
        """Store every account as a relay would that has followed the network until now."""
        truth = {account.did: account for account in self.simnet.truth() if account.did not in but}
        with self.database.transaction("fill") as cur:
            entries = [Discovered(did=did) for did in truth]
            repos.upsert_discovered(cur, entries, batch=None, named=True, partitions=64, now=1.0)
            rows = repos.load(cur, list(truth))
            for did, row in rows.items():
                account = truth[did]
                row.host, row.rev, row.rev_heard = account.pds, account.rev, account.rev
                row.state = RepoState.INACTIVE if account.status else RepoState.SYNCED
                if account.status:
                    row.reason, row.told_active, row.told_status, row.told_time_us = (
                        account.status,
                        False,
                        account.status,
                        1,
                    )
            repos.store_rows(cur, list(rows.values()))

    def change(self, did: str, **values: object) -> None:
        with self.database.transaction("change") as cur:
            row = repos.load(cur, [did])[did]
            for name, value in values.items():
                setattr(row, name, value)
            repos.store_rows(cur, [row])

    def pass_of(
        self,
        scope: Scope | None = None,
        pages: SmallPages | None = None,
        *,
        threads: int = 4,
        rounds_s: tuple[float, ...] = (),
        notebook: Notebook | None = None,
    ) -> Reconcile:
        return Reconcile(
            pages or SmallPages(self.xrpc),
            HostGate(HostTable(HOST_POLICY)),
            notebook or Notebook(self.database, epoch=lambda: self.epoch, partitions=64, clock=SystemClock()),
            scope or Scope(),
            clock=SystemClock(),
            policy=POLICY,
            rounds_s=rounds_s,
            threads=threads,
            on_decided=self.decided.append,
        )

    def reconcile(self, scope: Scope | None = None, pages: SmallPages | None = None) -> ReconcileResult:
        return self.pass_of(scope, pages).run()

    def everything(self) -> Scope:
        return Scope(finds_all=True, upstream=self.simnet.relay_url)

    def rows(self) -> dict[str, RepoRow]:
        with self.database.transaction("test") as cur:
            return {row.did: row for row in repos.list_repos(cur, limit=100_000)}

    def marked(self) -> dict[str, str]:
        """What is marked, and how."""
        return {
            did: row.reason or "" if row.state is RepoState.PENDING else row.check_due or ""
            for did, row in self.rows().items()
            if row.state is RepoState.PENDING or row.check_due
        }

    def counts(self, result: ReconcileResult) -> tuple[int, int, int]:
        return result.counts.compared, result.counts.differed, result.counts.queued

    def notes(self) -> tuple[int, int, int]:
        """How many candidates, seen pages and listings are left."""
        with self.database.transaction("test") as cur:
            cur.execute(
                "SELECT (SELECT count(*) FROM reconcile_candidate), (SELECT count(*) FROM reconcile_seen), (SELECT count(*) FROM listing)"
            )
            row = cur.fetchone()
            assert row is not None
            return row[0], row[1], row[2]

    def of(self, host: int) -> list[str]:
        return [account.did for account in self.simnet.truth() if account.pds == self.simnet.host_urls[host]]


@pytest.fixture
def start_desk(database: Database, start_simnet: StartNetwork) -> Iterator[Callable[..., Desk]]:
    fetchers = []

    def start(**spec: object) -> Desk:
        fetchers.append(Fetcher(Guard(allow_private=True), user_agent="test/1"))
        return Desk(database, fetchers[-1], start_simnet(**spec))

    yield start
    for each in fetchers:
        each.abort()


@pytest.fixture
def desk(start_desk: Callable[..., Desk]) -> Desk:
    """A network of 12 accounts on 3 hosts, all of them stored as they are."""
    desk = start_desk()
    desk.fill()
    return desk


def test_where_nothing_changed_nothing_is_marked_and_nothing_is_left_behind(desk: Desk) -> None:
    before = desk.rows()
    result = desk.reconcile(desk.everything())
    assert not result.stopped
    assert result.answered
    assert result.silent == ()
    assert desk.counts(result) == (12, 0, 0)
    assert result.counts.found == 0
    assert result.counts.finished_at is not None
    assert desk.rows() == before
    assert desk.notes() == (0, 0, 0)


def test_only_the_repos_that_changed_are_queued_and_the_count_says_so(desk: Desk) -> None:
    written = desk.simnet.dids()[2:5]
    desk.simnet.write(20, written)
    newer = {account.did: account.rev for account in desk.simnet.truth() if account.did in written}
    changed = {did for did, rev in newer.items() if rev != desk.rows()[did].rev}
    result = desk.reconcile(desk.everything())
    assert changed
    assert desk.counts(result) == (12, len(changed), len(changed))
    assert desk.marked() == dict.fromkeys(changed, "newer_rev")
    rows = desk.rows()
    assert {did: rows[did].rev_heard for did in changed} == {did: newer[did] for did in changed}
    assert sum(each.requeued for each in desk.decided) == len(changed)
    # Again: what is queued already is no difference any more.
    assert desk.counts(desk.reconcile(desk.everything())) == (12, 0, 0)


def test_statuses_that_changed_are_asked_for(desk: Desk) -> None:
    dids = desk.simnet.dids()
    gone, deleted, back, same = dids[0], dids[1], dids[2], dids[3]
    for did in (back, same):
        desk.change(
            did,
            state=RepoState.INACTIVE,
            reason="deactivated",
            told_active=False,
            told_status="deactivated",
            told_time_us=1,
        )
    desk.simnet.world.set_status(same, "deactivated")
    desk.simnet.world.set_status(gone, "takendown")
    desk.simnet.world.set_status(deleted, "deleted")  # its host does not list it any more
    result = desk.reconcile(desk.everything())
    assert desk.marked() == dict.fromkeys((gone, deleted, back), "status")
    assert result.counts.queued == result.counts.differed == 3
    assert {desk.rows()[did].state for did in (gone, deleted)} == {RepoState.SYNCED}


def test_a_repo_that_is_missing_of_one_host_is_asked_for_and_repos_of_a_host_that_did_not_answer_are_not(
    desk: Desk,
) -> None:
    silent = 1
    gone = desk.of(0)[0]
    desk.simnet.world.set_status(gone, "deleted")
    desk.simnet.silence(silent)
    result = desk.reconcile()
    assert result.silent == ((desk.simnet.host_urls[silent], "host_down"),)
    assert result.answered
    assert result.counts.hosts_failed == 1
    assert desk.simnet.host_urls[silent] in (result.counts.note or "")
    assert desk.marked() == {gone: "status"}
    assert result.counts.compared == 12 - len(desk.of(silent))


def test_a_listing_that_is_cut_makes_nothing_missing(desk: Desk) -> None:
    desk.simnet.set_faults([Fault(kind=FaultKind.STATUS, endpoint="listRepos", host=0, after=1)])
    result = desk.reconcile(desk.everything())
    assert [host for host, _ in result.silent] == [desk.simnet.host_urls[0]]
    assert desk.marked() == {}


def test_repos_that_nobody_knows_are_discovered_where_the_mode_wants_them(start_desk: Callable[..., Desk]) -> None:
    desk = start_desk()
    new = frozenset(desk.simnet.dids()[3:7])
    desk.fill(but=new)
    assert desk.reconcile().counts.found == 0
    assert not new & set(desk.rows())
    result = desk.reconcile(desk.everything())
    assert result.counts.found == len(new)
    rows = desk.rows()
    assert {rows[did].state for did in new} == {RepoState.DISCOVERED}
    truth = {account.did: account.rev for account in desk.simnet.truth()}
    assert {did: rows[did].rev_heard for did in new} == {did: truth[did] for did in new}


def test_a_host_that_no_tracked_repo_lives_on_is_found_by_the_upstream(start_desk: Callable[..., Desk]) -> None:
    desk = start_desk()
    elsewhere = frozenset(desk.of(2))
    desk.fill(but=elsewhere)
    assert desk.reconcile(desk.everything()).counts.found == len(elsewhere) > 0
    assert elsewhere <= set(desk.rows())


def test_repos_of_a_collection_are_discovered_by_its_listing(start_desk: Callable[..., Desk]) -> None:
    desk = start_desk()
    collection = "app.bsky.feed.post"
    holders = {
        account.did
        for account in desk.simnet.truth()
        if any(path.startswith(collection + "/") for path in account.records)
    }
    new = frozenset(sorted(holders)[:2]) | (set(desk.simnet.dids()) - holders)
    desk.fill(but=frozenset(new))
    result = desk.reconcile(Scope(collections=(collection,), collection_host=desk.simnet.relay_url))
    assert result.counts.found == 2
    assert set(desk.rows()) == (set(desk.simnet.dids()) - new) | set(sorted(holders)[:2])
    assert desk.marked() == {}


def test_a_host_that_lists_what_is_not_its_own_is_believed_in_nothing(desk: Desk) -> None:
    desk.change(desk.of(1)[0], rev="2222222222222")
    desk.simnet.set_faults([Fault(kind=FaultKind.FALSE_CLAIM, host=0)])
    assert desk.reconcile(desk.everything()).counts.differed == 1
    assert desk.marked() == {desk.of(1)[0]: "newer_rev"}


def test_a_listing_that_never_ends_is_an_answer_of_nobody(desk: Desk) -> None:
    desk.simnet.set_faults([Fault(kind=FaultKind.REPEAT_CURSOR, host=0)])
    result = desk.reconcile(desk.everything())
    assert result.silent == ((desk.simnet.host_urls[0], "bad_response"),)


def test_few_repos_on_a_large_host_are_asked_for_one_by_one(start_desk: Callable[..., Desk]) -> None:
    desk = start_desk(accounts=30, hosts=1)
    tracked = desk.simnet.dids()[:4]
    desk.fill(but=frozenset(desk.simnet.dids()) - frozenset(tracked))
    newer, gone, away, _same = tracked
    desk.simnet.world.set_status(gone, "deleted")
    desk.simnet.world.set_status(away, "deactivated")
    desk.change(newer, rev="2222222222222")
    pages = SmallPages(desk.xrpc)
    result = desk.reconcile(pages=pages)
    host = desk.simnet.host_urls[0]
    assert sorted(pages.asked) == sorted([(host, None), *((f"{host} status", did) for did in tracked)])
    assert desk.marked() == {newer: "newer_rev", gone: "status", away: "status"}
    assert result.counts.differed == 3


def test_a_small_host_is_listed_whole(desk: Desk) -> None:
    pages = SmallPages(desk.xrpc, size=1000)
    desk.reconcile(pages=pages)
    assert sorted(pages.asked) == sorted((host, None) for host in desk.simnet.host_urls)


def test_hosts_that_did_not_answer_are_asked_again(desk: Desk) -> None:
    desk.simnet.write(5, [desk.of(1)[0]])
    desk.simnet.silence(1)
    running = desk.pass_of(rounds_s=(0.2, 60.0))
    thread = threading.Thread(target=running.run)
    thread.start()
    wait_until(lambda: running.view().hosts_failed == 1, "the silent host is noticed")
    desk.simnet.restore(1)
    wait_until(lambda: not running.view().running, "the end")
    thread.join(10)
    assert (running.view().hosts_done, running.view().hosts_failed) == (3, 0)
    assert desk.marked() == {desk.of(1)[0]: "newer_rev"}


@pytest.mark.parametrize("page", range(1, 8))
def test_a_kill_at_any_page_goes_on_at_that_page(desk: Desk, page: int) -> None:
    dids = desk.simnet.dids()
    desk.simnet.world.set_status(dids[0], "deleted")
    for did in dids[1:]:
        desk.change(did, rev="2222222222222")

    def kill(number: int) -> None:
        if number >= page:
            raise Killed

    killed = SmallPages(desk.xrpc, kill)
    with pytest.raises(Killed):
        desk.pass_of(desk.everything(), killed, threads=1).run()
    again = SmallPages(desk.xrpc)
    result = desk.pass_of(desk.everything(), again, threads=1).run()
    assert killed.asked[page - 1] in again.asked
    assert not set(killed.asked[: page - 1]) & set(again.asked)
    assert desk.marked() == {dids[0]: "status", **dict.fromkeys(dids[1:], "newer_rev")}
    assert desk.counts(result) == (11, 12, 12)
    assert desk.notes() == (0, 0, 0)


def test_a_pass_of_another_scope_is_given_up(desk: Desk) -> None:
    def kill(number: int) -> None:
        if number == 2:
            raise Killed

    with pytest.raises(Killed):
        desk.pass_of(pages=SmallPages(desk.xrpc, kill), threads=1).run()
    pages = SmallPages(desk.xrpc)
    result = desk.reconcile(desk.everything(), pages)
    assert desk.counts(result) == (12, 0, 0)
    assert {host for host, cursor in pages.asked if cursor is None} == set(desk.simnet.host_urls)


def test_an_instance_that_lost_its_lease_marks_nothing(desk: Desk) -> None:
    desk.simnet.write(5)
    with desk.database.transaction("test") as cur:
        cur.execute("UPDATE partition SET epoch = epoch + 7")
    desk.epoch = 1
    with pytest.raises(StoreFenced):
        desk.reconcile()
    assert desk.marked() == {}


def test_a_row_that_somebody_writes_just_now_is_looked_at_later_and_nobody_waits(desk: Desk) -> None:
    busy, free = desk.simnet.dids()[:2]
    for did in (busy, free):
        desk.change(did, rev="2222222222222")
    running = desk.pass_of()
    thread = threading.Thread(target=running.run)
    session = desk.database.session("writer")
    try:
        with session.transaction("a write") as cur:
            cur.execute(
                "UPDATE repo SET rev = (SELECT rev_heard FROM repo WHERE did = %(did)s) WHERE did = %(did)s",
                {"did": busy},
            )
            thread.start()
            wait_until(lambda: desk.marked() == {free: "newer_rev"}, "the other one is marked")
            assert running.view().running
    finally:
        session.close()
    thread.join(30)
    assert not running.view().running
    assert desk.marked() == {free: "newer_rev"}  # what was written meanwhile is no difference any more


class Watched(Notebook):
    """Counts what is noted after each page (`noted`), and the second looks after the first hosts are done (`looks_behind`)."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk.database, epoch=lambda: None, partitions=64, clock=SystemClock())
        self._desk = desk
        self.noted: list[int] = []
        self.looks_behind = 0

    def take(self, *args: Any, **kwargs: Any) -> int:
        compared = super().take(*args, **kwargs)
        self.noted.append(self._desk.notes()[0])
        return compared

    def has_undecided(self) -> bool:
        self.looks_behind += 1
        return super().has_undecided()


# --- beside a stream --------------------------------------------------------------------------------------------------------


@contextmanager
def followed(desk: Desk, *, lag_s: float) -> Iterator[None]:
    """A service that follows the network: rows and cursor get what was written, `lag_s` after it was."""
    ending = threading.Event()
    seen: list[tuple[float, dict[str, str]]] = []

    def step() -> None:
        seen.append((time.time(), {account.did: account.rev for account in desk.simnet.truth()}))
        due = [each for each in seen if each[0] <= time.time() - lag_s]
        if not due:
            return
        at, revs = due[-1]
        del seen[: len(due)]
        with desk.database.transaction("follow") as cur:
            partitions.store_cursor(cur, "ws://x", int(at * 1000), int(at * 1_000_000))
            cur.execute(
                "UPDATE repo SET rev = v.rev, rev_heard = greatest(rev_heard, v.rev) FROM unnest(%s, %s) AS v (did, rev) "
                "WHERE repo.did = v.did AND repo.rev < v.rev",
                (list(revs), list(revs.values())),
            )

    def follow() -> None:
        while not ending.wait(0.02):
            step()

    with desk.database.transaction("register") as cur:
        instances.register(
            cur, name="x", command="tail", pid=1, host="h", version="1", phase="running", started_at=time.time()
        )
    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(10)


def test_beside_a_busy_healthy_stream_nothing_is_queued(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.discovery.comparison.MARGIN_S", 0.5)
    desk.simnet.start_writers(200, mix=ONLY_COMMITS)
    notebook = Watched(desk)
    with followed(desk, lag_s=0.4):
        result = desk.pass_of(notebook=notebook).run()
    desk.simnet.stop_writers()
    assert max(notebook.noted) > 0, "no page showed what the stream had not brought yet: the test shows nothing"
    assert desk.marked() == {}
    assert desk.counts(result)[1:] == (0, 0)


def test_what_the_stream_does_not_bring_is_marked_when_its_cursor_has_passed(desk: Desk) -> None:
    lost = desk.simnet.dids()[0]
    desk.change(lost, rev="2222222222222")
    with desk.database.transaction("register") as cur:
        instances.register(cur, name="x", command="run", pid=1, host="h", version="1", phase="running", started_at=1.0)
        partitions.store_cursor(cur, "ws://x", 1, int((time.time() - 100) * 1e6))
    notebook = Watched(desk)
    thread = threading.Thread(target=desk.pass_of(notebook=notebook).run)
    thread.start()
    wait_until(lambda: notebook.looks_behind >= 2, "second looks after the last page")
    assert desk.marked() == {}
    with desk.database.transaction("pass") as cur:
        partitions.store_cursor(cur, "ws://x", 2, int((time.time() + 100) * 1e6))
    thread.join(30)
    assert desk.marked() == {lost: "newer_rev"}


# --- incidents --------------------------------------------------------------------------------------------------------------


def test_the_end_closes_the_incidents_from_before_its_first_page_and_no_others(desk: Desk) -> None:
    with desk.database.transaction("open") as cur:
        first = incidents.open_incident(cur, "hole", "a hole", 1.0)
        again = incidents.open_incident(cur, "outdated_cursor", "too old", 1.0)
    happened: list[int] = []

    def while_it_runs(number: int) -> None:
        if number == 2:
            with desk.database.transaction("open") as cur:
                assert incidents.open_incident(cur, "outdated_cursor", "once more", 2.0) == again
                happened.append(incidents.open_incident(cur, "consumer_too_slow", "slow", 2.0))

    result = desk.pass_of(pages=SmallPages(desk.xrpc, while_it_runs), threads=1).run()
    assert result.closed == (first,)
    with desk.database.transaction("look") as cur:
        assert [each.id for each in incidents.list_open(cur)] == [again, *happened]
    assert set(desk.reconcile().closed) == {again, *happened}


def test_an_incident_that_some_hosts_gave_no_answer_for_is_closed_and_says_so(desk: Desk) -> None:
    with desk.database.transaction("open") as cur:
        incidents.open_incident(cur, "hole", "a hole", 1.0)
    desk.simnet.silence(2)
    assert len(desk.reconcile().closed) == 1
    with desk.database.transaction("look") as cur:
        (closed,) = incidents.list_recent(cur, time.time())
    assert closed.closed_at is not None
    assert closed.text.startswith("a hole; reconciled, but 1 of 3 hosts did not answer: ")
    assert desk.simnet.host_urls[2] in closed.text


def test_an_incident_stays_open_when_hardly_anybody_answered(desk: Desk) -> None:
    with desk.database.transaction("open") as cur:
        incidents.open_incident(cur, "hole", "a hole", 1.0)
    for host in (0, 1):
        desk.simnet.silence(host)
    result = desk.reconcile()
    assert not result.answered
    assert result.closed == ()
    with desk.database.transaction("look") as cur:
        assert len(incidents.list_open(cur)) == 1


def test_a_stop_leaves_a_pass_that_goes_on(desk: Desk) -> None:
    running: list[Reconcile] = []

    def stop(number: int) -> None:
        if number == 3:
            running[0].request_stop()

    running.append(desk.pass_of(pages=SmallPages(desk.xrpc, stop), threads=1))
    assert running[0].run().stopped
    with desk.database.transaction("look") as cur:
        left = reconcile.find_open(cur)
    assert left is not None
    result = desk.reconcile()
    assert result.counts.id == left.id
    assert desk.counts(result) == (12, 0, 0)
