"""Operations as wire bytes, made by hand: the message that is encoded a million times as often as any other.

Everything here returns whole `operations` fields of an `OperationRequest` (tag 0x12, length, Operation), so that a batch is
made by joining: `batch_id_field(7) + field + field + ...`, and nothing is ever encoded twice. Fields stand in the order of
their numbers and defaults are left out, so the bytes are the ones that protobuf's own serializer makes (tests compare them).

Speed, with text CIDs and where SHA-256 of a block takes 400 ns: 1,800 ns for one operation with protobuf (upb), 530 ns with one
`bytes %`, 400 ns for `CreateEncoder`, which works by columns: what is constant is encoded once, and C loops (`map`, slice
assignment) do the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from operator import add
from typing import TYPE_CHECKING, Final

import libipld

from relay.model import OpType, Source

if TYPE_CHECKING:
    from relay.pb import ingester_pb2

OPERATION_TAG: Final = 0x12  # OperationRequest.operations = 2, length-delimited
_BATCH_ID_TAG: Final = b"\x08"
_U64: Final = 1 << 64

# Tags of Operation's fields: number << 3 | wire type (0 varint, 2 length-delimited).
_TYPE, _DID, _COLLECTION, _RKEY, _CID, _REV = b"\x08", b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x32"
_SEQ, _SOURCE, _TIME_US = b"\x38", b"\x40", b"\x48"
_RECORD_JSON, _RECORD_CBOR, _ACCOUNT, _IDENTITY = b"\x52", b"\x5a", b"\x62", b"\x6a"
_RECORD_COUNT, _NSID_FILTER = b"\x70", b"\x7a"


def varint(value: int) -> bytes:
    """Return `value`, 0 to 2**64 - 1, as a protobuf varint; -2**63 to -1 as int64 does it: ten bytes. ValueError beyond."""
    if not -(_U64 >> 1) <= value < _U64:
        raise ValueError(f"{value} does not fit a 64-bit varint")
    if value < 0:
        value += _U64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# Tables for sizes below 16,384, which nearly all records and operations have: 1.5 MB in a process that encodes.
_SMALL: Final = 1 << 14
_LENGTHS: Final = tuple(map(varint, range(_SMALL)))


def _length(value: int) -> bytes:
    return _LENGTHS[value] if value < _SMALL else varint(value)


def _text(tag: bytes, text: str) -> bytes:
    return _bytes(tag, text.encode()) if text else b""


def _bytes(tag: bytes, value: bytes) -> bytes:
    return b"%b%b%b" % (tag, _length(len(value)), value)


def _number(tag: bytes, value: int) -> bytes:
    return tag + varint(value) if value else b""


def batch_id_field(batch_id: int) -> bytes:
    """Return `batch_id` of an OperationRequest, 1 to 2**64 - 1: what stands before the operations of a batch."""
    return _BATCH_ID_TAG + varint(batch_id)


def encode_operation(
    op_type: OpType,
    did: str,
    *,
    source: Source,
    time_us: int,
    collection: str = "",
    rkey: str = "",
    cid: str = "",
    rev: str = "",
    seq: int = 0,
    record_json: bytes | None = None,
    record_cbor: bytes | None = None,
    account: bytes | None = None,
    identity: bytes | None = None,
    record_count: int = 0,
    nsid_filter: Iterable[str] = (),
) -> bytes:
    """Return one operation of any type as an `operations` field; the functions below know what each type needs.

    `account` and `identity` are encoded messages (`account_message`, `identity_message`). Raises ValueError when both forms
    of a record are given, or a number does not fit.
    """
    if record_json is not None and record_cbor is not None:
        raise ValueError("a record travels in one form: JSON or DAG-CBOR")
    parts = [
        _number(_TYPE, op_type),
        _text(_DID, did),
        _text(_COLLECTION, collection),
        _text(_RKEY, rkey),
        _text(_CID, cid),
        _text(_REV, rev),
        _number(_SEQ, seq),
        _number(_SOURCE, source),
        _number(_TIME_US, time_us),
    ]
    if record_json is not None:
        parts.append(_bytes(_RECORD_JSON, record_json))
    if record_cbor is not None:
        parts.append(_bytes(_RECORD_CBOR, record_cbor))
    if account is not None:
        parts.append(_bytes(_ACCOUNT, account))
    if identity is not None:
        parts.append(_bytes(_IDENTITY, identity))
    parts.append(_number(_RECORD_COUNT, record_count))
    parts.extend(_bytes(_NSID_FILTER, pattern.encode()) for pattern in nsid_filter)
    return _bytes(b"\x12", b"".join(parts))


def account_message(*, active: bool, status: str) -> bytes:
    """Return an AccountStatus message; `status` is empty when active and nothing is said."""
    return (b"\x08\x01" if active else b"") + _text(b"\x12", status)


def identity_message(*, handle: str | None, pds: str | None) -> bytes:
    """Return an Identity message; what is not known is left out."""
    return _text(b"\x0a", handle or "") + _text(b"\x12", pds or "")


def encode_repo_begin(
    *,
    did: str,
    rev: str,
    source: Source,
    time_us: int,
    nsid_filter: Iterable[str],
    account: bytes | None = None,
    identity: bytes | None = None,
) -> bytes:
    """Return a REPO_BEGIN: a snapshot with this rev begins, and covers the collections of `nsid_filter` (empty: all)."""
    return encode_operation(
        OpType.REPO_BEGIN,
        did,
        rev=rev,
        source=source,
        time_us=time_us,
        nsid_filter=nsid_filter,
        account=account,
        identity=identity,
    )


def encode_repo_end(
    *, did: str, rev: str, source: Source, time_us: int, nsid_filter: Iterable[str], record_count: int
) -> bytes:
    """Return a REPO_END: the snapshot is complete, with `record_count` CREATE operations since its REPO_BEGIN."""
    return encode_operation(
        OpType.REPO_END,
        did,
        rev=rev,
        source=source,
        time_us=time_us,
        nsid_filter=nsid_filter,
        record_count=record_count,
    )


def encode_account(
    *, did: str, active: bool, status: str, time_us: int, source: Source = Source.BACKFILL, seq: int = 0
) -> bytes:
    """Return an ACCOUNT. From the stream: its `seq` and FIREHOSE; learnt elsewhere, or told again: seq 0."""
    account = account_message(active=active, status=status)
    return encode_operation(OpType.ACCOUNT, did, source=source, time_us=time_us, seq=seq, account=account)


def encode_identity(
    *,
    did: str,
    handle: str | None,
    pds: str | None,
    time_us: int,
    source: Source = Source.BACKFILL,
    seq: int = 0,
) -> bytes:
    """Return an IDENTITY: the DID's handle and PDS as its document names them now."""
    identity = identity_message(handle=handle, pds=pds)
    return encode_operation(OpType.IDENTITY, did, source=source, time_us=time_us, seq=seq, identity=identity)


