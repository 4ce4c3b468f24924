"""Signatures that fail may only mean that our key is old: whose results wait for a fresh document, and how much may wait (pure).

One `DidQueue` for each DID of which frames are in hand, in their order; `KeyRefresh` keeps the account of what waits in them.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from relay.tail.inhand import FrameInHand

# A document younger than this is not asked for again, and one that could not be had not either.
FRESH_S: Final = 10.0
# What may wait for a key: of one DID, and of all. Beyond, nothing waits: a failed signature then is one.
HELD_FRAMES_OF_ONE: Final = 256
HELD_BYTES_OF_ONE: Final = 8 * 1024 * 1024
HELD_FRAMES: Final = 4096
HELD_BYTES: Final = 64 * 1024 * 1024
_ASKED_KEPT: Final = 20_000


class DidQueue:
    """Frames of one DID in their order: those whose batch is not sequenced yet are only counted (`expected`).

    `gates`: how many of `frames` the machine has not been told of; while there is one, later frames get behind it. `refresh`: the
    number of the question for a fresh key that is out, None when none is. `is_pinned`: the repo is kept in memory.
    """

    __slots__ = ("did", "expected", "frames", "gates", "held", "held_bytes", "is_loading", "is_pinned", "refresh")

    def __init__(self, did: str) -> None:
        self.did = did
        self.expected = 0
        self.frames: deque[FrameInHand] = deque()
        self.gates = 0
        self.refresh: int | None = None
        self.is_pinned = self.is_loading = False
        self.held = 0  # answered frames that wait for an earlier one
        self.held_bytes = 0

    @property
    def is_empty(self) -> bool:
        return not self.expected and not self.frames

    def put(self, frame: FrameInHand) -> None:
        """Put a frame where its seq belongs, mostly at the end."""
        frames = self.frames
        if not frames or frames[-1].position < frame.position:
            frames.append(frame)
            return
        place = next(place for place, each in enumerate(frames) if each.position > frame.position)
        frames.insert(place, frame)


class KeyRefresh:
    """Which DIDs wait for a fresh key, and how much of memory that takes. Times: monotonic seconds."""

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0
        self.asked = 0  # in all
        self._answered_at: dict[str, float] = {}  # in order of time; those of the last FRESH_S count

    def may_ask(self, did: str, *, age_s: float | None, now: float) -> bool:
        """Is it worth asking? `age_s`: of the document that we have; None: we have none."""
        if age_s is not None and age_s < FRESH_S:
            return False
        answered_at = self._answered_at.get(did)
        return answered_at is None or now - answered_at >= FRESH_S

    def ask(self, queue: DidQueue) -> int:
        """Results of the DID wait from here on; return the number of the question."""
        self.asked += 1
        queue.refresh = self.asked
        return self.asked

    def answered(self, queue: DidQueue, now: float) -> None:
        """There is an answer, whatever it is, or none is waited for any longer."""
        queue.refresh = None
        self._answered_at.pop(queue.did, None)
        self._answered_at[queue.did] = now
        while len(self._answered_at) > _ASKED_KEPT:
            del self._answered_at[next(iter(self._answered_at))]

    def hold(self, queue: DidQueue, frame: FrameInHand) -> None:
        """The frame is answered and waits for an earlier one of its DID."""
        size = frame.held_bytes
        queue.held, queue.held_bytes = queue.held + 1, queue.held_bytes + size
        self.frames, self.bytes = self.frames + 1, self.bytes + size
        frame.is_held = True

    def drop(self, queue: DidQueue, frame: FrameInHand) -> None:
        """It waits no longer."""
        if not frame.is_held:
            return
        size = frame.held_bytes
        queue.held, queue.held_bytes = queue.held - 1, queue.held_bytes - size
        self.frames, self.bytes = self.frames - 1, self.bytes - size
        frame.is_held = False

    def is_over(self, queue: DidQueue) -> bool:
        """Does more wait than may?"""
        return (
            queue.held > HELD_FRAMES_OF_ONE
            or queue.held_bytes > HELD_BYTES_OF_ONE
            or self.frames > HELD_FRAMES
            or self.bytes > HELD_BYTES
        )
