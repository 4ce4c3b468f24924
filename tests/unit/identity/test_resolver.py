"""When a DID is looked up, and when what is known serves."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.schema import IdentitySettings
from relay.errors import RelayError
from relay.identity.resolver import NEGATIVE_S, REFRESH_INTERVAL_S, REFRESHES, STALE_RETRY_S, Resolver, Result
from relay.model import Identity
from relay.net.errors import (
    BadDocument,
    DidNotFound,
    DidTombstoned,
    DirectoryAway,
    HostDown,
    PrivateAddress,
    Stopped,
)
from relay.runtime.clock import ManualClock

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
FRESH_S = 1000.0


class Directory:
    """Answers lookups with the keys k1, k2, ... unless `failure` is set; counts them."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.failure: RelayError | None = None
        self.asked: Counter[str] = Counter()

    def __call__(self, did: str) -> Identity:
        self.asked[did] += 1
        if self.failure is not None:
            raise self.failure
        return identity(f"k{self.asked[did]}", self.clock.now(), did)


def identity(key: str, at: float, did: str = DID) -> Identity:
    return Identity(did=did, signing_key=key, pds="https://pds.example.com", handle=None, resolved_at=at)


class World:
    def __init__(self, table: dict[str, Identity] | None = None, max_entries: int = 100) -> None:
        self.clock = ManualClock()
        self.directory = Directory(self.clock)
        self.stored: list[Identity] = []
        self.resolver = Resolver(
            self.directory,
            self.clock,
            fresh_s=FRESH_S,
            max_entries=max_entries,
            load=(table or {}).get,
            store=self.stored.append,
        )

    def key(self, *, refresh: bool = False, did: str = DID) -> str | None:
        return self.resolver.resolve(did, refresh=refresh).signing_key


def away(retry_after_s: float | None = None) -> DirectoryAway:
    return DirectoryAway("away", did=DID, retry_after_s=retry_after_s)


def test_a_fresh_entry_serves_without_a_lookup() -> None:
    world = World()
    assert [world.key() for _ in range(5)] == ["k1"] * 5
    assert world.directory.asked[DID] == 1
    assert [each.signing_key for each in world.stored] == ["k1"]
    assert world.resolver.counts == Counter({Result.HIT: 4, Result.LOOKUP: 1})


def test_counts_are_taken_once() -> None:
    world = World()
    assert [world.key() for _ in range(2)] == ["k1"] * 2
    assert world.resolver.take_counts() == {Result.HIT: 1, Result.LOOKUP: 1}
    assert world.resolver.take_counts() == {}


def test_an_entry_that_is_too_old_is_looked_up_again() -> None:
    world = World()
    world.key()
    world.clock.advance(FRESH_S - 1)
    assert world.key() == "k1"
    world.clock.advance(1)
    assert world.key() == "k2"


def test_the_table_serves_when_memory_does_not_know() -> None:
    clock = ManualClock()
    world = World({DID: identity("t", clock.now() - 10)})
    assert world.key() == "t"
    assert world.key() == "t"
    assert world.directory.asked[DID] == 0
    assert world.resolver.counts == Counter({Result.TABLE: 1, Result.HIT: 1})


def test_an_old_row_of_the_table_is_looked_up_again() -> None:
    world = World({DID: identity("t", 0.0)})
    assert world.key() == "k1"


@pytest.mark.parametrize("source", ["memory", "table"])
def test_a_stale_entry_serves_while_the_directory_is_away(source: str) -> None:
    world = World({DID: identity("k1", 0.0)} if source == "table" else None)
    if source == "memory":
        world.key()
        world.clock.advance(FRESH_S)
    world.directory.failure = away()
    before = world.directory.asked[DID]
    assert world.key() == "k1"
    assert world.key() == "k1"
    assert world.directory.asked[DID] == before + 1
    assert world.resolver.counts[Result.STALE] == 2
    world.clock.advance(STALE_RETRY_S)
    world.directory.failure = None
    assert world.key() == f"k{before + 2}"


