"""Enumerations over HTTP into a real database: resumed after a kill, fenced, among hosts that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from relay.discovery.listing import Enumeration, EnumerationResult
from relay.discovery.pages import PagePolicy
from relay.discovery.sink import StoreSink
from relay.errors import StoreFenced
from relay.model import RepoState
from relay.net.gate import HostGate
from relay.net.guard import Guard
from relay.net.hosts import HostPolicy, HostTable
from relay.net.http import Fetcher
from relay.net.xrpc import HostPage, RepoPage, Xrpc
from relay.runtime.clock import SystemClock
from relay.simnet.faults import Fault, FaultKind
from relay.simnet.network import SimNetwork
from relay.store import batches, listings, repos
from relay.store.pool import Database
from relay.store.repos import RepoRow, UpsertResult

POLICY = PagePolicy(max_retries=3, first_delay_s=0.01, longest_delay_s=0.02)


class Killed(BaseException):
    """The process ends here."""


class SmallPages:
    """Asks for pages of two; `before(number)` is called before each, counted from 1."""

    def __init__(self, xrpc: Xrpc, before: Callable[[int], None] = lambda number: None) -> None:
        self._xrpc = xrpc
        self._before = before
        self.asked: list[tuple[str, str | None]] = []

    def list_repos(self, origin: str, *, cursor: str | None = None) -> RepoPage:
        self._count(origin, cursor)
        return self._xrpc.list_repos(origin, cursor=cursor, limit=2)

    def list_repos_by_collection(self, origin: str, collection: str, *, cursor: str | None = None) -> RepoPage:
        self._count(origin, cursor)
        return self._xrpc.list_repos_by_collection(origin, collection, cursor=cursor, limit=2)

    def list_hosts(self, origin: str, *, cursor: str | None = None) -> HostPage:
        return self._xrpc.list_hosts(origin, cursor=cursor, limit=2)

    def _count(self, origin: str, cursor: str | None) -> None:
        self.asked.append((origin, cursor))
        self._before(len(self.asked))


class Desk:
    """A database with a batch, and enumerations into it."""

    def __init__(self, database: Database, fetcher: Fetcher) -> None:
        self.database = database
        self.xrpc = Xrpc(fetcher)
        self.heard: list[UpsertResult] = []
        self.epoch: int | None = None
        with database.transaction("test") as cursor:
            self.batch, _ = batches.open_batch(cursor, "test", 1.0)

    def enumeration(self, pages: SmallPages | None = None, *, threads: int = 4) -> Enumeration:
        policy = HostPolicy(requests_per_s=1000, burst=30, connections=4, breaker_s=0)
        sink = StoreSink(
            self.database,
            epoch=lambda: self.epoch,
            batch=self.batch,
            partitions=64,
            clock=SystemClock(),
            took=lambda result, widened: self.heard.append(result),
        )
        return Enumeration(
            pages or SmallPages(self.xrpc),
            HostGate(HostTable(policy)),
            sink,
            batch=self.batch,
            policy=POLICY,
            threads=threads,
        )

    def rows(self) -> dict[str, RepoRow]:
        with self.database.transaction("test") as cursor:
            return {row.did: row for row in repos.list_repos(cursor, limit=10_000)}

    def listed(self) -> list[listings.Listing]:
        with self.database.transaction("test") as cursor:
            return listings.load_batch(cursor, self.batch)


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    fetcher = Fetcher(Guard(allow_private=True), user_agent="test/1")
    yield Desk(database, fetcher)
    fetcher.abort()


def test_the_whole_network_is_found_once(desk: Desk, simnet: SimNetwork) -> None:
    result = desk.enumeration().enumerate_network(simnet.relay_url)
    assert result.is_complete
    rows = desk.rows()
    assert set(rows) == set(simnet.dids())
    assert {row.state for row in rows.values()} == {RepoState.DISCOVERED}
    assert all(row.rev_heard for row in rows.values())
    assert result.progress.repos_new == len(rows) == sum(each.new for each in desk.heard)
    assert result.progress.hosts_done == len(simnet.host_urls) + 1
    assert all(each.finished_at is not None and each.error is None for each in desk.listed())


def test_one_host_gives_its_own_repos(desk: Desk, simnet: SimNetwork) -> None:
    assert desk.enumeration().enumerate_hosts(simnet.host_urls[:1]).is_complete
    own = {account.did for account in simnet.truth() if account.pds == simnet.host_urls[0]}
    assert set(desk.rows()) == own


def test_a_collection_gives_the_repos_that_hold_it(desk: Desk, simnet: SimNetwork) -> None:
    collection = "app.bsky.feed.post"
    assert desk.enumeration().enumerate_collections(simnet.relay_url, [collection]).is_complete
    holders = {
        account.did for account in simnet.truth() if any(path.startswith(collection + "/") for path in account.records)
    }
    assert set(desk.rows()) == holders
    assert holders


@pytest.mark.parametrize("page", range(1, 14, 3))
def test_a_kill_at_any_page_resumes_at_that_page(desk: Desk, simnet: SimNetwork, page: int) -> None:
    def kill(number: int) -> None:
        if number >= page:
            raise Killed

    killed = SmallPages(desk.xrpc, kill)
    with pytest.raises(Killed):
        desk.enumeration(killed, threads=1).enumerate_network(simnet.relay_url)
    found = len(desk.rows())
    again = SmallPages(desk.xrpc)
    assert desk.enumeration(again).enumerate_network(simnet.relay_url).is_complete
    assert set(desk.rows()) == set(simnet.dids())
    assert len(desk.rows()) > found or page > 7
    # The page that was asked for when the kill came is the first one of its host that is asked for again; none before it is.
    assert killed.asked[page - 1] in again.asked
    assert not set(killed.asked[: page - 1]) & set(again.asked)


def test_a_page_is_stored_with_its_cursor_or_not_at_all(desk: Desk, simnet: SimNetwork) -> None:
    with desk.database.transaction("test") as cursor:
        cursor.execute("ALTER TABLE listing ADD CONSTRAINT no_second_page CHECK (pages < 2)")
    with pytest.raises(Exception, match="no_second_page"):
        desk.enumeration(threads=1).enumerate_hosts(simnet.host_urls[:1])
    assert len(desk.rows()) == 2
    assert [each.pages for each in desk.listed()] == [1]


def test_an_instance_that_lost_its_lease_stores_no_page(desk: Desk, simnet: SimNetwork) -> None:
    with desk.database.transaction("test") as cursor:
        cursor.execute("UPDATE partition SET epoch = epoch + 7")
    desk.epoch = 1
    with pytest.raises(StoreFenced):
        desk.enumeration().enumerate_network(simnet.relay_url)
    assert desk.rows() == {}


def test_a_host_that_is_down_is_recorded_and_the_rest_goes_on(desk: Desk, simnet: SimNetwork) -> None:
    down = simnet.host_urls[1]
    simnet.silence(1)
    result: EnumerationResult = desk.enumeration().enumerate_hosts(simnet.host_urls)
    assert [(each.host, each.reason) for each in result.failed] == [(down, "host_down")]
    elsewhere = {account.did for account in simnet.truth() if account.pds != down}
    assert set(desk.rows()) == elsewhere
    failed = next(each for each in desk.listed() if each.host == down)
    assert failed.error is not None
    assert failed.error.startswith("host_down: ")
    assert failed.finished_at is None
    simnet.restore(1)
    assert desk.enumeration().enumerate_hosts(simnet.host_urls).is_complete
    assert set(desk.rows()) == set(simnet.dids())


def test_a_listing_that_repeats_its_cursor_fails_with_a_reason(desk: Desk, simnet: SimNetwork) -> None:
    simnet.set_faults([Fault(kind=FaultKind.REPEAT_CURSOR)])
    result = desk.enumeration().enumerate_hosts(simnet.host_urls[:1])
    assert [each.reason for each in result.failed] == ["bad_response"]


def test_named_dids_are_tracked_again_and_listed_ones_are_not(desk: Desk, simnet: SimNetwork) -> None:
    removed = simnet.dids()[0]
    desk.enumeration().enumerate_dids(simnet.dids())
    with desk.database.transaction("test") as cursor:
        assert repos.remove(cursor, [removed]) == 1
    assert desk.enumeration().enumerate_network(simnet.relay_url).is_complete
    assert removed not in desk.rows()
    assert desk.enumeration().enumerate_dids([removed]).is_complete
    assert removed in desk.rows()