def encode_write(
    op_type: OpType,
    *,
    did: str,
    collection: str,
    rkey: str,
    cid: str,
    rev: str,
    seq: int,
    time_us: int,
    record_json: bytes | None = None,
    record_cbor: bytes | None = None,
    source: Source = Source.FIREHOSE,
) -> bytes:
    """Return a CREATE or UPDATE of one record, as live commits have them. `cid` is text; one of the record's forms is given."""
    if op_type not in (OpType.CREATE, OpType.UPDATE) or (record_json is None) == (record_cbor is None):
        raise ValueError(
            f"{op_type.name} of {collection}/{rkey}: a write is CREATE or UPDATE with a record in one form"
        )
    return encode_operation(
        op_type,
        did,
        collection=collection,
        rkey=rkey,
        cid=cid,
        rev=rev,
        seq=seq,
        source=source,
        time_us=time_us,
        record_json=record_json,
        record_cbor=record_cbor,
    )


def encode_delete(
    *, did: str, collection: str, rkey: str, rev: str, seq: int, time_us: int, source: Source = Source.FIREHOSE
) -> bytes:
    """Return a DELETE of one record."""
    return encode_operation(
        OpType.DELETE, did, collection=collection, rkey=rkey, rev=rev, seq=seq, source=source, time_us=time_us
    )


