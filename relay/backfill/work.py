"""One claimed repo on its way through the backfill: where it is, and what it holds that must be given back."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from relay.backfill.messages import OperationsReady, Verified
from relay.model import Identity
from relay.repos.failures import Failure
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
    """A claimed repo. `number` names it to the children; the same DID claimed again is another Work."""

    number: int
    row: RepoRow
    claimed_at: float  # monotonic seconds
    stage: Stage = Stage.RESOLVING
    identity: Identity | None = None
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
    check_later: bool = False  # taken although older than the newest rev heard
    begun: bool = False  # REPO_BEGIN and its rev are stored: operations may go
    held: deque[OperationsReady] = field(default_factory=deque)
    produced: bool = False  # the worker is through with it
    failure: Failure | None = None
    unacknowledged: int = 0  # segments offered and not acknowledged
    operations: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    over: bool = False  # given up or finished: late messages about it mean nothing

    @property
    def did(self) -> str:
        return self.row.did

    @property
    def host(self) -> str:
        return self.row.host or ""


class Works(dict[int, Work]):
    """Works by their number. One leaves when nobody has anything of it in hand any more."""

    def __init__(self) -> None:
        super().__init__()
        self._next_number = 1

    def new(self, row: RepoRow, now: float, *, stage: Stage = Stage.RESOLVING, is_check: bool = False) -> Work:
        """Add a work with the next number; `now` is monotonic seconds."""
        work = Work(number=self._next_number, row=row, claimed_at=now, stage=stage, is_check=is_check)
        self._next_number += 1
        self[work.number] = work
        return work
