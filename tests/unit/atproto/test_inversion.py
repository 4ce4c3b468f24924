from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from cbrrr import CID, decode_dag_cbor, encode_dag_cbor
from hypothesis import assume, given
from hypothesis import strategies as st

from relay.atproto import inversion
from relay.atproto.errors import AtprotoError, InvalidMst, InvalidProof, LimitExceeded, PartialTree
from relay.atproto.inversion import Change, invert
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.proof_tree import EMPTY_TREE_CID, ProofTree
from tests.support.live import proof_of
from tests.support.repos import build_tree, cid_of, layer_of


def _keys_of_layers() -> list[bytes]:
    """Return keys of which as many lie in layer 3 as in layer 0, so that small trees are high."""
    found: dict[int, list[bytes]] = {}
    number = 0
    while len(found.get(4, [])) < 8:
        key = b"app.bsky.feed.%s/3k%x" % (b"like" if number % 3 else b"post", number)
        found.setdefault(layer_of(key), []).append(key)
        number += 1
    return sorted(key for keys in found.values() for key in keys[:25])


KEYS = _keys_of_layers()
VALUES = [cid_of(b"\xa1aa%c" % number) for number in range(24)]
TREES = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=40)


@dataclass(frozen=True)
class Case:
    """A tree before, and what was done to it."""

    before: dict[bytes, bytes]
    after: dict[bytes, bytes]
    changes: list[Change]


@st.composite
def _cases(draw: st.DrawFn, max_changes: int = 8) -> Case:
    before = draw(TREES)
    touched = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=max_changes, unique=True))
    after = dict(before)
    changes = []
    for key in touched:
        value = draw(st.sampled_from(VALUES))
        if key not in before:
            after[key] = value
        elif draw(st.booleans()):
            del after[key]
        else:
            after[key] = value
        changes.append(Change(key, after.get(key), before.get(key)))
    return Case(before, after, changes)


