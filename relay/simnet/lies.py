"""How an event is told wrong in just one way: what a lying or broken PDS, or a broken relay, would put on the firehose."""

from __future__ import annotations

from dataclasses import replace

from relay.simnet.block import cid_of, encode, link, tid, tid_time_us
from relay.simnet.events import Payload, commit_payload, frame, sync_payload
from relay.simnet.faults import EVENT_FAULTS, Fault, FaultKind
from relay.simnet.keys import raised_s
from relay.simnet.repo import Commit, Repo
from relay.simnet.tree import build_tree

_STRANGER = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
_OVERSIZE_BYTES = 5_500_000
_DAY_S = 86_400.0
_EARLIER_US = 3_600_000_000

FURTHER_EVENTS = frozenset(
    {
        FaultKind.EVENT_ROLLBACK,
        FaultKind.EVENT_AGAIN,
        FaultKind.UNKNOWN_FRAME,
        FaultKind.GARBAGE_FRAME,
        FaultKind.OVERSIZE_FRAME,
    }
)
_OF_ANY = (FURTHER_EVENTS - {FaultKind.EVENT_ROLLBACK}) | {FaultKind.DROP_EVENT}
_OF_SIGNED = frozenset(
    {
        FaultKind.EVENT_BAD_SIGNATURE,
        FaultKind.EVENT_HIGH_S,
        FaultKind.EVENT_WRONG_DID,
        FaultKind.EVENT_FUTURE_REV,
        FaultKind.EVENT_ROLLBACK,
    }
)
# Which faults can strike an event of a kind.
FAULTS_OF = {"commit": EVENT_FAULTS, "sync": _OF_ANY | _OF_SIGNED, "identity": _OF_ANY, "account": _OF_ANY}


def false_commit(fault: Fault, repo: Repo, commit: Commit) -> Payload | None:
    """Return the wrong body of a `#commit`, or None when this commit cannot go wrong in this way (no record to leave out)."""
    match fault.kind:
        case FaultKind.EVENT_MISSING_NODE:
            return _without_piece(repo.did, commit, commit.ways[0][-1]) if commit.ways else None
        case FaultKind.EVENT_MISSING_RECORD:
            written = [op.cid for op in commit.ops if op.cid is not None]
            return _without_piece(repo.did, commit, written[0]) if written else None
        case FaultKind.EVENT_CORRUPT_BLOCK:
            return _with_flipped_bit(repo.did, commit)
        case FaultKind.EVENT_OTHER_PREV_DATA:
            return {**commit_payload(repo.did, commit), "prevData": link(cid_of(commit.block))}
        case FaultKind.EVENT_NO_PREV_DATA:
            payload = commit_payload(repo.did, commit)
            return payload if payload.pop("prevData", None) is not None else None
        case FaultKind.EVENT_DOUBLE_PATH:
            return _with_double_path(repo.did, commit)
        case FaultKind.EVENT_TOO_BIG:
            bare = replace(commit, ops=(), pieces=commit.pieces[-1:])
            return {**commit_payload(repo.did, bare), "tooBig": True}
        case _:
            rev = _future(repo.rev, fault)
            cid, block = _false_signature(fault.kind, repo, rev)
            wrong = replace(commit, cid=cid, block=block, pieces=(*commit.pieces[:-1], (cid, block)))
            if fault.kind is FaultKind.EVENT_FUTURE_REV:
                wrong = replace(wrong, rev=rev)
            return commit_payload(repo.did, wrong)


def false_sync(fault: Fault, repo: Repo, outer_rev: str) -> Payload:
    """Return the wrong body of a `#sync`."""
    rev = _future(repo.rev, fault)
    cid, block = _false_signature(fault.kind, repo, rev)
    return sync_payload(repo.did, cid, block, rev if fault.kind is FaultKind.EVENT_FUTURE_REV else outer_rev)


def rollback(repo: Repo) -> Payload:
    """Return the body of a `#sync` that goes back to an hour ago, when the repo was empty."""
    rev = tid(tid_time_us(repo.rev) - _EARLIER_US, 0)
    data = build_tree({}).root if repo.records else build_tree({b"com.example.note/1": cid_of(b"")}).root
    return sync_payload(repo.did, *repo.signed_commit(did=repo.did, data=data, rev=rev), rev)


def false_frame(fault: Fault, seq: int, did: str, time: str) -> bytes:
    """Return a frame that no event of the protocol has, or that cannot be read at all."""
    match fault.kind:
        case FaultKind.OVERSIZE_FRAME:
            filler = bytes(fault.bytes or _OVERSIZE_BYTES)
            return frame("commit", {"repo": did, "seq": seq, "time": time, "blocks": filler})
        case FaultKind.GARBAGE_FRAME:
            return b"\xff\x00 no CBOR at all"
        case _:
            kind = (fault.text or "#tombstone").removeprefix("#")
            return frame(kind, {"did": did, "seq": seq, "time": time})


def _false_signature(kind: FaultKind, repo: Repo, rev: str) -> tuple[bytes, bytes]:
    """Return (CID, block) of a commit of the repo's tree that is signed wrongly, or rightly with something else."""
    if kind is FaultKind.EVENT_WRONG_DID:
        return repo.signed_commit(did=_STRANGER, data=repo.data, rev=repo.rev)
    if kind is FaultKind.EVENT_FUTURE_REV:
        return repo.signed_commit(did=repo.did, data=repo.data, rev=rev)
    commit = {"did": repo.did, "version": 3, "data": link(repo.data), "rev": repo.rev, "prev": None}
    if kind is FaultKind.EVENT_HIGH_S:
        signature = raised_s(repo.key.sign(encode(commit)), repo.key.curve)
    else:
        signature = repo.key.sign(b"another message")
    block = encode({**commit, "sig": signature})
    return cid_of(block), block


def _future(rev: str, fault: Fault) -> str:
    return tid(tid_time_us(rev) + int((fault.seconds or _DAY_S) * 1_000_000), 0)


def _without_piece(did: str, commit: Commit, missing: bytes) -> Payload:
    return commit_payload(did, replace(commit, pieces=tuple(piece for piece in commit.pieces if piece[0] != missing)))


def _with_flipped_bit(did: str, commit: Commit) -> Payload:
    (cid, block), *rest = commit.pieces
    return commit_payload(did, replace(commit, pieces=((cid, block[:-1] + bytes((block[-1] ^ 1,))), *rest)))


def _with_double_path(did: str, commit: Commit) -> Payload | None:
    """Tell a create as a create of something else and an update to this, without `prev` and without the first block."""
    created = next((op for op in commit.ops if op.action == "create"), None)
    if created is None:
        return None
    payload = commit_payload(did, commit)
    path = created.path.decode()
    ops = [{**op, "action": "update"} if op["path"] == path else op for op in payload["ops"]]
    return {**payload, "ops": [{"action": "create", "path": path, "cid": link(cid_of(created.path))}, *ops]}
