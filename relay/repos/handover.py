"""From an acknowledged snapshot to the live stream without a seam (pure; DESIGN 3, "Hand-over").

A repo that is being fetched has a `Handover`. Its live events are buffered; when REPO_END is acknowledged they drain in order,
and what arrives meanwhile queues behind them. Who owns the repo's state does what the answers say.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from relay.repos.buffer import LiveBuffer, Overflow


@dataclass(frozen=True, slots=True)
class Chain:
    """What a repo's next commit must follow: `rev` and `data` (root CID, 36 bytes) of the last accepted one."""

    rev: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEvent:
    """A proved `#commit` or `#sync` of one repo. `since` and `prev_data` are None for a first commit, and for a `#sync`.

    `prev_data` of a commit that names none (old PDS software) is the root that undoing its operations gave. `operations`:
    the wanted ones. `payload` is the owner's: the encoded operations, or where they are. `received_at`: monotonic seconds.
    """

    seq: int
    is_sync: bool
    rev: str
    since: str | None
    prev_data: bytes | None
    data: bytes
    operations: int
    payload: Any = None
    received_at: float = 0.0


class Verdict(enum.Enum):
    """What an event is to a repo that stands at a chain."""

    KNOWN = "known"  # at or below what is accepted: a replay, or part of the snapshot
    FOLLOWS = "follows"
    BROKEN = "broken"  # history is missing: the repo is desynced


def check_chain(chain: Chain, event: LiveEvent) -> Verdict:
    """Say how an event continues `chain`. Source: PROTOCOL 5.2 steps 5 and 10, 5.5. Revs compare bytewise."""
    if event.rev <= chain.rev:
        return Verdict.KNOWN
    if event.is_sync:
        follows = event.data == chain.data
    else:
        follows = event.since == chain.rev and event.prev_data == chain.data
    return Verdict.FOLLOWS if follows else Verdict.BROKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffered:
    """The event waits. `holds_cursor`: its frame stays open until it is delivered, skipped or dropped.

    Before REPO_END's acknowledgement it does not: the repo is stored in a state that a start answers with a fetch, and the
    fetch brings it. `overflows`: buffers that were thrown away, perhaps this repo's own.
    """

    holds_cursor: bool
    overflows: tuple[Overflow[LiveEvent], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """One step of the drain. FOLLOWS: forward it, and tell `delivered` when its operations are. BROKEN: desync the repo.

    `held_cursor`: its frame is open. When it is forwarded the frame stays open until acknowledged; else it is done.
    """

    event: LiveEvent
    verdict: Verdict
    held_cursor: bool


class NotDraining(RuntimeError):
    """A drain before REPO_END was acknowledged, or an acknowledgement that nobody waits for: our own account is broken."""


class Handover:
    """One repo between its claim and the live stream. Its events lie in the shared `buffer` under `did`.

    Invariants: an event is forwarded only if it follows the one before it; nothing overtakes what is buffered; `is_synced`
    (the repo may be stored synced) only when everything that was buffered before REPO_END's acknowledgement was delivered;
    `is_over` (live events go the direct way) only when besides nothing is buffered. The rules are those of `drain`,
    `finish_drain`, `live` and `buffer` in the design's model.
    """

    def __init__(self, did: str, buffer: LiveBuffer[LiveEvent]) -> None:
        self.did = did
        self.chain: Chain | None = None  # None: REPO_END is not acknowledged
        self._buffer = buffer
        self._early = 0  # events in the buffer whose frames counted as done when they were buffered
        self._undelivered: set[int] = set()  # seqs of forwarded early events that are not acknowledged
        self._lost = False

    @property
    def is_draining(self) -> bool:
        return self.chain is not None

    @property
    def is_synced(self) -> bool:
        """Everything buffered before REPO_END's acknowledgement is delivered: the repo may be stored synced."""
        return self.chain is not None and not self._lost and not self._early and not self._undelivered

    @property
    def is_over(self) -> bool:
        """Synced, and nothing is buffered: this object has done its work, `chain` is where the repo stands."""
        return self.is_synced and not self._buffer.count(self.did)

    @property
    def is_lost(self) -> bool:
        """The buffer was thrown away, or the chain broke: only another fetch helps."""
        return self._lost

    def live(self, event: LiveEvent) -> Buffered:
        """A live event of the repo arrived: buffer it behind the others.

        One that comes after the buffer was thrown away is dropped: the fetch that follows contains it.
        """
        if self._lost:
            return Buffered(holds_cursor=False, overflows=())
        overflows = self._buffer.add(self.did, event, event.operations)
        if any(overflow.did == self.did for overflow in overflows):
            self.thrown_away()
            return Buffered(holds_cursor=False, overflows=overflows)
        if self.chain is None:
            self._early += 1
        return Buffered(holds_cursor=self.chain is not None, overflows=overflows)

    def thrown_away(self) -> None:
        """The repo's buffer overflowed, also when another repo's event was the cause: another fetch is needed."""
        self._lost = True
        self._early = 0

    def end_acknowledged(self, chain: Chain) -> None:
        """REPO_END is acknowledged (or there was nothing to send): the snapshot's rev and data are the chain; drain now.

        Raise NotDraining when it was before.
        """
        if self.chain is not None:
            raise NotDraining(f"{self.did}: REPO_END of {chain.rev} was acknowledged after that of {self.chain.rev}")
        self.chain = chain

    def drain(self) -> Drained | None:
        """Take the oldest event and say what to do with it; None: nothing is buffered. Raise NotDraining too early.

        After BROKEN call `give_up` for what is still buffered.
        """
        if self.chain is None:
            raise NotDraining(f"{self.did}: drained before REPO_END was acknowledged")
        if self._lost:
            return None
        event = self._buffer.pop(self.did)
        if event is None:
            return None
        late = not self._early
        if not late:
            self._early -= 1
        verdict = check_chain(self.chain, event)
        match verdict:
            case Verdict.FOLLOWS:
                self.chain = Chain(event.rev, event.data)
                if event.operations and not late:
                    self._undelivered.add(event.seq)
            case Verdict.BROKEN:
                self._lost = True
            case Verdict.KNOWN:
                pass
        return Drained(event=event, verdict=verdict, held_cursor=late)

    def delivered(self, seq: int) -> None:
        """All operations of a forwarded event are acknowledged. Those of late events are nobody's business here."""
        self._undelivered.discard(seq)

    def give_up(self) -> tuple[LiveEvent, ...]:
        """Forget what is buffered and return it: the repo was desynced, deactivated or removed. Frames it held are free."""
        self._lost = True
        self._early = 0
        return self._buffer.drop(self.did)
