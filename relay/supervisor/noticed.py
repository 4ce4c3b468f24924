"""What the database says for eyes and the machine does not know: incidents, and the cursor where nobody follows the stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from relay.model import Incident
from relay.store import incidents, partitions
from relay.store.statements import Cursor

EVERY_S = 2.0
# Behind so many other questions this one would only make it worse.
MOST_OUTSTANDING = 50


class Questions(Protocol):
    """The `StoreTasks` of the engine."""

    @property
    def outstanding(self) -> int: ...
    def submit(self, name: str, ask: Callable[[Cursor], Any], then: Callable[[Any], None]) -> None: ...


class Noticed:
    """`incidents`: the open ones, and those closed in the last 24 hours. Lives in the engine's thread; never waits."""

    def __init__(self, questions: Questions, now: Callable[[], float]) -> None:
        """`now`: wall seconds."""
        self._questions, self._now = questions, now
        self._due_at = 0.0
        self._is_asking = False
        self.incidents: Sequence[Incident] = ()
        self.upstream = ""
        self.cursor: int | None = None

    def look(self, monotonic: float) -> None:
        """Ask again if it is time; to be called often."""
        if self._is_asking or monotonic < self._due_at or self._questions.outstanding >= MOST_OUTSTANDING:
            return
        self._is_asking, self._due_at = True, monotonic + EVERY_S

        def ask(cursor: Cursor) -> tuple[list[Incident], partitions.Partition]:
            return incidents.list_recent(cursor, self._now()), partitions.read(cursor)

        def take(answer: tuple[list[Incident], partitions.Partition]) -> None:
            self._is_asking = False
            self.incidents, partition = answer
            self.upstream, self.cursor = partition.upstream or "", partition.cursor

        self._questions.submit("incidents", ask, take)
