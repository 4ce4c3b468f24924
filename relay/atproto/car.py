"""CARv1: header, sections, and three indexes of blocks that find a block by its SHA-256.

    varint(len(header)) | header | (varint(len(cid) + len(data)) | cid | data)*

A block *is there* when the bytes of some section hash to what its link says, whatever CID that section states: so nothing
wrong is ever used, and nothing is refused for what is not used. Unrelated blocks, repeated sections, CIDs of other kinds and
bad hashes of blocks that the tree never reaches are tolerated and ignored. The framing is not: every section must lie whole in
the file, with a minimal varint, and be longer than a CID. There is no count and no trailer: a file that was cut at the end of a
section is only found out by walking the tree. Source: PROTOCOL 2.4, 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

from relay.atproto.cid import CID_BYTES, DAG_CBOR_PREFIX, cid_text
from relay.atproto.errors import InvalidCar, LimitExceeded, WrongHash
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.varint import read_varint

# The header of every repo: {"roots": [one link], "version": 1}, 58 bytes behind their length, 36 of them the CID.
_ROOTS: Final = b"\xa2eroots"
_VERSION: Final = b"gversion\x01"
_LINK_HEAD: Final = b"\xd8\x2aX"
_MAX_ROOT_CID_BYTES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CarHeader:
    """`roots`: CIDs as raw bytes, of any kind; `size`: offset of the first section."""

    roots: tuple[bytes, ...]
    size: int

    @property
    def commit_cid(self) -> bytes:
        """The first root, which is the repo's commit. Raises InvalidCar unless there is one that can be."""
        if not self.roots:
            raise InvalidCar("the CAR names no root, and so no commit", at=0)
        root = self.roots[0]
        if len(root) != CID_BYTES or not root.startswith(DAG_CBOR_PREFIX):
            raise InvalidCar("the first root is not the CID of a commit (version 1, dag-cbor, sha2-256)", at=0)
        return root


class Section(NamedTuple):
    """One section of a CAR: where its length stands, the CID that it states (raw bytes, of any kind), its data."""

    offset: int
    cid: bytes
    data: bytes


def read_header(car: bytes | memoryview, *, limits: Limits = DEFAULT_LIMITS) -> CarHeader:
    """Return the header. It must be canonical: exactly `roots` and `version`, version 1.

    Raises InvalidCar with the offset (CARv2 among others), or LimitExceeded.
    """
    size, start = read_varint(car, 0)
    if size > limits.car_header_bytes:
        raise LimitExceeded(f"a CAR header of {size:,} bytes: the limit is {limits.car_header_bytes:,}", at=0)
    end = start + size
    if end > len(car):
        raise InvalidCar(f"the CAR ends inside its header: {len(car):,} bytes", at=0)
    header = bytes(car[start:end])
    if not (header.startswith(_ROOTS) and header.endswith(_VERSION)):
        raise InvalidCar("the header is not {roots, version: 1}: not a CARv1", at=start)
    at = len(_ROOTS)
    stop = size - len(_VERSION)
    count = header[at] - 0x80 if at < stop else -1
    at += 1
    if not 0 <= count <= 23:
        raise InvalidCar("the header's roots are not a list of at most 23 links", at=start + at - 1)
    roots: list[bytes] = []
    for _ in range(count):
        # A link: tag 42, a byte string of 24 to 255 bytes, 0x00, the CID.
        length = header[at + 3] if at + 4 < stop else 0
        after = at + 4 + length
        if (
            header[at : at + 3] != _LINK_HEAD
            or not 24 <= length <= _MAX_ROOT_CID_BYTES + 1
            or after > stop
            or header[at + 4]
        ):
            raise InvalidCar("a root that is not a link", at=start + at)
        roots.append(header[at + 5 : after])
        at = after
    if at != stop:
        raise InvalidCar("bytes between the header's roots and its version", at=start + at)
    return CarHeader(roots=tuple(roots), size=end)


def read_sections(car: bytes | memoryview, *, limits: Limits = DEFAULT_LIMITS) -> Iterator[Section]:
    """Yield every section in file order, with whatever CID it states; its hash is not checked.

    The plain reader: for tests, tools and errors with a place. Raises InvalidCar or LimitExceeded with the offset.
    """
    at = read_header(car, limits=limits).size
    end = len(car)
    count = 0
    while at < end:
        start = at
        size, at = _read_section_head(car, at, end, limits)
        count += 1
        if count > limits.blocks:
            raise LimitExceeded(f"a CAR of more than {limits.blocks:,} blocks", at=start)
        stop = at + size
        cid_end = _cid_end(car, at, stop)
        yield Section(start, bytes(car[at:cid_end]), bytes(car[cid_end:stop]))
        at = stop


