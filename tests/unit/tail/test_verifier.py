from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cbor2
import orjson
import pytest
from cbrrr import encode_dag_cbor
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto.limits import DEFAULT_LIMITS
from relay.atproto.nsid_filter import NsidFilter
from relay.ipc.arena import Arena
from relay.ipc.child import Pipe
from relay.model import RecordEncoding
from relay.pb.encode import decode_operation, split_operations
from relay.tail import messages as m
from relay.tail import verifier
from relay.tail.messages import FrameFlag, FrameResult, FramesVerified, FrameToVerify, Outcome, VerifyFrames
from relay.tail.verifier import FrameVerifier, Verdict, Verifier, VerifierSettings
from tests.support.live import TIME, TIME_US, frame, make_commit, rev_of, sync_frame
from tests.support.repos import DID, Signer, build_tree, cid_of, make_records

SIGNER = Signer()
PATHS = [b"app.bsky.feed.post/3k%02d" % number for number in range(20)]
BEFORE = make_records(PATHS)
POST, LIKE = b"app.bsky.feed.post/new", b"app.bsky.feed.like/new"
NEW = make_records([POST, LIKE])
ALL = NsidFilter.parse([])


def _settings(**changes: Any) -> VerifierSettings:
    usual: dict[str, Any] = {
        "encoding": RecordEncoding.JSON,
        "signatures": True,
        "proofs": True,
        "max_operation_bytes": 1 << 20,
        "limits": DEFAULT_LIMITS,
        "log_level": "error",
        "log_format": "text",
    }
    return VerifierSettings(**usual | changes)


def _verdict(
    data: bytes,
    *,
    seq: int = 7,
    did: str = DID,
    key: str | None = SIGNER.multikey,
    flags: int = 0,
    wanted: NsidFilter = ALL,
    **settings: Any,
) -> Verdict:
    envelope = FrameToVerify(seq, 0, len(data), did, key, flags)
    return FrameVerifier(_settings(**settings)).verify(data, envelope, wanted, TIME_US)


def _operations(payload: bytes) -> list[Any]:
    return [decode_operation(payload[at : at + size]) for at, size in split_operations(payload)]


CHANGES: dict[bytes, bytes | None] = {POST: NEW[POST], PATHS[3]: NEW[LIKE], PATHS[5]: None}
COMMIT = make_commit(BEFORE, CHANGES)


@pytest.mark.parametrize("encoding", list(RecordEncoding))
def test_a_commit_becomes_its_operations(encoding: RecordEncoding) -> None:
    result, payload = _verdict(COMMIT.frame, encoding=encoding)
    assert (result.outcome, result.reason) == (Outcome.COMMIT, None)
    assert (result.rev, result.since, result.time_us) == (COMMIT.rev, COMMIT.since, TIME_US)
    assert (result.data, result.prev_data, result.starting_data) == (COMMIT.data, COMMIT.prev_data, COMMIT.prev_data)
    assert (result.ops_total, result.operations, result.length, result.is_first) == (3, 3, len(payload), False)
    assert (result.updates, result.deletes) == (1, 1)
    create, update, delete = _operations(payload)
    for operation, path in ((create, POST), (update, PATHS[3]), (delete, PATHS[5])):
        assert f"{operation.collection}/{operation.rkey}".encode() == path
        assert (operation.did, operation.rev, operation.seq) == (DID, COMMIT.rev, 7)
        assert (operation.source, operation.time_us) == (2, TIME_US)
    assert [operation.type for operation in (create, update, delete)] == [1, 2, 3]
    if encoding is RecordEncoding.JSON:
        assert orjson.loads(create.record_json) == cbor2.loads(NEW[POST])
        assert orjson.loads(update.record_json) == cbor2.loads(NEW[LIKE])
    else:
        assert (create.record_cbor, update.record_cbor) == (NEW[POST], NEW[LIKE])
    assert create.cid.startswith("bafyrei")
    assert (delete.cid, delete.WhichOneof("record")) == ("", None)


def test_a_record_that_json_cannot_carry_travels_as_it_is() -> None:
    odd = encode_dag_cbor({"$type": "app.bsky.feed.post", "n": 1 << 60})
    (operation,) = _operations(_verdict(make_commit(BEFORE, {POST: odd}).frame).payload)
    assert operation.record_cbor == odd


def test_an_operation_that_is_too_large_is_told_and_the_others_go_on() -> None:
    large = encode_dag_cbor({"text": "x" * 3000})
    commit = make_commit(BEFORE, {POST: large, LIKE: NEW[LIKE]})
    result, payload = _verdict(commit.frame, max_operation_bytes=2000)
    assert [(each[0], each[1], each[3], each[4]) for each in result.refused] == [
        ("app.bsky.feed.post", "new", "operation_too_large", len(large))
    ]
    assert [operation.collection for operation in _operations(payload)] == ["app.bsky.feed.like"]
    assert (result.operations, result.ops_total) == (1, 2)


