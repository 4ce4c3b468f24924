"""Checks: a host is asked for the newest rev of a repo or the status of its account, instead of for the whole repo.

Part of the pipeline, in the engine's thread. A check is a work without a claim: it costs no attempt, and what it finds out makes
the repo pending again, or inactive, or lets it rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from relay.backfill import messages as m
from relay.backfill.downloads import Downloads
from relay.backfill.endings import Endings
from relay.backfill.identifying import Identifying
from relay.backfill.snapshots import Snapshots
from relay.backfill.work import Stage, Work, Works
from relay.errors import Blame
from relay.model import Identity, RepoState
from relay.net.gate import HostGate
from relay.repos import live_events as e
from relay.repos.failures import Failure, RetryPolicy, judge
from relay.repos.keeper import Keeper
from relay.repos.lifecycle import Event
from relay.repos.resident import Resident
from relay.runtime.clock import Clock

CHECKED = (RepoState.SYNCED, RepoState.INACTIVE)


class Checks:
    """`send(message) -> seat | None` hands a question to a fetch child; None: none is there."""

    def __init__(
        self,
        works: Works,
        *,
        keeper: Keeper,
        downloads: Downloads,
        endings: Endings,
        identifying: Identifying,
        snapshots: Snapshots,
        hosts: HostGate,
        policy: RetryPolicy,
        clock: Clock,
        send: Callable[[m.FetchCheck], int | None],
    ) -> None:
        self._works, self._keeper, self._downloads, self._endings = works, keeper, downloads, endings
        self._hosts, self._policy, self._clock, self._send = hosts, policy, clock, send
        self._identifying, self._snapshots = identifying, snapshots
        self._asked: set[str] = set()

    def begin(self, residents: Iterable[Resident]) -> None:
        """Ask for repos with a check due; those that cannot be asked now are found again by the next look."""
        for resident in residents:
            row = resident.row
            # Of the others a fetch finds out the same, and they are not this repo's last word.
            if row.state not in CHECKED or row.host is None or row.check_due is None or resident.did in self._asked:
                continue
            if self._is_given_up(row.host):
                text = f"{row.did}: {row.host} has not answered anybody for long"
                self._fetch_instead(resident, resident.life.check_mark, "host_down", text)
            else:
                self._ask(resident, row.host, row.check_due)

    def answered(self, work: Work, message: m.Checked) -> None:
        """Take an answer; the download is over already."""
        row, feed = work.row, self._keeper.feed
        if message.active is False:
            return self._not_active(work, message.status or "deactivated", "")
        feed(work.resident, e.CheckAnswered(mark=work.check_mark))
        if row.state is RepoState.INACTIVE:
            row.next_attempt_at = self._clock.now()
            self._snapshots.learnt_status(work, active=True, status="")
        elif message.rev is not None and message.rev > max(row.rev or "", row.rev_heard or ""):
            # A rev that was heard of before is above ours only when its host kept giving an older copy: it had its chances.
            feed(work.resident, e.NewerRev(rev=message.rev))
        self.end(work)
        return None

    def failed(self, work: Work, message: m.FetchFailed) -> None:
        """Take a refusal or a failure; the download is over already."""
        if message.account_status is not None:
            return self._not_active(work, message.account_status, message.text)
        verdict = judge(
            Failure(reason=message.reason, blame=Blame(message.blame), text=message.text),
            attempts=0,
            host_answers=self._hosts.answered_recently(work.host),
            host_silent_s=self._hosts.silent_s(work.host),
            policy=self._policy,
            now=self._clock.now(),
        )
        if verdict.event is not Event.RELEASED:  # else the mark stays: asked again later
            self._fetch_instead(work.resident, work.check_mark, verdict.reason, message.text)
        self.end(work)
        return None

    def end(self, work: Work) -> None:
        """It is answered, or was not: if its mark still stands it is asked again."""
        self._asked.discard(work.did)
        work.over = True
        self._endings.give_back(work)

    def _not_active(self, work: Work, status: str, text: str) -> None:
        """Its host says so; but an account that has moved is deactivated there: only a document that was read after this tells."""
        refused_at = self._clock.now()

        def resolved(identity: Identity | None) -> None:
            if identity is None or identity.pds != work.host or identity.resolved_at < refused_at:
                self.end(work)  # the mark stays: asked again later, at the new host if it has one
            else:
                self._asked.discard(work.did)
                self._endings.not_active(work, status, text)

        work.stage = Stage.RESOLVING
        self._identifying.resolve(work.resident, resolved)

    def _ask(self, resident: Resident, host: str, what: str) -> None:
        if not self._hosts.try_start(host):
            return
        now = self._clock.monotonic()
        work = self._works.new(resident, now, stage=Stage.FETCHING, is_check=True)
        seat = self._send(m.FetchCheck(work.number, work.did, host, what))
        if seat is None:
            self._works.end(work)
            self._hosts.not_started(host)
            return
        work.seat, work.started_at = seat, now
        self._asked.add(work.did)
        self._downloads.running[work.number] = work

    def _fetch_instead(self, resident: Resident, mark: int, reason: str, text: str) -> None:
        """A check cannot be answered (the repo moved, or its host is gone): a fetch finds out what that means, and its attempts end."""
        row = resident.row
        row.next_attempt_at, row.attempts, row.last_error = self._clock.now(), 0, text
        self._keeper.feed(resident, e.CheckAnswered(mark=mark))
        self._keeper.feed(resident, e.CheckUnanswerable(reason=reason))

    def _is_given_up(self, host: str) -> bool:
        policy = self._policy
        return policy.give_up_on_silent_hosts and self._hosts.silent_s(host) > policy.max_retries * policy.breaker_s
