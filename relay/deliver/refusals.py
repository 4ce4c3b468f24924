"""What to do when an ingester refuses an operation: who is to blame, and how the rest goes on (pure)."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from relay.deliver.gobackn import Batch, Piece, Span
from relay.deliver.segment import Segment
from relay.pb.encode import split_operations

UNNUMBERED = 1  # what a rebuilt batch is rendered with; writing it gives it the number that it has then


@dataclass(slots=True)
class _Suspicion:
    attempts: int = 0
    refusals: int = 0
    acknowledged: int = 0  # batches that the ingester had acknowledged when it refused last


@dataclass(slots=True)
class RetryBook:
    """Counts the attempts of operations that are refused with RETRY.

    A refusal costs an attempt only when the ingester acknowledged something since it refused the same operation before: an
    ingester that answers nothing but RETRY has trouble of its own, and no operation is to blame. Memory: one entry for
    each unacknowledged operation that was refused.
    """

    max_retries: int
    _entries: dict[tuple[Segment, int], _Suspicion] = field(default_factory=dict)

    def refused(self, segment: Segment, index: int, acknowledged: int) -> bool:
        """Note a RETRY; `acknowledged` counts this ingester's acknowledged batches so far. True: its attempts are used up."""
        entry = self._entries.get((segment, index))
        if entry is None:
            entry = self._entries[segment, index] = _Suspicion()
        elif acknowledged > entry.acknowledged:
            entry.attempts += 1
        entry.refusals += 1
        entry.acknowledged = acknowledged
        return entry.attempts > 0 and entry.attempts >= self.max_retries

    def refusals(self, segment: Segment, index: int) -> int:
        """Return how often an operation was refused with RETRY."""
        entry = self._entries.get((segment, index))
        return entry.refusals if entry else 0

    def forget(self, segment: Segment) -> None:
        """The segment is acknowledged."""
        if self._entries:
            for key in [key for key in self._entries if key[0] is segment]:
                del self._entries[key]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one operation is: the span, its number in the span, its bytes (a whole `operations` field)."""

    span: Span
    offset: int
    operation: bytes

    @property
    def index(self) -> int:
        """Its number in the segment."""
        return self.span.first + self.offset


def locate(batch: Batch, index: int) -> Place:
    """Find an operation of a batch; `index` is below `batch.operations`."""
    before = 0
    for span, view in batch.pieces():
        if index < before + span.operations:
            start, size = split_operations(view)[index - before]
            return Place(span, index - before, bytes(view[start : start + size]))
        before += span.operations
    raise IndexError(f"operation {index} of a batch of {before}")


def without(batch: Batch, place: Place) -> Batch | None:
    """Rebuild a batch without one operation; None: it was the only one. Spans of the segment are counted anew."""
    pieces: list[tuple[Span, memoryview]] = []
    for span, view in batch.pieces():
        if span is place.span:
            before, _, after = _cut(span, view, place.offset)
            parts = [piece for piece in (before, after) if piece is not None]
            span.segment.open_spans += len(parts) - 1
            pieces += parts
        else:
            pieces.append((span, view))
    return join(pieces) if pieces else None


def isolate(batch: Batch, place: Place) -> tuple[list[Batch], Batch]:
    """Cut a refused operation out of its batch; return what takes the batch's place, in order, and the part that is it alone."""
    if batch.operations == 1:
        return [batch], batch
    before: list[Piece] = []
    after: list[Piece] = []
    alone: Batch | None = None
    for span, view in batch.pieces():
        if span is place.span:
            head, one, tail = _cut(span, view, place.offset)
            span.segment.open_spans += (head is not None) + (tail is not None)
            alone = join([one])
            before += [head] if head is not None else []
            after += [tail] if tail is not None else []
        elif alone is None:
            before.append((span, view))
        else:
            after.append((span, view))
    if alone is None:
        raise AssertionError("the refused operation is not in this batch")
    parts = [join(before)] if before else []
    parts.append(alone)
    return parts + ([join(after)] if after else []), alone


def others_first(batches: list[Batch], suspects: Container[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Part what may go first from what must wait: each suspect (an isolated operation) and what comes after it of its DID.

    So that something can be acknowledged before a refused operation is tried again, which tells a bad operation from an
    ingester in trouble; and the other repos do not wait. Within a DID the order stays: nothing passes the suspect.
    """
    first: list[Batch] = []
    waits: list[Batch] = []
    blocked: set[str] = set()
    for batch in batches:
        if batch in suspects:
            blocked.add(batch.spans[0].segment.did)
            waits.append(batch)
            continue
        held = [piece for piece in batch.pieces() if piece[0].segment.did in blocked]
        if not held:
            first.append(batch)
        elif len(held) == len(batch.spans):
            waits.append(batch)
        else:
            first.append(join([piece for piece in batch.pieces() if piece[0].segment.did not in blocked]))
            waits.append(join(held))
    return first, waits


def split_oversize(segment: Segment, *, most_bytes: int) -> tuple[list[Batch], list[Place]]:
    """Cut a segment that is larger than a message into batches that fit; operations that alone do not fit come second.

    Sets the segment's number of open spans. `most_bytes` is the space for operations in one message.
    """
    view = memoryview(segment.payload)
    whole = Span(segment, 0, segment.operations, segment.size)
    batches: list[Batch] = []
    oversize: list[Place] = []
    first, start, at = 0, 0, 0

    def close(upto: int) -> None:
        if upto > first:
            span = Span(segment, first, upto - first, at - start)
            batches.append(Batch(UNNUMBERED, [span], [view[start:at]]))

    for number, (_, size) in enumerate(split_operations(view)):
        if size > most_bytes:
            close(number)
            oversize.append(Place(whole, number, bytes(view[at : at + size])))
            first, start = number + 1, at + size
        elif at + size - start > most_bytes:
            close(number)
            first, start = number, at
        at += size
    close(segment.operations)
    segment.open_spans = len(batches)
    return batches, oversize


def _cut(span: Span, view: memoryview, offset: int) -> tuple[Piece | None, Piece, Piece | None]:
    """Cut a span around one operation: what is before it, itself, what is after it."""
    start, size = split_operations(view)[offset]
    end = start + size
    before = (Span(span.segment, span.first, offset, start), view[:start]) if offset else None
    one = (Span(span.segment, span.first + offset, 1, end - start), view[start:end])
    count = span.operations - offset - 1
    after = (Span(span.segment, span.first + offset + 1, count, span.size - end), view[end:]) if count else None
    return before, one, after


def join(pieces: list[Piece]) -> Batch:
    """Make a batch of spans with their bytes."""
    return Batch(UNNUMBERED, [span for span, _ in pieces], [view for _, view in pieces])
