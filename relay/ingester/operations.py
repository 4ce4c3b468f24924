"""Wire bytes to checked changes (pure). An operation that can never be taken becomes a Refusal, and the others go on.

What is refused is decided by the operation alone, never by what is stored: so a refused operation that comes again is refused
again, also when a newer `rev` has been applied in between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from relay.ingester.errors import BadBatch
from relay.pb import ingester_pb2 as pb

# did + collection + rkey must fit into one entry of a PostgreSQL index (2,704 bytes); real DIDs have 32 to 261.
MAX_DID_BYTES = 1024
MAX_RKEY_BYTES = 512
MAX_CID_BYTES = 256

_DID = re.compile(r"did:[a-z]+:[A-Za-z0-9._:%-]*[A-Za-z0-9._-]", re.ASCII)
_COLLECTION = re.compile(r"(?=.{1,317}\Z)[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", re.ASCII)
_RKEY = re.compile(r"[A-Za-z0-9._:~-]{1,512}", re.ASCII)
_REV = re.compile(r"[A-Za-z0-9._:~-]{1,64}", re.ASCII)
_PATTERN = re.compile(r"(?=.{1,320}\Z)[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(\.|\.\*)?", re.ASCII)
_NUL = "\x00"


class RecordChange(NamedTuple):
    """CREATE, UPDATE (`row` is what the sink stores) or DELETE (`row` is None). `path` is `collection/rkey`."""

    did: str
    rev: str
    path: str
    row: object | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoBegin:
    """A snapshot begins. `identity` is (handle, pds) as far as the relay knew it."""

    did: str
    rev: str
    identity: tuple[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoEnd:
    """A snapshot of the collections that `patterns` covers (none: all of them) is complete."""

    did: str
    rev: str
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountChange:
    did: str
    active: bool
    status: str
    time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityChange:
    did: str
    handle: str
    pds: str
    time_us: int


Change = RecordChange | RepoBegin | RepoEnd | AccountChange | IdentityChange


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An operation that will never be taken: its place in the batch, from 0, and why."""

    index: int
    message: str


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A batch as its sink wants it: `items` one for each operation that was not refused, in order.

    `refusals` in rising order of index; a sink that finds one more while it stores calls `refuse_item`.
    """

    operations: int
    items: list[Any] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    size_bytes: int = 0

    def refuse_item(self, place: int, message: str) -> None:
        """Refuse the operation behind `items[place]` after all, and take the item out."""
        refused = {refusal.index for refusal in self.refusals}
        taken = [index for index in range(self.operations) if index not in refused]
        self.refusals.append(Refusal(index=taken[place], message=message))
        self.refusals.sort(key=lambda refusal: refusal.index)
        del self.items[place]


# What a sink makes of one record: (did, collection, rkey, cid, rev, time_us, JSON text or None, DAG-CBOR or None) -> row.
EncodeRow = Callable[[str, str, str, str, str, int, str | None, bytes | None], object]
# A test's wish to refuse an operation: returns the message, or None.
RefuseHook = Callable[[pb.Operation], str | None]


class Malformed(Exception):
    """This operation can never be taken; the message says why."""


def _envelope_class() -> Any:
    """Return a message class with the frame of OperationRequest and its operations as plain bytes.

    It splits a batch at 17 ns an operation, where reading the operations themselves costs 121 and a loop in Python 127.
    """
    file = descriptor_pb2.FileDescriptorProto(name="relay/ingester/envelope.proto", package="envelope", syntax="proto3")
    message = file.message_type.add(name="Envelope")
    message.field.add(name="batch_id", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_UINT64, label=1)
    message.field.add(name="operations", number=2, type=descriptor_pb2.FieldDescriptorProto.TYPE_BYTES, label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("envelope.Envelope"))


_Envelope = _envelope_class()


def split_batch(raw: bytes) -> tuple[int, Sequence[bytes]]:
    """Return batch_id and the bytes of each operation. Raises BadBatch when `raw` is no OperationRequest."""
    try:
        envelope = _Envelope.FromString(raw)
    except DecodeError as exc:
        raise BadBatch(f"a message of {len(raw):,} bytes is no ingester.v1.OperationRequest: {exc}") from exc
    return envelope.batch_id, envelope.operations


def parse_operations(parts: Sequence[bytes]) -> list[pb.Operation | None]:
    """Return each operation; None where the bytes are no Operation (the others of the batch are not to blame)."""
    parsed: list[pb.Operation | None] = []
    for part in parts:
        try:
            parsed.append(pb.Operation.FromString(part))
        except DecodeError:
            parsed.append(None)
    return parsed


def parse_batch(raw: bytes) -> tuple[int, Iterable[pb.Operation | None], int]:
    """Return batch_id, the operations and their number. Raises BadBatch when not even the frame can be read."""
    try:
        request = pb.OperationRequest.FromString(raw)
    except DecodeError:
        # One operation with broken bytes spoils the message for the fast reader: take it apart instead.
        batch_id, parts = split_batch(raw)
        return batch_id, parse_operations(parts), len(parts)
    return request.batch_id, request.operations, len(request.operations)


def prepare_changes(
    operations: Iterable[pb.Operation | None], encode_row: EncodeRow, refuse: RefuseHook | None = None
) -> tuple[list[Change], list[Refusal]]:
    """Check every operation and turn the good ones into changes.

    The hot path, about 2 us a record: neighbours share did, collection and rev, so only what differs from the operation
    before is checked. Raises nothing: what is wrong with an operation becomes its Refusal.
    """
    changes: list[Change] = []
    refusals: list[Refusal] = []
    add = changes.append
    puts, delete = (pb.CREATE, pb.UPDATE), pb.DELETE
    good_did: str | None = None
    good_rev: str | None = None
    good_collection: str | None = None
    for index, op in enumerate(operations):
        try:
            if op is None:
                raise Malformed("these bytes are no ingester.v1.Operation")
            if refuse is not None and (message := refuse(op)) is not None:
                raise Malformed(message)
            did = op.did
            if did != good_did:
                check_did(did)
                good_did = did
            kind = op.type
            is_put = kind in puts
            if not is_put and kind != delete:
                add(_other(op, did))
                continue
            rev, collection, rkey = op.rev, op.collection, op.rkey
            if rev != good_rev:
                check_rev(rev)
                good_rev = rev
            if collection != good_collection:
                check_collection(collection)
                good_collection = collection
            # Most record keys are TIDs; the pattern costs four times as much as this.
            if not (rkey.isalnum() and rkey.isascii() and len(rkey) <= MAX_RKEY_BYTES):
                check_rkey(rkey, collection)
            path = f"{collection}/{rkey}"
            row: object | None = None
            if is_put:
                cid = op.cid
                if not (cid.isalnum() and cid.isascii() and len(cid) <= MAX_CID_BYTES):
                    raise Malformed(f"cid {cid[:80]!r} of {path} is empty or no CID")
                # An unset member of the oneof reads as empty, and no record is: JSON has at least {}, DAG-CBOR at least a0.
                record_json = op.record_json
                if record_json:
                    check_json(record_json, path)
                    row = encode_row(did, collection, rkey, cid, rev, op.time_us, record_json, None)
                else:
                    record_cbor = op.record_cbor
                    if not record_cbor:
                        raise Malformed(f"{pb.OperationType.Name(kind)} of {path} has no record")
                    row = encode_row(did, collection, rkey, cid, rev, op.time_us, None, record_cbor)
            add(RecordChange(did, rev, path, row))
        except Malformed as exc:
            refusals.append(Refusal(index=index, message=str(exc)))
    return changes, refusals


def _other(op: pb.Operation, did: str) -> Change:
    kind = op.type
    if kind == pb.REPO_BEGIN:
        identity = None
        if op.HasField("identity"):
            identity = (_text(op.identity.handle, "identity.handle"), _text(op.identity.pds, "identity.pds"))
        return RepoBegin(did=did, rev=_rev(op), identity=identity)
    if kind == pb.REPO_END:
        return RepoEnd(did=did, rev=_rev(op), patterns=_patterns(op))
    if kind == pb.ACCOUNT:
        if not op.HasField("account"):
            raise Malformed("ACCOUNT without an account status")
        status = _text(op.account.status, "account.status")
        return AccountChange(did=did, active=op.account.active, status=status, time_us=op.time_us)
    if kind == pb.IDENTITY:
        if not op.HasField("identity"):
            raise Malformed("IDENTITY without an identity")
        handle, pds = _text(op.identity.handle, "identity.handle"), _text(op.identity.pds, "identity.pds")
        return IdentityChange(did=did, handle=handle, pds=pds, time_us=op.time_us)
    raise Malformed(f"unknown operation type {int(kind)}")


def check_did(did: str) -> None:
    if len(did) > MAX_DID_BYTES:
        raise Malformed(f"did of {len(did):,} characters: this ingester takes at most {MAX_DID_BYTES:,}")
    if _DID.fullmatch(did) is None:
        raise Malformed("no did" if not did else f"did {did[:80]!r} is no DID")


def check_json(text: str, path: str) -> None:
    """Raise Malformed unless `text` is one JSON object. PostgreSQL's `json` type takes whatever passes here."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise Malformed(f"record_json of {path} is no JSON: {exc}") from exc
    if type(value) is not dict:
        raise Malformed(f"record_json of {path} is no JSON object")


def check_rev(rev: str) -> None:
    if _REV.fullmatch(rev) is None:
        raise Malformed("no rev" if not rev else f"rev {rev[:80]!r} is no rev")


def check_collection(collection: str) -> None:
    if _COLLECTION.fullmatch(collection) is None:
        raise Malformed("no collection" if not collection else f"collection {collection[:80]!r} is no NSID")


def check_rkey(rkey: str, collection: str) -> None:
    if _RKEY.fullmatch(rkey) is None or rkey in (".", ".."):
        raise Malformed(f"no rkey ({collection})" if not rkey else f"rkey {rkey[:80]!r} is no record key")


def _rev(op: pb.Operation) -> str:
    rev = op.rev
    check_rev(rev)
    return rev


def _patterns(op: pb.Operation) -> tuple[str, ...]:
    patterns = tuple(op.nsid_filter)
    for pattern in patterns:
        if _PATTERN.fullmatch(pattern) is None:
            raise Malformed(f"nsid_filter {pattern[:80]!r} is neither an NSID nor a prefix that ends in '.' or '.*'")
    return patterns


def _text(value: str, name: str) -> str:
    if _NUL in value:
        raise Malformed(f"{name} contains a NUL character")
    return value
