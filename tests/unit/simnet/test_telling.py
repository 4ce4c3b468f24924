"""Each fault of an event is wrong in just its own way, is counted, and is remembered when somebody may now be wrong."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from relay.simnet.block import tid_time_us
from relay.simnet.events import Event
from relay.simnet.faults import EVENT_FAULTS, Fault, FaultKind
from relay.simnet.lies import FAULTS_OF, FURTHER_EVENTS
from relay.simnet.world import Account, World, WorldSpec
from tests.support.data import plain_sections
from tests.unit.simnet.inverting import Invalid, check_proof, cid_of, invert, load, read_commit, read_frame
from tests.unit.simnet.reading import read_export, signature_is_good

_DAY_US = 86_400_000_000


def _world() -> World:
    clock = itertools.count(1_790_000_000_000_000, 1000)
    spec = WorldSpec(accounts=6, sizes=(120, 120, 0, 1), inactive_share=0.0, p256_share=0.5, seed=4)
    return World(spec, now_us=lambda: next(clock))


def _with(world: World, kind: FaultKind, **fault: Any) -> None:
    world.teller.plan = type(world.teller.plan)([Fault(kind=kind, **fault)])


def _commit(world: World, account: Account) -> list[Event]:
    """Commit a create, an update and a delete; return what was told of it."""
    first = world.log.newest_seq
    changes: dict[str, Any] = {f"com.example.note/{first}": {"$type": "com.example.note"}}
    paths = account.repo.paths()
    if len(paths) > 2:
        changes |= {paths[1].decode(): {"$type": "com.example.note", "at": first}, paths[2].decode(): None}
    world.write(account.did, changes)
    return world.log.after(first)


def _wrong_with(event: Event, account: Account) -> set[str]:
    """What a reader finds wrong with a `#commit` of which the world knows better."""
    _, body = read_frame(event.frame)
    if any(cid != cid_of(block) for cid, block in plain_sections(body["blocks"])):
        return {"corrupt"}
    export = read_export(body["blocks"])
    wrong: set[str] = set()
    if export.commit is None:
        return {"commit"}
    blocks_there = set(export.order)
    is_double = len({op["path"] for op in body["ops"]}) != len(body["ops"])
    if export.commit["did"] != account.did:
        wrong.add("did")
    if export.commit["rev"] != account.rev or body["rev"] != account.rev:
        wrong.add("rev")
    if not signature_is_good(export.commit, account.multikey):
        wrong.add("signature")
    if body["tooBig"]:
        wrong.add("too big")
    if "prevData" not in body:
        wrong.add("no prevData")
    if is_double:
        wrong.add("double")
    if any(op["cid"] is not None and op["cid"].cid_bytes not in blocks_there for op in body["ops"]) and not is_double:
        wrong.add("record")
    data = export.commit["data"].cid_bytes
    blocks = {cid: block for cid, block in account.repo.tree.nodes.items() if cid in blocks_there}
    if not (wrong & {"too big", "double"}):
        ops = read_commit(event.frame).ops if not wrong & {"did"} else []
        try:
            before = invert(load(blocks, data), ops)
        except Invalid:
            wrong.add("node")
        else:
            if ops and "prevData" in body and before != body["prevData"].cid_bytes:
                wrong.add("prevData")
    return wrong


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (FaultKind.EVENT_BAD_SIGNATURE, {"signature"}),
        (FaultKind.EVENT_HIGH_S, {"signature"}),
        (FaultKind.EVENT_WRONG_DID, {"did"}),
        (FaultKind.EVENT_FUTURE_REV, {"rev"}),
        (FaultKind.EVENT_MISSING_NODE, {"node"}),
        (FaultKind.EVENT_MISSING_RECORD, {"record"}),
        (FaultKind.EVENT_CORRUPT_BLOCK, {"corrupt"}),
        (FaultKind.EVENT_OTHER_PREV_DATA, {"prevData"}),
        (FaultKind.EVENT_NO_PREV_DATA, {"no prevData"}),
        (FaultKind.EVENT_DOUBLE_PATH, {"double"}),
        (FaultKind.EVENT_TOO_BIG, {"too big"}),
    ],
)
def test_a_false_commit_is_wrong_in_one_way(kind: FaultKind, wrong: set[str]) -> None:
    for number in range(2):
        world = _world()
        account = world.accounts[number]
        [honest] = _commit(world, account)
        assert _wrong_with(honest, account) == set()
        _with(world, kind)
        [event] = _commit(world, account)
        assert _wrong_with(event, account) == wrong
        assert world.teller.plan.fired() == {kind.value: 1}
        is_harmless = kind is FaultKind.EVENT_NO_PREV_DATA
        assert world.teller.unheard() == ({} if is_harmless else {account.did: frozenset({"repo"})})
        # The repo itself went on, and its next honest commit shows that one is missing.
        _with(world, FaultKind.DROP_EVENT, times=0)
        [following] = _commit(world, account)
        told = read_commit(following.frame)
        check_proof(told)
        assert world.teller.unheard() == {}
        assert read_frame(honest.frame)[1]["rev"] < (told.since or "")


def test_every_fault_of_an_event_is_tested_here() -> None:
    parameters = next(mark for mark in test_a_false_commit_is_wrong_in_one_way.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    tested = {kind for kind, _ in parameters.args[1]}
    assert tested | FURTHER_EVENTS | {FaultKind.DROP_EVENT} == EVENT_FAULTS == FAULTS_OF["commit"]


@pytest.mark.parametrize("told", ["commit", "sync", "identity", "account"])
def test_a_dropped_event_leaves_a_hole_in_the_seqs_and_somebody_who_does_not_know(told: str) -> None:
    world = _world()
    did = world.accounts[0].did
    _with(world, FaultKind.DROP_EVENT, endpoint=f"#{told}")
    first = world.log.newest_seq
    world.write(did, {})
    world.rotate_key(did)
    world.set_status(did, "takendown")
    kinds = [event.kind for event in world.log.after(first)]
    assert kinds == [kind for kind in ("commit", "identity", "sync", "account") if kind != told]
    assert world.log.newest_seq == first + 4
    aspect = {"commit": None, "sync": "repo", "identity": "identity", "account": "status"}[told]
    # Of the commit nobody needs to know: the sync after it tells more.
    assert world.teller.unheard() == ({did: frozenset({aspect})} if aspect else {})


@pytest.mark.parametrize("kind", sorted(FURTHER_EVENTS))
def test_a_further_event_has_a_seq_of_its_own_and_takes_nothing_away(kind: FaultKind) -> None:
    world = _world()
    account = world.accounts[0]
    _with(world, kind, endpoint="#commit", bytes=6_000_000)
    honest, further = _commit(world, account)
    assert _wrong_with(honest, account) == set()
    assert further.seq == honest.seq + 1
    assert world.teller.unheard() == {}
    if kind is FaultKind.GARBAGE_FRAME:
        with pytest.raises(ValueError, match=r"."):
            read_frame(further.frame)
        return
    header, body = read_frame(further.frame)
    assert body["seq"] == further.seq
    match kind:
        case FaultKind.EVENT_AGAIN:
            assert {**body, "seq": honest.seq} == read_frame(honest.frame)[1]
        case FaultKind.EVENT_ROLLBACK:
            commit = read_export(body["blocks"]).commit
            assert commit is not None
            assert signature_is_good(commit, account.multikey)
            assert commit["rev"] == body["rev"] < account.rev
            assert commit["data"].cid_bytes != account.repo.data
        case FaultKind.OVERSIZE_FRAME:
            assert 6_000_000 < len(further.frame) < 6_001_000
        case _:
            assert header == {"op": 1, "t": "#tombstone"}


@pytest.mark.parametrize(
    ("kind", "rev_from_now_us", "is_signed"),
    [
        (FaultKind.EVENT_BAD_SIGNATURE, 0, False),
        (FaultKind.EVENT_HIGH_S, 0, False),
        (FaultKind.EVENT_WRONG_DID, 0, True),
        (FaultKind.EVENT_FUTURE_REV, _DAY_US, True),
    ],
)
def test_a_false_sync(kind: FaultKind, rev_from_now_us: int, is_signed: bool) -> None:
    world = _world()
    account = world.accounts[1]
    _with(world, kind, endpoint="#sync")
    world.import_records(account.did, {"com.example.note/1": {"$type": "com.example.note"}})
    [event] = world.log.after(0)
    _, body = read_frame(event.frame)
    commit = read_export(body["blocks"]).commit
    assert commit is not None
    assert tid_time_us(commit["rev"]) - tid_time_us(account.rev) == rev_from_now_us
    assert signature_is_good(commit, account.multikey) == is_signed
    assert (commit["did"] == account.did) == (kind is not FaultKind.EVENT_WRONG_DID)
    assert world.teller.unheard() == {account.did: frozenset({"repo"})}


def test_a_fault_that_cannot_be_committed_is_not_counted() -> None:
    world = _world()
    for kind in (FaultKind.EVENT_MISSING_NODE, FaultKind.EVENT_MISSING_RECORD, FaultKind.EVENT_DOUBLE_PATH):
        _with(world, kind)
        world.write(world.accounts[0].did, {})
        assert world.teller.plan.fired() == {kind.value: 0}
    _with(world, FaultKind.EVENT_NO_PREV_DATA)
    world.create_account()
    assert world.teller.plan.fired() == {"event_no_prev_data": 0}
    assert world.teller.unheard() == {}


def test_settling_tells_the_truth_about_everybody_who_was_lied_about() -> None:
    world = _world()
    one, two, three = world.accounts[:3]
    _with(world, FaultKind.DROP_EVENT)
    world.write(one.did, {"com.example.note/1": {"$type": "com.example.note"}})
    world.set_handle(two.did, "new.test")
    world.set_status(three.did, "takendown")
    world.create_account()
    assert world.log.after(0) == []
    assert world.settle() == 4
    assert world.teller.unheard() == {}
    told = [(event.did, event.kind, read_frame(event.frame)[1]) for event in world.log.after(0)]
    assert [(did, kind) for did, kind, _ in told[:3]] == [
        (one.did, "sync"),
        (two.did, "identity"),
        (three.did, "account"),
    ]
    assert [kind for _, kind, _ in told[3:]] == ["identity", "account", "sync"]
    assert told[0][2]["rev"] == one.rev
    assert told[1][2]["handle"] == "new.test"
    assert (told[2][2]["active"], told[2][2]["status"]) == (False, "takendown")
    assert world.settle() == 0


def test_what_a_subscriber_got_too_late_is_told_again() -> None:
    world = _world()
    did = world.accounts[0].did
    world.write(did, {})
    world.teller.lost(world.log.after(0))
    assert world.teller.unheard() == {did: frozenset({"repo"})}


def test_the_murmur_is_never_struck() -> None:
    world = _world()
    _with(world, FaultKind.DROP_EVENT)
    seq = world.murmur()
    assert [(event.seq, event.kind) for event in world.log.after(0)] == [(seq, "identity")]


def test_an_empty_commit_needs_no_nodes() -> None:
    world = _world()
    account = world.accounts[0]
    data = account.repo.data
    world.write(account.did, {})
    told = read_commit(world.log.after(0)[0].frame)
    assert (told.ops, told.prev_data, told.commit["data"].cid_bytes) == ([], data, data)
    assert list(told.blocks) == [cid_of(account.repo.commit_block)]
