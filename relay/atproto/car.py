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
    blocks: list[bytes] = []
    at = _cut(car, start, blocks, None, limits)
    if at != len(car):
        _read_section_head(car, at, len(car), limits)
        raise AssertionError("a section is whole and is not")
    if len(blocks) > limits.blocks:
        raise LimitExceeded(f"a CAR of {len(blocks):,} blocks: the limit is {limits.blocks:,}", at=0)
    return dict(zip([sha256(block).digest() for block in blocks], blocks, strict=True))


def _cut(data: bytes, start: int, blocks: list[bytes], offsets: list[int] | None, limits: Limits) -> int:
    """Append the data of every section from `start` on (and the offset of those data); return where the first one that is not
    whole or not valid begins, or the end.

    The loop that every block of every repo goes through: varints of one and two bytes are read in line.
    """
    add = blocks.append
    at, end = start, len(data)
    reads_small = limits.block_bytes >= 1 << 14  # no limit to look at for a size of two bytes
    while at < end:
        first = at
        size = data[at]
        at += 1
        if size > 127 and at < end:
            more = data[at]
            at += 1
            size += (more << 7) - 128
            if not 0 < more < 128:
                size = 0  # longer, or not the shortest form: read with care
        if size <= CID_BYTES or not reads_small:
            try:
                size, at = _read_section_head(data, first, end, limits)
            except (InvalidCar, LimitExceeded):
                return first
        stop = at + size
        if stop > end:
            return first
        if offsets is not None:
            offsets.append(at + CID_BYTES)
        add(data[at + CID_BYTES : stop])
        at = stop
    return at


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
        places = self._places
        at, end, count = start, len(car), 0
        reads_small = limits.block_bytes >= 1 << 14
        while at < end:  # as in _cut
            first = at
            size = car[at]
            at += 1
            if size > 127 and at < end:
                more = car[at]
                at += 1
                size += (more << 7) - 128
                if not 0 < more < 128:
                    size = 0
            if size <= CID_BYTES or not reads_small:
                size, at = _read_section_head(car, first, end, limits)
            places[car[at + 4 : at + CID_BYTES]] = first
            at += size
            count += 1
        if at != end:
            _read_section_head(car, first, end, limits)
        if count > limits.blocks:
            raise LimitExceeded(f"a CAR of {count:,} blocks: the limit is {limits.blocks:,}", at=0)

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
        at, end = start, len(car)
        unread = start + self.FORGET_BYTES
        while at < end:
            blocks: list[bytes] = []
            offsets: list[int] = []
            window = bytes(car[at : at + self.WINDOW_BYTES])
            stop = _cut(window, 0, blocks, offsets, limits)
            if not stop:  # the first section is larger than a window, or is not valid
                size, after = _read_section_head(car, at, end, limits)
                blocks, offsets = [bytes(car[after + CID_BYTES : after + size])], [after + CID_BYTES - at]
                stop = after + size - at
            self._places.update(
                zip(
                    [sha256(block).digest() for block in blocks],
                    [at + offset << 32 | len(block) for offset, block in zip(offsets, blocks, strict=True)],
                    strict=True,
                )
            )
            at += stop
            if len(self._places) > limits.blocks:
                raise LimitExceeded(f"a CAR of more than {limits.blocks:,} blocks", at=at)
            if at > unread and forget is not None:
                forget()
                unread = at + self.FORGET_BYTES

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