def count_records(fields: bytes | memoryview) -> int:
    """Return how many of these whole `operations` fields bring a record: CREATE and UPDATE. A microsecond each."""
    count = 0
    for at, _ in split_operations(fields):
        while fields[at + 1] >= 0x80:  # the length
            at += 1
        # The type is the first field, and never left out.
        count += fields[at + 3] in (OpType.CREATE, OpType.UPDATE)
    return count


def split_operations(fields: bytes | memoryview) -> list[tuple[int, int]]:
    """Return (offset, length) of each whole `operations` field, tag and length included, in `fields`.

    So operation k is `fields[offset : offset + length]`, and may be sent or kept as it is. Raises ValueError when `fields`
    is anything but such fields, one after another.
    """
    found: list[tuple[int, int]] = []
    start, end = 0, len(fields)
    while start < end:
        if fields[start] != OPERATION_TAG:
            raise ValueError(f"no operations field at byte {start:,}")
        at, size, shift = start + 1, 0, 0
        while True:
            if at >= end or shift > 63:
                raise ValueError(f"the operations field at byte {start:,} has no valid length")
            byte = fields[at]
            at += 1
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        if at + size > end:
            raise ValueError(f"the operations field at byte {start:,} is cut off")
        found.append((start, at + size - start))
        start = at + size
    return found


def decode_operation(field: bytes | memoryview) -> ingester_pb2.Operation:
    """Return the operation of one `operations` field, or of a bare Operation message. For the rare one that needs looking at.

    A message never begins with the byte of the field's tag: its first field is the type, and every operation has one.
    Raises ValueError for bytes that are neither.
    """
    # Imported here because the workers, which only encode, never need protobuf.
    from google.protobuf.message import DecodeError

    from relay.pb import ingester_pb2

    raw = bytes(field)
    try:
        if raw[:1] == b"\x12":
            (operation,) = ingester_pb2.OperationRequest.FromString(raw).operations
            return operation
        return ingester_pb2.Operation.FromString(raw)
    except DecodeError as exc:
        raise ValueError(f"not an operation: {len(raw):,} bytes") from exc


# ---- the hot path --------------------------------------------------------------------------------------------------

# Text CIDs of a whole column by one call. Base32 takes 5 bytes to 8 characters, so each CID of 36 bytes is padded to 40: 58
# characters of CID and 6 of padding. The padding is chosen so that its last character is "b", the multibase prefix of the
# next CID's text (the first one is libipld's own). 80 ns a CID, where one call for each costs 160 to 270.
_CID_PREFIX: Final = b"\x01\x71\x12\x20"
_CID_PADDING: Final = b"\x00\x00\x00\x01"
_CID_GLUE: Final = _CID_PADDING + _CID_PREFIX
_CID_STRIDE: Final = 64
_CID_CHARS: Final = 59


_COLUMN: Final = 64
_cut_column: Final = struct.Struct("59s5x" * _COLUMN).unpack_from


def cid_texts(digests: Sequence[bytes]) -> list[bytes]:
    """Return the text of the dag-cbor CID of each SHA-256 digest (32 bytes), as ASCII bytes of 59 characters."""
    if not digests:
        return []
    text = libipld.encode_multibase("b", _CID_PREFIX + _CID_GLUE.join(digests) + _CID_PADDING).encode()
    texts: list[bytes] = []
    at, end = 0, len(text) - 1  # the last character is the padding's
    while end - at >= _CID_STRIDE * _COLUMN:
        texts += _cut_column(text, at)
        at += _CID_STRIDE * _COLUMN
    texts += [text[place : place + _CID_CHARS] for place in range(at, end, _CID_STRIDE)]
    return texts


# The same tables again, for contents of so many bytes: their size with a length before them, and with a tag before that; tag and
# length of an operation.
_FIELD_SIZES: Final = tuple(size + len(length) for size, length in enumerate(_LENGTHS))
_OPERATION_SIZES: Final = tuple(size + 1 for size in _FIELD_SIZES)
_OPERATION_HEADS: Final = tuple(b"\x12" + length for length in _LENGTHS)


