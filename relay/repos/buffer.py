"""Live events of repos that are being fetched, in order and bounded (pure; DESIGN 3, "Buffer limits")."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

# What one repo may hold of the whole: a few very busy repos must not push everybody else into another fetch.
DEFAULT_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow(Generic[T]):
    """The repo's buffer was thrown away, `events` in order: it must be fetched again, and what they held open is free."""

    did: str
    events: tuple[T, ...]
    operations: int


@dataclass(slots=True)
class _Queue(Generic[T]):
    events: deque[tuple[T, int]] = field(default_factory=deque)
    operations: int = 0


class LiveBuffer(Generic[T]):
    """One queue of events a DID, at most `max_operations` in all and `max_per_repo` in one.

    An event counts as its operations, and one without any as 1: it takes room too. When the whole is full the largest queue is
    thrown away, which need not be that of the repo whose event came: the fewest repos pay, and a quiet repo never pays for a
    busy one. Thrown away means: nothing of it is delivered, `overflows` counts it, and the caller marks the repo for another
    fetch, so nothing is lost. Owned by one thread.
    """

    def __init__(self, *, max_operations: int, max_per_repo: int | None = None) -> None:
        if max_per_repo is None:
            max_per_repo = max(1, int(max_operations * DEFAULT_SHARE))
        if not 1 <= max_per_repo <= max_operations:
            raise ValueError(f"a buffer of {max_operations} operations, {max_per_repo} for one repo")
        self.max_operations = max_operations
        self.max_per_repo = max_per_repo
        self.operations = 0
        self.added = 0  # operations, since the start
        self.overflows = 0
        self._queues: dict[str, _Queue[T]] = {}

    def add(self, did: str, event: T, operations: int) -> tuple[Overflow[T], ...]:
        """Put an event behind those that the repo has. Return the buffers that were thrown away for it, mostly none.

        Where `did` is among them, its new event is the last of `events`: nothing of the repo is left.
        """
        size = max(1, operations)
        queue = self._queues.get(did)
        if queue is None:
            queue = self._queues[did] = _Queue()
        queue.events.append((event, size))
        queue.operations += size
        self.operations += size
        self.added += size
        if queue.operations > self.max_per_repo:
            return (self._overflow(did),)
        if self.operations <= self.max_operations:
            return ()
        return (self._overflow(max(self._queues, key=lambda each: self._queues[each].operations)),)

    def pop(self, did: str) -> T | None:
        """Take the repo's oldest event; None when there is none."""
        queue = self._queues.get(did)
        if queue is None:
            return None
        event, size = queue.events.popleft()
        queue.operations -= size
        self.operations -= size
        if not queue.events:
            del self._queues[did]
        return event

    def drop(self, did: str) -> tuple[T, ...]:
        """Forget the repo's events and return them in order: what they held open is the caller's to free."""
        queue = self._queues.pop(did, None)
        if queue is None:
            return ()
        self.operations -= queue.operations
        return tuple(event for event, _ in queue.events)

    def count(self, did: str) -> int:
        """How many events the repo has."""
        queue = self._queues.get(did)
        return len(queue.events) if queue is not None else 0

    @property
    def repos(self) -> int:
        """How many repos have events here."""
        return len(self._queues)

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield (DID, operations) of each repo that has events here."""
        for did, queue in self._queues.items():
            yield did, queue.operations

    def _overflow(self, did: str) -> Overflow[T]:
        operations = self._queues[did].operations
        self.overflows += 1
        return Overflow(did=did, events=self.drop(did), operations=operations)
