from __future__ import annotations

import itertools
from collections.abc import Iterator

import libipld
import pytest

from relay.simnet.block import cid_text, encode
from relay.simnet.keys import Curve
from relay.simnet.repo import CarOrder, CompactRepo
from relay.simnet.world import MAX_RECORD_BYTES, AccountTruth, World, WorldSpec
from tests.unit.simnet.reading import read_export, signature_is_good

_NOW_US = 1_790_000_000_000_000


def _ticking() -> Iterator[int]:
    return itertools.count(_NOW_US, 1000)


def _world(**spec: object) -> World:
    clock = _ticking()
    defaults = {"accounts": 20, "hosts": 3, "median_records": 20, "max_records": 100}
    return World(WorldSpec(**{**defaults, **spec}), now_us=lambda: next(clock))  # type: ignore[arg-type]


def _truth_of(world: World) -> list[AccountTruth]:
    return list(world.truth())


def test_the_same_seed_gives_the_same_world_in_whatever_order_it_is_built() -> None:
    one, other = _world(seed=5), _world(seed=5)
    for account in reversed(other.accounts):
        account.car()
    assert _truth_of(one) == _truth_of(other)
    assert [account.car() for account in one.accounts] == [account.car() for account in other.accounts]
    assert _truth_of(_world(seed=6)) != _truth_of(one)


def test_every_repo_is_whole_signed_and_what_the_truth_says() -> None:
    world = _world(seed=2, p256_share=0.5, sizes=(0, 1, 2))
    assert {account.key.curve for account in world.accounts} == set(Curve)
    for account, truth in zip(world.accounts, world.truth(), strict=True):
        export = read_export(account.car())
        assert export.commit is not None
        assert set(export.commit) == {"did", "version", "data", "rev", "prev", "sig"}
        assert (export.commit["did"], export.commit["rev"], export.commit["prev"]) == (account.did, account.rev, None)
        assert signature_is_good(export.commit, account.multikey)
        assert not export.missing
        assert not export.corrupt
        assert len(export.order) == len(set(export.order))
        if account.status != "deleted":
            assert {path: cid_text(cid) for path, cid in export.records.items()} == truth.records
    assert [len(account.repo.records) for account in world.accounts[:3]] == [0, 1, 2]


def test_records_have_the_mix_and_size_of_the_network() -> None:
    world = _world(accounts=1, sizes=(4000,))
    records = [record.block for record in world.accounts[0].repo.records.values()]
    assert 190 < sum(map(len, records)) / len(records) < 240
    paths = [path.decode() for path in world.accounts[0].repo.records]
    likes = sum(path.startswith("app.bsky.feed.like/") for path in paths)
    assert 0.50 < likes / len(paths) < 0.60
    assert any(not path.startswith("app.bsky.") for path in paths)
    for path, block in zip(paths, records, strict=True):
        assert libipld.decode_dag_cbor(block)["$type"] == path.partition("/")[0]


@pytest.mark.parametrize("order", list(CarOrder))
def test_every_order_has_the_same_blocks(order: CarOrder) -> None:
    repo = _world().accounts[0].repo
    blocks = list(repo.blocks(order))
    assert len(dict(blocks)) == len(blocks)
    assert dict(blocks) == dict(repo.blocks())
    cids = [cid for cid, _ in blocks]
    if order is CarOrder.REFERENCE:
        assert cids == sorted(cids, reverse=True)  # one rev: by CID descending
    else:
        assert cids[0] == repo.commit_cid


def test_new_blocks_come_first_in_the_reference_order() -> None:
    world = _world()
    account = world.accounts[0]
    world.write(account.did, {"app.bsky.feed.post/new": {"$type": "app.bsky.feed.post", "text": "new"}})
    order = read_export(account.car()).order
    fresh = [cid for cid in order if account.repo.written_at.get(cid) == account.rev]
    assert account.repo.commit_cid in fresh
    assert order[: len(fresh)] == sorted(fresh, reverse=True)


def test_writes_raise_the_rev_and_tell_what_changed() -> None:
    world = _world(sizes=(5,))
    account = world.accounts[0]
    path = "app.bsky.actor.profile/self"
    before = account.repo.records[path.encode()]
    rev, data = account.rev, account.repo.data
    commit = world.write(
        account.did, {path: {"$type": "app.bsky.actor.profile"}, "com.example.note/a": {"$type": "com.example.note"}}
    )
    assert commit.rev > rev
    assert (commit.since, commit.prev_data) == (rev, data)
    update, create = commit.ops
    assert (update.action, update.prev) == ("update", before.cid)
    assert (create.action, create.prev) == ("create", None)
    removed = world.write(account.did, {path: None})
    assert removed.rev > commit.rev
    assert [(op.action, op.cid, op.prev) for op in removed.ops] == [("delete", None, update.cid)]
    assert path not in read_export(account.car()).records
    with pytest.raises(KeyError):
        world.write(account.did, {path: None})


