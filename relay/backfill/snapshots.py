"""From a verified CAR to a delivered snapshot: begun is stored, operations go out, all of them come back acknowledged.

When something may go is its repo's machine's to say (`relay.repos.live`): not before it is stored that, and with which rev, a snapshot
begins, and nothing of the DID is on its way. Here is what goes, and what has come back. Lives in the engine's thread.
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
from relay.repos import live_events as e
from relay.repos.failures import Failure
from relay.repos.keeper import Keeper
from relay.repos.letters import Refusal, letter_of
from relay.runtime.clock import Clock
from relay.runtime.crashpoint import CrashPoint, crash_point
from relay.store.dead_letters import DeadLetter

log = get_logger(__name__)

DEAD_AT_A_TIME = 500


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

    def discard(self, did: str) -> int:
        """Drop what of a DID's snapshot is queued and not yet written; `copied` is called for each piece. Return how many."""


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
        self._max_retries = max_retries
        self._copied, self._give_up, self._finished = copied, give_up, finished
        self._blocked: dict[int, Work] = {}  # an ingester's queue was full

    @property
    def blocked(self) -> int:
        return len(self._blocked)

    # --- what the worker says -----------------------------------------------------------------------------------------

    def verified(self, work: Work, message: Verified) -> None:
        """The CAR is good. Its machine says whether its rev will do, and when its first operation may go."""
        row = work.row
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
        sends = bool(message.records) or row.touched
        if sends and False in (row.tell_active, row.told_active):
            self.learnt_status(work, active=True, status="")
        self._keeper.feed(
            work.resident,
            e.SnapshotVerified(
                fetch=work.fetch, rev=message.rev, sends=sends, is_last_try=row.attempts >= self._max_retries
            ),
        )

    def learnt_status(self, work: Work, *, active: bool, status: str) -> bool:
        """Its host has told a status. False: an `#account` was processed since we asked, so it is void, and asked again."""
        is_void = work.resident.life.account_events != work.account_events
        time_us = int(self._clock.now() * 1e6)
        self._keeper.feed(
            work.resident,
            e.StatusLearnt(active=active, status=status, time_us=time_us, asked_before_event=is_void),
        )
        return not is_void

    # --- what its machine says --------------------------------------------------------------------------------------------

    def send(self, work: Work) -> None:
        """That it begins is stored, and nothing of the DID is on its way: its operations may go."""
        crash_point(CrashPoint.BEGUN_STORED)
        work.begun = True
        self._offer(work)

    def refuse(self, work: Work, reason: str) -> None:
        """It is older than what was begun or delivered (rollback), or than what was heard of."""
        row = work.row
        assert work.verified is not None
        rev = work.verified.rev
        if reason == "rollback":
            newest = max(row.rev_begun or "", row.rev or "")
            text = f"{work.did}: {work.host} gave rev {rev}, and {newest} was delivered or begun before"
        else:
            reason = "stale_copy"
            text = f"{work.did}: {work.host} gave rev {rev}, and {row.rev_heard} was heard of before"
        self._give_up(work, Failure(reason=reason, blame=Blame.REPO, text=text))

    def operations_ready(self, work: Work, seat: int, message: OperationsReady) -> None:
        self._seats.filled(seat, message.slot)
        work.held.append(message)
        self._offer(work)

    def produced(self, work: Work) -> None:
        """The worker has nothing more for us."""
        self._complete_if_acknowledged(work)

    # --- operations -------------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Try again what found a full queue."""
        for work in list(self._blocked.values()):
            del self._blocked[work.number]
            if not work.over:
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
            work.unacknowledged -= self._outlet.discard(work.did)

    def landed(self, work: Work) -> None:
        """Of a work that is over: tell its machine when nothing of it is on its way any more. To be called when that may be so."""
        if work.over and work.begun and not work.unacknowledged and not work.landed:
            work.landed = True
            self._keeper.feed(work.resident, e.SnapshotStopped(fetch=work.fetch))

    def _piece_acknowledged(self, work: Work) -> None:
        work.unacknowledged -= 1
        if work.over:
            self.landed(work)
        else:
            self._complete_if_acknowledged(work)

    def _piece_refused(self, work: Work, refusal: Refusal) -> None:
        letter = letter_of(refusal, self._clock.now())
        if work.over:
            self._keeper.store_letters([letter])  # nothing more is stored with the work
            return
        work.dead.append(letter)
        if len(work.dead) >= DEAD_AT_A_TIME:
            # An ingester that refuses everything must not fill the memory with letters.
            letters, work.dead = work.dead, []
            self._keeper.store_letters(letters)
        if letter.type in ("REPO_BEGIN", "REPO_END"):
            text = f"{refusal.ingester} refused {letter.type}: {refusal.message}"
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
        row.records, row.bytes = verified.records, work.size
        row.attempts, row.last_error = 0, None
        row.synced_at = row.next_attempt_at = self._clock.now()
        work.stage, work.over, work.landed = Stage.ENDING, True, True
        feed = self._keeper.feed
        # What a check would have found out is known now; a mark that was made since we asked stands.
        feed(work.resident, e.CheckAnswered(mark=work.check_mark))
        feed(
            work.resident,
            e.SnapshotDelivered(fetch=work.fetch, rev=verified.rev, data=verified.data, covers=work.wanted),
            dead=work.dead,
            operations=work.operations,
            then=lambda _state: self._finished(work),
        )


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
