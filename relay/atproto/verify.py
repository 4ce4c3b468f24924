"""The front door: a CAR that somebody sent, and what of it is proved to be the account's.

`verify_repo` checks in this order: header, framing and hashes, the commit and whose it is, its signature, and only then the
tree and the records. Nothing comes out of a CAR that fails any of it. Source: PROTOCOL 2, 4, 10.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from relay.atproto.car import Blocks, MappedBlocks, StatedBlocks, digest_text, hash_blocks, read_header
from relay.atproto.cid import cid_text
from relay.atproto.commit import Commit, parse_commit
from relay.atproto.errors import BadSignature, MissingBlock, WrongDid
from relay.atproto.keys import PublicKey
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.mst import Page, Run, Tally, walk_pages
from relay.atproto.mst_columns import Unusual, walk_columns
from relay.atproto.nsid_filter import NsidFilter

# Above this a CAR is not copied: its blocks are looked up in place, in a mapped file.
COPY_BYTES: Final = 32 << 20


class RecordBatch(NamedTuple):
    """Records in key order, by columns: record key, SHA-256 of the dag-cbor CID, DAG-CBOR bytes. `runs` tells collections."""

    runs: list[Run]
    rkeys: list[bytes]
    digests: list[bytes]
    blocks: list[bytes]

    def records(self) -> Iterator[tuple[str, bytes, bytes, bytes]]:
        """Yield (collection, record key, digest, block) one by one: where speed does not matter."""
        start = 0
        for collection, stop in self.runs:
            for place in range(start, stop):
                yield collection, self.rkeys[place], self.digests[place], self.blocks[place]
            start = stop


class _PackedPage(NamedTuple):
    """A page of a large repo without an object for each record: 70 bytes a record instead of 250."""

    runs: list[Run]
    rkeys: bytes  # joined by "/", which no record key has
    digests: bytes
    places: array[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRepo:
    """What a CAR proves. `data` and `commit_cid` are CIDs of 36 bytes.

    `records_total`: entries of the whole tree; None when the filter made the walk leave something out. `wanted`: records that
    `batches` gives. `foreign`: wanted records, as (key, CID), whose CID is not dag-cbor and SHA-256, so that nothing can prove
    them. `batches()` may be called any number of times, as long as the CAR's buffer stands.
    """

    did: str
    rev: str
    data: bytes
    commit_cid: bytes
    records_total: int | None
    wanted: int
    foreign: tuple[tuple[bytes, bytes], ...]
    _batches: Sequence[RecordBatch | _PackedPage]
    _read: Callable[[int], bytes] | None

    def batches(self) -> Iterator[RecordBatch]:
        """Yield the wanted records in key order, some thousand at a time at most."""
        for batch in self._batches:
            if isinstance(batch, RecordBatch):
                yield batch
                continue
            assert self._read is not None
            yield RecordBatch(
                batch.runs,
                batch.rkeys.split(b"/"),
                [batch.digests[at : at + 32] for at in range(0, len(batch.digests), 32)],
                list(map(self._read, batch.places)),
            )

    def records_over(self, size: int) -> Iterator[tuple[str, str, str, bytes]]:
        """Yield (collection, record key, CID as text, DAG-CBOR) of the wanted records larger than `size` bytes."""
        for batch in self._batches:
            if isinstance(batch, RecordBatch):
                if max(map(len, batch.blocks)) <= size:
                    continue
                whole = batch
            else:
                assert self._read is not None
                if max(map(MappedBlocks.size, batch.places)) <= size:
                    continue
                (whole,) = replace(self, _batches=[batch]).batches()
            for collection, rkey, digest, block in whole.records():
                if len(block) > size:
                    yield collection, rkey.decode(), digest_text(digest), block


def verify_repo(
    car: bytes | memoryview,
    *,
    did: str,
    key: PublicKey | None,
    wanted: NsidFilter,
    limits: Limits = DEFAULT_LIMITS,
    forget: Callable[[], None] | None = None,
) -> VerifiedRepo:
    """Return what `car` (a CARv1, the whole answer to getRepo) proves about `did`'s records that `wanted` wants.

    `key`: the account's signing key; None: the signature is not checked. The tree is checked in full, or as far as it was
    read: with a filter, subtrees without a wanted key are left out. Every wanted record is there, with the hash that the
    tree says. Large input (over COPY_BYTES) is read in place; `forget` is called each time some 32 MiB of it were read.

    Raises InvalidCar, MissingBlock (the node or record at `.at`), LimitExceeded, InvalidCommit, OldCommitVersion, WrongDid,
    BadSignature, InvalidMst, InvalidCbor.
    """
    header = read_header(car, limits=limits)
    commit_cid = header.commit_cid
    ranges = None if wanted.is_everything else wanted.ranges()
    mapped: MappedBlocks | None = None
    blocks: Blocks
    if len(car) > COPY_BYTES:
        blocks = mapped = MappedBlocks(memoryview(car), header.size, limits=limits, forget=forget)
    elif ranges is None:
        blocks = hash_blocks(bytes(car), header.size, limits=limits)
    else:
        blocks = StatedBlocks(bytes(car), header.size, limits=limits)
    commit = _read_commit(blocks, commit_cid, did, key, limits)
    tally = Tally()
    batches: list[RecordBatch | _PackedPage]
    try:
        pages = walk_columns(commit.data, blocks, tally, limits=limits, ranges=ranges)
        batches = [_pack(page, mapped) if mapped is not None else _resolve(page, blocks) for page in pages]
    except Unusual:
        # Invalid, or valid and rare: the plain walk decides, and knows the place.
        tally = Tally()
        pages = walk_pages(commit.data, blocks, tally, limits=limits, ranges=ranges)
        batches = [_pack(page, mapped) if mapped is not None else _resolve(page, blocks) for page in pages]
    return VerifiedRepo(
        did=did,
        rev=commit.rev,
        data=commit.data,
        commit_cid=commit_cid,
        records_total=None if tally.pruned else tally.entries,
        wanted=sum(map(_count, batches)),
        foreign=tuple(tally.foreign),
        _batches=batches,
        _read=None if mapped is None else mapped.read,
    )


def _read_commit(blocks: Blocks, cid: bytes, did: str, key: PublicKey | None, limits: Limits) -> Commit:
    try:
        block = blocks[cid[4:]]
    except KeyError:
        raise MissingBlock("the commit is not in the CAR", at=cid_text(cid)) from None
    commit = parse_commit(block, limits=limits)
    if commit.did != did:
        raise WrongDid(f"a repo of {commit.did[:100]}, not of {did}")
    if key is not None and not key.verify(commit.unsigned, commit.sig):
        raise BadSignature(f"the commit of {did} is not signed by {key.did_key}", at=cid_text(cid))
    return commit


def _resolve(page: Page, blocks: Blocks) -> RecordBatch:
    try:
        found = list(map(blocks.__getitem__, page.digests))
    except KeyError as exc:
        raise _missing_record(page, exc.args[0]) from None
    return RecordBatch(page.runs, page.rkeys, page.digests, found)


def _pack(page: Page, blocks: MappedBlocks) -> _PackedPage:
    try:
        places = array("Q", map(blocks.place, page.digests))
    except KeyError as exc:
        raise _missing_record(page, exc.args[0]) from None
    return _PackedPage(page.runs, b"/".join(page.rkeys), b"".join(page.digests), places)


def _count(batch: RecordBatch | _PackedPage) -> int:
    return len(batch.blocks) if isinstance(batch, RecordBatch) else len(batch.places)


def _missing_record(page: Page, digest: bytes) -> MissingBlock:
    path = page.path(page.digests.index(digest))
    return MissingBlock(f"the record {path} is not in the CAR", at=digest_text(digest))
