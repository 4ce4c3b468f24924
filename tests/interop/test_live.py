"""Live commits of production, commits that indigo captured, and the commit proofs of the interop tests: proved, and undone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from relay.atproto.cid import cid_text, parse_cid_text
from relay.atproto.errors import AtprotoError, PartialTree, WrongPrevData
from relay.atproto.frames import CommitMessage, SyncMessage
from relay.atproto.inversion import Change, invert
from relay.atproto.keys import parse_multikey
from relay.atproto.limits import DEFAULT_LIMITS
from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.verify_live import Unprovable, VerifiedCommit, verify_commit, verify_sync
from relay.model import RecordEncoding
from relay.pb.encode import decode_operation, split_operations
from relay.tail.messages import FAILED, FrameToVerify, Outcome
from relay.tail.verifier import FrameVerifier, VerifierSettings
from tests.interop.test_frames import CORPUS, NAMES, _keys, _messages
from tests.support.data import data_json, expected, frames_of, needs_data
from tests.support.live import proof_of
from tests.support.repos import build_tree

pytestmark = needs_data

ALL = NsidFilter.parse([])
NOW_US = 1_790_000_000_000_000  # after all of them
FRAMES = CORPUS + "frames-000-074.bin"
PROOFS = "bluesky-social/atproto-interop-tests/firehose/commit-proof-fixtures.json"
# Commits of software that did not name the tree before, nor carry what is needed to find it.
OLD = ("firehose_commit_4621317030.json", "firehose_commit_4621317332.json")


@pytest.mark.parametrize("name", NAMES)
def test_commits_are_proved_and_lead_to_the_tree_before(name: str) -> None:
    keys = _keys(name)
    for message, answer in zip(_messages(name), expected()["frames"][name], strict=True):
        if isinstance(message, SyncMessage):
            key = keys[message.did]
            assert key is not None
            state = verify_sync(message, key=parse_multikey(key), now_us=NOW_US)
            assert (state.did, state.rev) == (message.did, message.rev)
        if not isinstance(message, CommitMessage):
            continue
        text = keys.get(message.did)
        assert (text is not None) == (answer.get("signature_valid") is True)
        found = verify_commit(message, key=None if text is None else parse_multikey(text), wanted=ALL, now_us=NOW_US)
        if name.endswith(OLD):
            assert isinstance(found, Unprovable)
            assert found.reason == "no_prev_data"
            continue
        assert isinstance(found, VerifiedCommit)
        assert answer["ops_proved"] is True
        assert (found.rev, cid_text(found.data), found.ops_total) == (answer["rev"], answer["data"], answer["ops"])
        assert found.starting_data is not None
        if answer["prevData"] is not None:
            assert cid_text(found.starting_data) == answer["prevData"]
        assert [write.cid for write in found.writes] == [op.cid for op in message.ops]


def test_the_tree_before_is_found_where_the_message_does_not_name_it() -> None:
    for message in _messages(FRAMES):
        assert isinstance(message, CommitMessage)
        fields = {name: getattr(message, name) for name in message.__dataclass_fields__}
        found = verify_commit(CommitMessage(**fields | {"prev_data": None}), key=None, wanted=ALL, now_us=NOW_US)
        assert isinstance(found, VerifiedCommit)
        assert found.starting_data == message.prev_data


@pytest.mark.parametrize("place", range(6))
def test_the_commit_proofs_of_the_interop_tests_lead_to_the_root_before(place: int) -> None:
    fixture = data_json(PROOFS)[place]
    value = parse_cid_text(fixture["leafValue"])
    added, deleted = [key.encode() for key in fixture["adds"]], [key.encode() for key in fixture["dels"]]
    after = {key.encode(): value for key in fixture["keys"]} | dict.fromkeys(added, value)
    after = {key: cid for key, cid in after.items() if key not in deleted}
    root, built = build_tree(after)
    assert cid_text(root) == fixture["rootAfterCommit"]
    nodes = dict(built)
    named = {parse_cid_text(text) for text in fixture["blocksInProof"]}
    assert named <= nodes.keys()
    assert named >= proof_of(root, nodes, after, [*added, *deleted])
    blocks = {cid[4:]: nodes[cid] for cid in named}
    changes = [Change(key, value, None) for key in added] + [Change(key, None, value) for key in deleted]
    assert cid_text(invert(root, blocks, changes)) == fixture["rootBeforeCommit"]


def _verifier(encoding: RecordEncoding = RecordEncoding.JSON) -> FrameVerifier:
    return FrameVerifier(
        VerifierSettings(
            encoding=encoding,
            signatures=True,
            proofs=True,
            max_operation_bytes=1 << 20,
            limits=DEFAULT_LIMITS,
            log_level="error",
            log_format="text",
        )
    )


def _envelopes() -> list[FrameToVerify]:
    keys = _keys(FRAMES)
    answers: list[dict[str, Any]] = expected()["frames"][FRAMES]
    return [
        FrameToVerify(answer["seq"], 0, answer["size"], answer["did"], keys[answer["did"]], 0) for answer in answers
    ]


def test_the_worker_gives_the_operations_of_production_frames() -> None:
    verifier = _verifier()
    for frame, envelope, message in zip(frames_of(FRAMES), _envelopes(), _messages(FRAMES), strict=True):
        assert isinstance(message, CommitMessage)
        result, payload = verifier.verify(frame, envelope, ALL, NOW_US)
        assert (result.seq, result.outcome) == (message.seq, Outcome.COMMIT)
        operations = [decode_operation(payload[at : at + size]) for at, size in split_operations(payload)]
        told = [(f"{each.collection}/{each.rkey}", each.cid, each.rev, each.time_us) for each in operations]
        assert told == [
            (op.path, "" if op.cid is None else cid_text(op.cid), message.rev, message.time_us) for op in message.ops
        ]


def test_damaged_production_frames_have_an_outcome_and_never_pass_as_another_commit() -> None:
    verifier, rng = _verifier(), random.Random(20260704)
    outcomes: set[int] = set()
    for frame, envelope in zip(frames_of(FRAMES), _envelopes(), strict=True):
        whole = verifier.verify(frame, envelope, ALL, NOW_US)
        for _ in range(12):
            damaged = bytearray(frame)
            for _ in range(rng.choice((1, 1, 3))):
                at = rng.randrange(len(damaged))
                damaged[at : at + rng.choice((0, 1, 1, 30))] = rng.randbytes(rng.choice((0, 1, 1, 5)))
            result, payload = verifier.verify(bytes(damaged), envelope, ALL, NOW_US)
            outcomes.add(result.outcome)
            assert result.reason != FAILED
            if result.outcome == Outcome.COMMIT:  # what nobody signs was changed: the time, a CID that is not used
                assert result._replace(time_us=whole.result.time_us, since=whole.result.since) == whole.result._replace(
                    length=result.length, offset=result.offset
                )
            else:
                assert not payload
    assert outcomes >= {Outcome.BAD_FRAME, Outcome.INVALID}


def test_production_commits_with_a_lie_in_them_are_refused() -> None:
    for message in _messages(FRAMES):
        assert isinstance(message, CommitMessage)
        fields = {name: getattr(message, name) for name in message.__dataclass_fields__}
        for lie, kinds in (
            ({"prev_data": message.commit}, (WrongPrevData,)),
            ({"ops": ()}, (WrongPrevData,)),
            ({"ops": (*message.ops, *_messages_op(message))}, (AtprotoError,)),
        ):
            with pytest.raises(kinds):
                verify_commit(CommitMessage(**fields | lie), key=None, wanted=ALL, now_us=NOW_US)


def _messages_op(message: CommitMessage) -> tuple[Any, ...]:
    """Return an operation that never was: the record that was written, under another key."""
    op = message.ops[0]
    fields = {name: getattr(op, name) for name in op.__dataclass_fields__}
    return (type(op)(**fields | {"rkey": "3zzzzzzzzzzzz"}),)


def test_a_proof_that_lacks_the_top_is_partial() -> None:
    (message, *_) = _messages(FRAMES)
    assert isinstance(message, CommitMessage)
    with pytest.raises(PartialTree):
        invert(message.commit[:4] + bytes(32), {}, [Change(message.ops[0].path.encode(), message.ops[0].cid, None)])