def test_a_directory_that_says_how_long_to_wait_is_left_alone_for_so_long() -> None:
    world = World({DID: identity("t", 0.0)})
    world.directory.failure = away(retry_after_s=120)
    world.key()
    world.clock.advance(119)
    assert world.key() == "t"
    assert world.directory.asked[DID] == 1
    world.clock.advance(1)
    world.key()
    assert world.directory.asked[DID] == 2


def test_without_any_entry_a_directory_that_is_away_is_an_error_that_is_not_remembered() -> None:
    world = World()
    world.directory.failure = away()
    with pytest.raises(DirectoryAway):
        world.key()
    world.directory.failure = None
    assert world.key() == "k2"


@pytest.mark.parametrize(
    "failure",
    [DidNotFound("x", did=DID), DidTombstoned("x", did=DID), BadDocument("x", did=DID), PrivateAddress("x", host="h")],
)
def test_a_failure_of_the_did_is_remembered_for_five_minutes(failure: RelayError) -> None:
    world = World()
    world.directory.failure = failure
    for _ in range(3):
        with pytest.raises(type(failure)):
            world.key()
    assert world.directory.asked[DID] == 1
    world.directory.failure = None
    world.clock.advance(NEGATIVE_S - 1)
    with pytest.raises(type(failure)):
        world.key()
    world.clock.advance(1)
    assert world.key() == "k2"


@pytest.mark.parametrize("failure", [HostDown("x", host="h"), Stopped("x", host="h")])
def test_a_failure_that_says_nothing_of_the_did_is_not_remembered(failure: RelayError) -> None:
    world = World()
    world.directory.failure = failure
    with pytest.raises(type(failure)):
        world.key()
    world.directory.failure = None
    assert world.key() == "k2"


def test_a_tombstone_is_not_outlived_by_a_cached_entry() -> None:
    world = World()
    world.key()
    world.clock.advance(FRESH_S)
    world.directory.failure = DidTombstoned("gone", did=DID)
    with pytest.raises(DidTombstoned):
        world.key()
    world.directory.failure = away()
    world.clock.advance(NEGATIVE_S)
    with pytest.raises(DirectoryAway):
        world.key()


def test_a_refresh_passes_by_every_cache_but_only_so_many_times_a_minute() -> None:
    world = World()
    assert world.key() == "k1"
    for number in range(2, REFRESHES + 1):
        assert world.key(refresh=True) == f"k{number}"
    assert world.key(refresh=True) == f"k{REFRESHES}"
    assert world.resolver.counts[Result.LIMITED] == 1
    world.clock.advance(REFRESH_INTERVAL_S)
    assert world.key(refresh=True) == f"k{REFRESHES + 1}"
    assert world.key() == f"k{REFRESHES + 1}"
    assert world.directory.asked[DID] == REFRESHES + 1


def test_a_refresh_is_not_content_with_the_table() -> None:
    clock = ManualClock()
    world = World({DID: identity("t", clock.now())})
    assert world.key(refresh=True) == "k1"
    other = World({DID: identity("t", clock.now())})
    assert other.key() == "t"
    assert other.key(refresh=True) == "k1"


def test_a_refresh_asks_again_about_a_remembered_failure_only_so_many_times_a_minute() -> None:
    world = World()
    world.directory.failure = DidNotFound("x", did=DID)
    for refresh in (False, *[True] * (REFRESHES + 3)):
        with pytest.raises(DidNotFound):
            world.key(refresh=refresh)
    assert world.directory.asked[DID] == REFRESHES
    world.directory.failure = None
    world.clock.advance(REFRESH_INTERVAL_S)
    assert world.key(refresh=True) == f"k{REFRESHES + 1}"


def test_memory_is_bounded() -> None:
    world = World(max_entries=3)
    for number in range(10):
        world.key(did=f"did:plc:{number}")
    world.key(did="did:plc:9")
    assert world.directory.asked["did:plc:9"] == 1
    world.key(did="did:plc:0")
    assert world.directory.asked["did:plc:0"] == 2


def test_settings_give_age_and_size() -> None:
    resolver = Resolver.from_settings(
        IdentitySettings(fresh_sec=7, cache_entries=3), lambda did: identity("k", 0), ManualClock()
    )
    assert resolver.fresh_s == 7


