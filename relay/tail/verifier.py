"""The CPU process of the tail: frames in a slot become proved commits, with their operations encoded in operation slots.

Stateless but for parsed keys and filters: killed at any moment it loses nothing but its own work. A frame never ends it, whatever
is in it. It never talks to the network or the database and never loads gRPC (a test asserts that). What it waits for: its pipe.
Back pressure: no free operation slot.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

from relay.atproto.cid import cid_text
from relay.atproto.errors import AtprotoError, InvalidFrame, InvalidMessage, NotJson
from relay.atproto.frames import (
    AccountMessage,
    Action,
    CommitMessage,
    IdentityMessage,
    Message,
    SyncMessage,
    parse_frame,
)
from relay.atproto.jsonform import record_to_json
from relay.atproto.keys import PublicKey, parse_multikey
from relay.atproto.limits import Limits
from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.verify_live import Unprovable, VerifiedCommit, Write, verify_commit, verify_sync
from relay.ipc.arena import Arena
from relay.ipc.child import Pipe, prepare_child
from relay.model import OpType, RecordEncoding
from relay.observe.log import configure, get_logger
from relay.pb.encode import encode_delete, encode_write
from relay.tail import messages as m
from relay.tail.messages import FrameFlag, FrameResult, FrameToVerify, Outcome

log = get_logger(__name__)

# Verifying makes no cycles, so the collector only costs time.
COLLECT_EVERY_JOBS: Final = 300
# A parsed key takes half a kilobyte; parsing one again takes as long as a third of the signature's check.
KEYS_KEPT: Final = 20_000
_TEXT_CHARS: Final = 500

_ACTIONS: Final = {Action.CREATE: OpType.CREATE, Action.UPDATE: OpType.UPDATE}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierSettings:
    """What every job of a verify worker has in common. `signatures`, `proofs`: whether they are checked. Sizes in bytes."""

    encoding: RecordEncoding
    signatures: bool
    proofs: bool
    max_operation_bytes: int
    limits: Limits
    log_level: str
    log_format: str


class Verdict(NamedTuple):
    """A frame's result (without a place), and its operations as wire bytes, one after another."""

    result: FrameResult
    payload: bytes


