"""One account's repo as its PDS keeps it: records under their keys, the tree over them, the signed commit, and the CAR of it all."""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relay.simnet.block import cid_of, encode, link, write_car
from relay.simnet.keys import SigningKey
from relay.simnet.live_tree import LiveTree
from relay.simnet.tree import Tree, build_tree


class CarOrder(enum.StrEnum):
    """In which order a PDS writes the blocks of an export; the protocol leaves it open."""

    REFERENCE = "reference"  # newest rev first, then by CID descending, as @atproto/pds does: the commit anywhere
    PRE_ORDER = "pre-order"  # commit, then depth first with each record in its place
    RANDOM = "random"  # commit first, the rest shuffled


@dataclass(frozen=True, slots=True)
class Record:
    """A record's CID (36 bytes) and its block; the block is empty in a repo that was made compact."""

    cid: bytes
    block: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOp:
    """One change of a commit. `cid` is the new value, `prev` the one before; None where there is none."""

    action: str  # create, update, delete
    path: bytes
    cid: bytes | None
    prev: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What a commit did: enough to tell it on a firehose.

    `pieces` are the blocks (CID, block) that prove `ops`, the commit itself last; `ways` for each op the CIDs of the nodes that
    a search for its path enters: none of them may be missing.
    """

    rev: str
    since: str | None
    prev_data: bytes | None
    data: bytes
    cid: bytes
    block: bytes
    ops: tuple[RecordOp, ...]
    pieces: tuple[tuple[bytes, bytes], ...]
    ways: tuple[tuple[bytes, ...], ...] = ()

    @property
    def blocks(self) -> bytes:
        """The CAR slice of the pieces."""
        return write_car(self.cid, self.pieces)


class CompactRepo(Exception):
    """A repo that kept only its CAR cannot change or be written in another order."""


class Repo:
    """A repo. The network's lock guards it. Memory: its records and nodes, and the CAR when it was asked for."""

    def __init__(self, did: str, key: SigningKey, records: dict[bytes, Record], rev: str) -> None:
        """`records` maps paths (`collection/rkey`) to records; the first commit holds all of them."""
        self.did = did
        self.key = key
        self.records = records
        # Blocks that came after the first commit, with the rev that brought them.
        self.written_at: dict[bytes, str] = {}
        self.compact = False
        self._car: bytes | None = None
        self._collections: frozenset[str] | None = None
        self.tree: Tree | LiveTree = build_tree({path: record.cid for path, record in records.items()})
        self._sign(rev)

    @property
    def data(self) -> bytes:
        return self.tree.root

    def collections(self) -> frozenset[str]:
        """Return the collections in which the repo has a record."""
        if self._collections is None:
            self._collections = frozenset(path.split(b"/", 1)[0].decode() for path in self.records)
        return self._collections

    def paths(self) -> Sequence[bytes]:
        """Return the paths of all records in order: not a copy, so only until the next write."""
        return self._live_tree().keys

    def write(self, changes: Mapping[bytes, bytes | None], rev: str) -> Commit:
        """Commit these changes (path -> new block, None to delete) with a higher `rev`, and return what a firehose tells.

        Raises KeyError for a delete of a record that is not there; nothing is changed then. About 0.1 ms for one change.
        """
        tree = self._live_tree()
        for path, block in changes.items():
            if block is None and path not in self.records:
                raise KeyError(path)
        since, prev_data = self.rev, self.data
        ops: list[RecordOp] = []
        added: dict[bytes, bytes] = {}
        for path, block in changes.items():
            old = self.records.get(path)
            prev = None if old is None else old.cid
            if block is None:
                del self.records[path]
                tree.remove(path)
                ops.append(RecordOp(action="delete", path=path, cid=None, prev=prev))
            else:
                cid = cid_of(block)
                added[cid] = block
                self.records[path] = Record(cid, block)
                tree.put(path, cid)
                ops.append(RecordOp(action="create" if old is None else "update", path=path, cid=cid, prev=prev))
            if prev is not None:
                self.written_at.pop(prev, None)
        fresh, gone = tree.seal()
        for stale in (*gone, self.commit_cid):
            self.written_at.pop(stale, None)
        self._sign(rev)
        for cid in (*fresh, *added, self.commit_cid):
            self.written_at[cid] = rev
        proof = fresh.keys() | {cid for op in ops for cid in tree.proof_of(op.path)}
        # In the order of CIDs, so that the same write gives the same bytes in every process.
        slice_blocks = {**{cid: tree.nodes[cid] for cid in sorted(proof)}, **added, self.commit_cid: self.commit_block}
        return Commit(
            rev=rev,
            since=since,
            prev_data=prev_data,
            data=self.data,
            cid=self.commit_cid,
            block=self.commit_block,
            ops=tuple(ops),
            pieces=tuple(slice_blocks.items()),
            ways=tuple(tuple(tree.path_to(op.path)) for op in ops),
        )

    def first_commit(self) -> Commit:
        """Return the repo as the first commit of a new account: every record is created, and nothing was before."""
        tree = self._live_tree()
        items = sorted(self.records.items())
        ops = tuple(RecordOp(action="create", path=path, cid=record.cid, prev=None) for path, record in items)
        records = {record.cid: record.block for _, record in items}
        slice_blocks = {**tree.nodes, **records, self.commit_cid: self.commit_block}
        return Commit(
            rev=self.rev,
            since=None,
            prev_data=None,
            data=self.data,
            cid=self.commit_cid,
            block=self.commit_block,
            ops=ops,
            pieces=tuple(slice_blocks.items()),
            ways=tuple(tuple(tree.path_to(op.path)) for op in ops),
        )

    def sign_again(self, key: SigningKey, rev: str) -> None:
        """Commit the same tree with another key, as after a rotation."""
        self.key = key
        self.written_at.pop(self.commit_cid, None)
        self._sign(rev)
        self.written_at[self.commit_cid] = rev

    def blocks(self, order: CarOrder = CarOrder.REFERENCE) -> Iterator[tuple[bytes, bytes]]:
        """Yield every block of the repo once, in this order."""
        self.must_be_whole()
        match order:
            case CarOrder.PRE_ORDER:
                return iter(self._pre_order())
            case CarOrder.RANDOM:
                rest = list(self._all_but_commit().items())
                random.Random(self.did).shuffle(rest)
                return iter([(self.commit_cid, self.commit_block), *rest])
            case CarOrder.REFERENCE:
                everything = self._all_but_commit()
                everything[self.commit_cid] = self.commit_block
                return iter(sorted(everything.items(), key=self._age_and_cid, reverse=True))

    def car(self) -> bytes:
        """Return the whole repo as a CAR in the reference order; kept until the next change."""
        if self._car is None:
            self._car = write_car(self.commit_cid, self.blocks())
        return self._car

    def forget_car(self) -> None:
        """Free the CAR, unless the repo is compact and has nothing else."""
        if not self.compact:
            self._car = None

    def make_compact(self) -> None:
        """Keep the CAR and the CIDs, and free everything else: for benchmarks, where nothing is written later."""
        self.car()
        self.records = {path: Record(record.cid, b"") for path, record in self.records.items()}
        self.tree = Tree(root=self.tree.root, nodes={})
        self.compact = True

    def signed_commit(self, *, did: str, data: bytes, rev: str) -> tuple[bytes, bytes]:
        """Return (CID, block) of a commit that this repo's key signs: also for lies."""
        return sign_commit(self.key, did=did, data=data, rev=rev)

    def _sign(self, rev: str) -> None:
        self.rev = rev
        self.commit_cid, self.commit_block = self.signed_commit(did=self.did, data=self.data, rev=rev)
        self._car = None
        self._collections = None

    def _live_tree(self) -> LiveTree:
        """Return the tree that writes go to. A repo that is only read never needs one."""
        self.must_be_whole()
        if not isinstance(self.tree, LiveTree):
            self.tree = LiveTree({path: record.cid for path, record in self.records.items()})
        return self.tree

    def _all_but_commit(self) -> dict[bytes, bytes]:
        blocks = dict(self.tree.nodes)
        for record in self.records.values():
            blocks[record.cid] = record.block
        return blocks

    def _pre_order(self) -> list[tuple[bytes, bytes]]:
        """Commit, then each node followed by its entries: a record's place is before the subtree to its right."""
        order = build_tree({path: record.cid for path, record in self.records.items()}, ordered=True).order
        blocks = self._all_but_commit()
        return [(self.commit_cid, self.commit_block), *((cid, blocks[cid]) for cid in dict.fromkeys(order))]

    def _age_and_cid(self, item: tuple[bytes, bytes]) -> tuple[str, bytes]:
        return self.written_at.get(item[0], ""), item[0]

    def must_be_whole(self) -> None:
        """Raise CompactRepo if this repo cannot be written."""
        if self.compact:
            raise CompactRepo(f"{self.did} is compact: its blocks are gone")


def sign_commit(key: SigningKey, *, did: str, data: bytes, rev: str) -> tuple[bytes, bytes]:
    """Return (CID, block) of a version 3 commit. Source: repository spec, "Commit Objects"."""
    commit: dict[str, Any] = {"did": did, "version": 3, "data": link(data), "rev": rev, "prev": None}
    commit["sig"] = key.sign(encode(commit))
    block = encode(commit)
    return cid_of(block), block