class SlowDirectory:
    """Holds every lookup until `release` is set."""

    def __init__(self, clock: ManualClock, failure: Exception | None = None) -> None:
        self.clock = clock
        self.failure = failure
        self.asked = 0
        self.entered = threading.Event()
        self.release = threading.Event()

    def __call__(self, did: str) -> Identity:
        self.asked += 1
        self.entered.set()
        assert self.release.wait(10)
        if self.failure is not None:
            raise self.failure
        return identity(f"k{self.asked}", self.clock.now(), did)


@pytest.mark.parametrize("failure", [None, DidNotFound("x", did=DID), ZeroDivisionError("a bug")])
def test_parallel_lookups_of_one_did_are_one_and_all_get_its_result(failure: Exception | None) -> None:
    clock = ManualClock()
    directory = SlowDirectory(clock, failure)
    resolver = Resolver(directory, clock, fresh_s=FRESH_S, max_entries=10)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(resolver.resolve, DID)
        assert directory.entered.wait(10)
        others = [pool.submit(resolver.resolve, DID) for _ in range(7)]
        directory.release.set()
        for each in [first, *others]:
            if failure is None:
                assert each.result(10).signing_key == "k1"
            else:
                assert type(each.exception(10)) is type(failure)
    # A late one may have come after the end of a lookup that left nothing to remember.
    assert directory.asked == 1 or isinstance(failure, ZeroDivisionError)


def test_lookups_of_different_dids_do_not_wait_for_each_other() -> None:
    clock = ManualClock()
    directory = SlowDirectory(clock)
    resolver = Resolver(directory, clock, fresh_s=FRESH_S, max_entries=10)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(resolver.resolve, f"did:plc:{name}") for name in "ab"]
        deadline = threading.Event()
        while directory.asked < 2 and not deadline.wait(0.005):
            pass
        directory.release.set()
        assert {each.result(10).did for each in both} == {"did:plc:a", "did:plc:b"}


def test_a_refresh_that_joins_a_lookup_which_was_content_with_the_table_asks_itself() -> None:
    clock = ManualClock()
    entered, release = threading.Event(), threading.Event()

    def load(did: str) -> Identity:
        entered.set()
        assert release.wait(10)
        return identity("table", clock.now() - 5)

    directory = Directory(clock)
    resolver = Resolver(directory, clock, fresh_s=FRESH_S, max_entries=10, load=load)
    with ThreadPoolExecutor(2) as pool:
        plain = pool.submit(resolver.resolve, DID)
        assert entered.wait(10)
        fresh = pool.submit(lambda: resolver.resolve(DID, refresh=True))
        release.set()
        assert plain.result(10).signing_key == "table"
        assert fresh.result(10).signing_key == "k1"


@given(
    st.lists(
        st.tuples(st.sampled_from(["resolve", "refresh", "wait", "away", "gone", "back"]), st.floats(0, 400)),
        max_size=60,
    )
)
def test_one_did_is_never_asked_about_more_than_its_limits_allow(steps: list[tuple[str, float]]) -> None:
    world = World()
    asked_at: list[float] = []
    for what, amount in steps:
        match what:
            case "wait":
                world.clock.advance(amount)
            case "away":
                world.directory.failure = away()
            case "gone":
                world.directory.failure = DidNotFound("x", did=DID)
            case "back":
                world.directory.failure = None
            case _:
                before = world.directory.asked[DID]
                try:
                    found = world.resolver.resolve(DID, refresh=what == "refresh")
                    age = world.clock.now() - found.resolved_at
                    assert age < FRESH_S or world.directory.failure is not None or world.resolver.counts[Result.STALE]
                except DirectoryAway:
                    assert not world.stored or world.directory.failure is not None
                    continue  # nothing is known: each question asks, and the caller backs off
                except DidNotFound:
                    pass
                if world.directory.asked[DID] > before:
                    asked_at.append(world.clock.monotonic())
    gaps = [later - earlier for earlier, later in zip(asked_at, asked_at[REFRESHES:], strict=False)]
    assert all(gap >= STALE_RETRY_S for gap in gaps)
