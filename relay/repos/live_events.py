"""What a live repo is told, and what it answers (values only; the machine is in live.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from relay.atproto.nsid_filter import NsidFilter
from relay.repos.facts import Check, Facts
from relay.repos.handover import LiveEvent
from relay.repos.lifecycle import Event as LifeEvent

FrameKind = Literal["commit", "sync"]


@dataclass(frozen=True, slots=True)
class LiveToken:
    """Names what was handed to delivery; comes back when it was acknowledged, refused or withdrawn."""

    did: str
    number: int


# --- events ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSeen:
    """A `#commit` or `#sync` was read, not yet proved. `is_first`: a commit whose `since` is null.

    `rev` as the frame claims it (the reader has refused one from the future). `frame` is the owner's, kept only where the frame
    must wait for an identity; `operations` its rough size then.
    """

    seq: int
    kind: FrameKind
    rev: str
    is_first: bool
    frame: Any = None
    operations: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """A frame of `Verify` is what its account signed."""

    event: LiveEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalid:
    """A frame of `Verify` is not."""

    seq: int
    rev: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An `#account` frame, behind every earlier frame of the DID."""

    seq: int
    active: bool
    status: str
    time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentitySeen:
    """An `#identity` frame, behind every earlier frame of the DID. `handle` is a hint, None where it says none."""

    seq: int
    handle: str | None
    time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityLearnt:
    """A DID document that names a key and a PDS was fetched."""

    handle: str | None
    pds: str
    time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityFailed:
    """The resolver has nothing now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupFailed:
    """A discovered repo's host could not be found out. `outcome`: RELEASED, ATTEMPT_FAILED or GAVE_UP, as `failures.judge` decided."""

    outcome: LifeEvent
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsChanged:
    """Columns of the row that are not ours (host, attempts, last error) have changed, and nothing else may say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStored:
    """The transaction of the `Store` with this version, and of all before it, is through."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """An ingester has stored everything of the token (or refused a record of it, which is a dead letter now)."""

    token: LiveToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An ingester rejected an ACCOUNT or IDENTITY for good."""

    token: LiveToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """What `Withdraw` named left its queue unsent."""

    token: LiveToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """The repo is stored as active, and its fetch begins after this; its number is the machine's `fetch` from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotVerified:
    """The fetched repo is proved. `sends`: there is something to send, BEGIN and END at least.

    `is_last_try`: an older copy than was heard of is taken now. A status that the answer implies is fed before this.
    """

    fetch: int
    rev: str
    sends: bool
    is_last_try: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDelivered:
    """REPO_END is acknowledged (or there was nothing to send). `covers`: the filter that the snapshot began with."""

    fetch: int
    rev: str
    data: bytes
    covers: NsidFilter


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotStopped:
    """After `StopSnapshot` or a failure: no operation of this fetch is queued or in flight any more."""

    fetch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailed:
    """The fetch came to nothing. `outcome`: RELEASED, ATTEMPT_FAILED or GAVE_UP, as `failures.judge` decided."""

    fetch: int
    outcome: LifeEvent
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusLearnt:
    """A status from elsewhere than the stream. `asked_before_event`: `account_events` has risen since the request."""

    active: bool
    status: str
    time_us: int
    asked_before_event: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewerRev:
    """A listing or getLatestCommit names this rev."""

    rev: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckAnswered:
    """The check of `CheckDue.mark` was answered. To be fed before what the answer says."""

    mark: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckUnanswerable:
    """Its host cannot say (gone, or the account is not there any more): a fetch finds out what that means, and its attempts end."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferOverflow:
    """Another repo's event made the shared buffer throw this repo's away."""

    events: tuple[LiveEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngesterBehind:
    """The repo's live operations do not fit. `token`: the offer that was refused, or None when the owner decides by itself.

    To be fed at once; offers that stand behind the refused one in the same effects are not executed.
    """

    token: LiveToken | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFramesRelief:
    """This repo has the oldest open frame, and there are too many behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResyncAsked:
    """Deliver everything again: an operator, a restored ingester, a shard that moved."""

    reason: str = "resync"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterChanged:
    """This filter is in force from now on."""

    wanted: NsidFilter


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The repo is not tracked any more; its row says so already."""


Event: TypeAlias = (
    FrameSeen
    | Proved
    | Invalid
    | Account
    | IdentitySeen
    | IdentityLearnt
    | IdentityFailed
    | LookupFailed
    | ColumnsChanged
    | RowStored
    | Acknowledged
    | Refused
    | Withdrawn
    | Claimed
    | SnapshotVerified
    | SnapshotDelivered
    | SnapshotStopped
    | FetchFailed
    | StatusLearnt
    | NewerRev
    | CheckAnswered
    | CheckUnanswerable
    | BufferOverflow
    | IngesterBehind
    | OpenFramesRelief
    | ResyncAsked
    | FilterChanged
    | Removed
)


# --- effects --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Have the row stored, in order, in the cursor's transaction or an earlier one; `RowStored` is the answer.

    Always the first of an event's effects. `is_urgent`: operations wait for it.
    """

    facts: Facts
    version: int
    is_urgent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The frame holds the cursor no longer, once what was put before this is stored. Once a frame, never before its Store."""

    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Have the frame proved; answers come in the order of the asking. `frame` is given where the machine kept it."""

    seq: int
    frame: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Queue these operations in the live lane."""

    payload: Any
    operations: int
    seq: int
    token: LiveToken
    received_at: float = 0.0  # of the frame, monotonic seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferAccount:
    """Queue an ACCOUNT in the live lane, always: it is small. `seq` 0: not from the stream, or told again."""

    active: bool
    status: str
    time_us: int
    seq: int
    token: LiveToken


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferIdentity:
    """Queue an IDENTITY in the live lane, always."""

    handle: str | None
    pds: str | None
    time_us: int
    seq: int
    token: LiveToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """Take these out of their queues where they are not sent yet, and answer `Withdrawn` for each of those."""

    tokens: tuple[LiveToken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSnapshot:
    """Its begun rev is stored and nothing of the DID is in flight: send REPO_BEGIN and what follows."""

    fetch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseSnapshot:
    """Do not send it; `FetchFailed` is the answer. `rollback`: below what was begun or delivered; `outdated`: below what was heard."""

    fetch: int
    reason: Literal["rollback", "outdated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSnapshot:
    """Forget the fetch and what of it is queued; answer `SnapshotStopped` when nothing of it is in flight."""

    fetch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Desync:
    """The repo is desynced: fetch it after a back-off that grows with `refetches`, the fetches in a row that did not hold."""

    reason: str
    refetches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchAgain:
    """The repo is pending although its snapshot was delivered; back-off as for Desync."""

    reason: str
    refetches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflowed:
    """The shared buffer threw away what another repo had: tell it (`BufferOverflow`)."""

    did: str
    events: tuple[LiveEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDue:
    """Ask the PDS: getRepoStatus or getLatestCommit, rate-limited. The mark is stored."""

    what: Check
    mark: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveIdentity:
    """Fetch the DID document past the cache; `IdentityLearnt` or `IdentityFailed` is the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One more of a metric; the label is from a closed set."""

    metric: str
    label: str


Effect: TypeAlias = (
    Store
    | Done
    | Verify
    | Offer
    | OfferAccount
    | OfferIdentity
    | Withdraw
    | SendSnapshot
    | RefuseSnapshot
    | StopSnapshot
    | Desync
    | FetchAgain
    | Overflowed
    | CheckDue
    | ResolveIdentity
    | Count
)