class FrameVerifier:
    """Frames in, verdicts out: all of the worker but its pipe and its slots."""

    def __init__(self, settings: VerifierSettings) -> None:
        self._settings = settings
        self._key = lru_cache(maxsize=KEYS_KEPT)(parse_multikey)

    def verify(
        self,
        frame: bytes,
        envelope: FrameToVerify,
        wanted: NsidFilter,
        now_us: int,
        sought: NsidFilter | None = None,
    ) -> Verdict:
        """Return what one frame proves. Raises nothing: whatever goes wrong with it is its outcome.

        `sought`: collections that a frame with LOOK_ONLY is asked for.
        """
        try:
            return self._verify(frame, envelope, wanted, now_us, sought)
        except Exception as exc:
            # A mistake of ours. It is reported, and the frame dropped: to end here would be to meet the same frame again.
            log.error("frame_failed", did=envelope.did, seq=envelope.seq, exc_info=True)
            return _refused(envelope.seq, Outcome.INVALID, m.FAILED, f"{type(exc).__name__}: {exc}")

    def _verify(
        self, frame: bytes, envelope: FrameToVerify, wanted: NsidFilter, now_us: int, sought: NsidFilter | None
    ) -> Verdict:
        seq = envelope.seq
        try:
            message = parse_frame(frame, limits=self._settings.limits)
        except InvalidFrame as exc:
            return _refused(seq, Outcome.BAD_FRAME, exc.reason, str(exc))
        except InvalidMessage as exc:
            return _refused(seq, Outcome.INVALID, exc.reason, str(exc), exc.rev)
        if not isinstance(message, CommitMessage | SyncMessage | AccountMessage | IdentityMessage):
            return _refused(seq, Outcome.SKIPPED, "unknown_kind", type(message).__name__)
        rev = message.rev if isinstance(message, CommitMessage | SyncMessage) else None
        if message.seq != seq or message.did != envelope.did:
            text = f"a frame of seq {message.seq} and {message.did} came as {seq} of {envelope.did}"
            return _refused(seq, Outcome.INVALID, m.WRONG_ENVELOPE, text, rev)
        if envelope.flags & FrameFlag.LOOK_ONLY:
            return _told(message, Outcome.LOOKED, rev=rev, operations=_writes_to(message, sought))
        try:
            return self._verdict(message, envelope, wanted, now_us)
        except _NoKey:
            return _refused(seq, Outcome.INVALID, m.NO_KEY, f"{message.did} has no signing key that we know", rev)
        except AtprotoError as exc:
            return _refused(seq, Outcome.INVALID, exc.reason, str(exc), rev)

    def _verdict(self, message: Message, envelope: FrameToVerify, wanted: NsidFilter, now_us: int) -> Verdict:
        settings = self._settings
        match message:
            case CommitMessage():
                proved = verify_commit(
                    message,
                    key=self._key_of(envelope),
                    wanted=wanted,
                    now_us=now_us,
                    check_proof=settings.proofs,
                    limits=settings.limits,
                )
                if isinstance(proved, Unprovable):
                    return Verdict(_unprovable(message, proved), b"")
                return self._commit(message, proved, envelope)
            case SyncMessage():
                state = verify_sync(message, key=self._key_of(envelope), now_us=now_us, limits=settings.limits)
                return _told(message, Outcome.SYNC, rev=state.rev, data=state.data)
            case AccountMessage():
                return _told(message, Outcome.ACCOUNT, active=message.active, status=message.status)
            case IdentityMessage():
                return _told(message, Outcome.IDENTITY, handle=message.handle)
        raise AssertionError(f"{type(message).__name__} was let through")

    def _key_of(self, envelope: FrameToVerify) -> PublicKey | None:
        if not self._settings.signatures:
            return None
        if envelope.key is None:
            raise _NoKey
        return self._key(envelope.key)

    def _commit(self, message: CommitMessage, commit: VerifiedCommit, envelope: FrameToVerify) -> Verdict:
        operations: list[bytes] = []
        refused: list[tuple[str, str, str, str, int]] = []
        updates = deletes = 0
        if not envelope.flags & FrameFlag.PROVE_ONLY:
            for write in commit.writes:
                operation = self._encode(message, write)
                if len(operation) > self._settings.max_operation_bytes:
                    size = len(write.record or b"")
                    text = "" if write.cid is None else cid_text(write.cid)
                    refused.append((write.collection, write.rkey, text, "operation_too_large", size))
                else:
                    operations.append(operation)
                    updates += write.action is Action.UPDATE
                    deletes += write.action is Action.DELETE
        payload = operations[0] if len(operations) == 1 else b"".join(operations)
        result = FrameResult(
            message.seq,
            Outcome.COMMIT,
            None,
            None,
            commit.rev,
            commit.since,
            commit.prev_data,
            commit.data,
            commit.starting_data,
            message.time_us,
            commit.ops_total,
            commit.is_first,
            len(operations),
            0,
            len(payload),
            refused,
            updates=updates,
            deletes=deletes,
        )
        return Verdict(result, payload)

    def _encode(self, message: CommitMessage, write: Write) -> bytes:
        action, collection, rkey, cid, record = write
        if cid is None or record is None:
            return encode_delete(
                did=message.did,
                collection=collection,
                rkey=rkey,
                rev=message.rev,
                seq=message.seq,
                time_us=message.time_us,
            )
        as_json: bytes | None = None
        if self._settings.encoding is RecordEncoding.JSON:
            try:
                as_json = record_to_json(record, limits=self._settings.limits)
            except NotJson:  # rare: it travels as it is
                pass
        return encode_write(
            _ACTIONS[action],
            did=message.did,
            collection=collection,
            rkey=rkey,
            cid=cid_text(cid),
            rev=message.rev,
            seq=message.seq,
            time_us=message.time_us,
            record_json=as_json,
            record_cbor=record if as_json is None else None,
        )


class _NoKey(Exception):
    """Signatures are checked, and the account has no key."""


def _told(
    message: CommitMessage | SyncMessage | AccountMessage | IdentityMessage, outcome: Outcome, **fields: Any
) -> Verdict:
    return Verdict(FrameResult(message.seq, outcome, time_us=message.time_us, **fields), b"")


def _writes_to(message: Message, sought: NsidFilter | None) -> int:
    """Return how many operations leave a record in one of these collections; None: in none."""
    if sought is None or not isinstance(message, CommitMessage):
        return 0
    return sum(1 for op in message.ops if op.action is not Action.DELETE and sought.wants(op.collection))


