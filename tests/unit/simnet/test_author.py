"""Authors: seeded, within their own accounts, and inside what a PDS lets anybody do."""

from __future__ import annotations

import itertools

import pytest

from relay.simnet.author import CHANGES, COMMITS, Author, Mix
from relay.simnet.events import Event
from relay.simnet.faults import Fault, FaultKind, FaultPlan
from relay.simnet.world import World, WorldSpec
from relay.simnet.writers import Writers
from tests.unit.simnet.inverting import read_frame


def _world(**spec: object) -> World:
    clock = itertools.count(1_790_000_000_000_000, 1000)
    defaults = {"accounts": 30, "hosts": 3, "median_records": 10, "max_records": 40, "inactive_share": 0.1}
    return World(WorldSpec(**{**defaults, **spec}), now_us=lambda: next(clock))  # type: ignore[arg-type]


def _lively() -> Mix:
    return Mix(status=80, rotate=40, migrate=40, handle=40, newcomer=20, imported=40, newcomers=5)


def _run(world: World, actions: int, mix: Mix, seed: str = "0") -> Author:
    author = Author(world, world.accounts, seed=seed, mix=mix)
    for _ in range(actions):
        author.act()
    return author


def _events(world: World) -> list[Event]:
    return world.log.after(0, limit=100_000)


def test_the_same_seed_does_the_same_again() -> None:
    one, other, different = _world(), _world(), _world()
    assert _run(one, 300, _lively()).done == _run(other, 300, _lively()).done
    _run(different, 300, _lively(), seed="1")
    assert _events(one) == _events(other)
    assert list(one.truth()) == list(other.truth())
    assert _events(different) != _events(one)


def test_everything_in_the_mix_is_done_and_counted() -> None:
    world = _world()
    done = _run(world, 1500, _lively()).done
    assert set(done) == {*COMMITS, *CHANGES}
    assert all(done.values())
    assert done["newcomer"] == 5
    assert len(world.accounts) == 35
    assert sum(done.values()) == 1500


def test_nobody_writes_to_an_account_that_is_away() -> None:
    world = _world()
    away = {account.did for account in world.accounts if account.status}
    assert away
    _run(world, 1500, _lively())
    for event in _events(world):
        _, body = read_frame(event.frame)
        if event.kind == "account":
            (away.discard if body["active"] else away.add)(event.did)
        elif event.kind == "commit":
            assert event.did not in away
    # Those who were deleted left holes, and the others are told of as they are.
    assert away == {account.did for account in world.accounts if account.status}
    assert len({account.status for account in world.accounts}) > 1


def test_not_too_many_are_away_at_once() -> None:
    world = _world(accounts=100, inactive_share=0.0)
    author = Author(world, world.accounts, seed="0", mix=Mix(status=1000, away_share=0.05))
    most = 0
    for _ in range(1000):
        author.act()
        most = max(most, sum(not account.is_active for account in world.accounts))
    assert 2 < most <= 5


def test_repos_stay_within_their_bound() -> None:
    world = _world(inactive_share=0.0)
    _run(world, 3000, Mix(create=1000, delete=0, update=0, many=0, newcomer=0, status=0, imported=0, repo_records=60))
    assert max(len(account.repo.records) for account in world.accounts) <= 61


def test_an_account_that_comes_back_is_told_of_in_the_order_of_a_pds() -> None:
    world = _world(inactive_share=0.0)
    did = world.accounts[0].did
    world.set_status(did, "deactivated")
    world.set_status(did, "")
    assert [event.kind for event in _events(world)] == ["account", "account", "identity", "sync"]
    _, sync = read_frame(_events(world)[-1].frame)
    assert sync["rev"] == world.accounts[0].rev


def test_a_deleted_account_takes_its_earlier_events_with_it() -> None:
    for purge in (True, False):
        world = _world(inactive_share=0.0, purge_deleted=purge)
        one, other = world.accounts[:2]
        world.write(one.did, {})
        world.write(other.did, {})
        world.set_status(one.did, "deleted")
        told = [(event.did, event.kind) for event in _events(world)]
        kept = [(other.did, "commit"), (one.did, "account")]
        assert told == (kept if purge else [(one.did, "commit"), *kept])
        assert world.log.lost_seq == 0


def test_a_migration_changes_key_and_host_and_the_next_commit_follows_the_inner_rev() -> None:
    world = _world(inactive_share=0.0)
    account = world.accounts[0]
    key, host, rev, data = account.multikey, account.host, account.rev, account.repo.data
    world.migrate(account.did, (host + 1) % 3)
    *_, event = _events(world)
    _, sync = read_frame(event.frame)
    assert [event.kind for event in _events(world)] == ["identity", "account", "sync"]
    assert account.multikey != key
    assert account.host != host
    assert account.repo.data == data
    assert sync["rev"] > account.rev > rev
    inner_rev = account.rev
    assert world.write(account.did, {}).since == inner_rev


def test_an_import_is_told_by_a_sync_alone() -> None:
    world = _world(inactive_share=0.0)
    account = world.accounts[0]
    data = account.repo.data
    world.import_records(account.did, {"com.example.note/1": {"$type": "com.example.note"}})
    assert [event.kind for event in _events(world)] == ["sync"]
    assert account.repo.data != data
    assert "com.example.note/1" in world.account_truth(account).records


def test_the_world_is_right_whatever_is_told_of_it() -> None:
    told, silent = _world(), _world()
    silent.teller.plan = FaultPlan([Fault(kind=FaultKind.DROP_EVENT)])
    _run(told, 400, _lively())
    _run(silent, 400, _lively())
    assert list(told.truth()) == list(silent.truth())
    assert _events(silent) == []


def test_an_author_without_accounts_and_a_wrong_mix_are_refused() -> None:
    world = _world()
    with pytest.raises(ValueError, match="needs accounts"):
        Author(world, [], seed="0", mix=Mix())
    with pytest.raises(ValueError, match="no rain"):
        Mix.from_json({"rain": 1})
    assert Mix.from_json(_lively().to_json()) == _lively()


def test_writers_refuse_what_cannot_be() -> None:
    world = _world()
    writers = Writers(world)
    for rate, threads in ((0, 1), (-5, 1), (10, 0)):
        with pytest.raises(ValueError, match="rate"):
            writers.start(rate, threads=threads)
    with pytest.raises(KeyError):
        writers.start(10, dids=["did:plc:nobody"])
    with pytest.raises(ValueError, match="needs accounts"):
        writers.start(10, threads=31)
    assert writers.stop() == {}
