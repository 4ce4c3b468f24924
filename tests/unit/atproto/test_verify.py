from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from cbrrr import CID, encode_dag_cbor
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto import verify
from relay.atproto.errors import (
    AtprotoError,
    BadSignature,
    InvalidCar,
    InvalidMst,
    LimitExceeded,
    MissingBlock,
    OldCommitVersion,
    WrongDid,
)
from relay.atproto.keys import parse_multikey
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.verify import VerifiedRepo, verify_repo
from tests.support.repos import (
    DID,
    REV,
    MadeRepo,
    Signer,
    build_tree,
    cid_of,
    commit_block,
    make_records,
    make_repo,
    node_block,
    write_car,
)

EVERYTHING = NsidFilter.parse([])
COLLECTIONS = ["app.bsky.feed.like", "app.bsky.feed.post", "app.bsky.graph.follow", "com.example.a"]
PATHS = st.builds(
    lambda collection, number: f"{collection}/3k{number:011}".encode(),
    st.sampled_from(COLLECTIONS),
    st.integers(0, 500),
)
REPO = make_repo(make_records(f"{COLLECTIONS[number % 4]}/3k{number:011}".encode() for number in range(60)))


def _verify(car: bytes, repo: MadeRepo = REPO, **changes: Any) -> VerifiedRepo:
    arguments: dict[str, Any] = {"did": DID, "key": parse_multikey(repo.key), "wanted": EVERYTHING}
    return verify_repo(car, **(arguments | changes))


def _records(repo: VerifiedRepo) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for batch in repo.batches():
        assert len(batch.rkeys) == len(batch.digests) == len(batch.blocks) == batch.runs[-1].stop
        for collection, rkey, digest, block in batch.records():
            assert cid_of(block)[4:] == digest
            found[f"{collection}/".encode() + rkey] = block
    assert list(found) == sorted(found)
    assert len(found) == repo.wanted
    return found