def _unprovable(message: CommitMessage, found: Unprovable) -> FrameResult:
    return FrameResult(
        message.seq,
        Outcome.UNPROVABLE,
        reason=found.reason,
        text=found.text[:_TEXT_CHARS],
        rev=found.rev,
        since=found.since,
        prev_data=found.prev_data,
        data=found.data,
        time_us=message.time_us,
        ops_total=len(message.ops),
    )


def _refused(seq: int, outcome: Outcome, reason: str, text: str, rev: str | None = None) -> Verdict:
    return Verdict(FrameResult(seq, outcome, reason=reason, text=text[:_TEXT_CHARS], rev=rev), b"")


class _Stopped(Exception):
    """The supervisor wants this worker to end, or is gone."""


def verifier_main(connection: Connection, frames: Arena, operations: Arena, settings: VerifierSettings) -> None:
    """Run until told to stop; the target of a child process."""
    prepare_child("relay-verify")
    configure(settings.log_level, settings.log_format, fields={"role": "verify"})
    gc.disable()
    gc.freeze()
    Verifier(Pipe(connection), frames, operations, settings).run()


class Verifier:
    """One job at a time, in the order in which they came."""

    def __init__(self, pipe: Pipe, frames: Arena, operations: Arena, settings: VerifierSettings) -> None:
        self._pipe, self._frames, self._operations = pipe, frames, operations
        self._verifier = FrameVerifier(settings)
        self._filter = lru_cache(maxsize=16)(NsidFilter.parse)
        self._slots: deque[int] = deque()
        self._jobs: deque[m.VerifyFrames] = deque()

    def run(self) -> None:
        done = 0
        try:
            while True:
                while not self._jobs:
                    self._take_message()
                self._do(self._jobs.popleft())
                done += 1
                if done % COLLECT_EVERY_JOBS == 0:
                    gc.collect()
        except (_Stopped, EOFError):
            return

    def _do(self, job: m.VerifyFrames) -> None:
        began = time.process_time()
        filling = _Filling()
        for verdict in self._verdicts(job):
            size = len(verdict.payload)
            if filling.size and filling.size + size > self._operations.slot_bytes:
                self._send(job, filling, done=False, cpu_s=0.0)
                filling = _Filling()
            filling.add(verdict)
        self._send(job, filling, done=True, cpu_s=time.process_time() - began)

    def _verdicts(self, job: m.VerifyFrames) -> Iterator[Verdict]:
        frames = self._frames.view(job.slot, job.size)
        wanted = self._filter(tuple(job.patterns))
        sought = self._filter(tuple(job.sought)) if job.sought else None
        for envelope in job.frames:
            frame = bytes(frames[envelope.offset : envelope.offset + envelope.length])
            yield self._verifier.verify(frame, envelope, wanted, job.now_us, sought)

    def _send(self, job: m.VerifyFrames, filling: _Filling, *, done: bool, cpu_s: float) -> None:
        slot: int | None = None
        inline: bytes | None = None
        if filling.size:
            slot = self._free_slot()
            payload = b"".join(filling.payloads)
            if filling.size > self._operations.slot_bytes:
                # One commit with more than a slot holds: rare, bounded by the limit of a commit's blocks, so it may go by the pipe.
                inline = payload
            else:
                self._operations.view(slot, filling.size)[:] = payload
        message = m.FramesVerified(job.job, slot, filling.size, inline, filling.results, done, cpu_s)
        if not self._pipe.send(m.to_wire(message)):
            raise _Stopped

    def _free_slot(self) -> int:
        while not self._slots:
            self._take_message()
        return self._slots.popleft()

    def _take_message(self) -> None:
        match m.from_wire(self._pipe.receive()):
            case m.VerifyFrames() as job:
                self._jobs.append(job)
            case m.FreeSlots(slots):
                self._slots.extend(slots)
            case m.Stop():
                raise _Stopped


class _Filling:
    """Verdicts that will go out together: their operations fit a slot, or are of one frame alone."""

    __slots__ = ("payloads", "results", "size")

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.results: list[FrameResult] = []
        self.size = 0

    def add(self, verdict: Verdict) -> None:
        result, payload = verdict
        if payload:
            result = result._replace(offset=self.size)
            self.payloads.append(payload)
            self.size += len(payload)
        self.results.append(result)
