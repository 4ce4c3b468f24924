"""How an attempt ends: failed, released, not active, synced. What each failure costs, and what the work held is given back.

Part of the pipeline, in the engine's thread. Each work ends once (`over`), and its last state is stored before it is forgotten;
what a worker or a download still has in hand is given back when that answers or dies.
"""

from __future__ import annotations

from pathlib import Path

from relay.backfill.downloads import Downloads
from relay.backfill.snapshots import Snapshots
from relay.backfill.totals import Totals
from relay.backfill.verifying import WorkerSeats
from relay.backfill.work import Stage, Work, Works
from relay.model import Identity, RepoState
from relay.net.gate import HostGate
from relay.observe.log import get_logger
from relay.repos import live_events as e
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
        row.attempts, row.next_attempt_at, row.last_error = verdict.attempts, verdict.next_attempt_at, failure.text
        self._end(work, verdict.event, verdict.reason, work.identity)

    def not_active(self, work: Work, status: str, text: str) -> None:
        """Its host says that the account is not active: no failure; told to the ingesters when it differs."""
        row, resident = work.row, work.resident
        was_inactive = row.state is RepoState.INACTIVE
        row.attempts, row.last_error = 0, text or None
        self.stop(work)
        self._keeper.feed(resident, e.CheckAnswered(mark=work.check_mark))
        if not self._snapshots.learnt_status(work, active=False, status=status):
            # Void: an `#account` came since we asked. If that did not end the fetch, it is not of this state any more.
            self._keeper.feed(resident, e.FetchFailed(fetch=work.fetch, outcome=Event.RELEASED, reason="status_void"))
        elif not was_inactive:
            self._totals.inactive += 1
        self._leave(work)

    def release(self, work: Work, identity: Identity | None) -> None:
        """Not its fault: pending again, as it was."""
        work.row.last_error = None
        self._end(work, Event.RELEASED, work.reason, identity)

    def stop(self, work: Work) -> None:
        """Its machine has no use for it any more, or we know so: nothing more of it is made or sent."""
        if work.over:
            return
        work.over = True
        self._snapshots.abandon(work)
        if work.stage is Stage.VERIFYING and not work.produced:
            self._seats.cancel(work)

    def stopped_by_machine(self, work: Work) -> None:
        """Stop it; what happened is stored already."""
        self.stop(work)
        if work.dead:
            letters, work.dead = work.dead, []
            self._keeper.store_letters(letters)
        self._leave(work)

    def finished(self, work: Work) -> None:
        """That its snapshot was delivered is stored."""
        crash_point(CrashPoint.SYNCED_STORED)
        self._totals.synced += 1
        self._totals.records += work.verified.records if work.verified is not None else 0
        log.debug("repo_synced", did=work.did, host=work.host, rev=work.row.rev, records=work.row.records)
        self.give_back(work)

    def give_back(self, work: Work) -> None:
        """Nobody has anything of it in hand any more."""
        self.free_car(work)
        self._works.end(work)

    def free_car(self, work: Work) -> None:
        """Its CAR is not needed any more."""
        if work.slot is not None:
            self._downloads.slots.free(work.slot)
            work.slot = None
        if work.spool is not None:
            Path(work.spool).unlink(missing_ok=True)
            work.spool = None

    def _end(self, work: Work, event: Event, reason: str | None, identity: Identity | None) -> None:
        self.stop(work)
        self._keeper.feed(
            work.resident,
            e.FetchFailed(fetch=work.fetch, outcome=event, reason=reason),
            identity=identity if work.identity_is_new else None,
            dead=work.dead,
        )
        self._leave(work)

    def _leave(self, work: Work) -> None:
        """It is over: give back what nobody else has in hand."""
        self._snapshots.landed(work)
        in_worker = work.stage is Stage.VERIFYING and not work.produced
        if not in_worker and work.stage is not Stage.FETCHING:
            self.give_back(work)