class CreateEncoder:
    """Encodes the CREATE operations of one snapshot, columns of records at a time.

    Everything but collection, rkey, CID and record is the same for all of them, and is encoded once; what is the same for a
    collection, once for each call.
    """

    # Pieces of bytes that one operation is made of.
    PIECES: Final = 8

    __slots__ = ("_before", "_constant", "_middle_cbor", "_middle_json", "overhead")

    def __init__(self, *, did: str, rev: str, source: Source, time_us: int) -> None:
        self._before = _number(_TYPE, OpType.CREATE) + _text(_DID, did) + _COLLECTION
        middle = _text(_REV, rev) + _number(_SOURCE, source) + _number(_TIME_US, time_us)
        self._middle_cbor = middle + _RECORD_CBOR
        self._middle_json = middle + _RECORD_JSON
        # Size of all but collection, rkey and record, which come with their lengths: the CID has a tag and a length of 1 byte.
        self._constant = len(self._before) + len(_RKEY) + 2 + _CID_CHARS + len(self._middle_cbor)
        # What an operation has beside its record, bytes, at most: an NSID ends at 317, a record key at 512.
        self.overhead = self._constant + 2 + 317 + 2 + 512 + 10

    def encode(
        self,
        runs: Iterable[tuple[str, int]],
        rkeys: list[bytes],
        digests: list[bytes],
        records: list[bytes],
        as_cbor: Sequence[bool] | bool,
    ) -> tuple[list[bytes], list[int]]:
        """Return the pieces of all operations, PIECES for each, and the size of each operation with its tag and length.

        `runs`: (collection, where its records end), from the first record to the last. `digests` are the SHA-256 of the records'
        DAG-CBOR; `records` what travels. `as_cbor`: that is DAG-CBOR (True) or JSON, for all or for each one. The lists have the
        same length, at least 1.
        """
        count = len(rkeys)
        befores: list[bytes] = []
        constants: list[int] = []
        start = 0
        for collection, stop in runs:
            name = collection.encode()
            before = self._before + _length(len(name)) + name + _RKEY
            constant = self._constant + _FIELD_SIZES[len(name)]
            rkey_sizes = set(map(len, rkeys[start:stop]))
            if len(rkey_sizes) == 1:  # the same length for all, as TIDs have
                (rkey_size,) = rkey_sizes
                before += _length(rkey_size)
                constant += _FIELD_SIZES[rkey_size]
                constants += [constant] * (stop - start)
            else:
                own = [_LENGTHS[len(rkey)] + rkey for rkey in rkeys[start:stop]]
                constants += [constant + len(rkey) for rkey in own]
                rkeys = [*rkeys[:start], *own, *rkeys[stop:]]  # the caller keeps the list as it is
            befores += [before] * (stop - start)
            start = stop
        record_sizes = list(map(len, records))
        if max(record_sizes) < _SMALL - self.overhead:
            sizes = list(map(add, constants, map(_FIELD_SIZES.__getitem__, record_sizes)))
            heads = list(map(_OPERATION_HEADS.__getitem__, sizes))
            record_heads = list(map(_LENGTHS.__getitem__, record_sizes))
            operation_sizes = list(map(_OPERATION_SIZES.__getitem__, sizes))
        else:  # beyond the tables, the same
            record_heads = list(map(_length, record_sizes))
            sizes = list(map(sum, zip(constants, map(len, record_heads), record_sizes, strict=True)))
            heads = [b"\x12" + _length(size) for size in sizes]
            operation_sizes = list(map(add, sizes, map(len, heads)))
        middle = self._middle_cbor
        pieces = [b"\x2a\x3b"] * (8 * count)
        pieces[0::8] = heads
        pieces[1::8] = befores
        pieces[2::8] = rkeys
        # [3::8] tag and length of the CID
        pieces[4::8] = cid_texts(digests)
        if as_cbor is True:
            pieces[5::8] = [middle] * count
        elif as_cbor is False:
            pieces[5::8] = [self._middle_json] * count
        else:
            pieces[5::8] = [middle if raw else self._middle_json for raw in as_cbor]
        pieces[6::8] = record_heads
        pieces[7::8] = records
        return pieces, operation_sizes
