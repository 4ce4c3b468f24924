"""DID -> partition."""

from __future__ import annotations

from collections import Counter

from relay.store.partitions import partition_of


def test_the_partition_of_a_did_never_changes() -> None:
    # Stored in every row: other numbers here would orphan them.
    assert [partition_of(did, 64) for did in ("did:plc:z72i7hdynmk6r22z27h6tvur", "did:web:example.com")] == [22, 35]


def test_dids_spread_evenly_over_partitions() -> None:
    found = Counter(partition_of(f"did:plc:{number:024}", 64) for number in range(64_000))
    assert len(found) == 64
    assert min(found.values()) > 800
    assert max(found.values()) < 1200
