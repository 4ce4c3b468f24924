"""Who has a DID at the moment: its home, or another ingester while its home is failed over (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from relay.deliver.gobackn import Batch, Piece
from relay.deliver.refusals import join
from relay.deliver.routing import Rendezvous
from relay.deliver.segment import Segment


@dataclass(slots=True)
class Cargo:
    """What one ingester gets of those that another had to surrender, in order: `batches` come before `segments`."""

    batches: list[Batch] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    @property
    def operations(self) -> int:
        return sum(batch.operations for batch in self.batches) + sum(each.operations for each in self.segments)


@dataclass(slots=True)
class _Pin:
    address: str
    segments: int = 0


class Router:
    """Routes by rendezvous over the ingesters that are not failed over, but never splits a DID between two of them.

    A DID's home is its ingester when all are there. Segments that go anywhere else are counted: as long as one of them is not
    acknowledged (or taken back) the DID is pinned to where it is, and newer segments follow it there, whoever has come back meanwhile. So
    no two ingesters have segments of a DID at a time. One at its home needs no count: whatever comes back, it stays. Memory: a
    pin for each DID that has something unacknowledged away from home.
    """

    def __init__(self, addresses: Collection[str]) -> None:
        self._homes = Rendezvous(addresses)
        self._routes = self._homes
        self._pins: dict[str, _Pin] = {}
        self.failed_over: frozenset[str] = frozenset()

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._homes.addresses

    @property
    def pinned_dids(self) -> int:
        return len(self._pins)

    def address_of(self, did: str) -> str:
        """Return the ingester that the next segment of `did` goes to."""
        if self._pins and (pin := self._pins.get(did)) is not None:
            return pin.address
        return self._routes.address_of(did)

    def sends(self, segment: Segment) -> str:
        """Return where a segment goes, and count it there; `settled` must be called for it in the end, also when it is not taken."""
        if not self.failed_over and not self._pins:
            return self._homes.address_of(segment.did)
        address = self.address_of(segment.did)
        if segment.did in self._pins or address != self._homes.address_of(segment.did):
            self._pin(segment, address)
        return address

    def settled(self, segments: Iterable[Segment]) -> None:
        """These are acknowledged, or taken back: they are at no ingester any more."""
        for segment in segments:
            if not segment.is_pinned:
                continue
            segment.is_pinned = False
            pin = self._pins[segment.did]
            pin.segments -= 1
            if not pin.segments:
                del self._pins[segment.did]

    def fail_over(self, address: str, batches: Sequence[Batch], segments: Sequence[Segment]) -> dict[str, Cargo]:
        """Take an ingester's DIDs away from it; return what the others have to adopt of what it held: `batches`, then `segments`.

        Raises ValueError when there is no other.
        """
        routes = self._homes.without(self.failed_over | {address})
        self.failed_over |= {address}
        self._routes = routes
        return self._move(address, batches, segments)

    def take_back(self, address: str) -> None:
        """Route to an ingester again what is not pinned elsewhere."""
        self.failed_over -= {address}
        self._routes = self._homes.without(self.failed_over) if self.failed_over else self._homes

    def join(self, address: str) -> None:
        """Add an ingester. It is failed over until `take_back`: one that joins is one that comes back and was never there.

        The homes of some DIDs are elsewhere from now on, so `keep` has to be called for what every ingester holds, before anything else is.
        Raises ValueError when it is there already.
        """
        self._homes = Rendezvous([*self._homes.addresses, address])
        self.failed_over |= {address}
        self._routes = self._homes.without(self.failed_over)

    def keep(self, address: str, segments: Iterable[Segment]) -> None:
        """Pin those of an ingester's segments whose home is another one since `join`: their DIDs move when they are acknowledged."""
        is_at_home: dict[str, bool] = {}
        for segment in segments:
            if segment.is_pinned:
                continue
            did = segment.did
            if did not in is_at_home:
                is_at_home[did] = self._homes.address_of(did) == address
            if not is_at_home[did]:
                self._pin(segment, address)

    def leave(self, address: str, batches: Sequence[Batch], segments: Sequence[Segment]) -> dict[str, Cargo]:
        """Remove an ingester for good; as `fail_over`. When all others are failed over they are taken back: nobody else is left.

        Raises ValueError for the last one.
        """
        self._homes = self._homes.without({address})
        self.failed_over -= {address}
        if self.failed_over >= set(self._homes.addresses):
            self.failed_over = frozenset()
        self._routes = self._homes.without(self.failed_over) if self.failed_over else self._homes
        return self._move(address, batches, segments)

    def _move(self, address: str, batches: Sequence[Batch], segments: Sequence[Segment]) -> dict[str, Cargo]:
        """Part what an ingester held by where it goes now; its DIDs are pinned there."""
        for did, pin in self._pins.items():
            if pin.address == address:
                pin.address = self._routes.address_of(did)
        cargos: dict[str, Cargo] = {}
        for batch in batches:
            for span in batch.spans:
                if not span.segment.is_pinned:
                    self._pin(span.segment, self.address_of(span.segment.did))
            for target, part in self._parted(batch).items():
                cargos.setdefault(target, Cargo()).batches.append(part)
        for segment in segments:
            if not segment.is_pinned:
                self._pin(segment, self.address_of(segment.did))
            cargos.setdefault(self.address_of(segment.did), Cargo()).segments.append(segment)
        return cargos

    def _pin(self, segment: Segment, address: str) -> None:
        self._pins.setdefault(segment.did, _Pin(address)).segments += 1
        segment.is_pinned = True

    def _parted(self, batch: Batch) -> dict[str, Batch]:
        """Cut a batch by where its DIDs go now; one that stays whole is not copied."""
        pieces: dict[str, list[Piece]] = {}
        for span, view in batch.pieces():
            pieces.setdefault(self.address_of(span.segment.did), []).append((span, view))
        if len(pieces) == 1:
            return dict.fromkeys(pieces, batch)
        parts = {}
        for target, mine in pieces.items():
            parts[target] = part = join(mine)
            part.sends = batch.sends
        return parts