def _by_digest(nodes: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {cid[4:]: block for cid, block in nodes.items()}


def _proof(case: Case) -> tuple[bytes, dict[bytes, bytes]]:
    """Return (root, the nodes that a commit must carry)."""
    root, built = build_tree(case.after)
    nodes = dict(built)
    needed = proof_of(root, nodes, case.after, [change.key for change in case.changes])
    return root, {cid: nodes[cid] for cid in needed}


def _plainly(root: bytes, blocks: Mapping[bytes, bytes], changes: list[Change]) -> bytes | str:
    """Undo with the tree of nodes alone, without the fast way for a single change; an error is told by its type."""
    try:
        tree = ProofTree(root, blocks)
        for key, cid, prev in sorted(changes, key=lambda change: (change.cid is not None, change.key)):
            found = tree.remove(key) if prev is None else tree.put(key, prev)
            if found != cid:
                return InvalidProof.__name__
        return tree.root()
    except AtprotoError as exc:
        return type(exc).__name__


def _inverted(root: bytes, blocks: Mapping[bytes, bytes], changes: list[Change]) -> bytes | str:
    try:
        return invert(root, blocks, changes)
    except AtprotoError as exc:
        return type(exc).__name__


@given(_cases())
def test_changes_undone_on_their_proof_give_the_tree_before(case: Case) -> None:
    root, nodes = _proof(case)
    assert invert(root, _by_digest(nodes), case.changes) == build_tree(case.before)[0]


@given(_cases(max_changes=1))
def test_a_single_change_undone_on_the_whole_tree_gives_the_tree_before(case: Case) -> None:
    root, nodes = build_tree(case.after)
    assert invert(root, _by_digest(dict(nodes)), case.changes) == build_tree(case.before)[0]


@given(_cases(), st.randoms())
def test_the_order_of_the_changes_does_not_matter(case: Case, random: Any) -> None:
    root, nodes = _proof(case)
    random.shuffle(case.changes)
    assert invert(root, _by_digest(nodes), case.changes) == build_tree(case.before)[0]


@given(TREES)
def test_all_keys_removed_leave_the_empty_tree(entries: dict[bytes, bytes]) -> None:
    root, nodes = build_tree(entries)
    assert invert(root, _by_digest(dict(nodes)), [Change(k, v, None) for k, v in entries.items()]) == EMPTY_TREE_CID


@given(_cases(max_changes=3), st.data())
def test_a_missing_node_makes_the_tree_partial_or_was_not_needed(case: Case, data: st.DataObject) -> None:
    root, nodes = _proof(case)
    missing = data.draw(st.sampled_from(sorted(nodes)))
    rest = {cid: block for cid, block in nodes.items() if cid != missing}
    found = _inverted(root, _by_digest(rest), case.changes)
    # A missing node that ends as the top may be one that would have to go, and nobody can see that.
    assert found in (PartialTree.__name__, build_tree(case.before)[0], missing)
    assert missing != root or root == EMPTY_TREE_CID or found == PartialTree.__name__


@given(_cases(max_changes=3), st.data())
def test_lies_about_a_change_never_lead_to_the_tree_before(case: Case, data: st.DataObject) -> None:
    root, nodes = _proof(case)
    at = data.draw(st.integers(0, len(case.changes) - 1))
    key, cid, prev = case.changes[at]
    lie = data.draw(
        st.sampled_from(
            [
                Change(key, VALUES[0], prev),
                Change(key, cid, VALUES[1]),
                Change(KEYS[3], cid, prev),
                Change(key, None, VALUES[2]),
            ]
        )
    )
    assume(lie != case.changes[at])
    changes = [*case.changes[:at], lie, *case.changes[at + 1 :]]
    assert _inverted(root, _by_digest(nodes), changes) != build_tree(case.before)[0]


@given(_cases(max_changes=3), st.data())
def test_a_change_that_is_not_told_never_leads_to_the_tree_before(case: Case, data: st.DataObject) -> None:
    root, nodes = build_tree(case.after)
    before = build_tree(case.before)[0]
    assume(root != before)
    hidden = data.draw(st.sampled_from([change for change in case.changes if change.cid != change.prev]))
    told = [change for change in case.changes if change != hidden]
    assert (_inverted(root, _by_digest(dict(nodes)), told) if told else root) != before


# ---- damaged trees, with hashes that fit ---------------------------------------------------------------------------


def _damaged(root: bytes, nodes: dict[bytes, bytes], victim: bytes, block: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Put `block` in the place of node `victim`, and link to it all the way up."""
    nodes = dict(nodes)
    del nodes[victim]
    old, new = victim, cid_of(block)
    nodes[new] = block
    while old != root:
        parent = next((cid for cid, data in nodes.items() if old in data and cid != new), None)
        if parent is None:
            return root, nodes
        data = nodes.pop(parent).replace(old, new)
        old, new = parent, cid_of(data)
        nodes[new] = data
    return new, nodes


def _wrong(block: bytes, kind: str) -> bytes:
    node: Any = decode_dag_cbor(block)
    entries = node["e"]
    match kind:
        case "entry doubled":
            node["e"] = [*entries, *entries[-1:]]
        case "entry dropped":
            node["e"] = entries[1:]
        case "entries reversed":
            node["e"] = entries[::-1]
        case "prefix too short" if len(entries) > 1 and entries[1]["p"]:
            first = entries[0]["k"]
            entries[1] = {
                **entries[1],
                "k": first[entries[1]["p"] - 1 :][:1] + entries[1]["k"],
                "p": entries[1]["p"] - 1,
            }
        case "prefix too long" if entries:
            entries[0] = {**entries[0], "p": 1}
        case "value changed" if entries:
            entries[0] = {**entries[0], "v": CID(VALUES[3])}
        case "subtree dropped":
            node["l"] = None
        case "subtree of itself":
            node["l"] = CID(cid_of(block))
        case "record as subtree" if entries:
            node["l"] = entries[0]["v"]
        case "one more key":
            node["x"] = 1
        case "no map":
            return encode_dag_cbor([node])
        case "huge":
            node["e"] = entries * 500
    return encode_dag_cbor(node)


DAMAGES = (
    "entry doubled", "entry dropped", "entries reversed", "prefix too short", "prefix too long", "value changed",
    "subtree dropped", "subtree of itself", "record as subtree", "one more key", "no map", "huge",
)  # fmt: skip


@given(_cases(max_changes=3), st.sampled_from(DAMAGES), st.data())
def test_a_damaged_tree_never_leads_to_the_tree_before(case: Case, kind: str, data: st.DataObject) -> None:
    root, nodes = _proof(case)
    victim = data.draw(st.sampled_from(sorted(nodes)))
    block = _wrong(nodes[victim], kind)
    assume(cid_of(block) not in nodes)  # not damaged, or made into the node above it, which is another tree's
    bad_root, bad_nodes = _damaged(root, nodes, victim, block)
    assert _inverted(bad_root, _by_digest(bad_nodes), case.changes) != build_tree(case.before)[0], kind


@given(_cases(max_changes=2), st.data())
def test_bytes_of_a_node_changed_at_random_never_lead_to_the_tree_before(case: Case, data: st.DataObject) -> None:
    root, nodes = _proof(case)
    victim = data.draw(st.sampled_from(sorted(nodes)))
    block = bytearray(nodes[victim])
    block[data.draw(st.integers(0, len(block) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    bad_root, bad_nodes = _damaged(root, nodes, victim, bytes(block))
    assert _inverted(bad_root, _by_digest(bad_nodes), case.changes) != build_tree(case.before)[0]


@given(_cases(max_changes=1), st.sampled_from((*DAMAGES, "")), st.data())
def test_the_fast_way_accepts_only_what_the_plain_one_gives(case: Case, kind: str, data: st.DataObject) -> None:
    root, nodes = build_tree(case.after)
    blocks = dict(nodes)
    if kind:
        victim = data.draw(st.sampled_from(sorted(blocks)))
        root, blocks = _damaged(root, blocks, victim, _wrong(blocks[victim], kind))
    if data.draw(st.booleans()) and len(blocks) > 1:
        del blocks[data.draw(st.sampled_from(sorted(blocks)))]
    fast: bytes | str | None
    try:
        fast = inversion._undo_one(root, _by_digest(blocks), case.changes[0], DEFAULT_LIMITS)
    except AtprotoError as exc:
        fast = type(exc).__name__
    plain = _plainly(root, _by_digest(blocks), case.changes)
    # Of a tree that was valid before, both say the same; of another one the fast way may find the way, where the plain one refuses.
    assert fast is None or fast == plain or (kind and fast != build_tree(case.before)[0])


def test_most_single_changes_take_the_fast_way() -> None:
    keys = [b"app.bsky.feed.like/3k%011d" % (number * 7919) for number in range(400)]
    entries = dict.fromkeys(keys, VALUES[0])
    root, nodes = build_tree(entries)
    blocks = _by_digest(dict(nodes))
    taken = [inversion._undo_one(root, blocks, Change(key, VALUES[0], None), DEFAULT_LIMITS) for key in keys]
    assert sum(found is not None for found in taken) > 390


# ---- what is refused, and why --------------------------------------------------------------------------------------

LOW = [key for key in KEYS if layer_of(key) == 0]


def _blocks(entries: dict[bytes, bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    root, nodes = build_tree(entries)
    return root, _by_digest(dict(nodes))


def test_contradictions_are_told_with_their_path() -> None:
    root, blocks = _blocks(dict.fromkeys(LOW[:4], VALUES[0]))
    for change, problem in (
        (Change(LOW[5], VALUES[0], None), "a written record is not in the tree"),
        (Change(LOW[0], VALUES[1], None), "the tree has another record"),
        (Change(LOW[0], VALUES[1], VALUES[2]), "the tree has another record"),
        (Change(LOW[0], None, VALUES[0]), "a deleted record is in the tree"),
        (Change(LOW[0], None, None), "neither a value nor one before"),
    ):
        with pytest.raises(InvalidProof, match=problem) as caught:
            invert(root, blocks, [change])
        assert caught.value.at == change.key.decode()
    with pytest.raises(InvalidProof, match="two operations on one path"):
        invert(root, blocks, [Change(LOW[0], VALUES[0], None), Change(LOW[0], None, VALUES[0])])


def test_a_top_node_that_is_not_there_is_a_partial_tree() -> None:
    with pytest.raises(PartialTree):
        invert(VALUES[0], {}, [Change(LOW[0], VALUES[0], None)])


def test_a_key_deeper_than_the_limit_is_refused() -> None:
    high = [key for key in KEYS if layer_of(key) == 4]
    root, blocks = _blocks({high[0]: VALUES[0]})
    with pytest.raises(LimitExceeded, match="layer 4"):
        invert(root, blocks, [Change(high[1], VALUES[0], None)], limits=Limits(tree_depth=4))


def test_a_wide_node_is_refused() -> None:
    root, blocks = _blocks(dict.fromkeys(LOW[:12], VALUES[0]))
    with pytest.raises(LimitExceeded, match="12 entries"):
        invert(root, blocks, [Change(LOW[0], None, VALUES[0])], limits=Limits(node_entries=8))


def test_a_node_of_many_entries_is_read_too() -> None:
    keys = [key for key in (b"app.bsky.feed.post/%05d" % number for number in range(2000)) if layer_of(key) == 0][:300]
    entries = dict.fromkeys(keys, VALUES[0])
    root, blocks = _blocks(entries)
    del entries[keys[150]]
    assert invert(root, blocks, [Change(keys[150], VALUES[0], None)]) == build_tree(entries)[0]


def test_a_record_whose_cid_is_of_another_kind_stays_as_it_is() -> None:
    foreign = b"\x01\x55\x11\x14" + bytes(20)
    entries: dict[bytes, Any] = {LOW[0]: foreign, LOW[1]: VALUES[0]}
    for key, change in (
        (LOW[1], Change(LOW[1], VALUES[0], None)),
        (LOW[2], Change(LOW[2], None, VALUES[4])),
    ):
        after = build_tree(entries)
        before = {k: v for k, v in entries.items() if k != key}
        if change.cid is None:
            before[key] = VALUES[4]
        assert invert(after[0], _by_digest(dict(after[1])), [change]) == build_tree(before)[0]


def test_an_empty_node_below_the_top_is_refused() -> None:
    high = next(key for key in KEYS if layer_of(key) == 1)
    low = next(key for key in LOW if key > high)
    empty = encode_dag_cbor({"l": None, "e": []})
    top = encode_dag_cbor({"l": None, "e": [{"p": 0, "k": high, "v": CID(VALUES[0]), "t": CID(cid_of(empty))}]})
    with pytest.raises(InvalidMst, match="empty node below the top"):
        invert(cid_of(top), _by_digest({cid_of(top): top, cid_of(empty): empty}), [Change(low, None, VALUES[0])])
