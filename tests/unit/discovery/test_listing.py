"""Enumerations: complete, resumed, stopped, and among broken hosts."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.atproto.syntax import make_tid
from relay.discovery.listing import KIND_COLLECTION, KIND_HOSTS, KIND_REPOS, Enumeration
from relay.discovery.pages import PagePolicy
from relay.errors import StoreAway, StoreFenced
from relay.net.errors import BadResponse, HostDown, NetError, PrivateAddress, RateLimited
from relay.net.facts import HostFacts
from relay.net.gate import HostGate
from relay.net.hosts import HostPolicy, HostTable
from relay.net.xrpc import ListedHost, RepoPage
from tests.unit.discovery.network import FakeNetwork, Killed, MemorySink

UPSTREAM = "https://relay.example.com"
POLICY = PagePolicy(max_retries=2, first_delay_s=0.001, longest_delay_s=0.002)


def gate() -> HostGate:
    return HostGate(HostTable(HostPolicy(requests_per_s=1e6, burst=30, connections=4, breaker_s=0)))


def enumeration(
    network: FakeNetwork, sink: MemorySink, *, threads: int = 4, policy: PagePolicy = POLICY
) -> Enumeration:
    return Enumeration(network, gate(), sink, batch=1, policy=policy, threads=threads)


def origin(name: str) -> str:
    return f"https://{name}.example.com"


def dids(prefix: str, count: int) -> list[str]:
    return [f"did:plc:{prefix}{number}" for number in range(count)]


def test_a_host_is_listed_to_its_end_and_not_again() -> None:
    network = FakeNetwork({origin("a"): dids("a", 5)})
    sink = MemorySink()
    result = enumeration(network, sink).enumerate_hosts([origin("a"), origin("a")])
    assert result.is_complete
    assert list(sink.dids) == dids("a", 5)
    listing = sink.listings[KIND_REPOS, origin("a"), ""]
    assert (listing.pages, listing.repos, listing.cursor, listing.error) == (3, 5, None, None)
    assert listing.finished_at is not None
    assert listing.batch == 1
    assert (result.progress.hosts_done, result.progress.repos_seen, result.progress.repos_new) == (1, 5, 5)
    asked = network.asked.total()
    enumeration(network, sink).enumerate_hosts([origin("a")])
    assert network.asked.total() == asked


def test_short_and_empty_pages_are_not_the_end() -> None:
    network = FakeNetwork({origin("a"): dids("a", 5)})

    def empty_first(page: RepoPage, name: str, cursor: str | None) -> RepoPage:
        return page if cursor is not None else replace(page, repos=[], cursor=f"{name}@0")

    network.reshape = empty_first
    sink = MemorySink()
    assert enumeration(network, sink).enumerate_hosts([origin("a")]).is_complete
    assert list(sink.dids) == dids("a", 5)


@settings(max_examples=40, deadline=None)
@given(kill_after=st.lists(st.integers(0, 6), max_size=6), page_size=st.integers(1, 4))
def test_a_kill_at_any_page_resumes_there_and_nothing_is_missed(kill_after: list[int], page_size: int) -> None:
    repos = {origin("a"): dids("a", 7), origin("b"): dids("b", 3), origin("c"): []}
    network = FakeNetwork(repos, page_size=page_size)
    sink = MemorySink()
    stored_cursors: set[tuple[str, str | None]] = set()
    for count in kill_after:
        left = count

        def die() -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1

        sink.before_take = die
        network.asked.clear()
        try:
            enumeration(network, sink, threads=1).enumerate_hosts(list(repos))
        except Killed:
            pass
        for listing in sink.listings.values():
            stored_cursors.add((listing.host, listing.cursor))
    sink.before_take = lambda: None
    network.asked.clear()
    result = enumeration(network, sink).enumerate_hosts(list(repos))
    assert result.is_complete
    assert set(sink.dids) == {did for of in repos.values() for did in of}
    # No page below a stored cursor was asked for again.
    for name, of in repos.items():
        asked = [cursor for host, cursor in network.asked if host == name]
        reached = [cursor for host, cursor in stored_cursors if host == name and cursor is not None]
        if reached:
            assert None not in asked or not of


def test_the_network_is_listed_host_by_host_and_then_the_upstream_without_duplicates() -> None:
    network = FakeNetwork(
        {origin("a"): dids("a", 3), origin("b"): dids("b", 4), UPSTREAM: [*dids("a", 3), *dids("u", 2)]}
    )
    hosts = [ListedHost(origin=origin("a"), account_count=1), ListedHost(origin=origin("b"), account_count=9)]
    network.hosts = [[*hosts, ListedHost(origin=origin("bad"), status="banned")]]
    sink = MemorySink()
    result = enumeration(network, sink, threads=1).enumerate_network(UPSTREAM)
    assert result.is_complete
    assert set(sink.dids) == {*dids("a", 3), *dids("b", 4), *dids("u", 2)}
    assert next(iter(sink.dids)).startswith("did:plc:b")  # the largest host first
    assert (result.progress.hosts_total, result.progress.hosts_done) == (3, 3)
    assert all(host != origin("bad") for host, _ in network.asked)


def test_hosts_that_appear_meanwhile_are_listed_too() -> None:
    network = FakeNetwork({origin("a"): dids("a", 1), origin("b"): dids("b", 1), UPSTREAM: []})
    first = ListedHost(origin=origin("a"))
    network.hosts = [[first], [first, ListedHost(origin=origin("b"))]]
    sink = MemorySink()
    assert enumeration(network, sink).enumerate_network(UPSTREAM).is_complete
    assert set(sink.dids) == {"did:plc:a0", "did:plc:b0"}


def test_an_upstream_that_invents_hosts_does_not_keep_us_for_ever() -> None:
    class Endless(dict[str, list[str]]):
        def __missing__(self, key: str) -> list[str]:
            return []

    network = FakeNetwork(Endless())
    network.hosts = [[ListedHost(origin=origin(f"h{number}"))] for number in range(1000)]
    result = enumeration(network, MemorySink()).enumerate_network(UPSTREAM)
    assert result.progress.hosts_done <= 20


@pytest.mark.parametrize("status", [400, 404, 501])
def test_an_upstream_without_list_hosts_is_its_own_only_host(status: int) -> None:
    network = FakeNetwork({UPSTREAM: dids("u", 3)})
    network.fault = lambda name, cursor: (
        BadResponse("none", host=UPSTREAM, status=status) if name.endswith("#hosts") else None
    )
    sink = MemorySink()
    result = enumeration(network, sink).enumerate_network(UPSTREAM)
    assert result.is_complete
    assert set(sink.dids) == set(dids("u", 3))


def test_an_upstream_whose_list_hosts_fails_is_reported_and_its_own_repos_are_taken() -> None:
    network = FakeNetwork({UPSTREAM: dids("u", 3)})
    network.hosts = [[]]
    network.fault = lambda name, cursor: HostDown("502", host=UPSTREAM) if name.endswith("#hosts") else None
    sink = MemorySink()
    result = enumeration(network, sink).enumerate_network(UPSTREAM)
    assert [(each.kind, each.reason) for each in result.failed] == [(KIND_HOSTS, "host_down")]
    assert set(sink.dids) == set(dids("u", 3))


def test_collections_are_listed_one_after_the_other() -> None:
    network = FakeNetwork({})
    network.collections = {"app.bsky.feed.post": dids("p", 3), "app.bsky.feed.like": dids("l", 3)}
    sink = MemorySink()
    result = enumeration(network, sink).enumerate_collections(UPSTREAM, list(network.collections))
    assert result.is_complete
    assert set(sink.dids) == {*dids("p", 3), *dids("l", 3)}
    assert (KIND_COLLECTION, UPSTREAM, "app.bsky.feed.like") in sink.listings


def test_named_dids_are_stored_as_named_in_parts() -> None:
    sink = MemorySink()
    result = enumeration(FakeNetwork({}), sink).enumerate_dids(dids("n", 12_345))
    assert result.is_complete
    assert len(sink.dids) == 12_345
    assert all(sink.dids.values())


def test_a_host_that_fails_now_and_then_is_tried_again() -> None:
    network = FakeNetwork({origin("a"): dids("a", 6)})
    network.fault = lambda name, cursor: (
        HostDown("cut", host=name) if network.asked[name, cursor] <= POLICY.max_retries else None
    )
    sink = MemorySink()
    assert enumeration(network, sink).enumerate_hosts([origin("a")]).is_complete
    assert list(sink.dids) == dids("a", 6)


def test_a_host_that_stays_down_is_recorded_and_the_others_go_on() -> None:
    network = FakeNetwork({origin("a"): dids("a", 6), origin("b"): dids("b", 6)})
    network.fault = lambda name, cursor: (
        HostDown("dead", host=name) if (name, cursor) == (origin("a"), f"{name}@4") else None
    )
    sink = MemorySink()
    result = enumeration(network, sink).enumerate_hosts([origin("a"), origin("b")])
    assert [(each.host, each.reason) for each in result.failed] == [(origin("a"), "host_down")]
    assert not result.is_complete
    assert set(sink.dids) == {*dids("a", 4), *dids("b", 6)}
    broken = sink.listings[KIND_REPOS, origin("a"), ""]
    assert broken.error == "host_down: dead"
    assert (broken.cursor, broken.finished_at) == (f"{origin('a')}@4", None)
    # The next run goes on where it broke.
    network.fault = lambda name, cursor: None
    network.asked.clear()
    assert enumeration(network, sink).enumerate_hosts([origin("a"), origin("b")]).is_complete
    assert set(network.asked) == {(origin("a"), f"{origin('a')}@4")}
    assert set(sink.dids) == {*dids("a", 6), *dids("b", 6)}


@pytest.mark.parametrize(
    "error",
    [PrivateAddress("no", host="h"), BadResponse("no", host="h", status=403), BadResponse("no", host="h", status=501)],
)
def test_what_cannot_get_better_is_not_tried_again(error: NetError) -> None:
    network = FakeNetwork({origin("a"): dids("a", 1)})
    network.fault = lambda name, cursor: error
    result = enumeration(network, MemorySink()).enumerate_hosts([origin("a")])
    assert [each.reason for each in result.failed] == [error.reason]
    assert network.asked.total() == 1


def test_a_429_waits_and_costs_no_retry() -> None:
    network = FakeNetwork({origin("a"): dids("a", 4)})
    limited = RateLimited("slow down", host="h", status=429, facts=HostFacts(retry_after_s=0.001))
    network.fault = lambda name, cursor: limited if network.asked[name, cursor] <= 10 else None
    sink = MemorySink()
    assert enumeration(network, sink).enumerate_hosts([origin("a")]).is_complete
    assert list(sink.dids) == dids("a", 4)


def test_a_host_that_only_ever_limits_us_is_given_up_in_the_end() -> None:
    network = FakeNetwork({origin("a"): dids("a", 4)})
    network.fault = lambda name, cursor: RateLimited("no", host="h", status=429, facts=HostFacts(retry_after_s=0.0))
    policy = PagePolicy(max_retries=2, first_delay_s=0.001, limited_for_s=0.05)
    result = enumeration(network, MemorySink(), policy=policy).enumerate_hosts([origin("a")])
    assert [each.reason for each in result.failed] == ["rate_limited"]


def test_a_listing_that_repeats_its_cursor_ends_with_an_error() -> None:
    network = FakeNetwork({origin("a"): dids("a", 4)})
    network.ignores_cursors = True
    sink = MemorySink()
    result = enumeration(network, sink).enumerate_hosts([origin("a")])
    assert [each.reason for each in result.failed] == ["bad_response"]
    assert "repeats its cursor" in result.failed[0].text


def test_an_empty_page_that_repeats_its_cursor_is_the_end() -> None:
    network = FakeNetwork({origin("a"): dids("a", 4)})
    network.reshape = lambda page, name, cursor: replace(page, cursor=page.cursor or f"{name}@4")
    sink = MemorySink()
    assert enumeration(network, sink).enumerate_hosts([origin("a")]).is_complete
    assert list(sink.dids) == dids("a", 4)


def test_a_stored_cursor_that_the_host_refuses_begins_again() -> None:
    network = FakeNetwork({origin("a"): dids("a", 6)})
    sink = MemorySink()
    network.fault = lambda name, cursor: HostDown("x", host=name) if cursor == f"{name}@4" else None
    enumeration(network, sink).enumerate_hosts([origin("a")])
    refused = 0

    def refuse_the_old(name: str, cursor: str | None) -> NetError | None:
        nonlocal refused
        if cursor == f"{name}@4" and not refused:
            refused += 1
            return BadResponse("unknown cursor", host=name, status=400)
        return None

    network.fault = refuse_the_old
    assert enumeration(network, sink).enumerate_hosts([origin("a")]).is_complete
    assert refused == 1
    assert set(sink.dids) == set(dids("a", 6))


def test_a_rev_from_the_future_is_not_remembered_and_its_repo_is_listed_all_the_same() -> None:
    network = FakeNetwork({origin("a"): dids("a", 2)}, page_size=2)
    now_us = int(time.time() * 1_000_000)
    honest, future = make_tid(now_us, 0), make_tid(now_us + 3_600_000_000, 0)

    def claim(page: RepoPage, name: str, cursor: str | None) -> RepoPage:
        return replace(page, repos=[replace(page.repos[0], rev=future), replace(page.repos[1], rev=honest)])

    network.reshape = claim
    sink = MemorySink()
    assert enumeration(network, sink).enumerate_hosts([origin("a")]).is_complete
    assert list(sink.revs.items()) == list(zip(dids("a", 2), [None, honest], strict=True))


def test_malformed_entries_are_counted() -> None:
    network = FakeNetwork({origin("a"): dids("a", 4)})
    network.malformed = 3
    assert enumeration(network, MemorySink()).enumerate_hosts([origin("a")]).progress.malformed == 6


def test_a_database_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.discovery.listing._STORE_RETRY_FIRST_S", 0.001)
    network = FakeNetwork({origin("a"): dids("a", 4)})
    sink = MemorySink()
    failures = iter([True, True, False, True])

    def away() -> None:
        if next(failures, False):
            raise StoreAway("restarting")

    sink.before_take = away
    assert enumeration(network, sink).enumerate_hosts([origin("a")]).is_complete
    assert list(sink.dids) == dids("a", 4)


def test_a_fenced_store_ends_every_thread_and_is_not_swallowed() -> None:
    network = FakeNetwork({origin(name): dids(name, 50) for name in "abcdefgh"})
    sink = MemorySink()
    count = 0

    def fenced() -> None:
        nonlocal count
        count += 1
        if count > 5:
            raise StoreFenced("another instance holds the lease")

    sink.before_take = fenced
    with pytest.raises(StoreFenced):
        enumeration(network, sink).enumerate_hosts(list(network.repos))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("listing")]


def test_a_stop_ends_at_the_page_interrupts_requests_and_can_be_resumed() -> None:
    network = FakeNetwork({origin(name): dids(name, 40) for name in "abcd"})
    sink = MemorySink()
    interrupted = threading.Event()
    running = Enumeration(network, gate(), sink, batch=1, policy=POLICY, threads=2, on_stop=interrupted.set)
    count = 0

    def stop_soon() -> None:
        nonlocal count
        count += 1
        if count == 10:
            running.request_stop()

    sink.before_take = stop_soon
    result = running.enumerate_hosts(list(network.repos))
    assert result.stopped
    assert interrupted.is_set()
    assert result.failed == ()
    assert 0 < len(sink.dids) < 160
    assert not result.progress.running
    sink.before_take = lambda: None
    assert enumeration(network, sink).enumerate_hosts(list(network.repos)).is_complete
    assert len(sink.dids) == 160


def test_a_stop_ends_a_long_back_off_at_once() -> None:
    network = FakeNetwork({origin("a"): dids("a", 4)})
    waiting = threading.Event()

    def fault(name: str, cursor: str | None) -> NetError:
        waiting.set()
        return HostDown("x", host=name)

    network.fault = fault
    policy = PagePolicy(max_retries=5, first_delay_s=3600, longest_delay_s=3600)
    running = enumeration(network, MemorySink(), policy=policy)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(running.enumerate_hosts([origin("a")]).stopped))
    thread.start()
    assert waiting.wait(10)
    running.request_stop()
    thread.join(10)
    assert results == [True]


def test_while_it_is_paused_no_page_is_asked_for_and_it_goes_on_or_stops_from_there() -> None:
    network = FakeNetwork({origin("a"): dids("a", 5)})
    may_go, asked_once = threading.Event(), threading.Event()
    may_go.set()

    def pause_after_first(page: RepoPage, _name: str, cursor: str | None) -> RepoPage:
        if cursor is None:
            may_go.clear()
            asked_once.set()
        return page

    network.reshape = pause_after_first
    for goes_on in (True, False):
        may_go.set()
        asked_once.clear()
        sink = MemorySink()
        paused = Enumeration(network, gate(), sink, batch=1, policy=POLICY, may_go=may_go)
        results: list[bool] = []
        runs = threading.Thread(target=lambda: results.append(paused.enumerate_hosts([origin("a")]).stopped))  # noqa: B023
        runs.start()
        assert asked_once.wait(10)
        runs.join(0.4)  # long enough for the other pages
        assert runs.is_alive()
        assert list(sink.dids) == dids("a", 2)
        if goes_on:
            may_go.set()
        else:
            paused.request_stop()
        runs.join(10)
        assert results == [not goes_on]
        assert list(sink.dids) == dids("a", 5 if goes_on else 2)