def test_a_commit_is_told_on_the_firehose_with_the_blocks_that_prove_it() -> None:
    world = _world(sizes=(60,), accounts=1)
    did = world.accounts[0].did
    for _ in range(80):
        world.write_some(1)
        commit_event = world.log.after(world.log.newest_seq - 1)[0]
        header, payload = libipld.decode_dag_cbor_multi(commit_event.frame)
        assert header == {"op": 1, "t": "#commit"}
        assert payload["repo"] == did
        export = read_export(payload["blocks"])
        assert not export.corrupt
        assert export.commit is not None
        assert export.commit["rev"] == payload["rev"]
        whole = read_export(world.accounts[0].car())
        assert export.commit == whole.commit
        for op in payload["ops"]:
            # The way to each path is there: its value, or the proof that it has none.
            assert export.records.get(op["path"]) == op["cid"]
            assert op["cid"] is None or op["cid"] in export.order
        assert set(export.records.items()) <= set(whole.records.items())


def test_events_follow_one_another_without_gaps_and_the_window_is_bounded() -> None:
    world = _world(replay_window=10)
    first = world.log.newest_seq + 1
    world.write_some(25)
    events = world.log.after(0, limit=100)
    assert [event.seq for event in events] == list(range(first + 15, first + 25))
    assert world.log.oldest_seq == first + 15
    assert [event.seq for event in world.log.after(first + 20, limit=2)] == [first + 21, first + 22]
    assert world.log.after(first + 24) == []


def test_account_events_change_the_truth() -> None:
    world = _world(inactive_share=0.0)
    one, two, three = (account.did for account in world.accounts[:3])
    world.set_status(one, "takendown")
    world.set_status(two, "deleted")
    world.tombstone(three)
    truth = {account.did: account for account in world.truth()}
    assert (truth[one].status, truth[two].status, truth[three].status) == ("takendown", "deleted", "deleted")
    assert truth[one].records
    assert not truth[two].records
    assert not truth[three].records
    kinds = [event.kind for event in world.log.after(0)]
    assert kinds == ["account", "account", "account"]
    _, payload = libipld.decode_dag_cbor_multi(world.log.after(0)[0].frame)
    assert (payload["did"], payload["active"], payload["status"]) == (one, False, "takendown")
    listed = {account.did for host in range(3) for account in world.on_host(host)}
    assert {one, two, three} & listed == {one}


def test_rotation_signs_the_same_tree_with_another_key() -> None:
    world = _world()
    account = world.accounts[0]
    data, rev, old = account.repo.data, account.rev, account.multikey
    world.rotate_key(account.did, Curve.P256)
    export = read_export(account.car())
    assert export.commit is not None
    assert account.repo.data == data
    assert account.rev > rev
    assert signature_is_good(export.commit, account.multikey)
    assert account.multikey != old
    assert account.past_documents[-1].multikey == old
    assert [event.kind for event in world.log.after(0)] == ["identity", "sync"]


def test_migration_moves_an_account_to_another_host() -> None:
    world = _world()
    account = world.accounts[0]
    there = (account.host + 1) % 3
    here = account.host
    world.migrate(account.did, there)
    assert account in world.on_host(there)
    assert account not in world.on_host(here)
    assert world.account_truth(account).pds == world.host_urls[there]


def test_a_record_over_the_limit_has_just_that_size_and_is_marked() -> None:
    world = _world()
    did = world.accounts[0].did
    path = world.add_large_record(did, MAX_RECORD_BYTES + 1)
    fits = world.add_large_record(did, MAX_RECORD_BYTES, rkey="fits")
    assert len(world.accounts[0].repo.records[path.encode()].block) == MAX_RECORD_BYTES + 1
    truth = world.account_truth(world.accounts[0])
    assert truth.refused == {path}
    assert {path, fits} <= truth.records.keys()


def test_a_compact_world_serves_the_same_and_cannot_be_written() -> None:
    world, compact = _world(seed=3), _world(seed=3)
    records = world.build_all()
    assert compact.build_all(compact=True) == records
    assert [a.car() for a in compact.accounts] == [a.car() for a in world.accounts]
    assert _truth_of(compact) == _truth_of(world)
    with pytest.raises(CompactRepo):
        compact.write(compact.accounts[0].did, {"com.example.note/a": encode({})})


def test_web_accounts_need_their_dids() -> None:
    with pytest.raises(ValueError, match="did:web"):
        World(WorldSpec(accounts=3, web_accounts=1))
    world = World(WorldSpec(accounts=3, web_accounts=1), web_dids=["did:web:localhost%3A1234"])
    assert world.dids()[-1] == "did:web:localhost%3A1234"


def test_write_some_counts_what_it_does() -> None:
    world = _world(inactive_share=0.0)
    before = sum(len(account.records) for account in world.truth())
    done = world.write_some(60, world.dids()[:2])
    after = sum(len(account.records) for account in world.truth())
    assert done.creates + done.updates + done.deletes == 60
    assert after - before == done.creates - done.deletes
    assert {event.did for event in world.log.after(0)} <= set(world.dids()[:2])