def check_section(section: Section) -> None:
    """Raise WrongHash unless the section's data hash to its CID. CIDs of other hashes than SHA-256 cannot be checked."""
    cid = section.cid
    is_v0 = cid[:2] == b"\x12\x20"
    if (is_v0 or cid[-34:-32] == b"\x12\x20") and sha256(section.data).digest() != cid[-32:]:
        raise WrongHash("a block that does not hash to its CID", at=section.offset)


def _read_section_head(car: bytes | memoryview, at: int, end: int, limits: Limits) -> tuple[int, int]:
    """Return (size of CID and data, offset of the CID) of the section at `at`."""
    size, after = read_varint(car, at)
    if size <= CID_BYTES:
        raise InvalidCar(f"a section of {size} bytes, which is no more than a CID", at=at)
    if size - CID_BYTES > limits.block_bytes:
        raise LimitExceeded(f"a block of {size - CID_BYTES:,} bytes: the limit is {limits.block_bytes:,}", at=at)
    if after + size > end:
        raise InvalidCar(f"the CAR ends inside a section: {size:,} bytes promised, {end - after:,} there", at=at)
    return size, after


def _cid_end(car: bytes | memoryview, at: int, stop: int) -> int:
    """Return the offset behind the CID at `at`: version 0 (34 bytes), or version 1 with any codec and hash."""
    if car[at] == 0x12:
        after = at + 34
        if car[at + 1] != 0x20 or after > stop:
            raise InvalidCar("a section whose CID cannot be read", at=at)
        return after
    version, after = read_varint(car, at)
    _codec, after = read_varint(car, after)
    _hash, after = read_varint(car, after)
    size, after = read_varint(car, after)
    if version != 1 or after + size > stop:
        raise InvalidCar("a section whose CID cannot be read", at=at)
    return after + size


# ---- indexes of blocks ---------------------------------------------------------------------------------------------


class Blocks(Protocol):
    """The blocks of one CAR by their SHA-256 (32 bytes). KeyError: no section hashes to it."""

    def __getitem__(self, digest: bytes, /) -> bytes: ...


def hash_blocks(car: bytes, start: int, *, limits: Limits = DEFAULT_LIMITS) -> dict[bytes, bytes]:
    """Return every block by its SHA-256, all of them hashed. `start`: offset of the first section.

    For CARs that fit a slot: the blocks are copies, which is faster than views. 0.6 us a block, more than half of it SHA-256.
    Raises InvalidCar or LimitExceeded with the offset.
    """
    blocks: dict[bytes, bytes] = {}
    at, end, count = start, len(car), 0
    while at < end:
        at, found = _hash_plain_sections(car, at, blocks, limits)
        count += found
        if at < end:
            size, cid_at = _read_section_head(car, at, end, limits)
            at = cid_at + size
            block = car[cid_at + CID_BYTES : at]
            blocks[sha256(block).digest()] = block
            count += 1
    if count > limits.blocks:
        raise LimitExceeded(f"a CAR of {count:,} blocks: the limit is {limits.blocks:,}", at=0)
    return blocks


def _hash_plain_sections(data: bytes, at: int, blocks: dict[bytes, bytes], limits: Limits) -> tuple[int, int]:
    """Add the blocks of the sections from `at` on to `blocks`; return where a section begins that is not plain, and how many were.

    Plain: whole, and with a size of 128 to 16,383, so of two bytes; that is most. Every block of every repo comes through this
    loop: it slices, hashes and files a block while it is in the processor's cache, and computes nothing twice.
    """
    if limits.block_bytes < 1 << 14:
        return at, 0  # sizes have to be compared with the limit
    end, count, sha = len(data) - 1, 0, sha256
    while at < end:
        low, high = data[at], data[at + 1]
        if low < 128 or not 0 < high < 128:
            break
        stop = at + low + (high << 7) - 126
        if stop > end + 1:
            break
        block = data[at + 2 + CID_BYTES : stop]
        blocks[sha(block).digest()] = block
        at = stop
        count += 1
    return at, count


