"""How an attempt ends: failed, released, not active, synced. What each failure costs, and what the work held is given back.

Part of the pipeline, in the engine's thread. Each work ends once (`over`), and its last state is stored before it is forgotten;
what a worker or a download still has in hand is given back when that answers or dies.
"""

from __future__ import annotations

from pathlib import Path

from relay.backfill.downloads import Downloads
from relay.backfill.snapshots import Snapshots, status_differs
from relay.backfill.totals import Totals
from relay.backfill.verifying import WorkerSeats
from relay.backfill.work import Stage, Work, Works
from relay.model import Identity, RepoState
from relay.net.gate import HostGate
from relay.observe.log import get_logger
from relay.repos.failures import Failure, RetryPolicy, judge
from relay.repos.keeper import Keeper
from relay.repos.lifecycle import Event
from relay.runtime.clock import Clock
from relay.runtime.crashpoint import CrashPoint, crash_point

log = get_logger(__name__)


class Endings:
    """Ends works of `works`. CAR slots go back to `downloads`, jobs in a worker are cancelled at `seats`."""

    def __init__(
        self,
        works: Works,
        *,
        keeper: Keeper,
        snapshots: Snapshots,
        downloads: Downloads,
        seats: WorkerSeats,
        hosts: HostGate,
        policy: RetryPolicy,
        clock: Clock,
        totals: Totals,
    ) -> None:
        self._works, self._keeper, self._snapshots = works, keeper, snapshots
        self._downloads, self._seats, self._hosts = downloads, seats, hosts
        self._policy, self._clock, self._totals = policy, clock, totals

    def fail(self, work: Work, failure: Failure) -> None:
        """An attempt came to nothing: who pays, and when is the next one?"""
        if work.over:
            return
        now, row = self._clock.now(), work.row
        verdict = judge(
            failure,
            attempts=row.attempts,
            host_answers=self._hosts.answered_recently(work.host),
            host_silent_s=self._hosts.silent_s(work.host),
            policy=self._policy,
            now=now,
        )
        self._totals.failed(now, work.did, verdict.reason, failure.text, is_last=verdict.event is Event.GAVE_UP)
        log.info(
            "repo_attempt_failed", did=work.did, host=work.host, reason=verdict.reason, attempts=verdict.attempts,
            outcome=verdict.event.value, error=failure.text,
        )  # fmt: skip
        row.attempts, row.next_attempt_at = verdict.attempts, verdict.next_attempt_at
        self._end(work, verdict.event, verdict.reason, failure.text, work.identity)

    def not_active(self, work: Work, status: str, text: str) -> None:
        """Its host says that the account is not active: no failure; told to the ingesters when it differs."""
        row = work.row
        was = row.state
        self._keeper.apply(row, Event.NOT_ACTIVE, status or "inactive", text)
        row.attempts, row.check_due = 0, None
        if was is not RepoState.INACTIVE:
            self._totals.inactive += 1
        if status_differs(row, active=False, status=status):
            self._snapshots.set_status_to_tell(row, active=False, status=status)
        self.free_car(work)
        self._snapshots.end_with_status(work)

    def release(self, work: Work, identity: Identity | None) -> None:
        """Not its fault: pending again, as it was."""
        self._end(work, Event.RELEASED, work.row.reason, None, identity)

    def finished(self, work: Work) -> None:
        """Its last state is stored."""
        if work.row.state is RepoState.SYNCED:
            crash_point(CrashPoint.SYNCED_STORED)
            self._totals.synced += 1
            self._totals.records += work.verified.records if work.verified is not None else 0
            log.debug("repo_synced", did=work.did, host=work.host, rev=work.row.rev, records=work.row.records)
        self._keeper.forget(work.row)
        self.give_back(work)

    def give_back(self, work: Work) -> None:
        """Nobody has anything of it in hand any more."""
        self.free_car(work)
        self._works.pop(work.number, None)

    def free_car(self, work: Work) -> None:
        """Its CAR is not needed any more."""
        if work.slot is not None:
            self._downloads.slots.free(work.slot)
            work.slot = None
        if work.spool is not None:
            Path(work.spool).unlink(missing_ok=True)
            work.spool = None

    def _end(self, work: Work, event: Event, reason: str | None, text: str | None, identity: Identity | None) -> None:
        self._snapshots.abandon(work)
        in_worker = work.stage is Stage.VERIFYING and not work.produced
        if in_worker:
            self._seats.cancel(work)
        work.over = True
        self._keeper.apply(work.row, event, reason, text)
        row = work.row
        self._keeper.store(
            row,
            identity=identity if work.identity_is_new else None,
            dead=work.dead,
            then=lambda _state: self._keeper.forget(row),
        )
        if not in_worker and work.stage is not Stage.FETCHING:
            self.give_back(work)
