from __future__ import annotations

from typing import Any

import pytest
from cbrrr import CID, encode_dag_cbor
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto.errors import (
    AtprotoError,
    BadSignature,
    CommitMismatch,
    FutureRev,
    InvalidCbor,
    InvalidProof,
    MissingBlock,
    OldCommitVersion,
    PartialTree,
    RecordTooLarge,
    WrongDid,
    WrongPrevData,
)
from relay.atproto.frames import CommitMessage, SyncMessage, parse_frame
from relay.atproto.keys import PublicKey, parse_multikey
from relay.atproto.limits import Limits
from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.proof_tree import EMPTY_TREE_CID
from relay.atproto.verify_live import UNPROVABLE_REASONS, Unprovable, VerifiedCommit, verify_commit, verify_sync
from tests.support.live import TIME_US, LiveCommit, Op, make_commit, rev_of, sync_frame
from tests.support.repos import DID, Signer, build_tree, cid_of, commit_block, make_records, write_car

ALL = NsidFilter.parse([])
SIGNER = Signer()
KEY = parse_multikey(SIGNER.multikey)
PATHS = [b"app.bsky.feed.post/3k%02d" % number for number in range(40)]
BEFORE = make_records(PATHS[:30])
POST, LIKE = b"app.bsky.feed.post/new", b"app.bsky.feed.like/new"
NEW = make_records([POST, LIKE])


def _message(commit: LiveCommit) -> CommitMessage:
    message = parse_frame(commit.frame)
    assert isinstance(message, CommitMessage)
    return message


def _verify(
    commit: LiveCommit, *, key: PublicKey | None = KEY, wanted: NsidFilter = ALL, **more: Any
) -> VerifiedCommit | Unprovable:
    return verify_commit(_message(commit), key=key, wanted=wanted, now_us=TIME_US, **more)


def _refusal(commit: LiveCommit, **more: Any) -> AtprotoError:
    with pytest.raises(AtprotoError) as caught:
        _verify(commit, **more)
    return caught.value


def _unprovable(commit: LiveCommit) -> str:
    found = _verify(commit)
    assert isinstance(found, Unprovable)
    assert (found.did, found.rev, found.data) == (DID, commit.rev, commit.data)
    assert found.reason in UNPROVABLE_REASONS
    return found.reason


CREATE = make_commit(BEFORE, {POST: NEW[POST]})


@pytest.mark.parametrize("p256", [False, True])
def test_a_commit_is_proved_with_its_operations(p256: bool) -> None:
    signer = Signer(p256=p256)
    changes: dict[bytes, bytes | None] = {POST: NEW[POST], PATHS[3]: NEW[LIKE], PATHS[5]: None}
    commit = make_commit(BEFORE, changes, signer=signer)
    message = _message(commit)
    found = verify_commit(message, key=parse_multikey(signer.multikey), wanted=ALL, now_us=TIME_US)
    assert isinstance(found, VerifiedCommit)
    assert (found.did, found.rev, found.since) == (DID, commit.rev, commit.since)
    assert (found.data, found.prev_data, found.starting_data) == (commit.data, commit.prev_data, commit.prev_data)
    assert found.commit_cid == message.commit
    assert (found.ops_total, found.is_first) == (3, False)
    told = [(str(write.action), f"{write.collection}/{write.rkey}".encode(), write.record) for write in found.writes]
    assert told == [("create", POST, NEW[POST]), ("update", PATHS[3], NEW[LIKE]), ("delete", PATHS[5], None)]
    assert [write.cid for write in found.writes] == [cid_of(NEW[POST]), cid_of(NEW[LIKE]), None]


def test_only_wanted_operations_are_given_and_all_are_checked() -> None:
    commit = make_commit(BEFORE, {POST: NEW[POST], LIKE: NEW[LIKE]})
    found = _verify(commit, wanted=NsidFilter.parse(["app.bsky.feed.like"]))
    assert isinstance(found, VerifiedCommit)
    assert [write.collection for write in found.writes] == ["app.bsky.feed.like"]
    assert found.ops_total == 2
    lie = commit.but(records={cid_of(NEW[LIKE]): NEW[LIKE]})
    assert isinstance(_refusal(lie, wanted=NsidFilter.parse(["app.bsky.feed.like"])), MissingBlock)


