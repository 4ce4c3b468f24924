"""From a verified CAR to a delivered snapshot: begun is stored, operations go out, all of them come back acknowledged.

The rules of DESIGN section 3 that keep data from being lost live here: nothing is sent before it is stored that, and with which rev, a
snapshot begins; a repo is synced only when its REPO_END was acknowledged; a status is stored before it is told. Lives in the
engine's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from relay.backfill.messages import OperationsReady, Verified
from relay.backfill.verifying import WorkerSeats
from relay.backfill.work import Stage, Work
from relay.errors import Blame
from relay.ipc.arena import Arena
from relay.model import Lane, OpType
from relay.observe.log import get_logger
from relay.pb.encode import decode_operation, encode_account
from relay.repos.failures import Failure
from relay.repos.keeper import Keeper
from relay.repos.lifecycle import Event
from relay.runtime.clock import Clock
from relay.runtime.crashpoint import CrashPoint, crash_point
from relay.store.dead_letters import DeadLetter
from relay.store.repos import RepoRow

log = get_logger(__name__)

DEAD_AT_A_TIME = 500


class Refusal(Protocol):
    """An operation that an ingester will never take, or that cannot be sent at all."""

    @property
    def operation(self) -> bytes: ...
    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def ingester(self) -> str: ...
    @property
    def attempts(self) -> int: ...


class Token(Protocol):
    """What comes back with a piece that was offered, in the engine's thread."""

    def acknowledged(self) -> None: ...

    def refused(self, refusal: Refusal) -> None: ...


class Outlet(Protocol):
    """Delivery, as far as a snapshot needs it. `copied` may be called from any thread, once."""

    def offer(
        self,
        *,
        did: str,
        rev: str,
        lane: Lane,
        payload: bytes | memoryview,
        operations: int,
        token: Token,
        copied: Callable[[], None] | None,
    ) -> bool:
        """Take a piece, or return False when its ingester's queue is full."""

    def discard(self, did: str) -> None:
        """Drop what of a DID is queued and not yet written; `copied` is called for each piece dropped."""


