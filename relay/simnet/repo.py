"""One account's repo as its PDS keeps it: records under their keys, the tree over them, the signed commit, and the CAR of it all."""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from relay.simnet.block import cid_of, encode, link, write_car
from relay.simnet.keys import SigningKey
from relay.simnet.tree import Tree, build_tree, neighbourhood


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
    """What a commit did: enough to tell it on a firehose. `blocks` is the CAR slice that proves `ops`."""

    rev: str
    since: str | None
    prev_data: bytes | None
    data: bytes
    cid: bytes
    block: bytes
    ops: tuple[RecordOp, ...]
    blocks: bytes


class CompactRepo(Exception):
    """A repo that kept only its CAR cannot change or be written in another order."""


class Repo:
    """A repo. The network's lock guards it. Memory: its records and nodes, and the CAR when it was asked for."""

    def __init__(self, did: str, key: SigningKey, records: dict[bytes, Record], rev: str) -> None:
        """`records` maps paths (`collection/rkey`) to records; the first commit holds all of them."""
        self.did = did
        self.key = key
        self.records = records
        self.written_at: dict[
            bytes, str
        ] = {}  # blocks that came after the first commit, with the rev that brought them
        self.compact = False
        self._car: bytes | None = None
        self._collections: frozenset[str] | None = None
        self.tree = build_tree({path: record.cid for path, record in records.items()})
        self._sign(rev)

    @property
    def data(self) -> bytes:
        return self.tree.root

    def collections(self) -> frozenset[str]:
        """Return the collections in which the repo has a record."""
        if self._collections is None:
            self._collections = frozenset(path.split(b"/", 1)[0].decode() for path in self.records)
        return self._collections

    def write(self, changes: Mapping[bytes, bytes | None], rev: str) -> Commit:
        """Commit these changes (path -> new block, None to delete) with a higher `rev`, and return what a firehose tells.

        Raises KeyError for a delete of a record that is not there.
        """
        self._must_be_whole()
        before = {path: record.cid for path, record in self.records.items()}
        since, prev_data = self.rev, self.data
        ops: list[RecordOp] = []
        added: dict[bytes, bytes] = {}
        for path, block in changes.items():
            old = before.get(path)
            if block is None:
                del self.records[path]
                ops.append(RecordOp(action="delete", path=path, cid=None, prev=old))
                continue
            cid = cid_of(block)
            added[cid] = block
            self.records[path] = Record(cid, block)
            ops.append(RecordOp(action="create" if old is None else "update", path=path, cid=cid, prev=old))
        earlier_nodes = self.tree.nodes
        self.tree = self._proving_tree([op.path for op in ops])
        nodes = self.tree.nodes
        fresh = {cid: nodes[cid] for cid in nodes if cid not in earlier_nodes}
        self._sign(rev)
        for cid in (*fresh, *added, self.commit_cid):
            self.written_at[cid] = rev
        proof = {cid: nodes[cid] for cid in nodes if cid in fresh or cid in self.tree.proof}
        slice_blocks = {**proof, **added, self.commit_cid: self.commit_block}
        return Commit(
            rev=rev,
            since=since,
            prev_data=prev_data,
            data=self.data,
            cid=self.commit_cid,
            block=self.commit_block,
            ops=tuple(ops),
            blocks=write_car(self.commit_cid, slice_blocks.items()),
        )

    def sign_again(self, key: SigningKey, rev: str) -> None:
        """Commit the same tree with another key, as after a rotation."""
        self.key = key
        self._sign(rev)
        self.written_at[self.commit_cid] = rev

    def blocks(self, order: CarOrder = CarOrder.REFERENCE) -> Iterator[tuple[bytes, bytes]]:
        """Yield every block of the repo once, in this order."""
        self._must_be_whole()
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

    def _proving_tree(self, touched: Iterable[bytes]) -> Tree:
        keys = sorted(self.records)
        proof = [key for path in touched for key in neighbourhood(keys, path)]
        return build_tree({path: record.cid for path, record in self.records.items()}, proof_of=proof)

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

    def _must_be_whole(self) -> None:
        if self.compact:
            raise CompactRepo(f"{self.did} is compact: its blocks are gone")


def sign_commit(key: SigningKey, *, did: str, data: bytes, rev: str) -> tuple[bytes, bytes]:
    """Return (CID, block) of a version 3 commit. Source: repository spec, "Commit Objects"."""
    commit: dict[str, Any] = {"did": did, "version": 3, "data": link(data), "rev": rev, "prev": None}
    commit["sig"] = key.sign(encode(commit))
    block = encode(commit)
    return cid_of(block), block