@pytest.mark.parametrize(
    ("sought", "found"),
    [
        (["app.bsky.feed.post"], 2),
        (["app.bsky.feed.like", "com.example.other"], 0),
        (["com.example.other"], 0),
        ([], 0),
    ],
)
def test_a_look_tells_how_many_records_a_commit_leaves_in_sought_collections(sought: list[str], found: int) -> None:
    """Without a key; a delete leaves nothing. CHANGES: a create, an update and a delete of posts."""
    envelope = FrameToVerify(7, 0, len(COMMIT.frame), DID, None, FrameFlag.LOOK_ONLY)
    asked = NsidFilter.parse(sought) if sought else None
    result, payload = FrameVerifier(_settings()).verify(COMMIT.frame, envelope, ALL, TIME_US, asked)
    assert (result.outcome, result.operations, result.rev, payload) == (Outcome.LOOKED, found, COMMIT.rev, b"")


def test_only_wanted_operations_are_encoded_and_none_if_not_asked() -> None:
    wanted = NsidFilter.parse(["app.bsky.feed.like"])
    result, payload = _verdict(COMMIT.frame, wanted=wanted)
    assert (result.outcome, result.operations, result.ops_total, payload) == (Outcome.COMMIT, 0, 3, b"")
    result, payload = _verdict(COMMIT.frame, flags=FrameFlag.PROVE_ONLY)
    assert (result.outcome, result.operations, payload) == (Outcome.COMMIT, 0, b"")


def test_every_kind_of_frame_has_its_outcome() -> None:
    data = build_tree({PATHS[0]: cid_of(b"x")})[0]
    sync = _verdict(sync_frame(SIGNER, data, rev_of(5))).result
    assert (sync.outcome, sync.rev, sync.data) == (Outcome.SYNC, rev_of(5), data)
    account = _verdict(frame("#account", {"seq": 7, "did": DID, "time": TIME, "active": False, "status": "deleted"}))
    assert (account.result.outcome, account.result.active, account.result.status) == (Outcome.ACCOUNT, False, "deleted")
    identity = _verdict(frame("#identity", {"seq": 7, "did": DID, "time": TIME, "handle": "a.test"}), key=None)
    assert (identity.result.outcome, identity.result.handle) == (Outcome.IDENTITY, "a.test")
    assert _verdict(frame("#handle", {"seq": 7})).result.outcome == Outcome.SKIPPED
    first = _verdict(make_commit({}, dict(NEW)).but(since=None, prev_data=None).frame).result
    assert (first.outcome, first.is_first) == (Outcome.COMMIT, True)
    broken = _verdict(COMMIT.but(since=None, prev_data=None).frame).result
    assert (broken.outcome, broken.reason, broken.rev) == (Outcome.UNPROVABLE, "not_first", COMMIT.rev)
    assert broken.data == COMMIT.data


@pytest.mark.parametrize(
    ("data", "outcome", "reason"),
    [
        (b"", Outcome.BAD_FRAME, "invalid_frame"),
        (b"\xff" * 40, Outcome.BAD_FRAME, "invalid_frame"),
        (COMMIT.but(extra={"ops": None}).frame, Outcome.INVALID, "invalid_message"),
        (COMMIT.but(signer=Signer(seed=2)).frame, Outcome.INVALID, "bad_signature"),
        (COMMIT.but(nodes={}).frame, Outcome.INVALID, "partial_tree"),
        (COMMIT.but(seq=8).frame, Outcome.INVALID, "wrong_envelope"),
        (COMMIT.but(did="did:plc:z72i7hdynmk6r22z27h6tvur").frame, Outcome.INVALID, "wrong_envelope"),
    ],
)  # fmt: skip
def test_a_frame_that_is_refused_says_why_and_gives_no_operation(data: bytes, outcome: Outcome, reason: str) -> None:
    result, payload = _verdict(data)
    assert (result.seq, result.outcome, result.reason, payload) == (7, outcome, reason, b"")
    if outcome is Outcome.INVALID:
        assert result.rev == COMMIT.rev


def test_without_a_key_nothing_passes_unless_signatures_are_off() -> None:
    assert _verdict(COMMIT.frame, key=None).result.reason == m.NO_KEY
    assert _verdict(COMMIT.frame, key="zNoKey").result.reason == "invalid_key"
    assert _verdict(COMMIT.frame, key=None, signatures=False).result.outcome == Outcome.COMMIT
    assert _verdict(COMMIT.but(nodes={}).frame, proofs=False).result.outcome == Outcome.COMMIT


def test_a_mistake_of_ours_drops_the_frame_and_not_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(verifier, "verify_commit", fail)
    result, payload = _verdict(COMMIT.frame)
    assert (result.outcome, result.reason, payload) == (Outcome.INVALID, m.FAILED, b"")


