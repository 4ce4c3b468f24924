"""What is on its way to one ingester, and what has to be sent again after a broken stream (pure)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from relay.deliver.errors import IngesterProtocolError
from relay.deliver.segment import Segment
from relay.pb.encode import batch_id_field


@dataclass(slots=True, eq=False)
class Span:
    """A run of operations of one segment inside a batch: `operations` of them from number `first` on, in `size` bytes."""

    segment: Segment
    first: int
    operations: int
    size: int


Piece = tuple[Span, memoryview]
"""A span with its bytes."""


class Batch:
    """One OperationRequest: its spans in order, and its bytes, which stay until it is acknowledged.

    The message is joined once; sending it again under another number copies it behind a new head.
    """

    __slots__ = ("_head_bytes", "_message", "_rendered", "number", "operations", "sends", "sent_at", "size", "spans")

    def __init__(self, number: int, spans: list[Span], payloads: Iterable[bytes | memoryview]) -> None:
        head = batch_id_field(number)
        self.spans = spans
        self.size = sum(span.size for span in spans)
        self.operations = sum(span.operations for span in spans)
        self.number = 0  # of the stream that it was last written to; 0: of none
        self.sends = 0
        self.sent_at = 0.0
        self._message = b"".join((head, *payloads))
        self._head_bytes = len(head)
        self._rendered = number
        if len(self._message) != self._head_bytes + self.size:
            # Sizes that do not fit the bytes would name wrong operations later: an encoder of ours is broken.
            raise ValueError(f"a batch of {self.size:,} bytes got {len(self._message) - self._head_bytes:,}")

    def message(self, number: int) -> bytes:
        """Return the whole message under a number."""
        if number != self._rendered:
            head = batch_id_field(number)
            self._message = b"".join((head, self.body))
            self._head_bytes = len(head)
            self._rendered = number
        return self._message

    @property
    def body(self) -> memoryview:
        """The `operations` fields."""
        return memoryview(self._message)[self._head_bytes :]

    def pieces(self) -> list[Piece]:
        """Return each span with its bytes."""
        found = []
        at = 0
        for span in self.spans:
            found.append((span, self.body[at : at + span.size]))
            at += span.size
        return found


class GoBackN:
    """The unacknowledged batches of one ingester, in the order of sending. The first `written` of them are on this stream.

    Batches of a stream are numbered 1, 2, 3...; an acknowledgement frees every batch up to its number. A new stream begins
    with the oldest unacknowledged batch as number 1. Nothing leaves but by an acknowledgement (or `rearrange`, which takes
    the place of what it is given): that is the promise that nothing is lost. Memory: the bytes of the batches, which
    the window bounds.
    """

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self.written = 0
        self.written_bytes = 0
        self.acknowledged_number = 0

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def next_number(self) -> int:
        """The number that the next written batch gets."""
        return self.acknowledged_number + self.written + 1

    @property
    def batches(self) -> list[Batch]:
        return list(self._batches)

    @property
    def held_bytes(self) -> int:
        """All of their operations, bytes."""
        return sum(batch.size for batch in self._batches)

    @property
    def has_unwritten(self) -> bool:
        return self.written < len(self._batches)

    def append(self, batch: Batch) -> None:
        """Put a new batch at the end; it is written when its turn comes."""
        self._batches.append(batch)

    def write_next(self, now: float) -> tuple[Batch, bytes]:
        """Mark the first unwritten batch as written and return it with its message; there must be one."""
        batch = self._batches[self.written]
        batch.number = self.next_number
        batch.sends += 1
        batch.sent_at = now
        self.written += 1
        self.written_bytes += batch.size
        return batch, batch.message(batch.number)

    def acknowledge(self, number: int) -> list[Batch]:
        """Free and return every batch up to `number`; the same number again frees nothing.

        Raises IngesterProtocolError for a batch that was not written on this stream, and for a number below the last one:
        whoever says "up to 2", and then "up to 1", had not stored 1 when it said 2.
        """
        self.check(number)
        freed = []
        while self.acknowledged_number < number:
            batch = self._batches.popleft()
            self.written -= 1
            self.written_bytes -= batch.size
            self.acknowledged_number += 1
            freed.append(batch)
        return freed

    def check(self, number: int) -> None:
        """Raise IngesterProtocolError where `acknowledge` would."""
        if number < self.acknowledged_number:
            raise IngesterProtocolError(f"acknowledged batch {number} after batch {self.acknowledged_number}")
        if number > self.acknowledged_number + self.written:
            raise IngesterProtocolError(f"answered batch {number}; the last one sent is {self.next_number - 1}")

    def unacknowledged(self, number: int) -> Batch:
        """Return the batch that an answer with errors speaks of. Raises IngesterProtocolError unless it is in flight."""
        self.check(number)
        if number == self.acknowledged_number:
            raise IngesterProtocolError(f"an error of batch {number}, which was acknowledged before (or never sent)")
        return self._batches[number - self.acknowledged_number - 1]

    def new_stream(self) -> None:
        """Forget what was written: everything unacknowledged is sent again, from number 1."""
        self.written = self.written_bytes = self.acknowledged_number = 0

    def rearrange(self, batches: Iterable[Batch]) -> None:
        """Replace all batches by others that hold the same operations, or more. Only while nothing is written on this stream."""
        if self.written:
            raise AssertionError(f"{self.written} batches are written on this stream: their order stands")
        self._batches = deque(batches)
