"""Segments made by protobuf itself, and batches read by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from relay.deliver.segment import Segment
from relay.model import Lane
from relay.pb.ingester_pb2 import CREATE, Operation, OperationRequest


def payload_of(did: str, keys: Iterable[int], pad: int = 0) -> bytes:
    """Return the `operations` fields of one CREATE for each key; `pad` adds so many bytes of record to each."""
    operations = [
        Operation(type=CREATE, did=did, collection="app.bsky.feed.post", rkey=str(key), record_cbor=b"\0" * pad)
        for key in keys
    ]
    return OperationRequest(operations=operations).SerializeToString()


def segment_of(
    did: str,
    keys: Iterable[int],
    *,
    lane: Lane = Lane.BACKFILL,
    pad: int = 0,
    copied: Callable[[], None] | None = None,
    received_at: float = 0.0,
) -> Segment:
    keys = list(keys)
    payload = payload_of(did, keys, pad)
    return Segment(
        did=did,
        lane=lane,
        payload=payload,
        size=len(payload),
        operations=len(keys),
        rev="3zzz",
        token=tuple(keys),
        received_at=received_at,
        copied=copied,
    )


def keys_of(segment: Segment) -> tuple[int, ...]:
    assert isinstance(segment.token, tuple)
    return segment.token


def sized(did: str, size: int, *, lane: Lane = Lane.BACKFILL, operations: int = 1) -> Segment:
    """A segment for machines that never look into the payload."""
    return Segment(did=did, lane=lane, payload=bytes(size), size=size, operations=operations, rev="3zzz")


def read(message: bytes) -> tuple[int, list[tuple[str, int]]]:
    """Return batch_id and (did, key) of each operation."""
    request = OperationRequest.FromString(message)
    return request.batch_id, [(operation.did, int(operation.rkey)) for operation in request.operations]
