"""What the sequencer needs of the rest of the relay, and what it shows (declarations only)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from relay.model import Identity, OpType
from relay.repos import live_events as e
from relay.repos.checkpointer import CursorChange
from relay.repos.live import LiveRepo
from relay.store.dead_letters import DeadLetter


class Resident(Protocol):
    """A DID in memory. `identity`: as last resolved."""

    @property
    def identity(self) -> Identity | None: ...
    @property
    def life(self) -> LiveRepo: ...


class Residents(Protocol):
    """Who has the repos' machines. Nothing of it may call `Sequencer.pump`, `take` or `answered`; `feed` calls `verify` and `done`."""

    def get(self, did: str) -> Resident | None: ...

    def load(self, dids: list[str], then: Callable[[], None]) -> None:
        """Have these DIDs in memory, also those without a row, then call `then`, which pins them before it returns."""

    def hold(self, did: str) -> None:
        """Keep a DID that is in memory there until `release`. Counted."""

    def release(self, did: str) -> None: ...

    def feed(self, did: str, event: e.Event) -> None:
        """Tell the machine, and have all its effects executed, in order."""

    def keep_letters(self, letters: list[DeadLetter]) -> None:
        """Store dead letters, no later than any cursor that is put after them."""

    def checkpoint(self, cursor: CursorChange) -> None:
        """Store the cursor, no sooner than everything that was put before."""

    def resolve(self, did: str, then: Callable[[Identity | None], None]) -> None:
        """Read the DID document past every cache; None: it cannot be had now. The DID's `identity` is the new one by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TailView:
    """The live half at a glance; made in the engine, read anywhere. Counts are since the start."""

    upstream: str
    is_connected: bool
    seq: int | None  # of the newest event read
    cursor: int | None  # stored, or on its way to be
    time_us: int | None  # of the newest event read
    events: Mapping[str, int]  # read, by kind
    outcomes: Mapping[str, int]  # frames by what became of them
    made: Mapping[OpType, int]  # operations of proved commits, forwarded or not
    invalid: Mapping[str, int]  # by reason
    ignored: Mapping[str, int]
    incidents: Mapping[str, int]
    open_frames: int
    distance: int  # frames from the oldest open one to the newest
    waiting_batches: int  # read and not sequenced
    verifying: int  # frames at the verify workers
    waiting_for_key: int  # frames answered that wait for a key
    key_refreshes: int
    reliefs: int  # repos told to give way because their frame was the oldest open one for too long
    verify_cpu_s: float
    slot_wait_s: float
    received_bytes: int
    connections: int
    last_error: str | None