class Snapshots:
    """Owns the works whose CAR is verified. Calls `give_up(work, failure)` and `finished(work)` of the pipeline."""

    def __init__(
        self,
        keeper: Keeper,
        outlet: Outlet,
        seats: WorkerSeats,
        operations: Arena,
        clock: Clock,
        *,
        covers: str,
        max_retries: int,
        copied: Callable[[int, int], None],
        give_up: Callable[[Work, Failure], None],
        finished: Callable[[Work], None],
    ) -> None:
        self._keeper, self._outlet, self._seats, self._operations, self._clock = (
            keeper,
            outlet,
            seats,
            operations,
            clock,
        )
        self._covers, self._max_retries = covers, max_retries
        self._copied, self._give_up, self._finished = copied, give_up, finished
        self._blocked: dict[int, Work] = {}  # an ingester's queue was full

    @property
    def blocked(self) -> int:
        return len(self._blocked)

    # --- what the worker says -----------------------------------------------------------------------------------------

    def verified(self, work: Work, message: Verified) -> None:
        """The CAR is good: check its rev against what we know, then have the beginning stored."""
        row = work.row
        lowest = max(row.rev_begun or "", row.rev or "")
        if message.rev < lowest:
            text = f"{work.did}: {work.host} gave rev {message.rev}, and {lowest} was delivered or begun before"
            return self._give_up(work, Failure(reason="rollback", blame=Blame.REPO, text=text))
        if row.rev_heard is not None and message.rev < row.rev_heard:
            if row.attempts < self._max_retries:
                text = f"{work.did}: {work.host} gave rev {message.rev}, and {row.rev_heard} was heard of before"
                return self._give_up(work, Failure(reason="stale_copy", blame=Blame.REPO, text=text))
            # Some servers answer from an old copy for long: it is taken, and looked at again later.
            work.check_later = True
        work.verified = message
        for collection, rkey, cid, reason, size in message.refused:
            log.warning("record_refused", did=work.did, collection=collection, rkey=rkey, reason=reason, bytes=size)
            work.dead.append(
                DeadLetter(
                    at=self._clock.now(),
                    did=work.did,
                    collection=collection,
                    rkey=rkey,
                    cid=cid,
                    rev=message.rev,
                    type=OpType.CREATE.name,
                    source="RESYNC" if row.touched else "BACKFILL",
                    reason=reason,
                    message=f"record of {size:,} bytes is left out",
                    ingester="",
                    attempts=0,
                    size=size,
                    operation=None,
                )
            )
        if not message.records and not row.touched:
            return None  # nothing to send: no BEGIN, no END; JobDone follows
        row.rev_begun = message.rev
        row.touched = True
        if status_differs(row, active=True, status=""):
            self.set_status_to_tell(row, active=True, status="")
        self._keeper.store(row, urgent=True, then=lambda _state: self._begin(work))
        return None

    def operations_ready(self, work: Work, seat: int, message: OperationsReady) -> None:
        self._seats.filled(seat, message.slot)
        work.held.append(message)
        self._offer(work)

    def produced(self, work: Work) -> None:
        """The worker has nothing more for us."""
        self._complete_if_acknowledged(work)

    # --- operations -------------------------------------------------------------------------------------------------------

    def _begin(self, work: Work) -> None:
        if work.over:
            return
        crash_point(CrashPoint.BEGUN_STORED)
        row = work.row
        if status_is_untold(row) and not self._offer_status(work):
            self._blocked[work.number] = work
            return
        work.begun = True
        self._offer(work)

    def pump(self) -> None:
        """Try again what found a full queue."""
        for work in list(self._blocked.values()):
            del self._blocked[work.number]
            if work.over:
                continue
            if work.stage is Stage.ENDING:
                self._tell(work)
            elif not work.begun:
                self._begin(work)
            else:
                self._offer(work)

    def _offer(self, work: Work) -> None:
        if not work.begun or work.number in self._blocked:
            return
        assert work.verified is not None
        while work.held:
            piece = work.held[0]
            seat, slot = work.seat, piece.slot
            assert seat is not None
            payload: bytes | memoryview = (
                piece.inline if piece.inline is not None else self._operations.view(slot, piece.size)
            )
            if not self._outlet.offer(
                did=work.did,
                rev=work.verified.rev,
                lane=Lane.BACKFILL,
                payload=payload,
                operations=piece.operations,
                token=_Piece(self, work),
                copied=_Copied(self._copied, seat, slot),
            ):
                self._blocked[work.number] = work
                return
            work.held.popleft()
            work.unacknowledged += 1
            work.operations += piece.operations

    def abandon(self, work: Work) -> None:
        """Send nothing more of it; what is on its way is acknowledged in vain."""
        self._blocked.pop(work.number, None)
        for piece in work.held:
            if work.seat is not None:
                self._seats.copied(work.seat, piece.slot)
        work.held.clear()
        if work.unacknowledged:
            self._outlet.discard(work.did)

    def _piece_acknowledged(self, work: Work) -> None:
        work.unacknowledged -= 1
        self._complete_if_acknowledged(work)

    def _piece_refused(self, work: Work, refusal: Refusal) -> None:
        operation = decode_operation(refusal.operation)
        kind = OpType(operation.type)
        letter = DeadLetter(
            at=self._clock.now(),
            did=operation.did,
            collection=operation.collection,
            rkey=operation.rkey,
            cid=operation.cid,
            rev=operation.rev,
            type=kind.name,
            source="RESYNC" if operation.source == 3 else "BACKFILL",
            reason=refusal.reason,
            message=refusal.message,
            ingester=refusal.ingester,
            attempts=refusal.attempts,
            size=len(refusal.operation),
            operation=refusal.operation,
        )
        log.warning(
            "operation_refused", did=operation.did, type=kind.name, collection=operation.collection, rkey=operation.rkey,
            reason=refusal.reason, ingester=refusal.ingester, message=refusal.message,
        )  # fmt: skip
        if work.over:
            self._keeper.store_letters([letter])  # nothing more is stored with the work
            return
        work.dead.append(letter)
        if len(work.dead) >= DEAD_AT_A_TIME:
            # An ingester that refuses everything must not fill the memory with letters.
            letters, work.dead = work.dead, []
            self._keeper.store_letters(letters)
        if kind in (OpType.REPO_BEGIN, OpType.REPO_END, OpType.ACCOUNT) and not work.over:
            text = f"{refusal.ingester} refused {kind.name}: {refusal.message}"
            self._give_up(work, Failure(reason="rejected", blame=Blame.OPERATOR, text=text))

    def _complete_if_acknowledged(self, work: Work) -> None:
        if work.over or not work.produced or work.held or work.unacknowledged or work.number in self._blocked:
            return
        if work.failure is not None or work.verified is None:
            return
        row, verified = work.row, work.verified
        if (verified.records or row.touched) and not work.begun:
            return
        crash_point(CrashPoint.END_ACKNOWLEDGED)
        row.rev, row.data = verified.rev, verified.data
        row.rev_begun = verified.rev
        row.covers = self._covers
        row.records, row.bytes = verified.records, work.size
        row.attempts = 0
        row.check_due = "commit" if work.check_later else None
        row.synced_at = row.next_attempt_at = self._clock.now()
        self._keeper.apply(row, Event.SNAPSHOT_DELIVERED)
        work.stage, work.over = Stage.ENDING, True
        self._keeper.store(row, dead=work.dead, operations=work.operations, then=lambda _state: self._finished(work))

    # --- account status ---------------------------------------------------------------------------------------------------

    def set_status_to_tell(self, row: RepoRow, *, active: bool, status: str) -> None:
        """Note a status to be told; the times told of one DID always rise."""
        row.tell_active, row.tell_status = active, status
        row.tell_time_us = max(int(self._clock.now() * 1e6), (row.told_time_us or 0) + 1, (row.tell_time_us or 0) + 1)

    def end_with_status(self, work: Work) -> None:
        """The work ends with a status that may have to be told; its row is changed already, and is stored here."""
        work.stage = Stage.ENDING
        self._keeper.store(work.row, dead=work.dead, urgent=True, then=lambda _state: self._tell(work))

    def _tell(self, work: Work) -> None:
        if not status_is_untold(work.row):
            work.over = True
            self._finished(work)
            return
        crash_point(CrashPoint.STATUS_STORED)
        if not self._offer_status(work):
            self._blocked[work.number] = work

    def _offer_status(self, work: Work) -> bool:
        row = work.row
        assert row.tell_active is not None
        assert row.tell_time_us is not None
        payload = encode_account(
            did=row.did, active=row.tell_active, status=row.tell_status or "", time_us=row.tell_time_us
        )
        accepted = self._outlet.offer(
            did=row.did,
            rev=row.rev or "",
            lane=Lane.BACKFILL,
            payload=payload,
            operations=1,
            token=_Status(self, work, row.tell_time_us),
            copied=None,
        )
        if accepted:
            work.unacknowledged += 1
        return accepted

    def _status_acknowledged(self, work: Work, time_us: int) -> None:
        row = work.row
        work.unacknowledged -= 1
        crash_point(CrashPoint.STATUS_ACKNOWLEDGED)
        if row.tell_time_us == time_us:
            row.told_active, row.told_status, row.told_time_us = row.tell_active, row.tell_status, time_us
        if work.stage is Stage.ENDING and not work.over:
            work.over = True
            self._keeper.store(row, operations=1, then=lambda _state: self._finished(work))
        else:
            self._complete_if_acknowledged(work)


