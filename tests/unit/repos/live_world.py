"""A small world around the live machine: accounts, a replayable stream, a database, an ingester that does what DESIGN 5.1 says.

One action after the other, chosen by a seed, with crashes between; then all faults end, and what the ingester has must equal the
world. Nothing of the relay but the machine is in here.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from relay.atproto.nsid_filter import NsidFilter
from relay.model import RepoState
from relay.repos import live_events as e
from relay.repos.buffer import LiveBuffer
from relay.repos.facts import Facts
from relay.repos.handover import LiveEvent
from relay.repos.lifecycle import Event as LifeEvent
from relay.repos.live import LiveRepo

S = RepoState
PATHS = ("com.a.x/1", "com.a.x/2", "com.b.y/1")
FILTERS = (NsidFilter.parse(["com.a."]), NsidFilter.parse(["com.a.", "com.b."]), NsidFilter.parse([]))
FETCHED = (S.DISCOVERED, S.PENDING, S.FAILED, S.DESYNCED, S.QUARANTINED)
MAX_OPEN = 10
LANE = 10
SENT = "sent"


def rev_text(number: int) -> str:
    return f"{number:013d}"


def data_of(records: dict[str, int]) -> bytes:
    return hashlib.sha256(repr(sorted(records.items())).encode()).digest() + b"root"


def wants(wanted: NsidFilter, path: str) -> bool:
    return wanted.wants(path.split("/")[0])


@dataclass
class Frame:
    seq: int
    kind: str
    did: str
    time_us: int
    rev: str = ""
    since: str | None = None
    prev_data: bytes | None = None
    data: bytes = b""
    ops: tuple[tuple[str, int | None], ...] = ()
    active: bool = True
    status: str = ""
    handle: str = ""
    valid: bool = True


@dataclass
class AccountThere:
    did: str
    versions: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    active: bool = True
    status: str = ""
    handle: str = "h0"
    hidden: bool = False

    @property
    def rev(self) -> str | None:
        return self.versions[-1][0] if self.versions else None

    @property
    def records(self) -> dict[str, int]:
        return self.versions[-1][1] if self.versions else {}


@dataclass
class Op:
    kind: str  # put, delete, begin, end, account, identity
    did: str
    rev: str = ""
    path: str = ""
    value: int = 0
    covers: NsidFilter | None = None
    active: bool = True
    status: str = ""
    time_us: int = 0
    handle: str | None = None


@dataclass
class Piece:
    """What is queued in a lane: the operations of a token, or of one step of a snapshot."""

    did: str
    ops: list[Op]
    token: e.LiveToken | None = None
    snapshot: tuple[int, str, bytes, NsidFilter] | None = None
    is_end: bool = False


class Ingester:
    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[int, str]] = {}
        self.highest: dict[str, str] = {}
        self.account: dict[str, tuple[int, bool, str]] = {}
        self.identity: dict[str, str | None] = {}

    def apply(self, op: Op) -> None:
        if op.kind == "account":
            if op.time_us >= self.account.get(op.did, (-1, True, ""))[0]:
                self.account[op.did] = (op.time_us, op.active, op.status)
                if op.status == "deleted":
                    self.delete(op.did, lambda _path, _rev: True)
            return
        if op.kind == "identity":
            self.identity[op.did] = op.handle
            return
        if op.rev < self.highest.get(op.did, ""):
            return
        self.highest[op.did] = op.rev
        if self.account.get(op.did, (-1, True, ""))[2] == "deleted":
            return
        if op.kind == "put":
            self.rows[op.did, op.path] = (op.value, op.rev)
        elif op.kind == "delete":
            self.rows.pop((op.did, op.path), None)
        elif op.kind == "end":
            covers = op.covers
            assert covers is not None
            self.delete(op.did, lambda path, rev: wants(covers, path) and rev < op.rev)

    def delete(self, did: str, condition: Callable[[str, str], bool]) -> None:
        for key in [k for k, (_, rev) in self.rows.items() if k[0] == did and condition(k[1], rev)]:
            del self.rows[key]


class Violation(AssertionError):
    pass


class Simulation:
    """`process` is what a crash loses; `rows`, `cursor` and the ingester stay."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.dids = ["d0", "d1"]
        self.accounts = {did: AccountThere(did) for did in self.dids}
        self.log: list[Frame] = []
        self.clock = 1000
        self.values = 0
        self.rows: dict[str, Facts] = {}
        self.cursor = 0
        self.ingester = Ingester()
        self.wanted = self.random.choice(FILTERS)
        self.attempts: dict[str, int] = {}
        self.faults = True
        self.trace: list[object] = []  # to be printed when a seed fails
        # Runs differ in what happens much: a calm one reaches `synced` often, a stormy one interrupts everything.
        self.storm = self.random.choice((0.04, 0.12, 0.3))
        self.commits = self.random.choice((0.4, 0.7))
        for did in self.dids:
            for _ in range(self.random.randint(0, 2)):
                self.commit(did)
        if self.random.random() < 0.6:
            for did in self.dids:
                if self.accounts[did].versions and self.random.random() < 0.7:
                    self.rows[did] = Facts(state=S.PENDING, rev_heard=self.accounts[did].rev)
            self.cursor = len(self.log)
        self.start()

    # --- the world ----------------------------------------------------------------------------------------------------

    def publish(self, account: AccountThere, kind: str, **fields: Any) -> None:
        fate = self.random.random() if self.faults else 1.0
        # Seen again with the next good message; an invalid one reveals nothing for sure.
        account.hidden = fate < 0.05 or (account.hidden and fate <= 0.12)
        skew = self.random.choice((0, 0, -500, 300)) if self.faults else 0
        if not account.hidden:
            valid = fate > 0.12 or kind in ("account", "identity")
            self.log.append(
                Frame(
                    seq=len(self.log) + 1, kind=kind, did=account.did, time_us=self.clock + skew, valid=valid, **fields
                )
            )
            self.trace.append(self.log[-1])

    def commit(self, did: str) -> None:
        account = self.accounts[did]
        if not account.active:
            return
        before, records = account.records, dict(account.records)
        ops: list[tuple[str, int | None]] = []
        for path in self.random.sample(PATHS, self.random.randint(1, 2)):
            if path in records and self.random.random() < 0.5:
                del records[path]
                ops.append((path, None))
            else:
                self.values += 1
                records[path] = self.values
                ops.append((path, self.values))
        since, rev = account.rev, rev_text(int(account.rev or 0) + 1)
        account.versions.append((rev, records))
        prev = data_of(before) if since else None
        self.publish(account, "commit", rev=rev, since=since, prev_data=prev, data=data_of(records), ops=tuple(ops))

    def sync(self, did: str, changed: bool) -> None:
        account = self.accounts[did]
        if not account.active or not account.versions:
            return
        records = dict(account.records)
        if changed:
            self.values += 1
            records = {PATHS[0]: self.values}
        account.versions.append((rev_text(int(account.rev or 0) + 1), records))
        self.publish(account, "sync", rev=account.rev, data=data_of(records))

    def set_status(self, did: str) -> None:
        account = self.accounts[did]
        if not account.versions:
            return
        choices = [(True, ""), (False, "deactivated"), (False, "deleted")]
        choices = [c for c in choices if c != (account.active, account.status)]
        active, status = choices[0] if self.random.random() < 0.7 else self.random.choice(choices)
        if "deleted" in (status, account.status):
            account.versions.append((rev_text(int(account.rev or 0) + 1), {}))
        account.active, account.status = active, status
        self.publish(account, "account", active=active, status=status)
        if active:
            hidden = account.hidden
            self.publish(account, "sync", rev=account.rev, data=data_of(account.records))
            account.hidden |= hidden

    def change_handle(self, did: str) -> None:
        account = self.accounts[did]
        if account.versions:
            self.values += 1
            account.handle = f"h{self.values}"
            hidden = account.hidden
            self.log.append(
                Frame(seq=len(self.log) + 1, kind="identity", did=did, time_us=self.clock, handle=account.handle)
            )
            account.hidden = hidden

    # --- one process --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.buffer: LiveBuffer[LiveEvent] = LiveBuffer(max_operations=6, max_per_repo=5)
        self.repos: dict[str, LiveRepo] = {}
        self.read_seq = self.cursor
        self.open: set[int] = set()
        self.finished: set[int] = set()
        self.changes: deque[tuple[str, Any]] = deque()
        self.proving: dict[str, deque[tuple[int, Any]]] = {did: deque() for did in self.dids}
        self.lanes: dict[str, deque[Piece]] = {"live": deque(), "backfill": deque()}
        self.acks: deque[Piece] = deque()
        self.fetches: dict[str, Any] = {}
        self.asked_with: dict[
            str, tuple[int, NsidFilter]
        ] = {}  # a fetch: events of the account before it, and its filter
        self.stopping: set[tuple[str, int]] = set()
        self.resolving: set[str] = set()
        self.checks: dict[str, tuple[str, int]] = {}
        self.asked: dict[str, tuple[str, int, int]] = {}
        self.newest: dict[str, str] = {}
        self.verified: dict[str, tuple[int, str, dict[str, int], NsidFilter]] = {}
        for did, facts in self.rows.items():
            if facts.state is S.ACTIVE:
                self.rows[did] = replace(facts, state=S.PENDING)
        for did in list(self.rows):
            self.repo(did)

    def repo(self, did: str) -> LiveRepo:
        repo = self.repos.get(did)
        if repo is None:
            repo = self.repos[did] = LiveRepo(did, self.buffer, self.wanted, self.rows.get(did))
            self.run(did, repo.begin())
        return repo

    def feed(self, did: str, event: e.Event) -> None:
        self.trace.append((did, event))
        self.run(did, self.repo(did).feed(event))

    def run(self, did: str, effects: tuple[e.Effect, ...]) -> None:
        later: list[tuple[str, e.Event]] = []
        refused = False
        for index, effect in enumerate(effects):
            self.trace.append(effect)
            match effect:
                case e.Store():
                    if index:
                        raise Violation("a Store behind other effects")
                    self.changes.append((did, effect))
                case e.Done():
                    if effect.seq not in self.open or effect.seq in self.finished:
                        raise Violation(f"frame {effect.seq} is done again, or was not read")
                    self.finished.add(effect.seq)
                    while self.open and min(self.open) in self.finished:
                        self.open.discard(min(self.open))
                    self.changes.append(("cursor", min(self.open, default=self.read_seq + 1) - 1))
                case e.Verify():
                    self.proving[did].append((effect.seq, effect.frame))
                case e.Offer():
                    if refused:
                        continue
                    if len(self.lanes["live"]) >= LANE:
                        refused = True
                        later.append((did, e.IngesterBehind(token=effect.token)))
                        continue
                    self.lanes["live"].append(Piece(did, effect.payload, token=effect.token))
                case e.OfferAccount():
                    if self.in_flight(did):
                        raise Violation("an ACCOUNT overtakes what is in flight")
                    if (
                        (stored := self.rows.get(did)) is None
                        or stored.tell is None
                        or stored.tell.time_us < effect.time_us
                    ):
                        raise Violation("a status is told before it is stored")
                    op = Op("account", did, active=effect.active, status=effect.status, time_us=effect.time_us)
                    self.lanes["live"].append(Piece(did, [op], token=effect.token))
                case e.OfferIdentity():
                    if self.in_flight(did):
                        raise Violation("an IDENTITY overtakes what is in flight")
                    op = Op("identity", did, handle=effect.handle)
                    self.lanes["live"].append(Piece(did, [op], token=effect.token))
                case e.Withdraw():
                    for piece in [p for p in self.lanes["live"] if p.token in effect.tokens]:
                        self.lanes["live"].remove(piece)
                        assert piece.token is not None
                        later.append((did, e.Withdrawn(token=piece.token)))
                case e.SendSnapshot():
                    self.send_snapshot(did, effect.fetch)
                case e.RefuseSnapshot():
                    self.fetches.pop(did, None)
                    self.attempts[did] = self.attempts.get(did, 0) + 1
                    later.append(
                        (did, e.FetchFailed(fetch=effect.fetch, outcome=LifeEvent.ATTEMPT_FAILED, reason=effect.reason))
                    )
                case e.StopSnapshot():
                    self.fetches.pop(did, None)
                    for piece in [
                        p
                        for p in self.lanes["backfill"]
                        if p.did == did and p.snapshot and p.snapshot[0] == effect.fetch
                    ]:
                        self.lanes["backfill"].remove(piece)
                    self.stopping.add((did, effect.fetch))
                case e.Overflowed():
                    later.append((effect.did, e.BufferOverflow(events=effect.events)))
                case e.CheckDue():
                    self.checks[did] = (effect.what, effect.mark)
                case e.ResolveIdentity():
                    self.resolving.add(did)
                case e.Desync() | e.FetchAgain() | e.Count():
                    pass
        for other, event in later:
            self.feed(other, event)

    def in_flight(self, did: str) -> bool:
        return any(p.did == did for p in (*self.lanes["live"], *self.lanes["backfill"], *self.acks))

    def send_snapshot(self, did: str, fetch: int) -> None:
        if self.in_flight(did):
            raise Violation("a snapshot overtakes what is in flight")
        number, rev, records, covers = self.verified[did]
        stored = self.rows[did]
        if number != fetch or stored.rev_begun != rev or not stored.touched:
            raise Violation("a snapshot begins before that is stored")
        if (
            stored.tell is not None
            and stored.told is not None
            and self.ingester.account.get(did, (0,))[0] < stored.tell.time_us
        ):
            raise Violation("a snapshot begins before the status is told")
        mark = (fetch, rev, data_of(records), covers)
        pieces = [Piece(did, [Op("begin", did, rev)], snapshot=mark)]
        for path, value in records.items():
            if wants(covers, path):
                pieces.append(Piece(did, [Op("put", did, rev, path, value)], snapshot=mark))
        pieces.append(Piece(did, [Op("end", did, rev, covers=covers)], snapshot=mark, is_end=True))
        self.lanes["backfill"].extend(pieces)

    # --- actions ------------------------------------------------------------------------------------------------------

    def actions(self) -> Iterator[tuple[Any, ...]]:
        if self.read_seq < len(self.log):
            yield (self.read,)
        if self.changes:
            yield (self.checkpoint,)
        for did in self.dids:
            if self.proving[did]:
                yield self.prove, did
            facts = self.rows.get(did)
            if facts is not None and facts.state in FETCHED and did not in self.fetches and not self.is_putting(did):
                if facts.state is S.DISCOVERED:
                    yield self.resolve, did
                else:
                    yield self.claim, did
            if did in self.fetches and self.fetches[did] != SENT:
                yield (self.answer if self.fetches[did] is None else self.verify_snapshot), did
            if did in self.resolving:
                yield self.resolve, did
            if did in self.checks:
                yield self.ask, did
            elif did in self.asked:
                yield self.answered, did
        for did, fetch in self.stopping:
            if not any(
                p.did == did and p.snapshot and p.snapshot[0] == fetch for p in (*self.lanes["backfill"], *self.acks)
            ):
                yield self.stopped, did, fetch
        for lane, queue in self.lanes.items():
            if queue:
                yield self.deliver, lane
        if self.acks:
            yield (self.acknowledge,)

    def is_putting(self, did: str) -> bool:
        return any(name == did for name, _ in self.changes)

    def fault(self) -> tuple[Any, ...]:
        did = self.random.choice(self.dids)
        if self.random.random() < self.commits:
            return (self.commit, did) if self.accounts[did].active else (self.set_status, did)
        roll = 0.45 + 0.55 * self.random.random()
        if roll < 0.53:
            return self.sync, did, self.random.random() < 0.5
        if roll < 0.63:
            return self.set_status, did
        if roll < 0.67:
            return self.change_handle, did
        if roll < 0.75:
            return (self.crash,)
        if roll < 0.78:
            return (self.change_filter,)
        if roll < 0.81:
            return self.listed, did
        if roll < 0.85:
            return (self.simple, did, e.ResyncAsked()) if self.random.random() < 0.5 else (self.restore,)
        if roll < 0.88:
            return self.simple, did, e.IngesterBehind()
        if roll < 0.92:
            return (self.relieve,)
        if roll < 0.96:
            return self.evict, did
        return self.fetch_fails, did

    def read(self) -> None:
        if self.open and self.read_seq - min(self.open) + 1 >= MAX_OPEN:
            self.relieve()
            return
        frame = self.log[self.read_seq]
        if frame.kind in ("account", "identity") and self.proving[frame.did]:
            self.prove(frame.did)  # they come behind the results of earlier frames
            return
        self.read_seq = frame.seq
        self.open.add(frame.seq)
        did = frame.did
        match frame.kind:
            case "account":
                self.feed(
                    did, e.Account(seq=frame.seq, active=frame.active, status=frame.status, time_us=frame.time_us)
                )
            case "identity":
                self.feed(did, e.IdentitySeen(seq=frame.seq, handle=frame.handle, time_us=frame.time_us))
            case _:
                is_first = frame.kind == "commit" and frame.since is None
                kind: e.FrameKind = "sync" if frame.kind == "sync" else "commit"
                self.feed(did, e.FrameSeen(seq=frame.seq, kind=kind, rev=frame.rev, is_first=is_first, frame=frame))

    def prove(self, did: str) -> None:
        seq, given = self.proving[did].popleft()
        frame = self.log[seq - 1]
        if given is not None and given is not frame:
            raise Violation("a frame is verified that was not kept")
        if not frame.valid:
            self.feed(did, e.Invalid(seq=seq, rev=frame.rev, reason="bad"))
            return
        ops = [
            Op("delete" if value is None else "put", did, frame.rev, path, value or 0)
            for path, value in frame.ops
            if wants(self.wanted, path)
        ]
        event = LiveEvent(
            seq=seq,
            is_sync=frame.kind == "sync",
            rev=frame.rev,
            since=frame.since,
            prev_data=frame.prev_data,
            data=frame.data,
            operations=len(ops),
            payload=ops,
        )
        self.feed(did, e.Proved(event=event))

    def checkpoint(self) -> None:
        """One transaction: what was put, in order, perhaps not yet the newest of it."""
        count = self.random.randint(1, len(self.changes)) if self.faults else len(self.changes)
        stored: dict[str, int] = {}
        for _ in range(count):
            name, what = self.changes.popleft()
            if name == "cursor":
                self.cursor = max(self.cursor, what)
            else:
                self.rows[name] = what.facts
                stored[name] = what.version
        for did, version in stored.items():
            if did in self.repos:
                self.feed(did, e.RowStored(version=version))

    def claim(self, did: str) -> None:
        self.rows[did] = replace(self.rows[did], state=S.ACTIVE)
        self.feed(did, e.Claimed())
        self.fetches[did] = None
        self.asked_with[did] = (self.repo(did).account_events, self.wanted)

    def answer(self, did: str) -> None:
        account = self.accounts[did]
        if not account.active or not account.versions:
            self.fetches[did] = ("status", account.active, account.status)
            return
        back = self.random.choice((0, 0, 0, 1, 2)) if self.faults else 0
        if self.ingester.highest.get(did, "") > (self.rows[did].rev_heard or ""):
            # A lost process delivered a commit of which it could store nothing: an old copy from before that is not recognised
            # as old, and the ingester ignores what it brings. Only a newer commit or a reconcile shows it.
            back = 0
        rev, records = account.versions[max(0, len(account.versions) - 1 - back)]
        self.fetches[did] = ("repo", rev, dict(records))

    def verify_snapshot(self, did: str) -> None:
        answer = self.fetches[did]
        repo = self.repo(did)
        void = self.asked_with[did][0] != repo.account_events
        fetch = repo.fetch
        if answer[0] == "status":
            del self.fetches[did]
            self.feed(
                did,
                e.StatusLearnt(active=answer[1], status=answer[2], time_us=self.clock, asked_before_event=void),
            )
            self.feed(did, e.FetchFailed(fetch=fetch, outcome=LifeEvent.ATTEMPT_FAILED, reason="status"))
            return
        _, rev, records = answer
        if not void:
            self.feed(did, e.StatusLearnt(active=True, status="", time_us=self.clock, asked_before_event=False))
        if did not in self.fetches:
            return
        covers = self.asked_with[did][1]
        self.verified[did] = (fetch, rev, records, covers)
        sends = repo.facts.touched or any(wants(covers, path) for path in records)
        self.fetches[did] = SENT
        last = self.attempts.get(did, 0) > 3
        self.feed(did, e.SnapshotVerified(fetch=fetch, rev=rev, sends=sends, is_last_try=last))
        if not sends and did in self.fetches and self.repo(did).fetch == fetch:
            self.delivered(did, fetch, rev, data_of(records), covers)

    def delivered(self, did: str, fetch: int, rev: str, data: bytes, covers: NsidFilter) -> None:
        if self.repo(did).fetch == fetch:
            self.fetches.pop(did, None)
        self.attempts[did] = 0
        self.feed(did, e.SnapshotDelivered(fetch=fetch, rev=rev, data=data, covers=covers))

    def stopped(self, did: str, fetch: int) -> None:
        self.stopping.discard((did, fetch))
        self.feed(did, e.SnapshotStopped(fetch=fetch))

    def fetch_fails(self, did: str) -> None:
        if self.fetches.get(did, 0) is None:
            del self.fetches[did]
            outcome = self.random.choice((LifeEvent.RELEASED, LifeEvent.ATTEMPT_FAILED, LifeEvent.GAVE_UP))
            self.feed(did, e.FetchFailed(fetch=self.repo(did).fetch, outcome=outcome, reason="timeout"))

    def resolve(self, did: str) -> None:
        self.resolving.discard(did)
        if self.faults and self.random.random() < 0.3:
            self.feed(did, e.IdentityFailed())
            return
        self.feed(did, e.IdentityLearnt(handle=self.accounts[did].handle, pds="https://pds", time_us=self.clock))

    def ask(self, did: str) -> None:
        what, mark = self.checks.pop(did)
        self.asked[did] = (what, mark, self.repo(did).account_events)

    def answered(self, did: str) -> None:
        what, mark, events = self.asked.pop(did)
        account, repo = self.accounts[did], self.repo(did)
        void = events != repo.account_events
        rev = account.rev
        self.feed(did, e.CheckAnswered(mark=mark))
        if what == "status":
            self.feed(
                did,
                e.StatusLearnt(
                    active=account.active, status=account.status, time_us=self.clock, asked_before_event=void
                ),
            )
        if rev is not None:
            self.feed(did, e.NewerRev(rev=rev))

    def deliver(self, lane: str) -> None:
        piece = self.lanes[lane].popleft()
        for op in piece.ops:
            if op.rev:
                if op.rev < self.newest.get(op.did, ""):
                    raise Violation(f"order: {op} after {self.newest[op.did]}")
                self.newest[op.did] = op.rev
            self.ingester.apply(op)
        self.acks.append(piece)

    def acknowledge(self) -> None:
        piece = self.acks.popleft()
        if piece.token is not None:
            self.feed(piece.did, e.Acknowledged(token=piece.token))
        elif piece.is_end and piece.snapshot is not None:
            self.delivered(piece.did, *piece.snapshot)

    def crash(self) -> None:
        """What was written may arrive, all the same."""
        self.trace.append("CRASH")
        for queue in self.lanes.values():
            for _ in range(self.random.randint(0, len(queue))):
                for op in queue.popleft().ops:
                    self.ingester.apply(op)
        if self.random.random() < 0.3:
            self.wanted = self.random.choice(FILTERS)
        self.start()

    def change_filter(self) -> None:
        self.wanted = self.random.choice(FILTERS)
        for did in sorted(self.rows.keys() | self.repos.keys()):
            self.feed(did, e.FilterChanged(wanted=self.wanted))

    def restore(self) -> None:
        """The ingester has lost everything; the operator asks for all of it again, which is stored before the command returns."""
        self.ingester = Ingester()
        for did in list(self.rows):
            self.feed(did, e.ResyncAsked())
        while self.changes:
            self.checkpoint()

    def listed(self, did: str) -> None:
        account = self.accounts[did]
        if account.rev is not None and did in self.rows:
            self.feed(did, e.NewerRev(rev=account.rev))

    def simple(self, did: str, event: e.Event) -> None:
        if did in self.repos and self.repos[did].is_known:
            self.feed(did, event)

    def relieve(self) -> None:
        if self.open:
            did = self.log[min(self.open) - 1].did
            self.feed(did, e.OpenFramesRelief())
            for other in self.dids:
                while self.proving[other]:
                    self.prove(other)

    def evict(self, did: str) -> None:
        is_busy = self.is_putting(did) or did in self.asked or did in self.checks
        is_stopping = any(each == did for each, _ in self.stopping)
        if did in self.repos and self.repos[did].is_idle and not is_busy and not is_stopping:
            del self.repos[did]

    # --- a whole run --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        self.clock += self.random.randint(0, 50)
        possible = list(self.actions())
        if not possible or self.random.random() < self.storm:
            action = self.fault()
        else:
            action = self.random.choice(possible)
        self.trace.append(action)
        action[0](*action[1:])

    def settle(self) -> None:
        self.faults = False
        for _ in range(3000):
            self.clock += 10
            possible = list(self.actions())
            if not possible:
                return
            action = self.random.choice(possible)
            self.trace.append(action)
            action[0](*action[1:])
        raise Violation("does not come to rest")

    def check(self) -> None:
        if self.cursor != len(self.log):
            raise Violation(f"cursor {self.cursor} of {len(self.log)}: open {self.open - self.finished}")
        for did, account in self.accounts.items():
            facts = self.rows.get(did)
            if facts is None:
                continue
            if facts != self.repo(did).facts:
                raise Violation(f"{did} is not stored as it is: {facts} {self.repo(did).facts}")
            told = self.ingester.account.get(did, (0, True, ""))[1:]
            if told != (account.active, account.status):
                raise Violation(f"{did} was told {told}, and is {account.active} {account.status}")
            if facts.tell_identity is not None and self.ingester.identity.get(did) != account.handle:
                raise Violation(f"{did} is told to be {self.ingester.identity.get(did)}, and is {account.handle}")
            if not account.active:
                if facts.state is not S.INACTIVE:
                    raise Violation(f"{did} is {facts.state}, and inactive there")
                continue
            if facts.state is not S.SYNCED or facts.rev != account.rev or facts.data != data_of(account.records):
                raise Violation(f"{did} is {facts}, there {account.rev}")
            rows = {
                path: v for (d, path), (v, _) in self.ingester.rows.items() if d == did and wants(self.wanted, path)
            }
            there = {path: v for path, v in account.records.items() if wants(self.wanted, path)}
            if rows != there:
                raise Violation(f"{did} has {rows}, there {there}")

    def reconcile(self) -> None:
        for did, account in self.accounts.items():
            if did in self.rows and account.rev is not None:
                self.feed(did, e.NewerRev(rev=account.rev))
                told = self.repo(did)
                self.feed(
                    did,
                    e.StatusLearnt(
                        active=account.active, status=account.status, time_us=self.clock, asked_before_event=False
                    ),
                )
                assert told is self.repos[did]


def run(seed: int, steps: int) -> Simulation:
    """One run; raises Violation. The newest change must be seen without a reconcile, where the stream showed it."""
    simulation = Simulation(seed)
    for _ in range(steps):
        simulation.step()
    simulation.settle()
    if not any(account.hidden for account in simulation.accounts.values()):
        simulation.check()
    simulation.reconcile()
    simulation.settle()
    simulation.check()
    return simulation
