"""One claimed repo on its way through the backfill: where it is, and what it holds that must be given back."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from relay.atproto.nsid_filter import NsidFilter
from relay.backfill.messages import OperationsReady, Verified
from relay.model import Identity
from relay.repos.failures import Failure
from relay.repos.keeper import Keeper
from relay.repos.resident import Resident
from relay.store.dead_letters import DeadLetter
from relay.store.repos import RepoRow


class Stage(enum.StrEnum):
    """What a claimed repo waits for."""

    RESOLVING = "resolving"  # its DID document
    QUEUED = "queued"  # its host has room
    FETCHING = "fetching"  # the download
    FETCHED = "fetched"  # a worker
    VERIFYING = "verifying"  # the worker; its operations may flow already
    DELIVERING = "delivering"  # acknowledgements
    ENDING = "ending"  # its last state to be stored


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """A claimed repo. `number` names it to the children, `fetch` to its machine; the same DID claimed again is another Work."""

    number: int
    resident: Resident
    host: str  # as its row named it when this began: the row may learn of a move meanwhile
    wanted: NsidFilter  # in force when it began
    claimed_at: float  # monotonic seconds
    reason: str | None = None  # why it was pending
    fetch: int = 0
    account_events: int = 0  # `#account` frames of the DID before we asked its host anything
    check_mark: int = 0  # newest mark for a check before that
    stage: Stage = Stage.RESOLVING
    identity: Identity | None = None
    asked_at: float = float("inf")  # wall seconds at which its document was asked for; never: it came from memory
    refused_at: float = (
        0.0  # wall seconds: its host said "not here"; a document from before then does not say where it is now
    )
    identity_is_new: bool = False  # resolved for this very work: asking again would tell nothing new
    is_check: bool = False  # no claim: its host is only asked for the newest rev or the status
    suspected: Failure | None = None  # a failure that a fresh identity may explain away
    suspected_status: str | None = None  # likewise an account status
    started_at: float = 0.0  # monotonic seconds at which the stage's job was handed to a child
    fetched_at_us: int = 0
    slot: int | None = None  # CAR slot
    spool: str | None = None
    size: int = 0  # CAR bytes
    seat: int | None = None  # of the fetch child or worker that has its job
    verified: Verified | None = None
    begun: bool = False  # REPO_BEGIN and its rev are stored: operations may go
    held: deque[OperationsReady] = field(default_factory=deque)
    produced: bool = False  # the worker is through with it
    failure: Failure | None = None
    unacknowledged: int = 0  # segments offered and not acknowledged
    operations: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    over: bool = False  # given up or finished: late messages about it mean nothing
    landed: bool = False  # its machine knows that nothing of it is on its way any more

    @property
    def row(self) -> RepoRow:
        return self.resident.row

    @property
    def did(self) -> str:
        return self.resident.row.did


class Works(dict[int, Work]):
    """Works by their number. One leaves when nobody has anything of it in hand any more; until then its repo stays in memory."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        self._keeper = keeper
        self._next_number = 1
        self._fetches: dict[str, Work] = {}  # the newest claim of each DID

    def new(self, resident: Resident, now: float, *, stage: Stage = Stage.RESOLVING, is_check: bool = False) -> Work:
        """Add a work with the next number; `now` is monotonic seconds."""
        life = resident.life
        work = Work(
            number=self._next_number,
            resident=resident,
            host=resident.row.host or "",
            wanted=self._keeper.wanted,
            claimed_at=now,
            reason=resident.row.reason,
            fetch=life.fetch,
            account_events=life.account_events,
            check_mark=life.check_mark,
            stage=stage,
            is_check=is_check,
        )
        self._next_number += 1
        self[work.number] = work
        if not is_check:
            self._fetches[work.did] = work
        self._keeper.hold(resident)
        return work

    def of_fetch(self, did: str, fetch: int) -> Work | None:
        """Return the work that its machine knows as `fetch`, if it is not over."""
        work = self._fetches.get(did)
        return work if work is not None and work.fetch == fetch and not work.over else None

    def end(self, work: Work) -> None:
        """Nobody has anything of it in hand any more. Once or again."""
        if self.pop(work.number, None) is None:
            return
        if self._fetches.get(work.did) is work:
            del self._fetches[work.did]
        self._keeper.release(work.resident)
