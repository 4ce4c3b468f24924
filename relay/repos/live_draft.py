"""What one event makes of a repo, while it is being made (pure)."""

from __future__ import annotations

from relay.repos import live_events as e


class Draft:
    """The effects so far, and whether the row differs from what was put last.

    A repo and its parts share it and do not refer back to one another: a repo that is forgotten is freed at once, and not by the
    garbage collector, whose full passes stop everything for a tenth of a second among 20,000 repos.
    """

    __slots__ = ("effects", "is_dirty", "is_urgent", "version")

    def __init__(self) -> None:
        self.effects: list[e.Effect] = []
        self.is_dirty = self.is_urgent = False
        self.version = 0  # of the row that was put last

    def change(self, *, is_urgent: bool = False) -> int:
        """The row differs; return the version that this event's Store will have. Urgent: operations wait for it."""
        self.is_dirty = True
        if is_urgent:
            self.is_urgent = True
        return self.version + 1

    def taken(self) -> tuple[e.Effect, ...]:
        """Return the effects, and begin the next event's."""
        effects = tuple(self.effects)
        self.effects.clear()
        self.is_dirty = self.is_urgent = False
        return effects