@given(seed=st.integers(0, 1 << 32))
def test_damaged_frames_always_have_an_outcome(seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(COMMIT.frame)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        data[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
    result, _ = _verdict(bytes(data))
    assert result.reason != m.FAILED
    if result.outcome == Outcome.COMMIT:
        assert result.data == COMMIT.data


# ---- the loop over slots -------------------------------------------------------------------------------------------


class _Worker:
    """A worker in this process, with the supervisor's end of its pipe; it runs until there is nothing more to read."""

    def __init__(self, slot_bytes: int) -> None:
        ours, theirs = multiprocessing.Pipe(duplex=True)
        self.pipe, self._theirs = Pipe(ours), Pipe(theirs)
        self.frames = Arena("test-frames", 2, 1 << 20)
        self.operations = Arena("test-operations", 3, slot_bytes)
        self._worker = Verifier(self._theirs, self.frames, self.operations, _settings())

    def send_job(self, job: int, slot: int, frames: list[bytes]) -> None:
        envelopes, at = [], 0
        for number, data in enumerate(frames):
            envelopes.append(FrameToVerify(number + 1, at, len(data), DID, SIGNER.multikey, 0))
            at += len(data)
        self.frames.view(slot, at)[:] = b"".join(frames)
        self.pipe.send(m.to_wire(VerifyFrames(job, slot, at, [], TIME_US, envelopes)))

    def run(self, slots: list[int]) -> list[FramesVerified]:
        self.pipe.send(m.to_wire(m.FreeSlots(slots)))
        self.pipe.send(m.to_wire(m.Stop()))
        self._worker.run()
        self._theirs.close()
        found = []
        try:
            while True:
                found.append(m.from_wire(self.pipe.receive()))
        except EOFError:
            return found

    def payload(self, message: FramesVerified) -> bytes:
        if message.inline is not None or message.slot is None:
            return message.inline or b""
        return bytes(self.operations.view(message.slot, message.size))

    def close(self) -> None:
        self.pipe.close()
        self._theirs.close()
        self.frames.close()
        self.operations.close()


@contextmanager
def _worker(slot_bytes: int = 1 << 16) -> Iterator[_Worker]:
    worker = _Worker(slot_bytes)
    try:
        yield worker
    finally:
        worker.close()


def _frames(count: int) -> list[bytes]:
    return [make_commit(BEFORE, {POST: NEW[POST]}, seq=seq).frame for seq in range(1, count + 1)]


def _segments(worker: _Worker, messages: list[FramesVerified]) -> list[tuple[int, list[int]]]:
    """Return (seq, seqs of the operations that stand at its place)."""
    found = []
    for message in messages:
        payload = worker.payload(message)
        for result in message.results:
            assert isinstance(result, FrameResult)
            part = payload[result.offset : result.offset + result.length]
            found.append((result.seq, [operation.seq for operation in _operations(part)]))
    return found


def test_results_come_in_order_with_their_operations_in_one_slot() -> None:
    with _worker() as worker:
        frames = _frames(4)
        frames[2] = b"garbage"
        worker.send_job(5, 1, frames)
        (message,) = worker.run([0])
        assert (message.job, message.slot, message.inline, message.done) == (5, 0, None, True)
        assert _segments(worker, [message]) == [(1, [1]), (2, [2]), (3, []), (4, [4])]
        assert message.results[2].outcome == Outcome.BAD_FRAME
        assert message.cpu_s > 0


def test_operations_that_do_not_fit_a_slot_take_the_next_one() -> None:
    with _worker(slot_bytes=500) as worker:
        worker.send_job(5, 0, _frames(5))
        found = worker.run([2, 0, 1])
        assert [message.slot for message in found] == [2, 0, 1]
        assert [message.done for message in found] == [False, False, True]
        assert all(message.size <= 500 and message.inline is None for message in found)
        assert _segments(worker, found) == [(seq, [seq]) for seq in range(1, 6)]


def test_one_commit_with_more_than_a_slot_goes_by_the_pipe_and_holds_a_slot() -> None:
    with _worker(slot_bytes=100) as worker:
        worker.send_job(5, 0, _frames(2))
        found = worker.run([1, 0])
        assert [message.slot for message in found] == [1, 0]
        assert all(message.inline is not None and len(message.inline) == message.size for message in found)
        assert _segments(worker, found) == [(1, [1]), (2, [2])]


def test_a_job_without_operations_needs_no_slot() -> None:
    with _worker() as worker:
        worker.send_job(5, 0, [b"garbage"])
        worker.send_job(6, 1, [])
        found = worker.run([])
        assert [(message.job, message.slot, message.done) for message in found] == [(5, None, True), (6, None, True)]


def test_a_worker_never_loads_grpc() -> None:
    program = "import sys, relay.tail.verifier; sys.exit(any(name.startswith('grpc') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
