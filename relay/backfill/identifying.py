"""Whose repo it is and where it lives: what the answer to a lookup means to a discovered row and to a claimed work.

Part of the pipeline, in the engine's thread. A failure that a fresh document may explain away (a bad signature, "not here") is
kept as suspected until the document has been asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from relay.backfill import messages as m
from relay.backfill.answers import identity_failure, identity_of, usable_identity
from relay.backfill.downloads import Downloads
from relay.backfill.endings import Endings
from relay.backfill.resolving import ResolveQueue
from relay.backfill.totals import Totals
from relay.backfill.work import Stage, Work, Works
from relay.errors import Blame
from relay.model import Identity, RepoState
from relay.observe.log import get_logger
from relay.repos import live_events as e
from relay.repos.failures import Failure, RetryPolicy, judge
from relay.repos.keeper import Keeper
from relay.repos.lifecycle import Event
from relay.repos.resident import Resident
from relay.runtime.clock import Clock

log = get_logger(__name__)

FRESHLY_RESOLVED_S = 60.0
# A flood of `#identity` must not fill the memory with questions. Each takes about a kilobyte.
MOST_LOOKUPS = 20_000


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
        claim: Callable[[Resident, Identity], bool],
    ) -> None:
        self._works, self._resolves, self._keeper = works, resolves, keeper
        self._downloads, self._endings, self._claim = downloads, endings, claim
        self._policy, self._clock, self._totals = policy, clock, totals
        self.waiting = 0  # claimed works that wait for their identity
        self._discovered: set[str] = set()  # being looked up for the first time
        self._looking_up: dict[str, bool] = {}  # because of the stream; true: once more after the answer

    def is_fresh(self, work: Work) -> bool:
        """Was its document read for this very work, a moment ago, so that reading it again would tell nothing new?

        Not when what we got was older than our question: the directory was away, or was asked about the DID too often.
        """
        if work.identity is None or work.identity.resolved_at < work.asked_at:
            return False
        return self._clock.now() - work.identity.resolved_at < FRESHLY_RESOLVED_S

    def ask(self, work: Work, *, force: bool) -> None:
        """Look the identity of a claimed work up; `force`: past every cache."""
        work.stage = Stage.RESOLVING
        work.asked_at = self._clock.now()
        self.waiting += 1
        self._resolves.ask(work.did, force=force, then=functools.partial(self._work_answered, work))

    def ask_for_host(self, resident: Resident) -> None:
        """Look the host of a discovered repo up."""
        if resident.did in self._discovered:
            return
        self._discovered.add(resident.did)
        self._keeper.hold(resident)
        self._resolves.ask(
            resident.did, force=bool(resident.row.attempts), then=functools.partial(self._host_answered, resident)
        )

    def look_up(self, resident: Resident) -> None:
        """Read the document past every cache, because the stream says that it has changed, or that we know nothing of the DID.

        Asked for again while a question is out, it is read once more after the answer, which may be from before the change.
        """
        did = resident.did
        if did in self._looking_up:
            self._looking_up[did] = True
        elif len(self._resolves) >= MOST_LOOKUPS:
            # The directory does not keep pace with the stream. What is known stands, and a signature that fails asks again.
            self._keeper.feed(resident, e.IdentityFailed())
        else:
            self._looking_up[did] = False
            self._keeper.hold(resident)
            self._resolves.ask(did, force=True, then=functools.partial(self._document_answered, resident))

    def resolve(self, resident: Resident, then: Callable[[Identity | None], None]) -> None:
        """Read the document past every cache for somebody who needs the key: `then` gets it, None if there is none."""

        def answered(answer: m.Resolved) -> None:
            identity = usable_identity(answer)
            if identity is not None:
                self._learn(resident, identity)
            self._keeper.release(resident)
            then(identity)

        self._keeper.hold(resident)
        self._resolves.ask(resident.did, force=True, then=answered)

    def _document_answered(self, resident: Resident, answer: m.Resolved) -> None:
        identity = usable_identity(answer)
        if identity is None:
            self._keeper.feed(resident, e.IdentityFailed())
        else:
            self._learn(resident, identity)
        if self._looking_up.pop(resident.did):
            self.look_up(resident)
        self._keeper.release(resident)

    def _learn(self, resident: Resident, identity: Identity) -> None:
        """A document was read: whoever asked, its repo's machine is told."""
        assert identity.pds is not None
        resident.identity = identity
        moved = resident.row.host != identity.pds
        if moved and resident.row.host is not None:
            log.info("repo_moved", did=resident.did, host=resident.row.host, to=identity.pds)
        resident.row.host = identity.pds
        if moved and resident.row.state is RepoState.INACTIVE:
            # What the other host said of it is of no account: a fetch at this one finds out.
            resident.row.next_attempt_at, resident.row.attempts = self._clock.now(), 0
            self._keeper.feed(resident, e.CheckUnanswerable(reason="moved"))
        elif moved:
            self._keeper.feed(resident, e.ColumnsChanged())
        self._keeper.feed(
            resident,
            e.IdentityLearnt(handle=identity.handle, pds=identity.pds, time_us=int(identity.resolved_at * 1e6)),
            identity=identity,
        )

    def _host_answered(self, resident: Resident, answer: m.Resolved) -> None:
        """The first resolution of a discovered repo."""
        self._discovered.discard(resident.did)
        self._first_answer(resident, answer)
        self._keeper.release(resident)

    def _first_answer(self, resident: Resident, answer: m.Resolved) -> None:
        row, now = resident.row, self._clock.now()
        if row.state is not RepoState.DISCOVERED:
            return  # the stream was quicker
        identity = usable_identity(answer)
        if identity is not None:
            row.next_attempt_at, row.attempts = now, 0
            self._learn(resident, identity)
            self._claim(resident, identity)
            return
        if answer.reason == "did_tombstoned":
            row.attempts, row.last_error = 0, answer.text
            status = e.StatusLearnt(active=False, status="deleted", time_us=int(now * 1e6), asked_before_event=False)
            self._totals.inactive += 1
            self._keeper.feed(resident, status)
            return
        failure = identity_failure(row.did, answer)
        verdict = judge(
            failure, attempts=row.attempts, host_answers=True, host_silent_s=0.0, policy=self._policy, now=now
        )
        is_last = verdict.event is Event.GAVE_UP
        self._totals.failed(now, row.did, verdict.reason, failure.text, is_last=is_last)
        row.attempts, row.next_attempt_at, row.last_error = verdict.attempts, verdict.next_attempt_at, failure.text
        self._keeper.feed(
            resident, e.LookupFailed(outcome=verdict.event, reason=verdict.reason), identity=identity_of(answer)
        )

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
        newest = work.resident.identity
        if newest is not None and newest.pds and newest.signing_key and newest.resolved_at > identity.resolved_at:
            identity = newest  # somebody has read it since the answer's cache did
        before, work.identity, work.identity_is_new = work.identity, identity, True
        has_moved = identity.pds != work.host
        self._learn(work.resident, identity)
        if has_moved:
            # Another host has other limits: the repo waits there for its turn.
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
            if identity.resolved_at >= work.refused_at:
                return self._endings.not_active(work, status, suspected.text)  # it lives nowhere else
            # An old document served, as the directory is away: what it says now is not known, so nobody is told of a deletion.
            return self._endings.fail(work, _not_known(work, suspected, "perhaps moved"))
        if before is not None and before.signing_key != identity.signing_key:
            self._downloads.add(work)
            return None
        if identity.resolved_at < work.refused_at:
            # Whoever rotates its key must not be given up because the directory does not say so yet.
            return self._endings.fail(work, _not_known(work, suspected, "perhaps with another key now"))
        return self._endings.fail(work, suspected)


def _not_known(work: Work, suspected: Failure, what: str) -> Failure:
    """The document that could explain a failure cannot be had now: that is nobody's fault."""
    return Failure(reason="directory_away", blame=Blame.US, text=f"{work.did}: {suspected.text}, {what}")