class StatedBlocks:
    """Blocks found by the CID that their section states, each hashed when it is asked for.

    For a repo of which little is wanted: 0.25 us a block, and 0.5 us for each one used. A block that is not found like this, or
    does not hash to its CID, is looked for among the hashes of all sections before it counts as missing.
    """

    __slots__ = ("_all", "_car", "_limits", "_places", "_start")

    def __init__(self, car: bytes, start: int, *, limits: Limits = DEFAULT_LIMITS) -> None:
        """Raises InvalidCar or LimitExceeded with the offset: the framing is read in full."""
        self._car, self._start, self._limits = car, start, limits
        self._all: dict[bytes, bytes] | None = None
        self._places: dict[bytes, int] = {}
        at, end, count = start, len(car), 0
        while at < end:
            at, found = self._add_plain_sections(at, limits)
            count += found
            if at < end:
                size, cid_at = _read_section_head(car, at, end, limits)
                self._places[car[cid_at + 4 : cid_at + CID_BYTES]] = at
                at = cid_at + size
                count += 1
        if count > limits.blocks:
            raise LimitExceeded(f"a CAR of {count:,} blocks: the limit is {limits.blocks:,}", at=0)

    def _add_plain_sections(self, at: int, limits: Limits) -> tuple[int, int]:
        """The loop of `_hash_plain_sections`, but for the hash."""
        if limits.block_bytes < 1 << 14:
            return at, 0
        data, places = self._car, self._places
        end, count = len(data) - 1, 0
        while at < end:
            low, high = data[at], data[at + 1]
            if low < 128 or not 0 < high < 128:
                break
            stop = at + low + (high << 7) - 126
            if stop > end + 1:
                break
            places[data[at + 6 : at + 2 + CID_BYTES]] = at
            at = stop
            count += 1
        return at, count

    def __getitem__(self, digest: bytes, /) -> bytes:
        if self._all is None:
            first = self._places.get(digest)
            if first is not None:
                size, at = read_varint(self._car, first)
                block = self._car[at + CID_BYTES : at + size]
                if sha256(block).digest() == digest:
                    return block
            self._all = hash_blocks(self._car, self._start, limits=self._limits)
        return self._all[digest]


class MappedBlocks:
    """Places of the blocks of a CAR too large to copy, by their SHA-256, all of them hashed. 160 bytes a block.

    `forget` is called after every FORGET_BYTES read: the mapped pages that were looked at may be dropped from memory.
    """

    FORGET_BYTES: Final = 32 << 20
    WINDOW_BYTES: Final = 1 << 20

    __slots__ = ("_car", "_places")

    def __init__(
        self, car: memoryview, start: int, *, limits: Limits = DEFAULT_LIMITS, forget: Callable[[], None] | None = None
    ) -> None:
        self._car = car
        self._places: dict[bytes, int] = {}
        at, end, count = start, len(car), 0
        unread = start + self.FORGET_BYTES
        while at < end:
            window = bytes(car[at : at + self.WINDOW_BYTES])
            stop, found = self._add_plain_sections(window, at, limits)
            at += stop
            count += found
            if at < end:
                size, cid_at = _read_section_head(car, at, end, limits)
                at = cid_at + size
                block = bytes(car[cid_at + CID_BYTES : at])
                self._places[sha256(block).digest()] = cid_at + CID_BYTES << 32 | len(block)
                count += 1
            if count > limits.blocks:
                raise LimitExceeded(f"a CAR of more than {limits.blocks:,} blocks", at=at)
            if at > unread and forget is not None:
                forget()
                unread = at + self.FORGET_BYTES

    def _add_plain_sections(self, data: bytes, offset: int, limits: Limits) -> tuple[int, int]:
        """The loop of `_hash_plain_sections` over a window of the CAR that begins at `offset`."""
        if limits.block_bytes < 1 << 14:
            return 0, 0
        places, sha = self._places, sha256
        at, end, count = 0, len(data) - 1, 0
        while at < end:
            low, high = data[at], data[at + 1]
            if low < 128 or not 0 < high < 128:
                break
            stop = at + low + (high << 7) - 126
            if stop > end + 1:
                break
            start = at + 2 + CID_BYTES
            places[sha(data[start:stop]).digest()] = offset + start << 32 | stop - start
            at = stop
            count += 1
        return at, count

    def __getitem__(self, digest: bytes, /) -> bytes:
        return self.read(self._places[digest])

    def place(self, digest: bytes) -> int:
        """Return where a block is, as one number for `read`. KeyError: it is not there."""
        return self._places[digest]

    @staticmethod
    def size(place: int) -> int:
        """Return the size of the block at `place`, bytes."""
        return place & 0xFFFFFFFF

    def read(self, place: int) -> bytes:
        offset = place >> 32
        return bytes(self._car[offset : offset + (place & 0xFFFFFFFF)])


def digest_text(digest: bytes) -> str:
    """Return the CID, as text, of the dag-cbor block with this SHA-256."""
    return cid_text(DAG_CBOR_PREFIX + digest)
