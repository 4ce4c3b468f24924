"""What the supervisor and its backfill children say to each other: small msgpack arrays, never bulk bytes.

Each message is a NamedTuple; on the pipe it is `[tag, *fields]`. A repo on its way through the children is a *job*, a number that
the supervisor chose; a reply to a job that it has forgotten (cancelled, its child died) is dropped there.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Stop(NamedTuple):
    """Finish what is in hand and end."""


class Resolve(NamedTuple):
    """Look the DID's document up (`force`: past every cache)."""

    did: str
    force: bool


class FetchRepo(NamedTuple):
    """Download the CAR of `did` from `pds` into CAR slot `slot`."""

    job: int
    did: str
    pds: str
    slot: int


class FetchCheck(NamedTuple):
    """Ask `host` for getLatestCommit (`what` commit) or getRepoStatus (`what` status) of `did`."""

    job: int
    did: str
    host: str
    what: str


class CancelJob(NamedTuple):
    job: int


class Facts(NamedTuple):
    """What a host's answer says about its limits; None where it said nothing. Times in seconds from the answer on."""

    limit: int | None
    remaining: int | None
    reset_after_s: float | None
    retry_after_s: float | None


class Resolved(NamedTuple):
    """Answer to Resolve. On failure `reason` is set and the identity fields are None."""

    did: str
    signing_key: str | None
    pds: str | None
    handle: str | None
    resolved_at: float
    reason: str | None
    blame: str | None
    text: str | None
    took_s: float
    retry_after_s: float | None
    cache: dict[str, int] | None = None  # lookups of this child since its last answer, by identity.resolver.Result


class Fetched(NamedTuple):
    """Answer to FetchRepo: `size` bytes stand in the slot, or in the spool file `spool`."""

    job: int
    size: int
    spool: str | None
    took_s: float
    facts: list[Any] | None


class FetchFailed(NamedTuple):
    """Answer to FetchRepo or FetchCheck. `account_status` is set when the host says that the account is not active.

    `size` and `took_s`: bytes that came nevertheless, and seconds, of a FetchRepo.
    """

    job: int
    reason: str
    blame: str
    text: str
    account_status: str | None
    outcome: str  # net.hosts.Outcome
    facts: list[Any] | None
    size: int = 0
    took_s: float = 0.0


class Checked(NamedTuple):
    """Answer to FetchCheck: `rev` where the host gave one; `active` and `status` for what = status."""

    job: int
    rev: str | None
    active: bool | None
    status: str | None
    facts: list[Any] | None


class VerifyRepo(NamedTuple):
    """Verify the CAR in slot `slot` (or in the file `spool`) and write its operations into the worker's operation slots."""

    job: int
    did: str
    slot: int
    spool: str | None
    size: int
    key: str | None
    patterns: list[str]
    source: int
    time_us: int
    active: bool | None
    status: str
    handle: str | None
    pds: str | None
    touched: bool


class FreeSlots(NamedTuple):
    """These operation slots are the worker's to fill (again)."""

    slots: list[int]


class Verified(NamedTuple):
    """The CAR is good. `refused`: records that are left out, as (collection, rkey, cid, reason, size)."""

    job: int
    rev: str
    data: bytes
    records: int
    refused: list[Any]


class OperationsReady(NamedTuple):
    """A piece of the snapshot: `size` bytes in operation slot `slot`.

    `inline`: the bytes themselves, when one operation is larger than a slot. They hold a slot all the same, so that their number
    is bounded."""

    job: int
    slot: int
    size: int
    operations: int
    inline: bytes | None


class VerifyFailed(NamedTuple):
    job: int
    reason: str
    text: str


class JobDone(NamedTuple):
    """The worker needs the CAR no more, and nothing of this job follows. `cpu_s`: what it cost."""

    job: int
    cpu_s: float


_KINDS: tuple[type[Any], ...] = (
    Stop, Resolve, FetchRepo, FetchCheck, CancelJob, Resolved, Fetched, FetchFailed, Checked, VerifyRepo, FreeSlots, Verified,
    OperationsReady, VerifyFailed, JobDone,
)  # fmt: skip
_TAG = {kind: tag for tag, kind in enumerate(_KINDS)}


def to_wire(message: Any) -> list[Any]:
    """Return the msgpack-able form of one of the messages above."""
    return [_TAG[type(message)], *message]


def from_wire(wire: list[Any]) -> Any:
    """Return the message that `to_wire` made `wire` from. Both ends are the same program: anything else is a KeyError."""
    return _KINDS[wire[0]](*wire[1:])
