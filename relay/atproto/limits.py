"""How large and how deep things may be. The defaults are the specification's numbers (PROTOCOL 1.5, 2.3, 3.2, 10)."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of every reader in this room. Fields that an operator can set are `verify.max_<name>` in the configuration."""

    record_bytes: int = 1 * MIB  # one record block
    block_bytes: int = 2 * MIB  # one block of a CAR, whatever it is
    blocks: int = 20_000_000  # blocks of one CAR
    cbor_depth: int = 32  # containers inside one another, in what we read structurally; records: see jsonform
    cbor_items: int = 131_072  # items of one array or map
    cbor_key_bytes: int = 8_192  # one key of a map
    tree_depth: int = 32  # layers of a repo's tree
    node_entries: int = 1_024  # entries of one tree node
    key_bytes: int = 1_024  # one MST key (`collection/rkey`); the grammar ends at 830
    car_header_bytes: int = 4 * KIB  # one root makes 58
    frame_bytes: int = 5_000_000  # one message of the event stream
    commit_blocks_bytes: int = 2_000_000  # `blocks` of a #commit
    sync_blocks_bytes: int = 10_000  # `blocks` of a #sync
    commit_ops: int = 200  # `ops` of a #commit
    did_document_bytes: int = 256 * KIB  # one DID document, JSON


DEFAULT_LIMITS = Limits()
