from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cbrrr import CID, encode_dag_cbor
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto import car as cars
from relay.atproto.car import Blocks, MappedBlocks, StatedBlocks, check_section, hash_blocks, read_header, read_sections
from relay.atproto.errors import AtprotoError, InvalidCar, LimitExceeded, WrongHash
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from tests.support.repos import CID_PREFIX, Block, cid_of, section, varint, write_car

ROOT = cid_of(b"root")
# Sizes around those where the length of a section takes one byte more.
SIZES = st.lists(st.one_of(st.integers(1, 120), st.sampled_from([91, 92, 16_347, 16_348])), max_size=20)


def _blocks(sizes: list[int]) -> list[Block]:
    """Return a block of each size, no two alike unless they are tiny."""
    made = [(b"%d." % place * size)[:size] for place, size in enumerate(sizes)]
    return [(cid_of(data), data) for data in made]


INDEXES: dict[str, Callable[[bytes, Limits], Blocks]] = {
    "hash": lambda car, limits: hash_blocks(car, read_header(car).size, limits=limits),
    "stated": lambda car, limits: StatedBlocks(car, read_header(car).size, limits=limits),
    "mapped": lambda car, limits: MappedBlocks(memoryview(car), read_header(car).size, limits=limits),
}
every_index = pytest.mark.parametrize("index", INDEXES)


def _has(blocks: Blocks, digest: bytes) -> bool:
    try:
        return hashlib.sha256(blocks[digest]).digest() == digest
    except KeyError:
        return False


# ---- the header ----------------------------------------------------------------------------------------------------


def test_the_header_of_a_repo_is_read() -> None:
    header = read_header(write_car(ROOT, []))
    assert (header.roots, header.size, header.commit_cid) == ((ROOT,), 59, ROOT)


@given(st.lists(st.sampled_from([ROOT, CID_PREFIX + bytes(32), b"\x12\x20" + bytes(32)]), max_size=23))
def test_any_number_of_roots_up_to_23_is_read(roots: list[bytes]) -> None:
    car = write_car(roots, [(ROOT, b"root")])
    header = read_header(memoryview(car))
    assert header.roots == tuple(roots)
    assert car[header.size :] == section(ROOT, b"root")


@pytest.mark.parametrize("roots", [[], [b"\x12\x20" + bytes(32)], [b"\x01\x55\x12\x20" + bytes(32), ROOT]])
def test_a_car_whose_first_root_can_be_no_commit_has_none(roots: list[bytes]) -> None:
    with pytest.raises(InvalidCar):
        _ = read_header(write_car(roots, [])).commit_cid


def _list_sections(car: bytes, limits: Limits) -> object:
    return list(read_sections(car, limits=limits))


def _header(*, version: object = 1, **more: object) -> bytes:
    header = encode_dag_cbor({"roots": [CID(ROOT)], "version": version, **more})  # type: ignore[dict-item]
    return varint(len(header)) + header


@pytest.mark.parametrize(
    "data",
    {
        "nothing": b"",
        "no header": b"\x00",
        "version 2": _header(version=2),
        "version 1.0": _header(version=1.0),
        "one key more": _header(x=1),
        "a pragma of CARv2": bytes.fromhex("0aa16776657273696f6e02"),
        "a root that is text": b"\x13\xa2eroots\x81abgversion\x01",
        "roots that are no list": b"\x11\xa2eroots\xf6gversion\x01",
        "a long length of roots": write_car(ROOT, [])
        .replace(b"\x3a\xa2eroots\x81", b"\x3b\xa2eroots\x98\x01")
        .replace(b"\x3a", b"\x3b", 0),
        "a link without its zero byte": write_car(ROOT, []).replace(b"X%\x00", b"X%\x01"),
        "a link that is too long": write_car(ROOT, []).replace(b"X%\x00", b"X\xff\x00"),
        "keys in another order": b"\x39" + b"\xa2gversion\x01" + write_car(ROOT, [])[2:-9],
    }.items(),
    ids=lambda pair: pair[0],
)
def test_a_header_is_refused_that_is(data: tuple[str, bytes]) -> None:
    with pytest.raises(InvalidCar):
        read_header(data[1])


def test_a_header_has_a_size_limit() -> None:
    with pytest.raises(LimitExceeded):
        read_header(write_car([ROOT] * 200, []))
    with pytest.raises(InvalidCar):
        read_header(write_car([ROOT] * 24, []))


# ---- sections ------------------------------------------------------------------------------------------------------


@given(SIZES)
def test_the_plain_reader_gives_what_was_written(sizes: list[int]) -> None:
    blocks = _blocks(sizes)
    car = write_car(ROOT, blocks)
    read = list(read_sections(memoryview(car)))
    assert [(cid, data) for _, cid, data in read] == blocks
    for found in read:
        check_section(found)
        assert car[found.offset :].startswith(section(found.cid, found.data))


def test_cids_of_other_kinds_are_read_and_checked_where_they_can_be() -> None:
    data = b"some bytes that have a hash, longer than the one CID here"
    digest = hashlib.sha256(data).digest()
    kinds = [
        b"\x12\x20" + digest,
        b"\x01\x55\x12\x20" + digest,
        b"\x01\xa9\x02\x13\x40" + bytes(64),
        b"\x01\x71\x00\x03abc",
    ]
    read = list(read_sections(write_car(ROOT, [(cid, data) for cid in kinds])))
    assert [(found.cid, found.data) for found in read] == [(cid, data) for cid in kinds]
    for found in read:
        check_section(found)
    for place in (0, 1):
        with pytest.raises(WrongHash):
            check_section(read[place]._replace(data=b"other"))


