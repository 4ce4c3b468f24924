"""A frame between its reading and the event that it becomes, and the slot that its bytes lie in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from relay.atproto.frames import SEQ_MAX
from relay.tail.messages import FrameResult

_SEQ_BITS: Final = 53


def position_of(era: int, seq: int) -> int:
    """Return what a frame is called inside: its seq, and which numbering that belongs to. In era 0 it is the seq."""
    return era << _SEQ_BITS | seq


def seq_of(position: int) -> int:
    """Return the seq that upstream gave the frame."""
    return position & SEQ_MAX


def era_of(position: int) -> int:
    return position >> _SEQ_BITS


class FrameSlot:
    """`size` bytes of frames in slot `slot`; given back when nothing more is put on it and every job on it is through."""

    __slots__ = ("_free", "_is_closed", "jobs", "size", "slot")

    def __init__(self, slot: int, size: int, free: Callable[[int], None]) -> None:
        self.slot, self.size = slot, size
        self.jobs = 0
        self._is_closed = False
        self._free = free

    def through(self) -> None:
        """One job is through."""
        self.jobs -= 1
        if self._is_closed and not self.jobs:
            self._free(self.slot)

    def close(self) -> None:
        """No job follows."""
        self._is_closed = True
        if not self.jobs:
            self._free(self.slot)


class FrameInHand:
    """One frame from its reading to its event.

    `is_seen`: the machine was told of it and asks for the proof; else its turn is still to come (`is_gate`: later frames of the
    DID wait for that). `frame`: its bytes, where they are needed after the slot is gone. `has_fresh_key`: a signature that fails
    now fails for good. `filter`: number of the one by which it is judged. `result` None: it is being verified.
    """

    __slots__ = (
        "deaths",
        "did",
        "filter",
        "flags",
        "frame",
        "has_fresh_key",
        "is_first",
        "is_gate",
        "is_held",
        "is_seen",
        "key",
        "kind",
        "offset",
        "operations",
        "payload",
        "position",
        "received_at",
        "result",
        "rev",
        "size",
        "slot",
    )

    def __init__(
        self, position: int, did: str, kind: str, rev: str, *, is_first: bool = False, operations: int = 0
    ) -> None:
        self.position, self.did, self.kind, self.rev = position, did, kind, rev
        self.is_first, self.operations = is_first, operations
        self.is_seen = self.is_gate = self.is_held = self.has_fresh_key = False
        self.key: str | None = None
        self.flags = 0
        self.filter = 0
        self.frame: bytes | None = None
        self.slot: FrameSlot | None = None
        self.offset = self.size = 0
        self.result: FrameResult | None = None
        self.payload = b""
        self.received_at = 0.0
        self.deaths = 0

    @property
    def held_bytes(self) -> int:
        """What it takes of memory while it waits for its turn."""
        return len(self.payload) + (len(self.frame) if self.frame is not None else 0)
