"""Which ingester a DID belongs to: rendezvous hashing (pure)."""

from __future__ import annotations

from collections.abc import Collection, Container
from hashlib import blake2b


class Rendezvous:
    """The highest hash of (address, DID) wins: without an address only its own DIDs move, and they spread over the others.

    The hash is part of the contract: ingesters that each keep their own shard rely on it across versions and machines, so
    it depends on nothing but the two strings. The order of the addresses does not matter. Costs 1 us for each address.
    """

    def __init__(self, addresses: Collection[str]) -> None:
        if not addresses:
            raise ValueError("no ingester to route to")
        if len(set(addresses)) != len(addresses):
            raise ValueError(f"an ingester is listed twice: {', '.join(sorted(addresses))}")
        self.addresses = tuple(sorted(addresses))
        # A key of its own for each address, whatever its length: blake2b takes keys of up to 64 bytes.
        self._keys = tuple((blake2b(address.encode(), digest_size=32).digest(), address) for address in self.addresses)

    def without(self, addresses: Container[str]) -> Rendezvous:
        """Return the same routes over the other ingesters. Raises ValueError when none is left."""
        return Rendezvous([address for address in self.addresses if address not in addresses])

    def address_of(self, did: str) -> str:
        """Return the address that all operations of `did` go to."""
        if len(self._keys) == 1:
            return self._keys[0][1]
        name = did.encode()
        return max((blake2b(name, digest_size=8, key=key).digest(), address) for key, address in self._keys)[1]
