"""One repo's way to its ingester: what is accepted, what waits, what is in flight, what is acknowledged (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from relay.repos.handover import Chain, LiveEvent
from relay.repos.live_events import LiveToken, Offer, OfferAccount, OfferIdentity

Telling: TypeAlias = OfferAccount | OfferIdentity

# A stuck ingester must not make one account's statuses pile up: past this, the newest waiting one of a kind is replaced. That
# loses no more than a crash does, after which only the newest is told.
MAX_WAITING_TELLINGS: Final = 16


@dataclass(slots=True)
class _Entry:
    """An accepted event: acknowledged when `is_delivered`, and everything before it is."""

    chain: Chain
    seq: int
    operations: int
    is_delivered: bool
    is_open: bool  # its frame holds the cursor


@dataclass(frozen=True, slots=True)
class _Waiting:
    what: Offer | Telling
    version: int  # of the row that must be stored before


@dataclass(frozen=True, slots=True)
class Landed:
    """What an acknowledgement did. `finished`: seq of the commit whose operations are delivered, `frame`: the one now done."""

    finished: int | None = None
    frame: int | None = None
    telling: Telling | None = None
    has_advanced: bool = False


class Flow:
    """Accepted events in order, and their operations on the way.

    Invariants: `acknowledged` never passes an event whose operations, or those of one before it, are not acknowledged, and an
    event without wanted operations passes as soon as everything before it has; nothing overtakes; a telling is released only
    when nothing of the DID is in flight; nothing is released before the row that it depends on is stored. Memory: what the
    owner accepts, plus MAX_WAITING_TELLINGS.
    """

    def __init__(self, did: str, chain: Chain | None) -> None:
        self.did = did
        self.accepted = self.acknowledged = chain
        # Lists, mostly empty: an empty deque takes 760 bytes, and 20,000 repos at rest have two.
        self._entries: list[_Entry] = []
        self._waiting: list[_Waiting] = []
        self._flying: dict[LiveToken, _Entry | Telling] = {}
        self._by_token: dict[LiveToken, _Entry] = {}
        self._number = 0
        self.operations = 0  # accepted and not acknowledged

    @property
    def is_quiet(self) -> bool:
        """Nothing waits and nothing is in flight."""
        return not self._waiting and not self._flying

    @property
    def is_empty(self) -> bool:
        """Quiet, and everything accepted is acknowledged."""
        return self.is_quiet and not self._entries

    def snapshot(self, chain: Chain) -> None:
        """A delivered snapshot replaces what was known; nothing of the DID is in flight but perhaps tellings."""
        self.accepted = self.acknowledged = chain
        self._entries.clear()
        self._by_token.clear()

    def token(self) -> LiveToken:
        self._number += 1
        return LiveToken(self.did, self._number)

    def accept(self, event: LiveEvent, *, version: int, is_open: bool) -> bool:
        """Take an event that follows the chain. Return whether `acknowledged` advanced, as without operations it may at once."""
        self.accepted = Chain(event.rev, event.data)
        entry = _Entry(self.accepted, event.seq, event.operations, not event.operations, is_open)
        self._entries.append(entry)
        if not event.operations:
            return self._advance()
        self.operations += event.operations
        token = self.token()
        self._by_token[token] = entry
        offer = Offer(
            payload=event.payload,
            operations=event.operations,
            seq=event.seq,
            token=token,
            received_at=event.received_at,
        )
        self._waiting.append(_Waiting(offer, version))
        return False

    def tell(self, telling: Telling, *, version: int) -> None:
        """Put an ACCOUNT or IDENTITY behind everything of the DID; `version` of the row that says it."""
        same = [w for w in self._waiting if type(w.what) is type(telling)]
        if len(same) >= MAX_WAITING_TELLINGS:
            self._waiting.remove(same[-1])
        self._waiting.append(_Waiting(telling, version))

    def release(self, stored_version: int) -> list[Offer | Telling]:
        """Return what may be queued for the ingester now, in order."""
        released: list[Offer | Telling] = []
        while self._waiting and self._waiting[0].version <= stored_version:
            what = self._waiting[0].what
            if isinstance(what, Offer):
                self._flying[what.token] = self._by_token[what.token]
            elif self._flying:
                break
            else:
                self._flying[what.token] = what
            del self._waiting[0]
            released.append(what)
        return released

    def landed(self, token: LiveToken) -> Landed:
        """Take an acknowledgement; one of something given up meanwhile changes nothing but what is in flight."""
        flew = self._flying.pop(token, None)
        if flew is None:
            return Landed()
        if isinstance(flew, OfferAccount | OfferIdentity):
            return Landed(telling=flew)
        if self._by_token.pop(token, None) is None:
            return Landed()
        flew.is_delivered = True
        self.operations -= flew.operations
        frame = flew.seq if flew.is_open else None
        flew.is_open = False
        return Landed(finished=flew.seq, frame=frame, has_advanced=self._advance())

    def forget(self, token: LiveToken) -> list[int]:
        """An offer never left: it and everything after it will not be acknowledged. Return the frames that were open for it."""
        if self._flying.pop(token, None) is None or token not in self._by_token:
            return []
        return self._truncate(self._by_token[token])

    def forget_from(self, token: LiveToken) -> list[int]:
        """The offer was refused, and with it what was released behind it. Return the frames that were open for them."""
        frames: list[int] = []
        if token in self._flying:
            for later in [each for each in self.offers_in_flight() if each.number >= token.number]:
                frames += self.forget(later)
        return frames

    def give_up(self) -> list[int]:
        """A fetch will bring it all: drop offers that wait, and return the frames that are open no longer.

        What is in flight stays so; while it is acknowledged in order it still counts. Tellings wait on.
        """
        frames = [entry.seq for entry in self._entries if entry.is_open]
        for entry in self._entries:
            entry.is_open = False
        first = next((w.what.token for w in self._waiting if isinstance(w.what, Offer)), None)
        if first is not None:
            self._truncate(self._by_token[first])
        return frames

    def is_telling(self, token: LiveToken) -> bool:
        """Is it of a telling that was released?"""
        return isinstance(self._flying.get(token), OfferAccount | OfferIdentity)

    def offers_in_flight(self) -> tuple[LiveToken, ...]:
        """The tokens of operations that are queued or sent, oldest first."""
        return tuple(token for token, flew in self._flying.items() if isinstance(flew, _Entry))

    def _truncate(self, entry: _Entry) -> list[int]:
        """Drop the entry and all after it, and return their open frames; the chain that was accepted is not delivered beyond."""
        frames: list[int] = []
        dropped = False
        kept: list[_Entry] = []
        for each in self._entries:
            dropped = dropped or each is entry
            if not dropped:
                kept.append(each)
                continue
            if not each.is_delivered:
                self.operations -= each.operations
            if each.is_open:
                frames.append(each.seq)
        if dropped:
            self._entries = kept
            alive = {id(each) for each in kept}
            self._by_token = {token: each for token, each in self._by_token.items() if id(each) in alive}
            self._waiting = [
                w for w in self._waiting if not isinstance(w.what, Offer) or w.what.token in self._by_token
            ]
        return frames

    def _advance(self) -> bool:
        before = self.acknowledged
        while self._entries and self._entries[0].is_delivered:
            self.acknowledged = self._entries.pop(0).chain
        return self.acknowledged is not before