def status_is_untold(row: RepoRow) -> bool:
    """Is there a status to tell that no ingester has acknowledged? Never told counts as active."""
    return row.tell_time_us is not None and row.tell_time_us != row.told_time_us


def status_differs(row: RepoRow, *, active: bool, status: str) -> bool:
    """Does a status differ from the last one told or on its way?"""
    if row.tell_time_us is not None:
        return (row.tell_active, row.tell_status or "") != (active, status)
    told_active = True if row.told_active is None else row.told_active
    return (told_active, row.told_status or "") != (active, status)


class _Copied:
    """The callback of one slot: a small object instead of a closure for each piece."""

    __slots__ = ("_copied", "_seat", "_slot")

    def __init__(self, copied: Callable[[int, int], None], seat: int, slot: int) -> None:
        self._copied, self._seat, self._slot = copied, seat, slot

    def __call__(self) -> None:
        self._copied(self._seat, self._slot)


class _Piece:
    """Token of a piece of a snapshot."""

    __slots__ = ("_snapshots", "_work")

    def __init__(self, snapshots: Snapshots, work: Work) -> None:
        self._snapshots, self._work = snapshots, work

    def acknowledged(self) -> None:
        self._snapshots._piece_acknowledged(self._work)

    def refused(self, refusal: Refusal) -> None:
        self._snapshots._piece_refused(self._work, refusal)


class _Status:
    """Token of an ACCOUNT operation."""

    __slots__ = ("_snapshots", "_time_us", "_work")

    def __init__(self, snapshots: Snapshots, work: Work, time_us: int) -> None:
        self._snapshots, self._work, self._time_us = snapshots, work, time_us

    def acknowledged(self) -> None:
        self._snapshots._status_acknowledged(self._work, self._time_us)

    def refused(self, refusal: Refusal) -> None:
        self._snapshots._piece_refused(self._work, refusal)
