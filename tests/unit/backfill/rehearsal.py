"""The whole backfill without a thread, a process or a database: each of them is an object here that does one step when told.

The pipeline, the keeper, the limits of hosts and the shared memory are the real ones. Everything that is another thread or process in
the relay (children, checkpointer, database questions, senders, the ingester) has a queue in and a queue out, so a test chooses every
interleaving. The far side checks what it gets: order, completeness, CAR slots that change under a reader, operations before their
beginning is stored.
"""

from __future__ import annotations

import copy
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from relay.atproto.nsid_filter import NsidFilter
from relay.backfill import messages as m
from relay.backfill.pipeline import Pipeline
from relay.backfill.snapshots import Token
from relay.backfill.spool import spool_name
from relay.backfill.work import Stage
from relay.ipc.arena import Arena
from relay.model import Identity, Lane, OpType, RepoState, Source
from relay.net.bucket import TokenBucket
from relay.net.gate import HostGate
from relay.net.hosts import HostPolicy, HostTable
from relay.observe.metrics import Metrics
from relay.pb.encode import (
    account_message,
    decode_operation,
    encode_operation,
    encode_repo_begin,
    encode_repo_end,
    split_operations,
)
from relay.repos.checkpointer import Change, Checkpointer, Stored, last_rows
from relay.repos.failures import RetryPolicy
from relay.repos.keeper import Keeper, LivePiece
from relay.repos.lifecycle import FINISHED
from relay.repos.live_events import LiveToken
from relay.runtime.clock import ManualClock
from relay.store.repos import RepoRow

BATCH = 1
SLOT_BYTES = 2048
QUEUE_LIMIT = 4
POLICY = RetryPolicy(max_retries=2, first_delay_s=1.0, breaker_s=5.0, give_up_on_silent_hosts=True)


@dataclass(slots=True, kw_only=True)
class Account:
    """A repo as its host has it."""

    did: str
    host: str
    pieces: int  # how many segments its snapshot takes beside the beginning and the end; 0: no wanted record
    version: int = 1
    key: str = "zKey1"
    status: str = ""  # empty: active
    status_at_old_host: str = ""  # empty: it knows nothing of the account any more
    large: bool = False  # its operations do not fit into a slot

    @property
    def rev(self) -> str:
        return f"3k{self.version:011d}"


