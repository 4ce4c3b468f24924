"""A claimed repo on its way: identity, host, download, worker, delivery, and what every failure costs.

One state machine in the engine's thread: it is told what happened (rows claimed, a child's message, a child's death, a piece
acknowledged) and decides what is next; it does no I/O by itself. What it hands out, it gets back: CAR slots, spool files, operation
slots, claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from relay.backfill import messages as m
from relay.backfill.answers import blame_of_car, facts_of, fetch_outcome, status_of
from relay.backfill.checks import Checks
from relay.backfill.downloads import Downloads
from relay.backfill.endings import Endings
from relay.backfill.identifying import Identifying
from relay.backfill.resolving import ResolveQueue
from relay.backfill.snapshots import Outlet, Snapshots
from relay.backfill.spool import spool_name
from relay.backfill.totals import Totals
from relay.backfill.verifying import WorkerSeats
from relay.backfill.work import Stage, Work, Works
from relay.errors import Blame
from relay.ipc.arena import Arena, SlotAccount
from relay.model import Identity, OpType, RepoState, Source
from relay.net.bucket import TokenBucket
from relay.net.gate import HostGate
from relay.net.hosts import Outcome
from relay.observe.log import get_logger
from relay.observe.metrics import FetchOutcome, Metrics
from relay.repos import live_events as e
from relay.repos.failures import Failure, RetryPolicy
from relay.repos.keeper import Keeper
from relay.repos.resident import Resident
from relay.runtime.clock import Clock
from relay.runtime.crashpoint import CrashPoint, crash_point
from relay.store.repos import RepoRow

log = get_logger(__name__)

RESOLVES_IN_FLIGHT = 64
BEHIND_S = 5.0  # how long a repo waits in the database whose ingester is behind
WORKER_BASE_S = 60.0
WORKER_BYTES_PER_S = 1_000_000  # a worker that is slower than this hangs
MOVED = frozenset({"repo_not_found", "deactivated", "deleted"})  # may only mean that the account lives elsewhere now


class Children(Protocol):
    """The children, as far as the pipeline needs them."""

    def send_fetch(self, message: Any) -> int | None:
        """Send to the least loaded fetch child; None: there is none at the moment."""

    def send_worker(self, seat: int, message: Any) -> bool: ...

    def kill(self, role: str, seat: int, why: str) -> None: ...


class Pipeline:
    """See the module. `room`: repos claimed and not yet downloading, at most, `per_host` of them of one host.

    It carries out what the keeper's machines ask for in the matter of fetching (`relay.repos.keeper.Fetching`).
    """

    def __init__(
        self,
        *,
        keeper: Keeper,
        outlet: Outlet,
        children: Children,
        hosts: HostGate,
        directory: TokenBucket,
        cars: Arena,
        operations: Arena,
        worker_seats: int,
        clock: Clock,
        policy: RetryPolicy,
        parallel: int,
        room: int,
        per_host: int,
        fresh_identity_s: float,
        fetch_timeout_s: float,
        verify_signatures: bool,
        copied: Callable[[int, int], None],
        spool_dir: Path,
        metrics: Metrics,
        waits: Callable[[str], bool] = lambda _did: False,
    ) -> None:
        self._spool_dir, self._metrics = spool_dir, metrics
        self._keeper, self._children, self._hosts, self._clock = keeper, children, hosts, clock
        self._policy, self._room, self._per_host = policy, room, per_host
        self._fresh_identity_s, self._fetch_timeout_s = fresh_identity_s, fetch_timeout_s
        self._verify_signatures = verify_signatures
        self.totals = Totals()
        self.works = Works(keeper)
        self._accepting = True
        self._claiming = 0  # direct claims that are not stored yet
        self.resolves = ResolveQueue(children.send_fetch, directory, in_flight=RESOLVES_IN_FLIGHT)
        self.downloads = Downloads(
            hosts, SlotAccount(range(cars.slots)), children.send_fetch, parallel=parallel, waits=waits
        )
        self.seats = WorkerSeats(worker_seats, operations.slots // worker_seats, children.send_worker)
        self.snapshots = Snapshots(
            keeper,
            outlet,
            self.seats,
            operations,
            clock,
            max_retries=policy.max_retries,
            copied=copied,
            give_up=lambda work, failure: self._endings.fail(work, failure),
            finished=lambda work: self._endings.finished(work),
        )
        self._endings = Endings(
            self.works,
            keeper=keeper,
            snapshots=self.snapshots,
            downloads=self.downloads,
            seats=self.seats,
            hosts=hosts,
            policy=policy,
            clock=clock,
            totals=self.totals,
        )
        self._identifying = Identifying(
            self.works,
            resolves=self.resolves,
            keeper=keeper,
            downloads=self.downloads,
            endings=self._endings,
            policy=policy,
            clock=clock,
            totals=self.totals,
            claim=self._claim_directly,
        )
        self._checks = Checks(
            self.works,
            keeper=keeper,
            downloads=self.downloads,
            endings=self._endings,
            identifying=self._identifying,
            snapshots=self.snapshots,
            hosts=hosts,
            policy=policy,
            clock=clock,
            send=children.send_fetch,
        )

    # --- what comes in ---------------------------------------------------------------------------------------------------

    def claimed(self, rows: Iterable[RepoRow], identities: Mapping[str, Identity]) -> None:
        """Take rows that were just stored as active, with what is known of their identities."""
        now = self._clock.now()
        for resident in self._keeper.claimed(rows, identities):
            work = self.works.new(resident, self._clock.monotonic())
            self._keeper.release(resident)
            identity = resident.identity
            if not self._accepting:
                self._endings.release(work, None)
            elif (
                identity is None
                or resident.row.attempts
                or identity.pds != resident.row.host
                or now - identity.resolved_at > self._fresh_identity_s
            ):
                # Also before every retry: a key or a PDS that changed explains many failures.
                self._identify(work, force=bool(resident.row.attempts))
            else:
                work.identity = identity
                self.downloads.add(work)

    def discovered(self, rows: Iterable[RepoRow]) -> None:
        """Take rows whose host is not known yet."""
        if self._accepting:
            for resident in self._keeper.take(rows):
                self._identifying.ask_for_host(resident)
                self._keeper.release(resident)

    def tell_again(self, rows: Iterable[RepoRow]) -> None:
        """Take rows with a status or an identity that was stored, and of whose telling no ingester has said a word."""
        for resident in self._keeper.take(rows):  # that is what their machines begin with
            self._keeper.release(resident)

    def check(self, rows: Iterable[RepoRow]) -> None:
        """Take rows with a check due: ask their host for the newest rev, or the status."""
        if self._accepting:
            residents = self._keeper.take(rows)
            self._checks.begin(residents)
            for resident in residents:
                self._keeper.release(resident)

    def unattended(self, dids: Iterable[str]) -> list[str]:
        """Return which of the repos that are stored as active nobody here knows of: a claim took place whose answer was lost."""
        return [did for did in dids if not self._is_attended(self._keeper.get(did))]

    @staticmethod
    def _is_attended(resident: Resident | None) -> bool:
        return resident is not None and (resident.life.is_attended or resident.life.is_being_stored)

    def _claim_directly(self, resident: Resident, identity: Identity) -> bool:
        """A discovered repo has just been resolved: where its host has room it need not wait for a claim from the database."""
        row, downloads = resident.row, self.downloads
        host = row.host or ""
        if (
            not self._accepting
            or row.state is not RepoState.PENDING
            or downloads.queued + self._identifying.waiting + self._claiming >= self._room
            or downloads.queued_of(host) >= self._per_host
            or self._hosts.ready_in_s(host) > 0
        ):
            return False
        self._claiming += 1

        def claimed(_state: RepoState | None) -> None:
            self._claiming -= 1
            crash_point(CrashPoint.CLAIM_STORED)
            if work.over:
                return
            if self._accepting:
                self.downloads.add(work)
            else:
                self._endings.release(work, None)

        self._keeper.feed(resident, e.Claimed(), is_urgent=True, then=claimed)
        work = self.works.new(resident, self._clock.monotonic())
        work.identity = identity
        return True

    # --- what the machines ask for ------------------------------------------------------------------------------------------

    def send_snapshot(self, resident: Resident, fetch: int) -> None:
        if (work := self.works.of_fetch(resident.did, fetch)) is not None:
            self.snapshots.send(work)

    def refuse_snapshot(self, resident: Resident, fetch: int, reason: str) -> None:
        if (work := self.works.of_fetch(resident.did, fetch)) is not None:
            self.snapshots.refuse(work, reason)

    def stop_snapshot(self, resident: Resident, fetch: int) -> None:
        if (work := self.works.of_fetch(resident.did, fetch)) is not None:
            self._endings.stopped_by_machine(work)

    def look_up(self, resident: Resident) -> None:
        self._identifying.look_up(resident)

    def resolve(self, resident: Resident, then: Callable[[Identity | None], None]) -> None:
        """Read a DID document past every cache, for its key."""
        self._identifying.resolve(resident, then)

    def child_said(self, role: str, seat: int, message: Any) -> None:
        """Take a message of a fetch child or worker."""
        match message:
            case m.Resolved():
                self.totals.resolved += 1
                self.totals.identity_cache.update(message.cache or {})
                self.resolves.answered(message, self._clock.monotonic())
            case m.Fetched():
                self._fetched(message)
            case m.FetchFailed():
                self._fetch_failed(message)
            case m.Checked():
                if (work := self._ended_download(message.job, message.facts, Outcome.SUCCESS)) is not None:
                    self._checks.answered(work, message)
            case m.Verified():
                if (work := self._of(message.job)) is not None:
                    source = Source.RESYNC if work.row.touched else Source.BACKFILL
                    self.snapshots.verified(work, message)
                    if work.verified is message and (message.records or source is Source.RESYNC):
                        self.totals.made.update({(OpType.CREATE, source): message.records})
                        self.totals.made.update([(OpType.REPO_BEGIN, source), (OpType.REPO_END, source)])
            case m.OperationsReady():
                if (work := self._of(message.job)) is not None:
                    self.snapshots.operations_ready(work, seat, message)
                else:
                    self.seats.filled(seat, message.slot)
                    self.seats.copied(seat, message.slot)
            case m.VerifyFailed():
                if (work := self._of(message.job)) is not None:
                    work.failure = Failure(reason=message.reason, blame=blame_of_car(message.reason), text=message.text)
            case m.JobDone():
                self._job_done(message)
            case _:
                raise AssertionError(f"{role}/{seat} sent {message!r}")

    def child_started(self, role: str, seat: int) -> None:
        if role == "worker":
            self.seats.started(seat)

    def child_died(self, role: str, seat: int, why: str) -> None:
        """A child is gone: what was in its hands failed, what only waited for it goes to another."""
        if role == "worker":
            in_hand, waiting = self.seats.died(seat)
            for work in waiting:
                work.seat = None
                if not work.over:
                    work.stage = Stage.FETCHED
                    self.seats.queue.appendleft(work)
                else:
                    self._endings.give_back(work)
            if in_hand is not None:
                in_hand.produced = True
                if not in_hand.over:
                    text = (
                        f"{in_hand.did}: its worker ended ({why}) while it verified the CAR of {in_hand.size:,} bytes"
                    )
                    died = Failure(reason="worker_died", blame=Blame.REPO, text=text)
                    self._endings.fail(in_hand, in_hand.failure or died)
                self._endings.give_back(in_hand)
            return
        self.resolves.child_died(seat)
        for work in self.downloads.of_seat(seat):
            self.downloads.ended(work)
            self._hosts.not_started(work.host)
            failure = Failure(
                reason="fetcher_died", blame=Blame.US, text=f"{work.did}: its fetch process ended ({why})"
            )
            (self._spool_dir / spool_name(work.number)).unlink(missing_ok=True)
            if work.is_check:
                self._checks.end(work)
            else:
                self._endings.fail(work, failure)
                self._endings.give_back(work)

    def pump(self) -> float | None:
        """Do what can be done now; return monotonic seconds at which more can be done without being told, or None."""
        now = self._clock.monotonic()
        self.seats.pump(now, self._verify_message)
        soon = [self.resolves.pump(now), self.downloads.pump(now)]
        self._release_stalled()
        self.snapshots.pump()
        self.seats.flush()
        times = [at for at in soon if at is not None]
        return min(times) if times else None

    def _release_stalled(self) -> None:
        """A host that has paused us must not hold the places of others: its repos wait in the database."""
        while self.downloads.stalled:
            host, wait_s = self.downloads.stalled.popitem()
            for work in self.downloads.release_host(host):
                work.row.next_attempt_at = self._clock.now() + wait_s
                self._endings.release(work, work.identity)
        # Nor may an ingester that is behind hold the places, and the slots, of others.
        unwanted, self.downloads.unwanted = self.downloads.unwanted, []
        for work in unwanted:
            work.row.next_attempt_at = self._clock.now() + BEHIND_S
            self._endings.release(work, work.identity)

    def look_for_stuck_children(self) -> None:
        """A job that takes longer than any job may: its child hangs and is killed, and its death is handled as any other."""
        now = self._clock.monotonic()
        for seat in self.seats.overdue(now, lambda work: WORKER_BASE_S + work.size / WORKER_BYTES_PER_S):
            self._children.kill("worker", seat, "a job took too long")
        for work in list(self.downloads.running.values()):
            if now - work.started_at > self._fetch_timeout_s + WORKER_BASE_S and work.seat is not None:
                self._children.kill("fetch", work.seat, "a download took too long")
                return

    # --- stopping -------------------------------------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Give back what has not been verified; what is being delivered may end by itself."""
        self._accepting = False
        self.downloads.release_all()
        for work in list(self.works.values()):
            if work.over or work.is_check or work.stage in (Stage.VERIFYING, Stage.DELIVERING, Stage.ENDING):
                continue
            self._endings.release(work, None)
            if work.stage is not Stage.FETCHING:
                self._endings.give_back(work)

    @property
    def resolves_of_claimed(self) -> int:
        """Claimed works that wait for their identity."""
        return self._identifying.waiting

    def give_up_host(self, host: str) -> None:
        """End the works that only wait for this host, which answers nobody."""
        for work in self.downloads.release_host(host):
            text = f"{work.did}: {host} has not answered anybody for {self._hosts.silent_s(host):.0f} s"
            self._endings.fail(work, Failure(reason="host_down", blame=Blame.HOST, text=text))

    @property
    def in_work(self) -> int:
        return len(self.works)

    @property
    def in_delivery(self) -> int:
        """Works that end by themselves when the ingesters answer."""
        # A copy, made in one step: other threads ask too.
        return sum(1 for w in list(self.works.values()) if w.stage in (Stage.VERIFYING, Stage.DELIVERING, Stage.ENDING))

    def _identify(self, work: Work, *, force: bool) -> None:
        if self._accepting:
            self._identifying.ask(work, force=force)
        else:
            work.stage = Stage.RESOLVING
            self._endings.release(work, None)

    # --- download ---------------------------------------------------------------------------------------------------------

    def _fetched(self, message: m.Fetched) -> None:
        work = self._ended_download(message.job, message.facts, Outcome.SUCCESS)
        if work is None:
            if message.spool is not None:
                Path(message.spool).unlink(missing_ok=True)
            return None
        self.totals.bytes_fetched += message.size
        self.totals.fetch_s += message.took_s
        self.totals.fetch_outcomes["ok"] += 1
        self._metrics.fetched(FetchOutcome.OK, message.size, message.took_s)
        work.size, work.spool = message.size, message.spool
        if work.over:
            return self._endings.give_back(work)
        work.fetched_at_us = int(self._clock.now() * 1e6)
        work.stage = Stage.FETCHED
        self.seats.queue.append(work)
        return None

    def _fetch_failed(self, message: m.FetchFailed) -> None:
        work = self._ended_download(message.job, message.facts, Outcome(message.outcome))
        if work is None:
            return None
        self.totals.fetch_outcomes[message.reason] += 1
        if not work.is_check:
            self._metrics.fetched(fetch_outcome(message), message.size, message.took_s)
        if work.over:
            return self._endings.give_back(work)
        if work.is_check:
            return self._checks.failed(work, message)
        retry_after = message.facts[3] if message.facts else None
        failure = Failure(
            reason=message.reason, blame=Blame(message.blame), text=message.text, retry_after_s=retry_after
        )
        self._endings.free_car(work)
        if message.reason in MOVED:
            work.suspected, work.suspected_status, work.refused_at = failure, status_of(message), self._clock.now()
            return self._identify(work, force=True)
        status = status_of(message)
        if status is not None:
            return self._endings.not_active(work, status, message.text)
        return self._endings.fail(work, failure)

    def _ended_download(self, job: int, facts: list[Any] | None, outcome: Outcome) -> Work | None:
        work = self.works.get(job)
        if work is None:
            return None
        self.downloads.ended(work)
        # From here on nobody else has it: whoever ends it gives it back.
        work.stage = Stage.FETCHED
        self._hosts.finished(work.host, outcome, facts_of(facts))
        return work

    # --- worker -------------------------------------------------------------------------------------------------------------

    def _verify_message(self, work: Work) -> m.VerifyRepo:
        row, identity = work.row, work.identity
        assert identity is not None
        return m.VerifyRepo(
            job=work.number,
            did=work.did,
            slot=-1 if work.slot is None else work.slot,
            spool=work.spool,
            size=work.size,
            key=identity.signing_key if self._verify_signatures else None,
            patterns=list(work.wanted.patterns),
            source=int(Source.RESYNC if row.touched else Source.BACKFILL),
            time_us=work.fetched_at_us,
            active=True,
            status="",
            handle=identity.handle,
            pds=identity.pds,
            touched=row.touched,
        )

    def _job_done(self, message: m.JobDone) -> None:
        work = self.works.get(message.job)
        if work is None:
            return
        work.produced = True
        self.totals.cpu_s += message.cpu_s
        self.seats.done(work, self._clock.monotonic())
        self._endings.free_car(work)
        if work.over:
            if work.stage is not Stage.ENDING:
                self._endings.give_back(work)
            return
        if work.failure is None:
            if work.stage is Stage.VERIFYING:
                work.stage = Stage.DELIVERING
            self.snapshots.produced(work)
            return
        failure, work.failure = work.failure, None
        if failure.reason == "bad_signature" and not self._identifying.is_fresh(work):
            work.suspected, work.refused_at = failure, self._clock.now()
            self._identify(work, force=True)
            return
        self._endings.fail(work, failure)

    # --- small --------------------------------------------------------------------------------------------------------------

    def _of(self, job: int) -> Work | None:
        work = self.works.get(job)
        return None if work is None or work.over else work