def test_an_update_to_the_same_value_is_no_mistake() -> None:
    found = _verify(make_commit(BEFORE, {PATHS[0]: BEFORE[PATHS[0]]}))
    assert isinstance(found, VerifiedCommit)
    assert found.starting_data == found.data


def test_a_commit_without_operations_needs_no_tree() -> None:
    empty = make_commit(BEFORE, {}).but(nodes={})
    found = _verify(empty)
    assert isinstance(found, VerifiedCommit)
    assert (found.starting_data, found.ops_total) == (empty.data, 0)
    assert isinstance(_refusal(empty.but(prev_data=EMPTY_TREE_CID)), WrongPrevData)


def test_a_first_commit_leads_to_the_empty_tree() -> None:
    first = make_commit({}, dict(NEW)).but(since=None, prev_data=None)
    found = _verify(first)
    assert isinstance(found, VerifiedCommit)
    assert found.is_first
    assert found.starting_data == EMPTY_TREE_CID
    without_records = make_commit({}, {}).but(since=None, prev_data=None)
    found = _verify(without_records)
    assert isinstance(found, VerifiedCommit)
    assert found.is_first


def test_a_first_commit_that_leaves_something_is_a_break() -> None:
    assert _unprovable(CREATE.but(since=None, prev_data=None)) == "not_first"


def test_without_prev_data_the_tree_before_is_told() -> None:
    found = _verify(CREATE.but(prev_data=None))
    assert isinstance(found, VerifiedCommit)
    assert (found.prev_data, found.starting_data) == (None, CREATE.prev_data)
    assert not found.is_first


def test_without_prev_data_and_with_too_few_nodes_it_is_a_break() -> None:
    assert _unprovable(CREATE.but(prev_data=None, nodes={})) == "no_prev_data"


@pytest.mark.parametrize("path", [PATHS[2], PATHS[4]])
def test_an_update_or_delete_without_prev_is_a_break(path: bytes) -> None:
    commit = make_commit(BEFORE, {path: NEW[POST] if path == PATHS[2] else None})
    (op,) = commit.ops
    assert _unprovable(commit.but(ops=(Op(action=op.action, path=path, cid=op.cid, prev=None),))) == "no_prev"


def test_two_operations_on_one_path_are_a_break_whatever_is_missing() -> None:
    # As the reference PDS sends it: without the record that was replaced at once.
    lost = Op(action="create", path=POST, cid=cid_of(b"lost"), prev=None)
    assert _unprovable(CREATE.but(ops=(lost, *CREATE.ops))) == "duplicate_path"


@pytest.mark.parametrize("flag", ["tooBig", "rebase"])
def test_flags_of_old_software_turn_missing_blocks_into_a_break(flag: str) -> None:
    reason = {"tooBig": "too_big", "rebase": "rebase"}[flag]
    assert _unprovable(CREATE.but(extra={flag: True}, records={})) == reason
    assert _unprovable(CREATE.but(extra={flag: True}, nodes={})) == reason
    assert isinstance(_verify(CREATE.but(extra={flag: True})), VerifiedCommit)


def test_each_contradiction_has_its_type() -> None:
    other = Signer(seed=2)
    large = encode_dag_cbor({"text": "x" * 100})
    outside = commit_block(CREATE.data, did="did:plc:z72i7hdynmk6r22z27h6tvur", rev=CREATE.rev, signer=SIGNER)
    wrong: list[tuple[LiveCommit, type[AtprotoError], dict[str, Any]]] = [
        (CREATE.but(signer=other), BadSignature, {}),
        (CREATE.but(block=commit_block(CREATE.data, rev=CREATE.rev, signer=SIGNER, high_s=True)), BadSignature, {}),
        (CREATE.but(block=outside), WrongDid, {}),
        (CREATE.but(block=commit_block(CREATE.data, rev=rev_of(9), signer=SIGNER)), CommitMismatch, {}),
        (CREATE.but(block=commit_block(CREATE.data, rev=CREATE.rev, signer=SIGNER, version=2)), OldCommitVersion, {}),
        (CREATE.but(extra={"commit": CID(cid_of(b"other"))}), CommitMismatch, {}),
        (CREATE.but(records={}), MissingBlock, {}),
        (CREATE.but(nodes={}), PartialTree, {}),
        (CREATE.but(prev_data=cid_of(b"other")), WrongPrevData, {}),
        (CREATE.but(ops=()), WrongPrevData, {}),
        (make_commit(BEFORE, {POST: large}), RecordTooLarge, {"limits": Limits(record_bytes=100)}),
        (make_commit(BEFORE, {POST: encode_dag_cbor(["no map"])}), InvalidCbor, {}),
        (make_commit(BEFORE, {POST: NEW[POST]}, number=301_000_000), FutureRev, {}),
    ]
    for commit, kind, more in wrong:
        assert type(_refusal(commit, **more)) is kind, kind
    (op,) = CREATE.ops
    for lie in (
        Op(action="create", path=LIKE, cid=op.cid, prev=None),
        Op(action="update", path=POST, cid=op.cid, prev=cid_of(b"other")),
        Op(action="delete", path=POST, cid=None, prev=cid_of(b"other")),
    ):
        assert isinstance(_refusal(CREATE.but(ops=(lie,))), InvalidProof)


