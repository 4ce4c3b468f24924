"""The words that labels of metrics may have, where no other room has them already."""

from __future__ import annotations

import enum


class EventKind(enum.StrEnum):
    """What an event of the firehose was; the words of `tail.envelope.KINDS`."""

    COMMIT = "commit"
    SYNC = "sync"
    IDENTITY = "identity"
    ACCOUNT = "account"


class FetchOutcome(enum.StrEnum):
    """How a download ended."""

    OK = "ok"
    RATE_LIMITED = "rate_limited"
    NOT_FOUND = "not_found"
    INACTIVE = "inactive"
    HOST_DOWN = "host_down"
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"
    REFUSED = "refused"
    OTHER = "other"


class CacheResult(enum.StrEnum):
    """How an identity was found: fresh in the cache, stale because the directory is away, or looked up."""

    HIT = "hit"
    STALE = "stale"
    MISS = "miss"
    NEGATIVE = "negative"


class Reconciled(enum.StrEnum):
    """What a reconcile found of a repo; one that differs was compared too, and one that is queued differs."""

    COMPARED = "compared"
    DIFFERED = "differed"
    QUEUED = "queued"
    FOUND = "found"


class HostState(enum.StrEnum):
    """How a host is: taken from, waiting for what it asked for, silent (its breaker is open)."""

    OK = "ok"
    WAITING = "waiting"
    DOWN = "down"


class ChildRole(enum.StrEnum):
    """What a child process does."""

    FETCH = "fetch"
    WORKER = "worker"
    VERIFY = "verify"


class Queue(enum.StrEnum):
    """The bounded queues between the parts of the supervisor, and to its children."""

    STORE = "store"
    FETCH = "fetch"
    WORKER = "worker"
    FRAMES = "frames"  # batches of frames that were read and are not in their repos' hands yet
    VERIFY = "verify"  # frames at the verify workers
    KEY = "key"  # frames that were checked and wait for a fresh signing key
    LIVE = "live"
    BACKFILL = "backfill"


class Arena(enum.StrEnum):
    """The shared-memory arenas: downloaded CARs, and their encoded operations; frames of the stream."""

    CAR = "car"
    OPERATIONS = "operations"
    FRAMES = "frames"
