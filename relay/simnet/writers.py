"""Live writers: threads that let authors act at a rate, beside the servers and whatever a test does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from relay.runtime.service import ServiceThread
from relay.simnet.author import Author, Mix
from relay.simnet.world import World

_STOP_S = 10.0
_SHORTEST_WAIT_S = 0.002  # several actions in a row cost less than a wait for each
_MOST_BEHIND_S = 1.0  # what could not be written in time is not made up for beyond this


class WritersFailed(RuntimeError):
    """A writer's thread ended by an exception, or does not end: a bug in this package."""


class Writer(ServiceThread):
    """One author at `rate` actions a second."""

    def __init__(self, name: str, author: Author, rate: float) -> None:
        super().__init__(name)
        self.author = author
        self._interval_s = 1 / rate

    def run(self) -> None:
        due = time.monotonic()
        while not self.stopping.is_set():
            now = time.monotonic()
            if due > now + _SHORTEST_WAIT_S:
                self.stopping.wait(due - now)
                continue
            due = max(due, now - _MOST_BEHIND_S) + self._interval_s
            self.author.act()


class Writers:
    """All writers of a world. Methods are for one caller at a time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._writers: list[Writer] = []
        self._done: Counter[str] = Counter()
        self._starts = 0

    def start(
        self, rate: float, *, threads: int = 1, mix: Mix | None = None, dids: Sequence[str] | None = None, seed: int = 0
    ) -> None:
        """Let writers act on these accounts (all), `rate` times a second in all, until `stop`.

        Each thread has accounts of its own; with one thread a seed gives the same actions again. Raise RuntimeError when they
        run already, ValueError for a rate or number of threads below 1 or more threads than accounts, KeyError for a DID,
        CompactRepo for a world of which only the CARs were kept.
        """
        if self._writers:
            raise RuntimeError("the writers run already")
        if rate <= 0 or threads < 1:
            raise ValueError(f"writers need a rate and a thread, got {rate} a second and {threads} threads")
        world = self._world
        with world.lock:
            accounts = [world.account(did) for did in dids] if dids is not None else list(world.accounts)
            for account in accounts:
                account.repo.must_be_whole()
        self._starts += 1
        authors = [
            Author(world, accounts[number::threads], seed=f"{seed}/{self._starts}/{number}", mix=mix or Mix())
            for number in range(threads)
        ]
        self._writers = [
            Writer(f"simnet-writer-{number}", author, rate / threads) for number, author in enumerate(authors)
        ]
        for writer in self._writers:
            writer.start()

    def stop(self) -> dict[str, int]:
        """End the writers when their action is done; return what all of them did since the beginning.

        Raise WritersFailed when one died or hangs. Without writers: what was done, and nothing else happens.
        """
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.request_stop()
        deadline = time.monotonic() + _STOP_S
        ended = [writer.join(deadline) for writer in writers]
        for writer in writers:
            self._done += writer.author.done
        if not all(ended):
            raise WritersFailed("a writer does not end")
        for writer in writers:
            if writer.death is not None:
                raise WritersFailed(f"{writer.name} died: {writer.death!r}") from writer.death
        return dict(self._done)

    def done(self) -> dict[str, int]:
        """Return what was done so far, by the names of `Mix`. Raise WritersFailed when a writer has died."""
        counts = Counter(self._done)
        for writer in self._writers:
            if writer.death is not None:
                raise WritersFailed(f"{writer.name} died: {writer.death!r}") from writer.death
            counts += Counter(writer.author.done)
        return dict(counts)
