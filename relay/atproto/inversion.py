"""Undo a commit's operations on the part of its tree that came with it: the root must become the one before the commit.

What it proves: every record of the tree is either named by an operation, with the value that it claims, or was there before,
unchanged; nothing else came or went. A subtree that no operation reaches keeps its CID, so its bytes are not needed. Where an
operation reaches a node that did not come along, the proof is incomplete (PartialTree).

Nodes are read when an operation comes to them: canonical form, limits, order, bounds, links; layers of the operations' keys. The
grammar and layer of all other keys are not looked at again, because they stand in the tree before, too, which the caller compares
with the one that it knows. Each node with keys is read at most once, as its keys lie between the bounds of one place only: time
and memory are in proportion to the blocks, on hostile input too. Recursion is bounded by the layers (`tree_depth`).

Source: PROTOCOL 5.3; sync specification, "operation inversion"; vectors: firehose/commit-proof-fixtures.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple

import libipld

from relay.atproto.cid import cid_text
from relay.atproto.errors import InvalidProof
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.mst import key_depth
from relay.atproto.proof_tree import (
    ABOVE_ALL_KEYS,
    EMPTY_TREE_CID,
    LINK_HEAD,
    NODE_HEADS,
    NODE_LINK_HEAD,
    NULL,
    TAIL,
    ProofTree,
    entry_head_of,
    sealed,
    shown,
)

_FAST_BYTES: Final = 4096  # of a node that is looked into by the fast decoder, which knows no limits


class Change(NamedTuple):
    """What a commit did to one key (`collection/rkey`): no `prev`: created; no `cid`: deleted; both: updated. CIDs: 36 bytes."""

    key: bytes
    cid: bytes | None
    prev: bytes | None


def invert(
    root: bytes, blocks: Mapping[bytes, bytes], changes: Iterable[Change], *, limits: Limits = DEFAULT_LIMITS
) -> bytes:
    """Return the CID of the tree as it was before `changes`, of which the tree under `root` (a CID) is the result.

    `blocks`: DAG-CBOR by its SHA-256, hashed by the caller. About 40 us for one change in a repo of some thousand records.
    Raises PartialTree when a needed node is not among the blocks; InvalidProof when the tree does not bear a change out, or two
    changes have one key; InvalidMst and LimitExceeded for a node that is none, or a key in too high a layer.
    """
    ordered = list(changes)
    if len(ordered) == 1:
        before = _undo_one(root, blocks, ordered[0], limits)
        if before is not None:
            return before
    else:
        if len({change.key for change in ordered}) != len(ordered):
            raise InvalidProof("two operations on one path")
        # Deletes first, as other implementations do it: an incomplete proof then is incomplete for all of them.
        ordered.sort(key=lambda change: (change.cid is not None, change.key))
    tree = ProofTree(root, blocks, limits=limits)
    for change in ordered:
        key, cid, prev = change
        if prev is None and cid is None:
            raise InvalidProof("an operation with neither a value nor one before", at=shown(key))
        _check_found(change, tree.remove(key) if prev is None else tree.put(key, prev))
    return tree.root()


def _check_found(change: Change, found: bytes | None) -> None:
    """Raise InvalidProof unless what undoing a change replaced (None: nothing) is what the change had put there."""
    key, claimed, _ = change
    if found == claimed:
        return
    if claimed is None:
        raise InvalidProof("a deleted record is in the tree", at=shown(key))
    if found is None:
        raise InvalidProof("a written record is not in the tree", at=shown(key))
    raise InvalidProof(f"the tree has another record than {cid_text(claimed)}", at=shown(key))


def _undo_one(root: bytes, blocks: Mapping[bytes, bytes], change: Change, limits: Limits) -> bytes | None:
    """Undo a single change as `ProofTree` does it, in half the time; None: an unusual case, or an error that has to be named.

    Of the nodes on the way down nothing changes but one link, which is replaced where it stands: their bytes are those of nodes
    of the tree before, so that nothing has to be checked that is not needed to find the way.
    """
    key, claimed, prev = change
    if claimed is None and prev is None:
        return None
    layer = key_depth(key)
    low, high = b"", ABOVE_ALL_KEYS
    above: list[
        tuple[bytes, bytes]
    ] = []  # nodes on the way: what they have before and behind the link that was followed
    cid = root
    at_layer = -1
    try:
        while at_layer != layer:
            block = blocks[cid[4:]]
            if len(block) > _FAST_BYTES or not block.startswith(b"\xa2ae"):
                return None
            node = libipld.decode_dag_cbor(block)
            entries = node["e"]
            if at_layer < 0:
                at_layer = key_depth(entries[0]["k"])
                if at_layer == layer:
                    break
                if not layer < at_layer < limits.tree_depth:
                    return None
            cid, here = node["l"], b""
            for entry in entries:
                here = here[: entry["p"]] + entry["k"]
                if here > key:
                    high = here
                    break
                low, cid = here, entry["t"]
            before, behind = block.split(NODE_LINK_HEAD + cid[4:])
            above.append((before, behind))
            at_layer -= 1
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        return None  # among others: no such subtree, no such node, two links to it
    link = b""
    if layer == 0 and above and prev is None:
        link = _without_entry(blocks.get(cid[4:], b""), change)
    if not link:
        proof = ProofTree(EMPTY_TREE_CID, blocks, limits=limits)
        node = proof.load(LINK_HEAD + cid, layer if above else None, low, high)
        _check_found(
            change, proof.take(node, key, low, high) if prev is None else proof.place(node, key, prev, low, high)
        )
        if not node.keys and not above:
            return None
        link = NULL if not node.keys and node.trees[0] == NULL else sealed(node)
    for before, behind in reversed(above):
        if link != NULL or before[3] != 0x80:  # else it was only there to lead to a node that is empty now
            link = NODE_LINK_HEAD + sha256(before + link + behind).digest()
    return link[len(LINK_HEAD) :]


def _without_entry(block: bytes, change: Change) -> bytes:
    """Return the link to a node of layer 0 without the entry that `change` created, or null when nothing is left; empty: unusual.

    Three quarters of all writes end here. The entry, and the head of the next one, stand in the block as they must be written, once.
    """
    count = block[3] - 0x80 if block.startswith(b"\xa2ae") and 6 < len(block) <= _FAST_BYTES else 0
    if not 0 < count < 24 or change.cid is None:
        return b""
    entry: dict[str, Any] = {}
    following: dict[str, Any] | None = None
    before, here, key = b"", b"", change.key
    try:
        for following in libipld.decode_dag_cbor(block)["e"]:
            if here == key:
                break
            entry, following = following, None
            before, here = here, here[: entry["p"]] + entry["k"]
        if here != key:
            return b""
        own = b"%b\xf6av%b%b" % (entry_head_of(entry["p"], entry["k"]), LINK_HEAD, change.cid)
        if not _follows(before, entry) or (following is not None and not _follows(key, following)):
            return b""
        if following is None:
            front, rest = block.split(own + TAIL)
            rest = TAIL + rest
        else:
            prefix, suffix = following["p"], following["k"]
            front, rest = block.split(own + entry_head_of(prefix, suffix))
            # What the neighbours share, all that lies between them shares.
            shared = min(entry["p"], prefix)
            rest = entry_head_of(shared, key[shared:prefix] + suffix) + rest
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        return b""
    if count == 1:
        return NULL if rest == b"al\xf6" else b""
    return NODE_LINK_HEAD + sha256(NODE_HEADS[count - 1] + front[4:] + rest).digest()


def _follows(before: bytes, entry: dict[str, Any]) -> bool:
    """Say whether an entry's key is above the one before it, and its prefix the longest one that they share."""
    prefix: int = entry["p"]
    suffix: bytes = entry["k"]
    return 0 <= prefix <= len(before) and before[prefix : prefix + 1] < suffix[:1]
