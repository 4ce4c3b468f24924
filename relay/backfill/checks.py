"""Checks: a host is asked for the newest rev of a repo or the status of its account, instead of for the whole repo.

Part of the pipeline, in the engine's thread. A check is a work without a claim: it costs no attempt, and what it finds out makes
the repo pending again, or inactive, or lets it rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from relay.backfill import messages as m
from relay.backfill.downloads import Downloads
from relay.backfill.endings import Endings
from relay.backfill.totals import Totals
from relay.backfill.work import Stage, Work, Works
from relay.errors import Blame
from relay.model import RepoState
from relay.net.gate import HostGate
from relay.repos.failures import Failure, RetryPolicy, judge
from relay.repos.keeper import Keeper
from relay.repos.lifecycle import Event
from relay.runtime.clock import Clock
from relay.store.repos import RepoRow

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
        hosts: HostGate,
        policy: RetryPolicy,
        clock: Clock,
        totals: Totals,
        send: Callable[[m.FetchCheck], int | None],
    ) -> None:
        self._works, self._keeper, self._downloads, self._endings = works, keeper, downloads, endings
        self._hosts, self._policy, self._clock, self._totals, self._send = hosts, policy, clock, totals, send

    def begin(self, rows: Iterable[RepoRow]) -> None:
        """Ask for adopted rows with a check due; those that cannot be asked now are found again by the next look."""
        for row in rows:
            # Of the others a fetch finds out the same, and they are not this repo's last word.
            if row.state not in CHECKED or row.host is None or row.check_due is None:
                self._keeper.forget(row)
            elif self._is_given_up(row.host):
                self._fetch_instead(row, "host_down", f"{row.did}: {row.host} has not answered anybody for long")
            elif not self._ask(row, row.host, row.check_due):
                self._keeper.forget(row)

    def answered(self, work: Work, message: m.Checked) -> None:
        """Take an answer; the download is over already."""
        row = work.row
        if message.active is False:
            return self._endings.not_active(work, message.status or "deactivated", "")
        if row.state is RepoState.INACTIVE:
            row.next_attempt_at = self._clock.now()
            self._keeper.apply(row, Event.ACTIVE_AGAIN)
        elif message.rev is not None and message.rev > max(row.rev or "", row.rev_heard or ""):
            # A rev that was heard of before is above ours only when its host kept giving an older copy: it had its chances.
            row.rev_heard = max(row.rev_heard or "", message.rev)
            row.next_attempt_at = self._clock.now()
            self._keeper.apply(row, Event.OUTDATED, "newer_rev")
            self._totals.desyncs["newer_rev"] += 1
        row.check_due = None
        self.end(work)
        return None

    def failed(self, work: Work, message: m.FetchFailed) -> None:
        """Take a refusal or a failure; the download is over already."""
        if message.account_status is not None:
            return self._endings.not_active(work, message.account_status, message.text)
        verdict = judge(
            Failure(reason=message.reason, blame=Blame(message.blame), text=message.text),
            attempts=0,
            host_answers=self._hosts.answered_recently(work.host),
            host_silent_s=self._hosts.silent_s(work.host),
            policy=self._policy,
            now=self._clock.now(),
        )
        if verdict.event is Event.RELEASED:
            self.end(work)  # the mark stays: asked again later
        else:
            work.over = True
            self._endings.give_back(work)
            self._fetch_instead(work.row, verdict.reason, message.text)
        return None

    def end(self, work: Work) -> None:
        """Store the row as it is now: asked again if it is still marked."""
        work.over = True
        row = work.row
        self._keeper.store(row, then=lambda _state: self._keeper.forget(row))
        self._endings.give_back(work)

    def _ask(self, row: RepoRow, host: str, what: str) -> bool:
        if not self._hosts.try_start(host):
            return False
        now = self._clock.monotonic()
        work = self._works.new(row, now, stage=Stage.FETCHING, is_check=True)
        seat = self._send(m.FetchCheck(work.number, row.did, host, what))
        if seat is None:
            del self._works[work.number]
            self._hosts.not_started(host)
            return False
        work.seat, work.started_at = seat, now
        self._downloads.running[work.number] = work
        return True

    def _fetch_instead(self, row: RepoRow, reason: str, text: str) -> None:
        """A check cannot be answered (the repo moved, or its host is gone): a fetch finds out what that means, and its attempts end."""
        row.check_due, row.next_attempt_at, row.attempts = None, self._clock.now(), 0
        event = Event.ACTIVE_AGAIN if row.state is RepoState.INACTIVE else Event.OUTDATED
        self._totals.desyncs[reason] += event is Event.OUTDATED
        self._keeper.apply(row, event, reason, text)
        self._keeper.store(row, then=lambda _state: self._keeper.forget(row))

    def _is_given_up(self, host: str) -> bool:
        policy = self._policy
        return policy.give_up_on_silent_hosts and self._hosts.silent_s(host) > policy.max_retries * policy.breaker_s
