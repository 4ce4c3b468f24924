"""Every commit that the network tells can be undone from its own blocks, as an independent reader undoes it."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import libipld
import pytest

from relay.simnet.author import CHANGES, COMMITS, Author, Mix
from relay.simnet.block import cid_of, cid_text
from relay.simnet.events import Event
from relay.simnet.live_tree import LiveTree
from relay.simnet.world import World, WorldSpec
from tests.support.data import data_json, frames_of, needs_data
from tests.unit.simnet.inverting import Invalid, Partial, check_proof, invert, load, read_commit, read_frame
from tests.unit.simnet.reading import read_export, signature_is_good

_FIXTURES = "bluesky-social/atproto-interop-tests/firehose/commit-proof-fixtures.json"
_FRAMES = "bluesky-social/jetstream/internal/corpus/testdata/frames-000-074.bin"
_COMMITS_ONLY = {"status": 0, "rotate": 0, "migrate": 0, "handle": 0, "newcomer": 0, "imported": 0}


def _world(**spec: object) -> World:
    clock = itertools.count(1_790_000_000_000_000, 1000)
    defaults = {"accounts": 20, "hosts": 3, "inactive_share": 0.0, "sizes": (0, 1, 2, 5, 30, 300)}
    return World(WorldSpec(**{**defaults, **spec}), now_us=lambda: next(clock))  # type: ignore[arg-type]


def _written(world: World, mix: Mix, actions: int) -> list[Event]:
    author, first = Author(world, world.accounts, seed="test", mix=mix), world.log.newest_seq
    for _ in range(actions):
        author.act()
    return world.log.after(first, limit=100_000)


def test_two_thousand_commits_of_many_ops_all_invert() -> None:
    world = _world()
    data = {account.did: account.repo.data for account in world.accounts}
    revs = {account.did: account.rev for account in world.accounts}
    keys = {account.did: account.multikey for account in world.accounts}
    mix = Mix(**_COMMITS_ONLY, many=1000, delete=600, many_ops=24)
    sizes: Counter[int] = Counter()
    for event in _written(world, mix, 2000):
        told = read_commit(event.frame)
        check_proof(told)
        # And it follows upon what was told before.
        assert (told.since, told.prev_data) == (revs[told.did], data[told.did])
        assert told.rev > revs[told.did]
        assert signature_is_good(told.commit, keys[told.did])
        data[told.did], revs[told.did] = told.commit["data"].cid_bytes, told.rev
        sizes[min(len(told.ops), 10)] += 1
    assert sum(sizes.values()) == 2000
    assert sizes[10] > 300
    assert all(account.repo.data == data[account.did] for account in world.accounts)


def test_every_kind_of_commit_inverts_and_says_what_it_is() -> None:
    for name in COMMITS:
        world = _world()
        mix = Mix.from_json({kind: float(kind == name) for kind in (*COMMITS, *CHANGES)})
        for event in _written(world, mix, 40):
            told = read_commit(event.frame)
            check_proof(told)
            actions = {op.action for op in told.ops}
            match name:
                case "empty":
                    assert not told.ops
                    assert told.commit["data"].cid_bytes == told.prev_data
                case "same":
                    assert actions == {"create"} or all(op.cid == op.prev for op in told.ops)
                case "many":
                    assert len(told.ops) > 1
                case _:
                    assert actions <= {name, "create"}


def test_without_the_neighbours_nodes_some_commits_cannot_be_undone() -> None:
    """The judge is judged: it notices when the producer leaves out what a careless one leaves out."""
    world = _world()
    before = {cid for account in world.accounts for cid in account.repo.tree.nodes}
    partial = 0
    for event in _written(world, Mix(**_COMMITS_ONLY, delete=2000), 400):
        told = read_commit(event.frame)
        needed = {told.commit["data"].cid_bytes, *(told.blocks.keys() - before)}
        before |= told.blocks.keys()
        try:
            invert(load({cid: told.blocks[cid] for cid in needed}, told.commit["data"].cid_bytes), told.ops)
        except Partial:
            partial += 1
        check_proof(told)
    assert partial > 3


def test_the_first_commit_of_a_new_account_creates_everything_from_nothing() -> None:
    world = _world()
    changes = {f"com.example.note/{n}": {"$type": "com.example.note", "n": n} for n in range(30)}
    for wanted in ({}, changes):
        did = world.create_account(host=1, changes=wanted)
        events = [event for event in world.log.after(0, 1000) if event.did == did]
        assert [event.kind for event in events] == ["identity", "account", "commit", "sync"]
        told = read_commit(events[2].frame)
        check_proof(told)
        assert (told.since, told.prev_data) == (None, None)
        assert "prevData" not in told.body
        assert {op.path.decode() for op in told.ops} == wanted.keys()
        _, sync = read_frame(events[3].frame)
        assert sync["rev"] == told.rev
        assert signature_is_good(told.commit, world.account(did).multikey)
        # What comes next follows upon it.
        following = world.write(did, {"com.example.note/next": {"$type": "com.example.note"}})
        assert (following.since, following.prev_data) == (told.rev, told.commit["data"].cid_bytes)


def test_a_changed_op_is_refused() -> None:
    world = _world()
    for event in _written(world, Mix(**_COMMITS_ONLY, many=5000), 30):
        told = read_commit(event.frame)
        if not told.ops:
            continue
        for wrong in (told.ops[1:], [told.ops[0]._replace(path=b"com.example.note/else"), *told.ops[1:]]):
            with pytest.raises(Invalid):
                check_proof(told._replace(ops=wrong))


@needs_data
@pytest.mark.parametrize("number", range(6))
def test_proofs_hold_what_the_vectors_of_the_protocols_authors_hold(number: int) -> None:
    vector = data_json(_FIXTURES)[number]
    value = libipld.decode_multibase(vector["leafValue"])[1]
    tree = LiveTree({key.encode(): value for key in vector["keys"]})
    assert cid_text(tree.root) == vector["rootBeforeCommit"]
    for key in vector["adds"]:
        tree.put(key.encode(), value)
    for key in vector["dels"]:
        tree.remove(key.encode())
    fresh, _ = tree.seal()
    assert cid_text(tree.root) == vector["rootAfterCommit"]
    proof = fresh.keys() | {cid for key in vector["adds"] + vector["dels"] for cid in tree.proof_of(key.encode())}
    assert {cid_text(cid) for cid in proof} >= set(vector["blocksInProof"])


@needs_data
def test_the_judge_accepts_every_commit_of_the_real_network() -> None:
    commits = 0
    for frame in frames_of(_FRAMES):
        if read_frame(frame)[0].get("t") == "#commit":
            check_proof(read_commit(frame))
            commits += 1
    assert commits > 70


def test_a_repo_that_was_written_live_exports_what_was_told() -> None:
    world = _world()
    rng = random.Random(3)
    _written(world, Mix(), 1500)
    for account in rng.sample(world.accounts, 10):
        export = read_export(account.car())
        assert not export.missing
        assert not export.corrupt
        assert export.commit is not None
        assert export.commit["rev"] == account.rev
        assert export.records == {path.decode(): record.cid for path, record in account.repo.records.items()}
        assert len(export.order) == len(set(export.order))
        assert cid_of(account.repo.commit_block) == account.repo.commit_cid
        # Nothing is remembered of blocks that are gone.
        assert account.repo.written_at.keys() <= set(export.order)