def test_a_rev_five_minutes_ahead_is_taken() -> None:
    assert isinstance(_verify(make_commit(BEFORE, {POST: NEW[POST]}, number=299_000_000)), VerifiedCommit)


def test_a_car_without_the_commit_or_with_another_root_is_refused() -> None:
    block = CREATE.commit
    sections = [*CREATE.nodes.items(), *CREATE.records.items()]
    without = CREATE.but(extra={"blocks": write_car(cid_of(block), sections)})
    assert isinstance(_refusal(without), MissingBlock)
    other = CREATE.but(extra={"blocks": write_car(cid_of(b"other"), [*sections, (cid_of(block), block)])})
    assert isinstance(_refusal(other), CommitMismatch)
    two_roots = write_car([cid_of(block), cid_of(b"other")], [*sections, (cid_of(block), block)])
    assert isinstance(_verify(CREATE.but(extra={"blocks": two_roots})), VerifiedCommit)


def test_without_a_key_the_signature_is_not_checked() -> None:
    assert isinstance(_verify(CREATE.but(signer=Signer(seed=2)), key=None), VerifiedCommit)


def test_without_proofs_the_message_is_believed_and_records_must_be_there() -> None:
    blind = CREATE.but(nodes={}, prev_data=cid_of(b"believed"))
    found = _verify(blind, check_proof=False)
    assert isinstance(found, VerifiedCommit)
    assert found.starting_data == cid_of(b"believed")
    assert isinstance(_refusal(blind.but(records={}), check_proof=False), MissingBlock)


# ---- #sync ---------------------------------------------------------------------------------------------------------


def _sync(frame: bytes) -> SyncMessage:
    message = parse_frame(frame)
    assert isinstance(message, SyncMessage)
    return message


def test_a_sync_tells_the_signed_state() -> None:
    data = build_tree({PATHS[0]: cid_of(b"x")})[0]
    # After a migration the message's rev may differ: the signed one counts.
    message = _sync(sync_frame(SIGNER, data, rev_of(5), outer_rev=rev_of(6)))
    found = verify_sync(message, key=KEY, now_us=TIME_US)
    assert (found.did, found.rev, found.data) == (DID, rev_of(5), data)


def test_a_sync_that_is_not_the_accounts_is_refused() -> None:
    data = cid_of(b"data")
    with pytest.raises(BadSignature):
        verify_sync(_sync(sync_frame(Signer(seed=2), data, rev_of(5))), key=KEY, now_us=TIME_US)
    with pytest.raises(FutureRev):
        verify_sync(_sync(sync_frame(SIGNER, data, rev_of(400_000_000))), key=KEY, now_us=TIME_US)


# ---- hostile -------------------------------------------------------------------------------------------------------

MIXED = make_commit(BEFORE, {POST: NEW[POST], PATHS[3]: None, PATHS[7]: NEW[LIKE]})


@given(st.data())
def test_damaged_blocks_give_typed_errors_and_never_other_operations(data: st.DataObject) -> None:
    blocks = bytearray(MIXED.blocks)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(blocks) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "end", "insert"])):
            case "flip":
                blocks[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del blocks[at : at + data.draw(st.integers(1, 40))]
            case "end":
                del blocks[at:]
            case _:
                blocks[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not blocks:
            break
    try:
        found = _verify(MIXED.but(extra={"blocks": bytes(blocks)}))
    except AtprotoError:
        return
    # What was damaged was not needed: a CID that nobody looks at.
    assert found == _verify(MIXED)
