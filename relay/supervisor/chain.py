"""Operations from other relays: routed like our own, acknowledged when the ingesters have acknowledged them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from relay.admin.ingest import Batch, Passed, PassedStream
from relay.deliver.delivery import Delivery
from relay.deliver.segment import Refused, Segment
from relay.model import Lane
from relay.store import reconcile
from relay.store.pool import Database

PUMP_EVERY_S = 0.02


@dataclass(slots=True)
class _Did:
    """What of a DID is here. All of it goes in one lane, so that nothing overtakes: a live operation waits behind a snapshot."""

    lane: Lane
    waiting: deque[Segment] = field(default_factory=deque)
    sent: int = 0  # segments that delivery has


class OperationChain:
    """Implements `admin.ingest.Chain`. Its parts in the engine's thread: `_take`, `pump`, acknowledgements and refusals.

    Memory: what the streams have open, which they bound. A stream that ends takes what was not written with it; what is in flight lands
    unheard, and its sender sends it again, which does no harm: ingesters take an operation twice.
    """

    def __init__(self, database: Database, post: Callable[[Callable[[], None]], None], delivery: Delivery) -> None:
        self._database, self._post, self._delivery = database, post, delivery
        self._dids: dict[str, _Did] = {}
        self.passed = 0
        self.refused = 0

    # --- from gRPC's threads ----------------------------------------------------------------------------------------------

    def tracked(self, dids: Collection[str]) -> frozenset[str]:
        if not dids:
            return frozenset()
        with self._database.transaction("whose operations") as cursor:
            return frozenset(did for did, row in reconcile.load(cursor, sorted(dids)).items() if row.tracked)

    def put(self, batch: Batch) -> None:
        self._post(lambda: self._take(batch))

    def forget(self, stream: PassedStream) -> None:
        self._post(lambda: self._drop(stream))

    # --- in the engine's thread ---------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Hand on what waits and finds room now; to be called often."""
        for did in [did for did, each in self._dids.items() if each.waiting]:
            self._offer(did)

    def _take(self, batch: Batch) -> None:
        if batch.stream.is_cut:
            return
        pieces = _pieces(batch.operations)
        count = _Count(batch, len(pieces))
        touched: dict[str, None] = {}
        for operations in pieces:
            did = operations[0].did
            lane = Lane.LIVE if operations[0].is_live else Lane.BACKFILL
            here = self._dids.setdefault(did, _Did(lane))
            payload = b"".join(each.payload for each in operations)
            here.waiting.append(
                Segment(
                    did=did,
                    lane=here.lane,
                    payload=payload,
                    size=len(payload),
                    operations=len(operations),
                    rev="",
                    token=_Piece(self, count, did, [each.index for each in operations]),
                    received_at=time.monotonic(),
                )
            )
            touched[did] = None
        for did in touched:
            self._offer(did)

    def _offer(self, did: str) -> None:
        here = self._dids[did]
        while here.waiting and self._delivery.offer(here.waiting[0]):
            here.waiting.popleft()
            here.sent += 1

    def _drop(self, stream: PassedStream) -> None:
        """A piece of it that is in flight goes on being counted; it lands for nobody."""

        def is_its(segment: Segment) -> bool:
            return isinstance(segment.token, _Piece) and segment.token.stream is stream

        for did, here in list(self._dids.items()):
            here.waiting = deque(segment for segment in here.waiting if not is_its(segment))
            if here.sent:
                here.sent -= len(self._delivery.discard(did, here.lane, is_its))
            if not here.waiting and not here.sent:
                del self._dids[did]

    def landed(self, did: str, operations: int) -> None:
        here = self._dids[did]
        here.sent -= 1
        if not here.waiting and not here.sent:
            del self._dids[did]
        self.passed += operations


class _Count:
    """How many pieces of a batch are not acknowledged. Belongs to the engine's thread."""

    __slots__ = ("batch", "left")

    def __init__(self, batch: Batch, left: int) -> None:
        self.batch, self.left = batch, left


class _Piece:
    """What comes back with a segment, in the engine's thread."""

    __slots__ = ("_count", "_did", "_indexes", "_owner", "token")

    def __init__(self, owner: OperationChain, count: _Count, did: str, indexes: list[int]) -> None:
        self._owner, self._count, self._did, self._indexes = owner, count, did, indexes
        self.token = None  # not one of the keeper's

    @property
    def stream(self) -> PassedStream:
        return self._count.batch.stream

    def acknowledged(self) -> None:
        self._owner.landed(self._did, len(self._indexes))
        self._count.left -= 1
        if self._count.left == 0:
            self.stream.finished(self._count.batch)

    def refused(self, refused: Refused) -> None:
        """Whoever sent it keeps it: it is told, and no dead letter of ours."""
        self._owner.refused += 1
        self._count.batch.errors.append((self._indexes[refused.index], f"{refused.reason}: {refused.message}"))


def _pieces(operations: list[Passed]) -> list[list[Passed]]:
    """Cut into runs of one DID."""
    found: list[list[Passed]] = []
    for each in operations:
        if found and found[-1][0].did == each.did:
            found[-1].append(each)
        else:
            found.append([each])
    return found