@pytest.fixture(params=["copied", "mapped"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether a CAR counts as small, and is copied, or as large, and is read in place."""
    if request.param == "mapped":
        monkeypatch.setattr(verify, "COPY_BYTES", 0)
    return str(request.param)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("p256", [False, True])
def test_a_repo_is_proved_whole(p256: bool) -> None:
    made = make_repo(REPO.records, signer=Signer(seed=3, p256=p256))
    found = _verify(made.car, made)
    assert _records(found) == REPO.records == _records(found)
    assert (found.did, found.rev, found.data, found.commit_cid) == (DID, REV, made.data, made.commit[0])
    assert (found.records_total, found.wanted, found.foreign) == (60, 60, ())


@pytest.mark.usefixtures("size")
def test_an_empty_repo_is_proved() -> None:
    made = make_repo({})
    found = _verify(made.car, made)
    assert (found.records_total, found.wanted, list(found.batches())) == (0, 0, [])


@given(
    st.sets(PATHS, max_size=40),
    st.lists(st.sampled_from([*COLLECTIONS, "app.bsky.", "app.", "org."]), max_size=3),
    st.booleans(),
)
def test_a_filter_keeps_the_wanted_records_and_no_others(paths: set[bytes], patterns: list[str], mapped: bool) -> None:
    made = make_repo(make_records(paths))
    wanted = NsidFilter.parse(patterns)
    original, verify.COPY_BYTES = verify.COPY_BYTES, 0 if mapped else 1 << 20  # type: ignore[misc]
    try:
        found = _verify(made.car, made, wanted=wanted)
    finally:
        verify.COPY_BYTES = original  # type: ignore[misc]
    assert _records(found) == {path: made.records[path] for path in paths if wanted.wants(path.decode().split("/")[0])}
    assert found.records_total in (None, len(paths))
    assert found.records_total is not None or not wanted.is_everything


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("patterns", [[], ["app.bsky.feed."]])
def test_blocks_in_any_order_repeated_or_unrelated_make_no_difference(patterns: list[str]) -> None:
    blocks = [*REPO.blocks, *REPO.blocks[:20], (cid_of(b"unrelated"), b"unrelated"), (cid_of(b"false"), b"true")]
    random.Random(5).shuffle(blocks)
    wanted = NsidFilter.parse(patterns)
    assert _records(_verify(write_car(REPO.commit[0], blocks), wanted=wanted)) == _records(
        _verify(REPO.car, wanted=wanted)
    )


def test_two_paths_can_hold_one_record() -> None:
    record = encode_dag_cbor({"$type": "app.bsky.feed.like"})
    made = make_repo({b"app.bsky.feed.like/a": record, b"app.bsky.feed.like/b": record})
    assert _records(_verify(made.car, made)) == made.records


# ---- refusals, each with its reason ---------------------------------------------------------------------------------


def test_a_repo_of_another_account_is_refused_before_its_signature_is_looked_at() -> None:
    other = Signer(seed=9)
    with pytest.raises(WrongDid):
        _verify(REPO.car, did="did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", key=parse_multikey(other.multikey))


def test_a_signature_of_another_key_is_refused() -> None:
    with pytest.raises(BadSignature):
        _verify(REPO.car, key=parse_multikey(Signer(seed=9).multikey))


@pytest.mark.parametrize("p256", [False, True])
def test_a_high_s_is_refused(p256: bool) -> None:
    signer = Signer(p256=p256)
    block = commit_block(REPO.data, signer=signer, high_s=True)
    car = write_car(cid_of(block), [(cid_of(block), block), *REPO.blocks[1:]])
    with pytest.raises(BadSignature):
        _verify(car, key=parse_multikey(signer.multikey))


def test_without_a_key_the_signature_is_not_checked_but_all_else_is() -> None:
    assert _records(_verify(REPO.car, key=None)) == REPO.records
    with pytest.raises(WrongDid):
        _verify(REPO.car, key=None, did="did:web:example.com")
    with pytest.raises(MissingBlock):
        _verify(write_car(REPO.commit[0], REPO.blocks[:-1]), key=None)


def test_an_old_commit_is_refused() -> None:
    block = commit_block(REPO.data, version=2)
    with pytest.raises(OldCommitVersion):
        _verify(write_car(cid_of(block), [(cid_of(block), block), *REPO.blocks[1:]]))


@pytest.mark.usefixtures("size")
def test_every_missing_block_is_found_and_named() -> None:
    for place, (cid, _) in enumerate(REPO.blocks):
        car = write_car(REPO.commit[0], REPO.blocks[:place] + REPO.blocks[place + 1 :])
        with pytest.raises(MissingBlock) as caught:
            _verify(car)
        assert caught.value.at == CID(cid).encode()


@pytest.mark.usefixtures("size")
def test_a_missing_record_that_nobody_wants_is_not_missed() -> None:
    wanted = NsidFilter.parse(["app.bsky.feed."])
    blocks = [*REPO.blocks[: 1 + len(REPO.nodes)]]
    blocks += [(cid_of(block), block) for path, block in REPO.records.items() if path.startswith(b"app.bsky.feed.")]
    assert len(_records(_verify(write_car(REPO.commit[0], blocks), wanted=wanted))) == 30
    with pytest.raises(MissingBlock) as caught:
        _verify(write_car(REPO.commit[0], blocks[:-1]), wanted=wanted)
    assert "app.bsky.feed." in str(caught.value)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("patterns", [[], ["com.example."]])
def test_a_signed_tree_that_breaks_a_rule_is_refused_with_the_place(patterns: list[str]) -> None:
    record = encode_dag_cbor({"$type": "com.example.a"})
    node = node_block(None, [(0, b"com.example.a/b", cid_of(record), None), (13, b"/c", cid_of(record), None)])
    block = commit_block(cid_of(node))
    car = write_car(cid_of(block), [(cid_of(data), data) for data in (block, node, record)])
    with pytest.raises(InvalidMst) as caught:
        _verify(car, wanted=NsidFilter.parse(patterns))
    assert caught.value.at == CID(cid_of(node)).encode()


def test_no_root_or_a_root_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidCar):
        _verify(write_car([], REPO.blocks))
    with pytest.raises(MissingBlock):
        _verify(write_car(cid_of(b"elsewhere"), REPO.blocks))
    with pytest.raises(AtprotoError):
        _verify(write_car(cid_of(next(iter(REPO.records.values()))), REPO.blocks))


@pytest.mark.usefixtures("size")
def test_a_record_whose_cid_proves_nothing_is_told_apart() -> None:
    odd = b"\x01\x55\x12\x20" + cid_of(b"raw")[4:]
    paths = {b"app.bsky.feed.like/a": odd, b"app.bsky.feed.like/b": cid_of(b"\xa0")}
    data, nodes = build_tree(paths)
    block = commit_block(data)
    blocks = [(cid_of(block), block), *nodes, (odd, b"raw"), (cid_of(b"\xa0"), b"\xa0")]
    found = _verify(write_car(cid_of(block), blocks))
    assert found.foreign == ((b"app.bsky.feed.like/a", odd),)
    assert (_records(found), found.records_total) == ({b"app.bsky.feed.like/b": b"\xa0"}, 2)
    unwanted = _verify(write_car(cid_of(block), blocks), wanted=NsidFilter.parse(["com.example.a"]))
    assert (unwanted.foreign, unwanted.wanted) == ((), 0)


@pytest.mark.usefixtures("size")
def test_large_records_are_found_by_their_size() -> None:
    records = {b"app.bsky.feed.post/a": bytes(100), b"app.bsky.feed.post/b": bytes(101), b"com.example.a/c": bytes(300)}
    made = make_repo(records)
    found = _verify(made.car, made)
    assert [item[:2] for item in found.records_over(100)] == [("app.bsky.feed.post", "b"), ("com.example.a", "c")]
    assert [item[2:] for item in found.records_over(299)] == [(CID(cid_of(bytes(300))).encode(), bytes(300))]
    assert list(found.records_over(300)) == []


def test_limits_reach_every_reader() -> None:
    for limits in (
        Limits(blocks=10),
        Limits(block_bytes=50),
        Limits(car_header_bytes=57),
        Limits(node_entries=1),
        Limits(tree_depth=1),
        Limits(key_bytes=10),
    ):
        with pytest.raises(LimitExceeded):
            _verify(REPO.car, limits=limits)


# ---- hostile bytes ---------------------------------------------------------------------------------------------------

SMALL = make_repo(make_records([b"app.bsky.feed.like/a", b"app.bsky.feed.like/b", b"com.example.a/c"]))


@pytest.mark.usefixtures("size")
def test_a_car_cut_at_any_byte_is_refused() -> None:
    car = SMALL.car
    for length in range(len(car)):
        with pytest.raises(AtprotoError):
            _verify(car[:length], SMALL)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("patterns", [[], ["app."]])
def test_a_flipped_bit_is_refused_or_changes_nothing(patterns: list[str]) -> None:
    """A bit of a CID that a section states for itself, for example, is of no consequence; no other record ever comes out."""
    car = SMALL.car
    wanted = NsidFilter.parse(patterns)
    whole = _records(_verify(car, SMALL, wanted=wanted))
    survived = 0
    for place in range(len(car)):
        for bit in (0, 3, 7):
            damaged = bytearray(car)
            damaged[place] ^= 1 << bit
            try:
                found = _verify(bytes(damaged), SMALL, wanted=wanted)
            except AtprotoError:
                continue
            survived += 1
            assert _records(found) == whole
    assert 0 < survived < len(car) * 2


@given(st.binary(max_size=300), st.integers(0, 2000), st.booleans())
def test_random_bytes_give_a_typed_error_and_nothing_else(noise: bytes, at: int, behind: bool) -> None:
    car = SMALL.car[: at % len(SMALL.car)] + noise if behind else noise
    with pytest.raises(AtprotoError):
        verify_repo(car, did=DID, key=None, wanted=EVERYTHING, limits=DEFAULT_LIMITS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"\x81" * 100_000 + b"\xf6",  # arrays in arrays
        lambda: b"\x9b" + b"\xff" * 8,  # an array of 2**64 - 1 items
        lambda: b"\xa2ae\x9a\x00\xff\xff\xff",
        lambda: b"\xa2ae\x81\xa4akY\xff\xffap\x00at\xf6av\xf6al\xf6",
        lambda: b"\xd8\x2a" * 50_000,
        lambda: b"\xbf" * 100_000,
    ],
)
def test_a_bomb_in_place_of_a_node_or_the_commit_is_refused(make: Callable[[], bytes]) -> None:
    bomb = make()
    with pytest.raises(AtprotoError):
        _verify(write_car(cid_of(bomb), [(cid_of(bomb), bomb)]))
    block = commit_block(cid_of(bomb))
    with pytest.raises(AtprotoError):
        _verify(write_car(cid_of(block), [(cid_of(block), block), (cid_of(bomb), bomb)]))
