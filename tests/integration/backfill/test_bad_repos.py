"""Repos, documents and hosts that are wrong in every way that is known, in one run: each ends as it must, the others are not held up.

One run for all of them, because that is how they come: what one does to another is a part of what is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from relay.simnet.faults import Fault, FaultKind
from relay.simnet.network import SimNetwork
from relay.simnet.records import padded_record
from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Row, Scene

MIB = 1 << 20
STRANGER = "did:plc:zzzzzzzzzzzzzzzzzzzzzzzz"
SILENT = "http://localhost:9"  # the discard port: nobody listens there


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One account: what is wrong with it, and how it must end. `reason` None: synced."""

    name: str
    fault: Callable[[str], Fault] | None = None
    prepare: Callable[[SimNetwork, str], object] | None = None
    state: str = "quarantined"
    reason: str | None = None
    attempts: int | None = None
    records: int = 12


def _at_host(kind: FaultKind, *, per_did: int | None = None, **meaning: object) -> Callable[[str], Fault]:
    return lambda did: Fault(kind=kind, endpoint="getRepo", did=did, per_did=per_did, **meaning)  # type: ignore[arg-type]


def _at_plc(kind: FaultKind, *, per_did: int | None = None) -> Callable[[str], Fault]:
    return lambda did: Fault(kind=kind, endpoint="plc", did=did, per_did=per_did)


def _car(kind: FaultKind, reason: str) -> Case:
    """A wrong CAR, again and again: one retry, then it is given up."""
    return Case(name=kind.value, fault=_at_host(kind), reason=reason, attempts=2)


def _once(kind: FaultKind, **meaning: object) -> Case:
    """Wrong the first time only."""
    fault = _at_host(kind, per_did=1, **meaning)
    return Case(name=f"{kind.value} once", fault=fault, state="synced", attempts=0)


def _status(status: str) -> Case:
    return Case(
        name=status,
        prepare=lambda network, did: network.world.set_status(did, status),
        state="inactive",
        reason=status,
        attempts=0,
    )


def _large(size: int) -> Callable[[SimNetwork, str], object]:
    return lambda network, did: network.world.write(did, {"com.example.large/large": padded_record(size)})


CASES = (
    Case(name="well", state="synced"),
    Case(name="well and empty", state="synced", records=0),
    _car(FaultKind.CUT_AT_BLOCK, "missing_block"),
    _car(FaultKind.MISSING_RECORD, "missing_block"),
    _car(FaultKind.MISSING_NODE, "missing_block"),
    _car(FaultKind.MISSING_COMMIT, "missing_block"),
    _car(
        FaultKind.CORRUPT_BLOCK, "missing_block"
    ),  # blocks are known by their own hash: what was promised is not there
    _car(FaultKind.OTHER_CAR, "wrong_did"),
    _car(FaultKind.WRONG_DID, "wrong_did"),
    _car(FaultKind.HIGH_S, "bad_signature"),
    _car(FaultKind.BAD_SIGNATURE, "bad_signature"),
    _once(FaultKind.CUT_AT_BLOCK),
    _once(FaultKind.BAD_SIGNATURE),
    _once(FaultKind.STATUS, status=500),
    _once(FaultKind.STATUS, status=502, text="html"),
    _once(FaultKind.CUT),
    _once(FaultKind.RESET),
    _once(FaultKind.TOO_MANY, seconds=1.0),
    Case(name="oversize", fault=_at_host(FaultKind.OVERSIZE, bytes=64 * MIB), reason="too_large", attempts=1),
    Case(name="gzip bomb", fault=_at_host(FaultKind.GZIP_BOMB, bytes=64 * MIB), reason="too_large", attempts=1),
    Case(name="other document", fault=_at_plc(FaultKind.OTHER_DOCUMENT), reason="invalid_did_document", attempts=2),
    Case(name="no key", fault=_at_plc(FaultKind.NO_KEY), reason="no_key", attempts=2),
    Case(name="no pds", fault=_at_plc(FaultKind.NO_PDS), reason="no_pds", attempts=2),
    Case(name="pds gone", prepare=lambda network, did: network.world.name_pds(did, SILENT), reason="host_down"),
    Case(
        name="tombstone",
        prepare=lambda network, did: network.world.tombstone(did),
        state="inactive",
        reason="deleted",
        attempts=0,
    ),
    _status("deactivated"),
    _status("takendown"),
    _status("suspended"),
    _status("deleted"),
    Case(name="record of 1 MiB", prepare=_large(MIB), state="synced", records=13),
    Case(name="record of 1 MiB and 1", prepare=_large(MIB + 1), state="synced", records=12),
)


