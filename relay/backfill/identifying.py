"""Whose repo it is and where it lives: what the answer to a lookup means to a discovered row and to a claimed work.

Part of the pipeline, in the engine's thread. A failure that a fresh document may explain away (a bad signature, "not here") is
kept as suspected until the document has been asked for.
"""

from __future__ import annotations

import functools

from relay.backfill import messages as m
from relay.backfill.answers import identity_failure, identity_of
from relay.backfill.downloads import Downloads
from relay.backfill.endings import Endings
from relay.backfill.resolving import ResolveQueue
from relay.backfill.totals import Totals
from relay.backfill.work import Stage, Work, Works
from relay.errors import Blame
from relay.model import Identity
from relay.observe.log import get_logger
from relay.repos.failures import Failure, RetryPolicy, judge
from relay.repos.keeper import Keeper
from relay.repos.lifecycle import Event
from relay.runtime.clock import Clock
from relay.store.repos import RepoRow

log = get_logger(__name__)

FRESHLY_RESOLVED_S = 60.0


class Identifying:
    """Asks through `resolves`; a work whose identity is known goes on to `downloads`, or ends."""

    def __init__(
        self,
        works: Works,
        *,
        resolves: ResolveQueue,
        keeper: Keeper,
        downloads: Downloads,
        endings: Endings,
        policy: RetryPolicy,
        clock: Clock,
        totals: Totals,
    ) -> None:
        self._works, self._resolves, self._keeper = works, resolves, keeper
        self._downloads, self._endings = downloads, endings
        self._policy, self._clock, self._totals = policy, clock, totals
        self.waiting = 0  # claimed works that wait for their identity

    def is_fresh(self, work: Work) -> bool:
        """Was its identity looked up a moment ago, so that asking again would tell nothing new?"""
        # Also of one that was resolved for this work: it may have waited for its host for an hour since.
        if work.identity is None:
            return False
        return self._clock.now() - work.identity.resolved_at < FRESHLY_RESOLVED_S

    def ask(self, work: Work, *, force: bool) -> None:
        """Look the identity of a claimed work up; `force`: past every cache."""
        work.stage = Stage.RESOLVING
        self.waiting += 1
        self._resolves.ask(work.did, force=force, then=functools.partial(self._work_answered, work))

    def ask_for_row(self, row: RepoRow) -> None:
        """Look the host of a discovered repo up."""
        self._resolves.ask(row.did, force=bool(row.attempts), then=functools.partial(self._row_answered, row))

    def _row_answered(self, row: RepoRow, answer: m.Resolved) -> None:
        """The first resolution of a discovered repo."""
        if self._keeper.rows.get(row.did) is not row:
            return
        now = self._clock.now()
        identity = identity_of(answer)
        if identity is not None and identity.pds and identity.signing_key:
            row.host, row.next_attempt_at, row.attempts = identity.pds, now, 0
            self._keeper.apply(row, Event.RESOLVED)
            self._keeper.store(row, identity=identity, then=lambda _state: self._keeper.forget(row))
            return
        if answer.reason == "did_tombstoned":
            work = self._works.new(row, self._clock.monotonic())
            self._endings.not_active(work, "deleted", answer.text or "")
            return
        failure = identity_failure(row.did, answer)
        verdict = judge(
            failure, attempts=row.attempts, host_answers=True, host_silent_s=0.0, policy=self._policy, now=now
        )
        is_last = verdict.event is Event.GAVE_UP
        self._totals.failed(now, row.did, verdict.reason, failure.text, is_last=is_last)
        row.attempts, row.next_attempt_at = verdict.attempts, verdict.next_attempt_at
        self._keeper.apply(row, verdict.event, verdict.reason, failure.text)
        self._keeper.store(row, identity=identity, then=lambda _state: self._keeper.forget(row))

    def _work_answered(self, work: Work, answer: m.Resolved) -> None:
        self.waiting -= 1
        if work.over:
            return self._endings.give_back(work)
        identity = identity_of(answer)
        suspected, work.suspected = work.suspected, None
        status, work.suspected_status = work.suspected_status, None
        if answer.reason == "did_tombstoned":
            return self._endings.not_active(work, "deleted", answer.text or "")
        if identity is None or not identity.pds or not identity.signing_key:
            if answer.reason == "directory_away" and suspected is not None:
                return self._endings.fail(work, suspected)
            return self._endings.fail(work, identity_failure(work.did, answer))
        before, work.identity, work.identity_is_new = work.identity, identity, True
        if identity.pds != work.row.host:
            # Another host has other limits: the repo waits there for its turn.
            log.info("repo_moved", did=work.did, host=work.host, to=identity.pds)
            work.row.host = identity.pds
            return self._endings.release(work, identity)
        if suspected is not None:
            return self._settle(work, suspected, status, before)
        self._downloads.add(work)
        return None

    def _settle(self, work: Work, suspected: Failure, status: str | None, before: Identity | None) -> None:
        """Its document names the same host: does that explain what was suspected?"""
        identity = work.identity
        assert identity is not None
        if status is not None:
            if self.is_fresh(work):
                return self._endings.not_active(work, status, suspected.text)  # it lives nowhere else
            # The directory is away and an old document served: what it says now is not known, so nobody is told of a deletion.
            unknown = Failure(
                reason="directory_away", blame=Blame.US, text=f"{work.did}: {suspected.text}, perhaps moved"
            )
            return self._endings.fail(work, unknown)
        if before is None or before.signing_key == identity.signing_key:
            return self._endings.fail(work, suspected)
        self._downloads.add(work)
        return None