@dataclass(slots=True, eq=False)
class Piece:
    did: str
    payload: bytes | memoryview
    token: Token
    copied: Callable[[], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    operation: bytes
    reason: str = "rejected"
    message: str = "no"
    ingester: str = "ingester:1"
    attempts: int = 1


class FetchChild:
    """Answers in any order; `said` is what it has written and nobody has read."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []
        self.said: deque[Any] = deque()
        self.alive = True


class WorkerChild:
    """One job at a time, a step at a time."""

    def __init__(self) -> None:
        self.inbox: deque[Any] = deque()
        self.said: deque[Any] = deque()
        self.alive = True
        self.slots: deque[int] = deque()
        self.jobs: deque[m.VerifyRepo] = deque()
        self.cancelled: set[int] = set()
        self.job: m.VerifyRepo | None = None
        self.car = b""
        self.parts: deque[tuple[bytes, int]] | None = None


@dataclass(slots=True)
class Told:
    """What the ingester knows of a DID."""

    begun: str = ""
    since_begin: list[int] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    complete: str = ""
    active: bool | None = None
    pds: str | None = None


class LiveLane:
    """Tellings go the same way as pieces of snapshots, and always find room."""

    def __init__(self, stage: Rehearsal) -> None:
        self._stage = stage

    def offer(self, did: str, payload: Any, operations: int, token: LiveToken, received_at: float) -> bool:
        raise AssertionError("there is no stream")

    def tell(self, did: str, payload: bytes, token: LiveToken) -> None:
        ((place, size),) = split_operations(payload)
        operation = decode_operation(payload[place : place + size])
        row = self._stage.db[did]
        stored_us = row.tell_identity_us if OpType(operation.type) is OpType.IDENTITY else row.tell_time_us
        assert stored_us == operation.time_us, "a status or an identity was told that is not stored"
        self._stage.queue.append(Piece(did, payload, LivePiece(self._stage.keeper, did, token), None))

    def withdraw(self, did: str, tokens: Sequence[LiveToken]) -> list[LiveToken]:
        return []


class Rehearsal:
    """See the module. Every public method is one step of somebody; `pump` is the end of each round of the engine."""

    def __init__(
        self,
        folder: Path,
        *,
        car_slots: int = 3,
        slots_per_worker: int = 3,
        policy: RetryPolicy = POLICY,
        room: int = 8,
    ) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.accounts: dict[str, Account] = {}
        self.db: dict[str, RepoRow] = {}
        self.identities: dict[str, Identity] = {}
        self.to_store: deque[Change] = deque()
        self.stored_out: deque[Stored] = deque()
        self.asks: deque[Callable[[], Callable[[], None]]] = deque()
        self.answers: deque[Callable[[], None]] = deque()
        self.asked: set[str] = set()
        self.queue: deque[Piece] = deque()
        self.in_flight: deque[Piece] = deque()
        self.senders_said: deque[Callable[[], None]] = deque()
        self.ingester: dict[str, Told] = {}
        self.letters = 0
        self.refusals = 0
        self.fetchers = {0: FetchChild(), 1: FetchChild()}
        self.workers = {0: WorkerChild(), 1: WorkerChild()}
        self.killed: list[tuple[str, int]] = []
        self.stopped = False
        self.document_age_s = 0.0
        wanted = NsidFilter.parse(("app.bsky.",))
        self.keeper = Keeper(
            cast(Checkpointer, self), self.clock, batch=BATCH, wanted=wanted, policy=policy, buffer_operations=100
        )
        self.keeper.outlet = LiveLane(self)
        self.cars = Arena("test-cars", car_slots, SLOT_BYTES)
        self.operations = Arena("test-operations", 2 * slots_per_worker, SLOT_BYTES)
        gate_policy = HostPolicy(requests_per_s=1000.0, burst=30.0, connections=2, breaker_s=policy.breaker_s)
        self.pipeline = Pipeline(
            keeper=self.keeper,
            outlet=self,
            children=self,
            hosts=HostGate(HostTable(gate_policy), self.clock),
            directory=TokenBucket(rate_per_s=1000.0, burst=1000.0, now=self.clock.monotonic()),
            cars=self.cars,
            operations=self.operations,
            worker_seats=2,
            clock=self.clock,
            policy=policy,
            parallel=4,
            room=room,
            per_host=4,
            fresh_identity_s=3600.0,
            fetch_timeout_s=60.0,
            verify_signatures=True,
            copied=lambda seat, slot: self.senders_said.append(lambda: self.pipeline.seats.copied(seat, slot)),
            spool_dir=folder,
            metrics=Metrics(version="test"),
        )
        self.keeper.fetching = self.pipeline
        self.seated: set[tuple[str, int]] = set()
        for seat in self.workers:
            self.restart("worker", seat)
        for seat in self.fetchers:
            self.restart("fetch", seat)

    def close(self) -> None:
        self.cars.close()
        self.operations.close()

    def add(self, account: Account, *, state: RepoState = RepoState.DISCOVERED, **columns: Any) -> None:
        """Have the network know an account, and the database a row of it."""
        self.accounts[account.did] = account
        host = account.host if state is not RepoState.DISCOVERED else None
        self.db[account.did] = RepoRow(did=account.did, state=state, host=host, batch=BATCH, **columns)
        self.keeper.counts[state] += 1
        self.keeper.targets[state] += 1

    # --- the engine -------------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        self.pipeline.pump()
        self.check()

    def hear_child(self, role: str, seat: int) -> bool:
        """Read one message of a child, or its end."""
        if (role, seat) not in self.seated:
            return False
        child = self._child(role, seat)
        if child.said:
            self.pipeline.child_said(role, seat, child.said.popleft())
            return True
        if not child.alive:
            self.seated.discard((role, seat))
            self.pipeline.child_died(role, seat, "signal SIGKILL")
            return True
        return False

    def restart(self, role: str, seat: int) -> bool:
        if (role, seat) in self.seated:
            return False
        if role == "worker":
            self.workers[seat] = WorkerChild()
        else:
            self.fetchers[seat] = FetchChild()
        self.seated.add((role, seat))
        self.pipeline.child_started(role, seat)
        return True

    def hear(self, queue: deque[Callable[[], None]]) -> bool:
        """Run the oldest call that another thread has posted."""
        if not queue:
            return False
        queue.popleft()()
        return True

    def hear_stored(self) -> bool:
        if not self.stored_out:
            return False
        self.keeper.stored(self.stored_out.popleft())
        return True

    def stop(self) -> None:
        self.stopped = True
        self.pipeline.stop_accepting()

    def waiting_for_host(self) -> int:
        return self.pipeline.downloads.queued

    # --- children, as the pipeline sees them --------------------------------------------------------------------------------

    def send_fetch(self, message: Any) -> int | None:
        seats = [n for n, child in self.fetchers.items() if ("fetch", n) in self.seated and child.alive]
        if not seats:
            return None
        seat = min(seats, key=lambda n: len(self.fetchers[n].jobs))
        self.fetchers[seat].jobs.append(message)
        return seat

    def send_worker(self, seat: int, message: Any) -> bool:
        if ("worker", seat) not in self.seated or not self.workers[seat].alive:
            return False
        self.workers[seat].inbox.append(message)
        return True

    def kill(self, role: str, seat: int, why: str) -> None:
        self.killed.append((role, seat))
        self.die(role, seat)

    def die(self, role: str, seat: int) -> None:
        child = self._child(role, seat)
        if not child.alive:
            return
        child.alive = False
        if isinstance(child, FetchChild):
            for job in child.jobs:
                if isinstance(job, m.FetchRepo):  # in the middle of a download that had to be spooled
                    (self.folder / spool_name(job.job)).write_bytes(b"half")
                    break

    def _child(self, role: str, seat: int) -> FetchChild | WorkerChild:
        return self.workers[seat] if role == "worker" else self.fetchers[seat]

    # --- fetch children -------------------------------------------------------------------------------------------------------

    def fetch(self, seat: int, pick: int = 0, outcome: str = "ok") -> bool:
        """Do one job. Outcomes: ok, spool, stale, down, limited, garbage."""
        child = self.fetchers[seat]
        if not child.jobs or not child.alive:
            return False
        job = child.jobs.pop(pick % len(child.jobs))
        account = self.accounts[job.did]
        if isinstance(job, m.Resolve):
            child.said.append(self._resolve(account, outcome))
        elif outcome == "down":
            child.said.append(m.FetchFailed(job.job, "host_down", "host", "no answer", None, "failed", None))
        elif outcome == "limited":
            facts = [None, None, None, 3.0]
            child.said.append(m.FetchFailed(job.job, "rate_limited", "host", "429", None, "limited", facts))
        elif isinstance(job, m.FetchCheck):
            child.said.append(self._check(job, account))
        elif job.pds != account.host:
            child.said.append(m.FetchFailed(job.job, "repo_not_found", "repo", "not here", None, "answered", None))
        elif account.status:
            child.said.append(
                m.FetchFailed(job.job, account.status, "repo", account.status, account.status, "answered", None)
            )
        else:
            version = max(1, account.version - 1) if outcome == "stale" else account.version
            car = f"{job.job}|{job.did}|{version}|{account.key}|{outcome}".encode()
            spool = None
            if outcome == "spool":
                spool = str(self.folder / spool_name(job.job))
                assert not Path(spool).exists()
                Path(spool).write_bytes(car)
            else:
                self.cars.view(job.slot, len(car))[:] = car
            child.said.append(m.Fetched(job.job, len(car), spool, 0.1, None))
        return True

    def _resolve(self, account: Account, outcome: str) -> m.Resolved:
        now = self.clock.now()
        if outcome == "down":
            return m.Resolved(account.did, None, None, None, now, "directory_away", "host", "PLC is away", 0.1, None)
        if outcome == "limited":
            return m.Resolved(account.did, None, None, None, now, "directory_away", "host", "429", 0.1, 2.0)
        if outcome == "garbage":
            return m.Resolved(account.did, None, None, None, now, "did_not_found", "repo", "no such DID", 0.1, None)
        if self.document_age_s:  # it was asked too often: what it read before the key was rotated serves
            read_at = now - self.document_age_s
            return m.Resolved(account.did, "zOld", account.host, "a.test", read_at, None, None, None, 0.1, None)
        return m.Resolved(account.did, account.key, account.host, "a.test", now, None, None, None, 0.1, None)

    def _check(self, job: m.FetchCheck, account: Account) -> Any:
        if job.host != account.host and account.status_at_old_host:
            return m.Checked(job.job, None, False, account.status_at_old_host, None)
        if job.host != account.host:
            return m.FetchFailed(job.job, "repo_not_found", "repo", "not here", None, "answered", None)
        if job.what == "status":
            return m.Checked(job.job, account.rev, not account.status, account.status or None, None)
        if account.status:
            return m.FetchFailed(job.job, account.status, "repo", "away", account.status, "answered", None)
        return m.Checked(job.job, account.rev, None, None, None)

    # --- workers --------------------------------------------------------------------------------------------------------------

    def work(self, seat: int) -> bool:
        """Take a message, or go one step on with the job in hand. False: it waits."""
        child = self.workers[seat]
        if not child.alive:
            return False
        if child.inbox:
            match child.inbox.popleft():
                case m.VerifyRepo() as job:
                    child.jobs.append(job)
                case m.FreeSlots(slots):
                    assert not set(slots) & set(child.slots)
                    child.slots.extend(slots)
                case m.CancelJob(number):
                    child.cancelled.add(number)
            return True
        if child.job is None:
            if not child.jobs:
                return False
            job = child.jobs.popleft()
            if job.job in child.cancelled:
                child.said.append(m.JobDone(job.job, 0.0))
                return True
            child.job, child.car, child.parts = job, self._car(job), None
            return True
        return self._work_on(child, child.job)

    def _car(self, job: m.VerifyRepo) -> bytes:
        if job.spool is not None:
            return Path(job.spool).read_bytes()
        return bytes(self.cars.view(job.slot, job.size))

    def _work_on(self, child: WorkerChild, job: m.VerifyRepo) -> bool:
        assert self._car(job) == child.car, "the CAR changed under its worker"
        number, did, version, key, outcome = child.car.decode().split("|")
        assert (int(number), did) == (job.job, job.did), "a worker got somebody else's CAR"
        if job.job in child.cancelled:
            child.parts = deque()
        elif child.parts is None:
            if key != job.key:
                child.said.append(m.VerifyFailed(job.job, "bad_signature", "another key"))
                child.parts = deque()
            elif outcome == "garbage":
                child.said.append(m.VerifyFailed(job.job, "invalid_car", "cut off"))
                child.parts = deque()
            else:
                account = copy.copy(self.accounts[did])
                account.version = int(version)
                child.parts = snapshot(account, job)
                child.said.append(m.Verified(job.job, account.rev, b"\x01" * 36, account.pieces, []))
            return True
        if child.parts:
            if not child.slots:
                return False
            slot = child.slots.popleft()
            payload, count = child.parts.popleft()
            if len(payload) > SLOT_BYTES:
                child.said.append(m.OperationsReady(job.job, slot, len(payload), count, payload))
            else:
                self.operations.view(slot, len(payload))[:] = payload
                child.said.append(m.OperationsReady(job.job, slot, len(payload), count, None))
            return True
        child.cancelled.discard(job.job)
        child.job = child.parts = None
        child.said.append(m.JobDone(job.job, 0.01))
        return True

    # --- the outlet, and the ingester behind it ---------------------------------------------------------------------------------

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
        if len(self.queue) >= QUEUE_LIMIT:
            return False
        for place, size in split_operations(payload):
            operation = decode_operation(payload[place : place + size])
            row = self.db[did]
            assert (row.rev_begun or "") >= operation.rev, "operations of a beginning that is not stored"
            assert row.touched
        self.queue.append(Piece(did, payload, token, copied))
        return True

    def discard(self, did: str) -> int:
        kept: deque[Piece] = deque()
        for piece in self.queue:
            if piece.did != did or piece.copied is None:
                kept.append(piece)
            else:
                piece.copied()
        discarded = len(self.queue) - len(kept)
        self.queue = kept
        return discarded

    def send(self) -> bool:
        """Write the oldest piece to the stream: its bytes are copied."""
        if not self.queue:
            return False
        piece = self.queue.popleft()
        piece.payload = bytes(piece.payload)
        if piece.copied is not None:
            piece.copied()
        self.in_flight.append(piece)
        return True

    def acknowledge(self, refuse: int | None = None) -> bool:
        """The ingester stores the oldest piece, but for operation number `refuse`."""
        if not self.in_flight:
            return False
        piece = self.in_flight.popleft()
        told = self.ingester.setdefault(piece.did, Told())
        found = split_operations(piece.payload)
        for number, (place, size) in enumerate(found):
            raw = bytes(piece.payload[place : place + size])
            if refuse is not None and number == refuse % len(found):
                self._refuse(piece, raw, told)
            else:
                self._apply(told, decode_operation(raw))
        self.senders_said.append(piece.token.acknowledged)
        return True

    def _refuse(self, piece: Piece, raw: bytes, told: Told) -> None:
        operation = decode_operation(raw)
        if OpType(operation.type) is OpType.CREATE:
            told.refused.add(int(operation.rkey))
        self.refusals += 1
        self.senders_said.append(lambda: piece.token.refused(Refused(operation=raw)))

    def _apply(self, told: Told, operation: Any) -> None:
        match OpType(operation.type):
            case OpType.ACCOUNT:
                told.active = operation.account.active
            case OpType.IDENTITY:
                told.pds = operation.identity.pds
            case OpType.REPO_BEGIN:
                assert operation.rev >= max(told.begun, told.complete), "an older snapshot begins"
                told.begun, told.since_begin, told.refused = operation.rev, [], set()
            case OpType.CREATE:
                if operation.rev == told.begun:
                    told.since_begin.append(int(operation.rkey))
            case OpType.REPO_END:
                if operation.rev == told.begun:
                    whole = [n for n in range(operation.record_count) if n not in told.refused]
                    assert told.since_begin == whole, "a snapshot ended that is not whole, or not in order"
                    told.complete = operation.rev
            case other:
                raise AssertionError(other)

    # --- checkpointer and database ------------------------------------------------------------------------------------------------

    def put(self, change: Change) -> None:
        change.row = copy.copy(change.row)
        self.to_store.append(change)

    def store(self, count: int = 1000) -> bool:
        """One transaction with the oldest changes, as store_rows does it."""
        if not self.to_store:
            return False
        batch = [self.to_store.popleft() for _ in range(min(count, len(self.to_store)))]
        corrected: dict[str, RepoState] = {}
        for row in last_rows(batch).values():
            state = self._store_row(copy.copy(row))
            if state is not row.state:
                corrected[row.did] = state
        for change in batch:
            self.letters += len(change.dead)
            if change.identity is not None:
                self.identities[change.identity.did] = change.identity
        self.stored_out.append(Stored(batch, corrected))
        return True

    def _store_row(self, row: RepoRow) -> RepoState:
        old = self.db[row.did]
        if row.state is RepoState.SYNCED and row.touched and row.rev != old.rev:
            told = self.ingester.get(row.did, Told())
            assert told.complete == row.rev, "synced, and the ingester does not have it all"
        if old.check_due == row.seen_check_due:
            pass
        elif row.check_due is None:
            row.check_due = old.check_due
        row.rev_begun = max(old.rev_begun or "", row.rev_begun or "") or None
        if row.state is RepoState.SYNCED and (old.rev_heard or "") > max(row.rev_heard or "", row.rev or ""):
            row.state, row.reason, row.attempts, row.next_attempt_at = (
                RepoState.PENDING,
                "newer_rev",
                0,
                self.clock.now(),
            )
        row.rev_heard = max(old.rev_heard or "", row.rev_heard or "") or None
        row.touched = row.touched or old.touched
        row.batch = old.batch
        self.db[row.did] = row
        return row.state

    def run_ask(self) -> bool:
        if not self.asks:
            return False
        self.answers.append(self.asks.popleft()())
        return True

    def ask(self, name: str, question: Callable[[], Callable[[], None]]) -> None:
        if name not in self.asked:
            self.asked.add(name)

            def run() -> Callable[[], None]:
                then = question()

                def answer() -> None:
                    self.asked.discard(name)
                    then()

                return answer

            self.asks.append(run)

    def ask_for_claims(self, limit: int = 3) -> None:
        def run() -> Callable[[], None]:
            rows = self._rows(lambda r: r.state is RepoState.PENDING and r.host is not None and self._is_due(r))[:limit]
            for row in rows:
                row.state = self.db[row.did].state = RepoState.ACTIVE
            known = {row.did: self.identities[row.did] for row in rows if row.did in self.identities}
            return lambda: self.pipeline.claimed(rows, known)

        if not self.stopped:
            self.ask("claim", run)

    def ask_for(self, name: str, is_wanted: Callable[[RepoRow], bool], then: Callable[[list[RepoRow]], None]) -> None:
        if name in self.asked or self.stopped:
            return
        look = self.keeper.begin_look()

        def run() -> Callable[[], None]:
            rows = self._rows(is_wanted)
            return lambda: then(self.keeper.end_look(look, rows))

        self.ask(name, run)

    def ask_for_discovered(self) -> None:
        self.ask_for(
            "discovered", lambda r: r.state is RepoState.DISCOVERED and self._is_due(r), self.pipeline.discovered
        )

    def ask_for_checks(self) -> None:
        self.ask_for("checks", lambda r: r.check_due is not None, self.pipeline.check)

    def ask_for_tells(self) -> None:
        self.ask_for("tells", lambda r: (r.tell_time_us or 0) > (r.told_time_us or 0), self.pipeline.tell_again)

    def ask_for_retries(self) -> None:
        def run() -> Callable[[], None]:
            moved: Counter[tuple[RepoState, RepoState]] = Counter()
            for row in self.db.values():
                if row.state in (RepoState.FAILED, RepoState.DESYNCED) and self._is_due(row):
                    new = RepoState.PENDING if row.host else RepoState.DISCOVERED
                    moved[row.state, new] += 1
                    row.state = new
            return lambda: self.keeper.moved(moved, of_batch=True)

        if not self.stopped:
            self.ask("retries", run)

    def listed(self, did: str, *, with_rev: bool) -> None:
        """A listing names the repo: another connection writes this, in a moment that it chooses."""
        row, account = self.db[did], self.accounts[did]
        old = row.state
        if row.state is RepoState.SYNCED:
            if not with_rev:
                row.check_due = row.check_due or "commit"
            elif account.rev > max(row.rev or "", ""):
                row.state, row.reason, row.attempts, row.next_attempt_at = (
                    RepoState.PENDING,
                    "newer_rev",
                    0,
                    self.clock.now(),
                )
        elif row.state is RepoState.INACTIVE:
            row.check_due = row.check_due or "status"
        if with_rev:
            row.rev_heard = max(row.rev_heard or "", account.rev)
        if old is not row.state:
            self.answers.append(lambda: self.keeper.moved({(old, RepoState.PENDING): 1}, of_batch=True))

    def _is_due(self, row: RepoRow) -> bool:
        return row.next_attempt_at <= self.clock.now()

    def _rows(self, is_wanted: Callable[[RepoRow], bool]) -> list[RepoRow]:
        rows = [copy.copy(row) for row in self.db.values() if is_wanted(row)]
        for row in rows:
            row.seen_check_due = row.check_due
        return rows

    # --- promises -----------------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What holds at any moment."""
        works = self.pipeline.works.values()
        with_slot = [work.slot for work in works if work.slot is not None]
        assert len(with_slot) == len(set(with_slot)) == self.pipeline.downloads.slots.in_use
        working = Counter(work.did for work in works if not work.over and work.row.state is RepoState.ACTIVE)
        assert all(count == 1 for count in working.values()), "two works of one repo"
        assert all(not work.over or work.stage in (Stage.FETCHING, Stage.VERIFYING, Stage.ENDING) for work in works)

    def run_to_the_end(self, *, seconds: int = 400) -> None:
        """Nothing fails any more: everything that is in work ends, and everything comes back."""
        for _ in range(seconds):
            self._settle()
            if self._is_quiet():
                break
            self.clock.advance(1.0)
        self.check_end()

    def _settle(self) -> None:
        moved = True
        while moved:
            moved = False
            if not self.stopped:
                for ask in (self.ask_for_discovered, self.ask_for_claims, self.ask_for_checks, self.ask_for_tells):
                    ask()
                self.ask_for_retries()
            while self.run_ask():
                pass
            before = (len(self.pipeline.works), len(self.keeper.residents), self.keeper.waiting)
            while self.hear(self.answers):
                pass
            moved |= before != (len(self.pipeline.works), len(self.keeper.residents), self.keeper.waiting)
            for role, seats in (("worker", self.workers), ("fetch", self.fetchers)):
                for seat in cast(dict[int, Any], seats):
                    while self.hear_child(role, seat):
                        moved = True
                    moved |= self.restart(role, seat)
            self.pump()
            for seat in self.fetchers:
                while self.fetch(seat):
                    moved = True
            for seat in self.workers:
                while self.work(seat):
                    moved = True
            while (
                self.send() or self.acknowledge() or self.hear(self.senders_said) or self.store() or self.hear_stored()
            ):
                moved = True

    def _is_quiet(self) -> bool:
        if self.stopped:
            return not self.pipeline.in_work and not self.keeper.waiting
        return not self.keeper.residents and all(
            row.state in FINISHED and (row.check_due is None or row.state is RepoState.QUARANTINED)
            for row in self.db.values()
        )

    def check_end(self) -> None:
        pipeline = self.pipeline
        assert not pipeline.works, list(pipeline.works.values())
        assert not self.keeper.waiting
        assert pipeline.downloads.slots.in_use == 0
        assert pipeline.downloads.queued == 0
        assert pipeline.seats.slots_in_use == 0
        assert pipeline.seats.jobs == 0
        assert list(self.folder.iterdir()) == [], "a spool file was left"
        for child in self.workers.values():
            assert len(child.slots) + sum(len(x.slots) for x in child.inbox if isinstance(x, m.FreeSlots)) == 3
        assert self.letters == self.refusals
        found = Counter(row.state for row in self.db.values())
        assert +self.keeper.counts == found, (self.keeper.counts, found)
        assert +self.keeper.targets == found
        if self.stopped:
            return
        assert not self.keeper.residents
        assert len(pipeline.resolves) == 0
        for row in self.db.values():
            assert row.state in FINISHED, row
            told = self.ingester.get(row.did, Told())
            if row.state is RepoState.SYNCED and row.touched:
                assert told.complete == row.rev
            if row.state is RepoState.INACTIVE:
                assert told.active is False
                assert row.reason != "deleted", "it has only moved"
            assert (row.tell_time_us or 0) == (row.told_time_us or 0) or row.state is RepoState.QUARANTINED


def snapshot(account: Account, job: m.VerifyRepo) -> deque[tuple[bytes, int]]:
    """Return the segments of a snapshot: the beginning with the first record, one record each, the end."""
    if not account.pieces and not job.touched:
        return deque()
    source = Source(job.source)
    begin = encode_repo_begin(
        did=account.did,
        rev=account.rev,
        source=source,
        time_us=job.time_us,
        nsid_filter=job.patterns,
        account=account_message(active=True, status=""),
    )
    filling = b'{"x":"' + b"y" * (SLOT_BYTES if account.large else 10) + b'"}'
    segments = [
        encode_operation(
            OpType.CREATE, account.did, source=source, time_us=job.time_us, collection="app.bsky.feed.post",
            rkey=str(number), cid="bafy", rev=account.rev, record_json=filling,
        )
        for number in range(account.pieces)
    ]  # fmt: skip
    end = encode_repo_end(
        did=account.did, rev=account.rev, source=source, time_us=job.time_us, nsid_filter=job.patterns,
        record_count=account.pieces,
    )  # fmt: skip
    return deque([(begin, 1), *((each, 1) for each in segments), (end, 1)])


__all__ = ["Account", "Rehearsal"]
