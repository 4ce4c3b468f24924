"""What one message of the event stream proves by itself: a `#commit` its changes, a `#sync` its state.

Checked in this order, cheap before dear: the CAR and the hash of every block, the commit and whose it is, its rev, its signature,
the records, and last the operations, undone on the tree (`inversion`). What `parse_frame` checked is taken for granted.

Three ways to end. A value: proved, but for the chain (`since`, `starting_data`), which only somebody with the stored state can
check. `Unprovable`: signed by the account, but of a kind that cannot be checked, so that its repo has to be fetched. An exception:
the message contradicts itself, or is not the account's; it is to be dropped, and changes nothing. Source: PROTOCOL 5.2 to 5.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from relay.atproto.car import hash_blocks, read_header
from relay.atproto.cid import DAG_CBOR_PREFIX, cid_text
from relay.atproto.commit import Commit, parse_commit
from relay.atproto.errors import (
    BadSignature,
    CommitMismatch,
    FutureRev,
    InvalidCbor,
    MissingBlock,
    PartialTree,
    RecordTooLarge,
    WrongDid,
    WrongPrevData,
)
from relay.atproto.frames import Action, CommitMessage, SyncMessage
from relay.atproto.inversion import Change, invert
from relay.atproto.keys import PublicKey
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.proof_tree import EMPTY_TREE_CID
from relay.atproto.syntax import Rev, make_tid

# How far a rev may be ahead of our clock; other relays allow as much.
FUTURE_REV_US: Final = 5 * 60 * 1_000_000

# The header of every CAR with one root that is a commit: this, 32 bytes of hash, the version.
_CAR_HEAD: Final = b"\x3a\xa2eroots\x81\xd8\x2aX%\x00" + DAG_CBOR_PREFIX
_CAR_VERSION: Final = b"gversion\x01"
_CAR_HEADER_BYTES: Final = len(_CAR_HEAD) + 32 + len(_CAR_VERSION)


class Write(NamedTuple):
    """One change of a wanted collection. `cid` (36 bytes) and `record` (DAG-CBOR) are None for a delete."""

    action: Action
    collection: str
    rkey: str
    cid: bytes | None
    record: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCommit:
    """A commit that is proved by itself. CIDs have 36 bytes.

    `writes`: the wanted operations, in the message's order; `ops_total`: all of them. `starting_data`: the tree that the commit
    began with, as undoing its operations gives it; where proofs are not checked, what the message says. It must be the stored
    one, and `since` the stored rev: that is the caller's to check.
    """

    did: str
    rev: str
    since: str | None
    prev_data: bytes | None
    data: bytes
    commit_cid: bytes
    starting_data: bytes | None
    writes: tuple[Write, ...]
    ops_total: int

    @property
    def is_first(self) -> bool:
        """Whether this is the first commit of its repo, and holds all of it."""
        return self.since is None and self.starting_data == EMPTY_TREE_CID


@dataclass(frozen=True, slots=True, kw_only=True)
class Unprovable:
    """A commit of the account (signature and rev are good) whose changes cannot be checked: a break in the chain.

    `reason` is one of `UNPROVABLE_REASONS`; `data` the CID of the tree that the repo has now.
    """

    did: str
    rev: str
    since: str | None
    prev_data: bytes | None
    data: bytes
    reason: str
    text: str


# Why a commit cannot be proved, as metric labels: flags of old software together with missing data; the same path twice; no `prev`
# of an update or delete; the tree needed to find the one before is incomplete, and the message does not name it; `since` is null,
# but there was something before.
UNPROVABLE_REASONS: Final = ("too_big", "rebase", "duplicate_path", "no_prev", "no_prev_data", "not_first")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSync:
    """A repo's state as its account signed it. `data`: CID of the tree. `rev` is the signed one: the message's may differ."""

    did: str
    rev: str
    data: bytes
    commit_cid: bytes


def verify_commit(
    message: CommitMessage,
    *,
    key: PublicKey | None,
    wanted: NsidFilter,
    now_us: int,
    check_proof: bool = True,
    limits: Limits = DEFAULT_LIMITS,
) -> VerifiedCommit | Unprovable:
    """Return what a `#commit` proves. About 90 us for one operation, a third of it the signature.

    `key`: the account's signing key; None: the signature is not checked. `now_us`: microseconds since 1970. `check_proof` False:
    the operations are taken as they are told. Raises InvalidCar, LimitExceeded, MissingBlock (commit or record), CommitMismatch,
    WrongDid, OldCommitVersion, InvalidCommit, FutureRev, BadSignature, RecordTooLarge, InvalidCbor (a record that is no map),
    InvalidProof, PartialTree, WrongPrevData, InvalidMst.
    """
    blocks = _read_blocks(message.blocks, message.commit, limits)
    commit = _read_commit(blocks, message.commit, message.did, limits)
    if commit.rev != message.rev:
        raise CommitMismatch(f"the message says rev {message.rev}, its commit {commit.rev}")
    _check_rev_and_signature(commit, message.commit, key, now_us)
    try:
        changes = _changes(message, check_proof=check_proof)
        writes = _wanted_writes(message, blocks, wanted, limits)
        starting_data = message.prev_data
        if check_proof:
            # Without operations nothing is undone, and the tree need not be there.
            starting_data = invert(commit.data, blocks, changes, limits=limits) if changes else commit.data
            _check_start(message, starting_data)
    except (MissingBlock, PartialTree) as exc:
        if message.too_big or message.rebase:
            return _unprovable(message, commit, "too_big" if message.too_big else "rebase", str(exc))
        if message.prev_data is None and isinstance(exc, PartialTree):
            return _unprovable(message, commit, "no_prev_data", str(exc))
        raise
    except _CannotProve as exc:
        return _unprovable(message, commit, exc.reason, str(exc))
    return VerifiedCommit(
        did=message.did,
        rev=message.rev,
        since=message.since,
        prev_data=message.prev_data,
        data=commit.data,
        commit_cid=message.commit,
        starting_data=starting_data,
        writes=writes,
        ops_total=len(message.ops),
    )


def verify_sync(
    message: SyncMessage, *, key: PublicKey | None, now_us: int, limits: Limits = DEFAULT_LIMITS
) -> VerifiedSync:
    """Return the state that a `#sync` proves. `key`, `now_us` as for `verify_commit`.

    Raises InvalidCar, LimitExceeded, MissingBlock, WrongDid, OldCommitVersion, InvalidCommit, FutureRev, BadSignature.
    """
    cid = read_header(message.blocks, limits=limits).commit_cid
    blocks = _read_blocks(message.blocks, cid, limits)
    commit = _read_commit(blocks, cid, message.did, limits)
    _check_rev_and_signature(commit, cid, key, now_us)
    return VerifiedSync(did=message.did, rev=commit.rev, data=commit.data, commit_cid=cid)


class _CannotProve(Exception):
    """Not wrong, but nothing that could be checked; `reason` is one of UNPROVABLE_REASONS."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def _unprovable(message: CommitMessage, commit: Commit, reason: str, text: str) -> Unprovable:
    return Unprovable(
        did=message.did,
        rev=message.rev,
        since=message.since,
        prev_data=message.prev_data,
        data=commit.data,
        reason=reason,
        text=text,
    )


