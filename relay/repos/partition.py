"""DID -> partition (pure)."""

from __future__ import annotations

from hashlib import blake2b


def partition_of(did: str, partitions: int) -> int:
    """Return the partition of a DID, 0 to `partitions` - 1. Stable for ever: it is stored, and instances must agree."""
    return int.from_bytes(blake2b(did.encode(), digest_size=8).digest(), "big") % partitions
