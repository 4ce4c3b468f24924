"""What becomes of an operation that an ingester refuses for good: a dead letter."""

from __future__ import annotations

from typing import Protocol

from relay.model import OpType, Source
from relay.observe.log import get_logger
from relay.pb.encode import decode_operation
from relay.store.dead_letters import DeadLetter

log = get_logger(__name__)


class Refusal(Protocol):
    """An operation that an ingester will never take, or that cannot be sent at all."""

    @property
    def operation(self) -> bytes: ...
    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def ingester(self) -> str: ...
    @property
    def attempts(self) -> int: ...


def letter_of(refusal: Refusal, at: float) -> DeadLetter:
    """Return the letter of a refused operation, and log it. `at`: wall seconds."""
    operation = decode_operation(refusal.operation)
    kind = OpType(operation.type)
    log.warning(
        "operation_refused", did=operation.did, type=kind.name, collection=operation.collection, rkey=operation.rkey,
        reason=refusal.reason, ingester=refusal.ingester, message=refusal.message,
    )  # fmt: skip
    return DeadLetter(
        at=at,
        did=operation.did,
        collection=operation.collection,
        rkey=operation.rkey,
        cid=operation.cid,
        rev=operation.rev,
        type=kind.name,
        source=Source(operation.source).name,
        reason=refusal.reason,
        message=refusal.message,
        ingester=refusal.ingester,
        attempts=refusal.attempts,
        size=len(refusal.operation),
        operation=refusal.operation,
    )
