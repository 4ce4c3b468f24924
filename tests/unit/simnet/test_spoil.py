"""Each lie is wrong in just the way that it is named for, and in no other."""

from __future__ import annotations

from relay.simnet.faults import CAR_FAULTS, Fault, FaultKind
from relay.simnet.spoil import sections, spoiled_car
from relay.simnet.world import Account, World, WorldSpec
from tests.unit.simnet.reading import Export, read_export, signature_is_good

_HONEST = {"did", "rev", "data", "signature", "records", "missing", "corrupt"}


def _world() -> World:
    return World(WorldSpec(accounts=6, sizes=(80, 80, 0, 1), inactive_share=0.0, p256_share=0.5, seed=4))


def _spoiled(world: World, kind: FaultKind, account: Account | None = None) -> Export:
    car = spoiled_car(Fault(kind=kind), account or world.accounts[0], world)
    assert car is not None
    return read_export(car)


def _wrong_with(export: Export, account: Account) -> set[str]:
    assert export.commit is not None
    honest = read_export(account.car())
    assert honest.commit is not None
    wrong = {
        "did": export.commit["did"] != account.did,
        "rev": export.commit["rev"] != account.rev,
        "data": export.commit["data"] != honest.commit["data"],
        "signature": not signature_is_good(export.commit, account.multikey),
        "records": export.records != honest.records,
        "missing": bool(export.missing),
        "corrupt": bool(export.corrupt),
    }
    assert wrong.keys() == _HONEST
    return {name for name, found in wrong.items() if found}


def test_each_lie_is_wrong_in_one_way() -> None:
    world = _world()
    for account in world.accounts[:2]:
        told = {
            kind: _spoiled(world, kind, account)
            for kind in CAR_FAULTS - {FaultKind.MISSING_COMMIT, FaultKind.OTHER_CAR}
        }
        wrong = {kind: _wrong_with(export, account) for kind, export in told.items()}
        assert wrong.pop(FaultKind.CUT_AT_BLOCK) <= {"missing", "records"}
        assert wrong == {
            FaultKind.WRONG_DID: {"did"},
            FaultKind.STALE_CAR: {"rev", "data", "records"},
            FaultKind.HIGH_S: {"signature"},
            FaultKind.BAD_SIGNATURE: {"signature"},
            FaultKind.MISSING_RECORD: {"missing"},
            FaultKind.MISSING_NODE: {"missing", "records"},
            FaultKind.CORRUPT_BLOCK: {"corrupt"},
        }
        assert told[FaultKind.CUT_AT_BLOCK].missing
        assert len(told[FaultKind.MISSING_RECORD].missing) == len(told[FaultKind.CORRUPT_BLOCK].corrupt) == 1


def test_the_stale_copy_is_an_earlier_one() -> None:
    world = _world()
    account = world.accounts[0]
    export = _spoiled(world, FaultKind.STALE_CAR)
    assert export.commit is not None
    assert export.commit["rev"] < account.rev
    assert export.records.items() < read_export(account.car()).records.items()


def test_the_missing_commit_is_the_root() -> None:
    world = _world()
    assert _spoiled(world, FaultKind.MISSING_COMMIT).missing == {world.accounts[0].repo.commit_cid}


def test_another_car_is_a_whole_one_of_somebody_else() -> None:
    world = _world()
    export = _spoiled(world, FaultKind.OTHER_CAR)
    assert export.commit is not None
    assert export.commit["did"] in set(world.dids()) - {world.accounts[0].did}
    assert not export.missing


def test_what_an_empty_repo_lacks_cannot_be_left_out() -> None:
    world = _world()
    empty = world.accounts[2]
    impossible = {FaultKind.MISSING_RECORD, FaultKind.CORRUPT_BLOCK, FaultKind.STALE_CAR}
    for kind in CAR_FAULTS:
        assert (spoiled_car(Fault(kind=kind), empty, world) is None) == (kind in impossible), kind


def test_a_cut_keeps_whole_blocks() -> None:
    world = _world()
    account = world.accounts[0]
    car = account.car()
    ends = [end for _, end in sections(car)]
    assert ends[-1] == len(car)
    assert spoiled_car(Fault(kind=FaultKind.CUT_AT_BLOCK, bytes=3), account, world) == car[: ends[2]]
    assert spoiled_car(Fault(kind=FaultKind.CUT_AT_BLOCK), account, world) == car[: ends[-2]]