@pytest.fixture
def bad_scene(make_scene: MakeScene) -> Scene:
    """All cases, an account each, on three hosts."""
    scene = make_scene(accounts=len(CASES), hosts=3, sizes=tuple(12 if case.records else 0 for case in CASES))
    scene.env["BACKFILLER_MAX_REPO_BYTES"] = str(16 * MIB)
    faults = []
    for case, did in zip(CASES, scene.network.dids(), strict=True):
        if case.prepare is not None:
            case.prepare(scene.network, did)
        if case.fault is not None:
            faults.append(case.fault(did))
    scene.network.set_faults(faults)
    return scene


def _dids_file(scene: Scene) -> str:
    """A file as people write them: blank lines, comments, a DID twice, one that does not exist."""
    first, *others = scene.network.dids()
    path = scene.folder / "dids.txt"
    lines = ["# accounts", "", first, *others, "   ", f"{STRANGER}  # nobody", first, "  # the end"]
    path.write_text("\n".join(lines))
    return str(path)


def _mistakes(case: Case, row: Row) -> list[str]:
    told = [f"{name} is {found!r} and should be {wanted!r}" for name, found, wanted in (
        ("state", row.state, case.state),
        ("reason", row.reason, case.reason),
        ("attempts", row.attempts, row.attempts if case.attempts is None else case.attempts),
        ("records", row.records, case.records if case.state == "synced" else row.records),
    ) if found != wanted]  # fmt: skip
    if case.state == "quarantined" and not row.error:
        told.append("no text says why")
    return [f"{case.name}: {each} ({row.error})" for each in told]


def test_everything_that_can_be_wrong_with_a_repo_ends_with_a_state_and_a_reason_and_holds_up_nobody(
    bad_scene: Scene,
) -> None:
    scene = bad_scene
    scene.ingester(options=["--check-order"])
    out = scene.backfill("--dids-file", _dids_file(scene), code=3)

    rows = scene.rows()
    dids = dict(zip((case.name for case in CASES), scene.network.dids(), strict=True))
    assert set(rows) == {*scene.network.dids(), STRANGER}
    mistakes = [each for case in CASES for each in _mistakes(case, rows[dids[case.name]])]
    assert not mistakes, "\n".join(mistakes)
    assert (rows[STRANGER].state, rows[STRANGER].reason) == ("quarantined", "did_not_found")
    unfired = {kind for kind, count in scene.network.fault_counts().items() if not count}
    assert not unfired, f"these faults never fired: {unfired}"

    # Nothing of a repo that was refused has arrived, and everything of the others.
    refused = [dids[case.name] for case in CASES if case.state == "quarantined"]
    assert not scene.differences(leaving_out=refused)
    assert not any(rows[did].touched for did in refused)
    delivered = scene.delivered()
    assert not set(refused) & set(delivered)
    for status in ("deactivated", "takendown", "suspended", "deleted"):
        assert (delivered[dids[status]].active, delivered[dids[status]].status) == (False, status)
        assert rows[dids[status]].told == status
    assert dids["well and empty"] not in delivered, "a repo without a record sends nothing"

    # The record that is too large is left out, with a letter that says so, and is all that is.
    assert [(each.did, each.path, each.type, each.reason, each.size) for each in scene.letters()] == [
        (dids["record of 1 MiB and 1"], "com.example.large/large", "CREATE", "record_too_large", MIB + 1)
    ]
    assert "dead letters 1" in out

    # Who reads only the summary knows who was given up, and why.
    for did in [*refused, STRANGER]:
        assert any(did in line and str(rows[did].reason) in line for line in out.splitlines()), did
