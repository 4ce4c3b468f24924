"""Values that cross rooms. Frozen, without behaviour beyond what their meaning needs; numbers carry their unit in the name."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class RepoState(enum.StrEnum):
    """The life of a repo (ARCHITECTURE.md, "The life of a repo")."""

    DISCOVERED = "discovered"
    PENDING = "pending"
    ACTIVE = "active"
    SYNCED = "synced"
    DESYNCED = "desynced"
    FAILED = "failed"
    INACTIVE = "inactive"
    QUARANTINED = "quarantined"


class Lane(enum.StrEnum):
    """Which queue of an ingester an operation waits in: live goes before backfill."""

    LIVE = "live"
    BACKFILL = "backfill"


class Source(enum.IntEnum):
    """Numbers of ingester.v1.Source."""

    BACKFILL = 1
    FIREHOSE = 2
    RESYNC = 3


class OpType(enum.IntEnum):
    """Numbers of ingester.v1.OperationType."""

    CREATE = 1
    UPDATE = 2
    DELETE = 3
    ACCOUNT = 4
    IDENTITY = 5
    REPO_BEGIN = 6
    REPO_END = 7


class RecordEncoding(enum.StrEnum):
    """How a record travels: AT Protocol JSON, or the raw DAG-CBOR bytes."""

    JSON = "json"
    DAG_CBOR = "dag-cbor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a DID document tells us. `signing_key` is a Multikey (`z...`); `pds` an origin `http(s)://host[:port]`."""

    did: str
    signing_key: str | None
    pds: str | None
    handle: str | None
    resolved_at: float  # wall time, seconds since the epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountStatus:
    """An account's status as some service told it; `status` is empty when active and nothing is said."""

    active: bool
    status: str
    time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Something an operator should know of: shown in `status` while open, and for 24 hours after."""

    kind: str
    text: str
    at: float  # wall time, seconds since the epoch
    closed_at: float | None = None
    id: int | None = None
