"""Makes live commits for tests and benchmarks: frames with proofs, valid and otherwise. Shares no code with the reader it feeds.

Trees are built anew for each commit (`tests.support.repos`), and a proof is what the protocol says: the nodes on the search paths
of each touched key and of its neighbours, found here by walking the whole tree.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cbrrr import CID, decode_dag_cbor, encode_dag_cbor

from tests.support.repos import DID, Signer, build_tree, cid_of, commit_block, write_car

TIME = "2026-07-04T14:38:07.517Z"
TIME_US = 1_783_175_887_517_000
_DIGITS = "234567abcdefghijklmnopqrstuvwxyz"


def rev_of(number: int) -> str:
    """Return the TID of a number of microseconds after TIME."""
    value = (TIME_US + number) << 10
    return "".join(_DIGITS[value >> shift & 31] for shift in range(60, -1, -5))


def path_to(root: bytes, nodes: Mapping[bytes, bytes], key: bytes) -> list[bytes]:
    """Return the CIDs of the nodes that a search for `key` looks into."""
    path: list[bytes] = []
    cid: bytes | None = root
    while cid is not None:
        path.append(cid)
        node: Any = decode_dag_cbor(nodes[cid])
        found, here = node["l"], b""
        for entry in node["e"]:
            here = here[: entry["p"]] + entry["k"]
            if here >= key:
                break
            found = entry["t"]
        cid = None if here == key or found is None else bytes(found)
    return path


def proof_of(root: bytes, nodes: Mapping[bytes, bytes], keys: Iterable[bytes], touched: Iterable[bytes]) -> set[bytes]:
    """Return the CIDs of the nodes that a commit which touched these keys must carry; `keys`: those of the tree."""
    ordered = sorted(keys)
    proof = {root}
    for key in touched:
        at = bisect_left(ordered, key)
        after = at + 1 if at < len(ordered) and ordered[at] == key else at
        for sought in (*ordered[max(at - 1, 0) : at], key, *ordered[after : after + 1]):
            proof.update(path_to(root, nodes, sought))
    return proof


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation as a message tells it. CIDs of 36 bytes."""

    action: str
    path: bytes
    cid: bytes | None
    prev: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCommit:
    """A commit with everything that its message says; `replace` makes lies of it."""

    signer: Signer
    ops: tuple[Op, ...]
    nodes: dict[bytes, bytes] = field(repr=False)  # of the proof
    records: dict[bytes, bytes] = field(repr=False)
    data: bytes
    prev_data: bytes | None
    rev: str
    since: str | None
    did: str = DID
    seq: int = 7
    extra: dict[str, Any] = field(default_factory=dict)  # fields of the message that are to be other than they should
    block: bytes | None = None  # the commit, when it is to be another one

    @property
    def commit(self) -> bytes:
        return self.block or commit_block(self.data, did=self.did, rev=self.rev, signer=self.signer)

    @property
    def blocks(self) -> bytes:
        return self._blocks_of(self.commit)

    def _blocks_of(self, commit: bytes) -> bytes:
        return write_car(cid_of(commit), [*self.nodes.items(), *self.records.items(), (cid_of(commit), commit)])

    @property
    def payload(self) -> dict[str, Any]:
        commit = self.commit  # once: signatures on P-256 differ each time
        ops = []
        for op in self.ops:
            told = {"action": op.action, "path": op.path.decode(), "cid": None if op.cid is None else CID(op.cid)}
            ops.append(told if op.prev is None else {**told, "prev": CID(op.prev)})
        payload: dict[str, Any] = {
            "seq": self.seq,
            "repo": self.did,
            "commit": CID(cid_of(commit)),
            "rev": self.rev,
            "since": self.since,
            "blocks": self._blocks_of(commit),
            "ops": ops,
            "blobs": [],
            "tooBig": False,
            "rebase": False,
            "time": TIME,
        }
        if self.prev_data is not None:
            payload["prevData"] = CID(self.prev_data)
        return payload | self.extra

    @property
    def frame(self) -> bytes:
        return frame("#commit", self.payload)

    def but(self, **changes: Any) -> LiveCommit:
        return replace(self, **changes)


def frame(kind: str, payload: dict[str, Any]) -> bytes:
    return encode_dag_cbor({"op": 1, "t": kind}) + encode_dag_cbor(payload)


def sync_frame(
    signer: Signer, data: bytes, rev: str, *, seq: int = 7, did: str = DID, outer_rev: str | None = None
) -> bytes:
    commit = commit_block(data, did=did, rev=rev, signer=signer)
    blocks = write_car(cid_of(commit), [(cid_of(commit), commit)])
    return frame("#sync", {"seq": seq, "did": did, "rev": outer_rev or rev, "blocks": blocks, "time": TIME})


def make_commit(
    before: Mapping[bytes, bytes],
    changes: Mapping[bytes, bytes | None],
    *,
    signer: Signer | None = None,
    did: str = DID,
    seq: int = 7,
    number: int = 1,
) -> LiveCommit:
    """Return the commit that makes `changes` (path -> new DAG-CBOR, None to delete) to a repo of `before` (path -> DAG-CBOR)."""
    after = dict(before)
    ops: list[Op] = []
    for path, block in changes.items():
        prev = cid_of(before[path]) if path in before else None
        if block is None:
            del after[path]
            ops.append(Op(action="delete", path=path, cid=None, prev=prev))
        else:
            after[path] = block
            ops.append(Op(action="create" if prev is None else "update", path=path, cid=cid_of(block), prev=prev))
    prev_data, old = build_tree({path: cid_of(block) for path, block in before.items()})
    data, built = build_tree({path: cid_of(block) for path, block in after.items()})
    nodes = dict(built)
    wanted = proof_of(data, nodes, after, changes) | (nodes.keys() - dict(old).keys())
    return LiveCommit(
        signer=signer or Signer(),
        ops=tuple(ops),
        nodes={cid: nodes[cid] for cid in nodes if cid in wanted},
        records={cid_of(block): block for block in changes.values() if block is not None},
        data=data,
        prev_data=prev_data,
        rev=rev_of(number),
        since=rev_of(0),
        did=did,
        seq=seq,
    )