@pytest.mark.parametrize(
    "tail",
    [
        b"\x24" + ROOT,  # no data
        b"\x05abcde",
        b"\x00",
        b"\xa6\x00" + ROOT + b"xx",  # 38 in two bytes
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + bytes(50),
        b"\xff\xff\xff\x7f" + bytes(50),
        b"\xa6",
        b"\x26" + ROOT + b"x",
        b"\xa6\x01" + ROOT + b"x",
    ],
)
@pytest.mark.parametrize("before", [[], [(ROOT, b"root")]])
def test_bad_framing_is_refused_with_its_offset(before: list[Block], tail: bytes) -> None:
    car = write_car(ROOT, before)
    offset = len(car)
    for read in (_list_sections, *INDEXES.values()):
        with pytest.raises((InvalidCar, LimitExceeded)) as caught:
            read(car + tail, DEFAULT_LIMITS)
        assert caught.value.at == offset


@pytest.mark.parametrize(
    "cid", [b"\x12\x21" + bytes(40), b"\x02\x71\x12\x20" + bytes(40), b"\x01\x71\x12\x7f" + bytes(40)]
)
def test_the_plain_reader_refuses_a_cid_that_cannot_be_read(cid: bytes) -> None:
    with pytest.raises(InvalidCar):
        list(read_sections(write_car(ROOT, [(cid, b"")])))


# ---- the indexes ---------------------------------------------------------------------------------------------------


@given(SIZES, st.sampled_from([64, 200, 1 << 20]), st.booleans())
def test_every_index_finds_every_block(sizes: list[int], window: int, small_limit: bool) -> None:
    blocks = _blocks(sizes)
    car = write_car(ROOT, blocks)
    limits = Limits(block_bytes=16_348 - 1 if small_limit else 1 << 21)
    largest = max((len(data) for _, data in blocks), default=0)
    for name, index in INDEXES.items():
        original, MappedBlocks.WINDOW_BYTES = MappedBlocks.WINDOW_BYTES, window  # type: ignore[misc]
        try:
            if largest > limits.block_bytes:
                with pytest.raises(LimitExceeded):
                    index(car, limits)
                continue
            found = index(car, limits)
        finally:
            MappedBlocks.WINDOW_BYTES = original  # type: ignore[misc]
        for cid, data in blocks:
            assert found[cid[4:]] == data, name
        with pytest.raises(KeyError):
            found[bytes(32)]


@every_index
def test_a_block_counts_by_its_bytes_and_not_by_the_cid_that_is_stated(index: str) -> None:
    good, other = b"what is wanted", b"something else"
    for listed in (
        [(CID_PREFIX + bytes(32), good)],  # a wrong CID
        [(b"\x01\x55\x12\x20" + cid_of(good)[4:], good)],  # another codec
        [(cid_of(good), good), (cid_of(good), other)],  # a false block of the same name behind it
        [(cid_of(good), other), (cid_of(good), good)],  # or before it
        [(cid_of(good), good)] * 3,
    ):
        assert INDEXES[index](write_car(ROOT, listed), DEFAULT_LIMITS)[cid_of(good)[4:]] == good
    false = INDEXES[index](write_car(ROOT, [(cid_of(good), other)]), DEFAULT_LIMITS)
    with pytest.raises(KeyError):
        false[cid_of(good)[4:]]


@every_index
def test_the_number_of_blocks_has_a_limit(index: str) -> None:
    blocks = [(cid_of(data), data) for data in (b"one", b"two", b"three")]
    INDEXES[index](write_car(ROOT, blocks), Limits(blocks=3))
    with pytest.raises(LimitExceeded):
        INDEXES[index](write_car(ROOT, blocks), Limits(blocks=2))
    with pytest.raises(LimitExceeded):
        list(read_sections(write_car(ROOT, blocks), limits=Limits(blocks=2)))


@every_index
def test_a_car_cut_anywhere_is_refused_or_lacks_blocks(index: str) -> None:
    blocks = [(cid_of(data), data) for data in (b"one", b"two" * 60, b"three")]
    car = write_car(ROOT, blocks)
    edges = [found.offset for found in read_sections(car)]
    for size in range(len(car)):
        try:
            found = INDEXES[index](car[:size], DEFAULT_LIMITS)
        except AtprotoError:
            assert size not in edges
            continue
        assert size in edges
        there = [_has(found, cid[4:]) for cid, _ in blocks]
        assert there == [offset < size for offset in edges]


def test_pages_of_a_mapped_car_are_let_go_of_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MappedBlocks, "WINDOW_BYTES", 1000)
    monkeypatch.setattr(MappedBlocks, "FORGET_BYTES", 10_000)
    blocks = [(cid_of(bytes([number]) * 500), bytes([number]) * 500) for number in range(100)]
    calls: list[None] = []
    car = write_car(ROOT, blocks)
    found = MappedBlocks(memoryview(car), read_header(car).size, forget=lambda: calls.append(None))
    assert 4 <= len(calls) <= len(car) // 10_000
    place = found.place(blocks[7][0][4:])
    assert (found.read(place), found.size(place)) == (blocks[7][1], 500)


def test_the_text_of_a_digest_is_that_of_its_dag_cbor_cid() -> None:
    assert cars.digest_text(ROOT[4:]) == CID(ROOT).encode()