def _read_blocks(car: bytes, root: bytes, limits: Limits) -> dict[bytes, bytes]:
    """Return the blocks by SHA-256, each hashed. The first root of the CAR must be `root`."""
    # The usual header by one comparison: reading it takes longer than all other framing.
    if car.startswith(_CAR_HEAD + root[4:] + _CAR_VERSION):
        return hash_blocks(car, _CAR_HEADER_BYTES, limits=limits)
    header = read_header(car, limits=limits)
    if header.commit_cid != root:
        raise CommitMismatch(f"the blocks are those of another commit than {cid_text(root)}")
    return hash_blocks(car, header.size, limits=limits)


def _read_commit(blocks: dict[bytes, bytes], cid: bytes, did: str, limits: Limits) -> Commit:
    block = blocks.get(cid[4:])
    if block is None:
        raise MissingBlock("the commit is not among the blocks", at=cid_text(cid))
    commit = parse_commit(block, limits=limits)
    if commit.did != did:
        raise WrongDid(f"a commit of {commit.did[:100]}, not of {did}")
    return commit


def _check_rev_and_signature(commit: Commit, cid: bytes, key: PublicKey | None, now_us: int) -> None:
    if commit.rev > _latest_rev(now_us):
        raise FutureRev(f"rev {commit.rev} is more than {FUTURE_REV_US // 1_000_000} s ahead of our clock")
    if key is not None and not key.verify(commit.unsigned, commit.sig):
        raise BadSignature(f"the commit of {commit.did} is not signed by {key.did_key}", at=cid_text(cid))


@lru_cache(maxsize=4)
def _latest_rev(now_us: int) -> Rev:
    """Return the latest rev that a commit may have. TIDs compare as text; the clock is read once for many commits."""
    return make_tid(min(now_us + FUTURE_REV_US, (1 << 53) - 1), 1023)


def _wanted_writes(
    message: CommitMessage, blocks: dict[bytes, bytes], wanted: NsidFilter, limits: Limits
) -> tuple[Write, ...]:
    """Return the wanted operations. The record of every write must be there, wanted or not: a map, and not too large."""
    writes: list[Write] = []
    for op in message.ops:
        collection, rkey, cid = op.collection, op.rkey, op.cid
        record: bytes | None = None
        if cid is not None:
            record = blocks.get(cid[4:])
            if record is None:
                raise MissingBlock(f"the record {collection}/{rkey} is not among the blocks", at=cid_text(cid))
            if len(record) > limits.record_bytes:
                raise RecordTooLarge(
                    f"a record of {len(record):,} bytes: the limit is {limits.record_bytes:,}",
                    at=f"{collection}/{rkey}",
                )
            if not record or record[0] >> 5 != 5:
                raise InvalidCbor("a record that is not a map", at=f"{collection}/{rkey}")
        if wanted.wants(collection):
            writes.append(Write(op.action, collection, rkey, cid, record))
    return tuple(writes)


def _changes(message: CommitMessage, *, check_proof: bool) -> list[Change]:
    changes: list[Change] = []
    for op in message.ops:
        if check_proof and op.prev is None and op.action is not Action.CREATE:
            raise _CannotProve("no_prev", f"the {op.action} of {op.path} does not tell the value before")
        changes.append(Change(op.path.encode(), op.cid, op.prev))
    if len(changes) > 1 and len({change.key for change in changes}) != len(changes):
        # The reference PDS takes such writes, and sends the record of the last one only: before records are looked for.
        raise _CannotProve("duplicate_path", "two operations on one path")
    return changes


def _check_start(message: CommitMessage, starting_data: bytes) -> None:
    if message.prev_data is not None:
        if starting_data != message.prev_data:
            raise WrongPrevData(
                "the operations, undone, give another tree than prevData", at=cid_text(message.prev_data)
            )
    elif message.since is None and starting_data != EMPTY_TREE_CID:
        raise _CannotProve("not_first", "since is null, but the repo was not empty before")
