"""All that stands around a sequencer, in memory: a stream, repos with their machines, verify workers, a directory, a database.

Everything goes on only when the test says so. What must never be is raised here as `Violation`, or found by `check_rest`. The frames are
of a kind of their own, but travel as bytes in the real slots.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.syntax import make_tid
from relay.ipc.arena import Arena, SlotAccount
from relay.model import Identity, RepoState
from relay.repos import live_events as e
from relay.repos.buffer import LiveBuffer
from relay.repos.checkpointer import CursorChange
from relay.repos.facts import Facts
from relay.repos.handover import LiveEvent
from relay.repos.live import LiveRepo
from relay.runtime.clock import ManualClock
from relay.store.dead_letters import DeadLetter
from relay.tail import messages as m
from relay.tail import refresh
from relay.tail.inhand import era_of, seq_of
from relay.tail.messages import FrameFlag, FrameResult, FramesVerified, FrameToVerify, FreeSlots, Outcome, VerifyFrames
from relay.tail.sequencer import Sequencer
from relay.tail.tailer import BadFrame, Envelope, FrameBatch, TailStatus

S = RepoState
ALL = NsidFilter.parse([])
OPERATION_SLOTS = 2
SLOT_BYTES = 64 * 1024
TAILER_SLOTS = range(6)
OWN_SLOTS = range(6, 8)
FETCHABLE = (S.DISCOVERED, S.PENDING, S.FAILED, S.DESYNCED)
STATUS = TailStatus(
    is_connected=True,
    seq=None,
    time_us=None,
    events={},
    ignored={},
    incidents={},
    connections=1,
    failures=0,
    received_bytes=0,
    slot_wait_s=0.0,
    last_error=None,
)


class Violation(AssertionError):
    """A promise is broken."""


def data_of(did: str, rev: str) -> bytes:
    return hashlib.sha256(f"{did} {rev}".encode()).digest() + b"root"


@dataclass
class AccountThere:
    """The truth. `key`: what the directory says."""

    did: str
    rev: str | None = None
    key: int = 0


@dataclass
class Home:
    """A repo in memory."""

    did: str
    life: LiveRepo
    identity: Identity | None


@dataclass
class Worker:
    """A verify process: what it was sent, and which operation slots it may fill."""

    seat: int
    is_alive: bool = False
    jobs: deque[VerifyFrames] = field(default_factory=deque)
    at: int = 0  # the next frame of the job in hand
    free: list[int] = field(default_factory=list)


class World:
    def __init__(
        self,
        *,
        dids: int = 4,
        verifiers: int = 2,
        mode: str = "all",
        cursor: int | None = 100,
        max_open: int = 1000,
        known: bool = True,
    ) -> None:
        self.clock = ManualClock()
        self.accounts = {f"did:plc:{number}": AccountThere(f"did:plc:{number}") for number in range(dids)}
        self.dids = list(self.accounts)
        self.rows: dict[str, Facts] = {}
        self.identities: dict[str, Identity] = {}
        self.homes: dict[str, Home] = {}
        self.holds: Counter[str] = Counter()
        self.loads: deque[tuple[list[str], Callable[[], None]]] = deque()
        self.resolves: deque[tuple[str, Callable[[Identity | None], None]]] = deque()
        self.lookups: list[str] = []  # the machines' own
        self.changes: deque[tuple[str, e.Store]] = deque()
        self.lane: deque[tuple[str, e.LiveToken, Any]] = deque()
        self.fetches: dict[str, int] = {}
        self.letters: list[DeadLetter] = []
        self.cursors: list[CursorChange] = []
        self.incidents: list[tuple[str, str]] = []
        self.given_up: list[str] = []
        self.buffer: LiveBuffer[LiveEvent] = LiveBuffer(max_operations=50)
        self.is_blocked = False
        self.era, self.seq, self.tid = 0, cursor or 0, 0
        self.newest_sent: int | None = cursor
        self.truth: dict[tuple[int, int], dict[str, Any]] = {}
        self.pending: list[tuple[Envelope, bytes]] = []  # emitted, not in a batch
        self.seen: dict[str, int] = {}  # position of the last thing that a machine was told of in order
        self.results: dict[str, int] = {}  # ... of the last result
        self.raw: set[int] = set()  # positions that were kept until the identity was known
        self.fed: set[int] = set()
        self.finished: set[int] = set()
        self.proved: Counter[str] = Counter()
        self.outcome: dict[int, str] = {}  # position -> what the machine was told
        self.failed_at: dict[str, float] = {}  # when the directory last answered about a DID
        self.narrow: set[int] = set()  # seqs of frames that are judged by a filter which is too narrow by then
        self.deaths = 0
        self._events: deque[tuple[str, e.Event | None]] = deque()
        self._feeding = False
        self.frames = Arena("frames", len(TAILER_SLOTS) + len(OWN_SLOTS), SLOT_BYTES)
        self.operations = Arena("operations", OPERATION_SLOTS * verifiers, 4096)
        self.slots = SlotAccount(TAILER_SLOTS)
        self.workers = [Worker(seat) for seat in range(verifiers)]
        self.mode = mode
        if known:
            for did in self.dids:
                self.track(did)
        self.sequencer = Sequencer(
            upstream="wss://up.test",
            cursor=cursor,
            time_us=None,
            mode=mode,
            collections=["com.sought.thing"],
            wanted=[],
            max_open_frames=max_open,
            verifiers=verifiers,
            frames=self.frames,
            operations=self.operations,
            own_slots=OWN_SLOTS,
            residents=self,
            send=self._send,
            free_slot=self.slots.free,
            blocked=lambda: self.is_blocked,
            on_incident=lambda kind, text: self.incidents.append((kind, text)),
            on_give_up=self.given_up.append,
            clock=self.clock,
        )
        for seat in range(verifiers):
            self.start_worker(seat)

    def close(self) -> None:
        self.frames.close()
        self.operations.close()

    # --- the world ----------------------------------------------------------------------------------------------------

    def track(self, did: str) -> None:
        """The repo is synced at where it stands, with the key that the directory has now, read long ago."""
        account = self.accounts[did]
        account.rev = self.next_rev()
        self.rows[did] = Facts(
            state=S.SYNCED,
            rev=account.rev,
            data=data_of(did, account.rev),
            covers="",
            touched=True,
            rev_heard=account.rev,
        )
        self.identities[did] = self.document(did, self.clock.now() - 1000)

    def document(self, did: str, at: float | None = None) -> Identity:
        at = self.clock.now() if at is None else at
        key = f"key{self.accounts[did].key}"
        return Identity(did=did, signing_key=key, pds="https://pds.test", handle=None, resolved_at=at)

    def next_rev(self) -> str:
        self.tid += 1
        return make_tid(int(self.clock.now() * 1_000_000) - 3_600_000_000 + self.tid, 0)

    def emit(self, did: str, kind: str, *, fate: str = "good", operations: int = 1, **more: Any) -> int:
        """Publish an event of an account; return its seq. `fate`: good, invalid, unprovable, bad_frame, internal, kills, future."""
        account = self.accounts[did]
        self.seq += 1 + more.pop("gap", 0)
        frame: dict[str, Any] = {"seq": self.seq, "did": did, "kind": kind, "fate": fate, "key": f"key{account.key}"}
        rev = ""
        is_first = False
        if kind in ("commit", "sync"):
            since = account.rev
            rev = self.next_rev()
            if fate == "future":
                rev = make_tid(int(self.clock.now() * 1_000_000) + 600_000_000, 0)
            else:
                account.rev = rev
            is_first = kind == "commit" and since is None
            frame |= {"rev": rev, "since": since, "data": data_of(did, rev), "operations": operations}
            frame["prev_data"] = None if since is None else data_of(did, since)
        frame |= more
        data = msgpack.packb(frame)
        self.truth[self.era, self.seq] = frame
        time_us = int(self.clock.now() * 1_000_000)
        self.pending.append((Envelope(self.seq, kind, did, time_us, 0, len(data), rev, is_first, operations), data))
        return self.seq

    def batch(self, count: int | None = None) -> bool:
        """The tailer hands on what was published; False: there is no free slot."""
        taken = self.pending[:count]
        slot = self.slots.lease("receiver") if taken else None
        if slot is None:
            return False
        del self.pending[: len(taken)]
        view = self.frames.view(slot)
        size = 0
        envelopes = []
        for envelope, data in taken:
            view[size : size + len(data)] = data
            envelopes.append(envelope._replace(offset=size))
            size += len(data)
        view.release()
        self.newest_sent = envelopes[-1].seq
        self.sequencer.take(FrameBatch(slot=slot, size=size, envelopes=tuple(envelopes), received_at=0.0, era=self.era))
        return True

    def begin_era(self, seq: int) -> None:
        while self.pending and self.batch():
            pass
        if not self.pending:
            self.era += 1
            self.seq = seq
            self.newest_sent = None

    # --- Residents ----------------------------------------------------------------------------------------------------

    def get(self, did: str) -> Home | None:
        return self.homes.get(did)

    def load(self, dids: list[str], then: Callable[[], None]) -> None:
        self.loads.append((dids, then))

    def loaded(self) -> None:
        dids, then = self.loads.popleft()
        for did in dids:
            self.home(did)
        then()

    def home(self, did: str) -> Home:
        home = self.homes.get(did)
        if home is None:
            life = LiveRepo(did, self.buffer, ALL, self.rows.get(did))
            home = self.homes[did] = Home(did, life, self.identities.get(did))
            self._events.append((did, None))
            self._drain()
        return home

    def evict(self, did: str) -> None:
        home = self.homes.get(did)
        if home is not None and home.life.is_idle and not self.holds[did] and did not in self.lookups:
            del self.homes[did]

    def hold(self, did: str) -> None:
        if did not in self.homes:
            raise Violation(f"{did} is held and not in memory")
        self.holds[did] += 1

    def release(self, did: str) -> None:
        self.holds[did] -= 1
        if self.holds[did] < 0:
            raise Violation(f"{did} is released and nobody holds it")

    def keep_letters(self, letters: list[DeadLetter]) -> None:
        self.letters.extend(letters)

    def checkpoint(self, cursor: CursorChange) -> None:
        before = self.cursors[-1].seq if self.cursors else None
        if (self.sequencer._era, cursor.seq) in self.truth or before is None:
            self.check_cursor(cursor.seq)
        self.cursors.append(cursor)

    def check_cursor(self, cursor: int) -> None:
        for (era, seq), frame in self.truth.items():
            position = era << 53 | seq
            if era == self.sequencer._era and seq <= cursor and position in self.fed and position not in self.finished:
                raise Violation(f"the cursor {cursor} passes {frame}, which is open")

    def resolve(self, did: str, then: Callable[[Identity | None], None]) -> None:
        self.resolves.append((did, then))

    def resolved(self, *, works: bool = True) -> None:
        did, then = self.resolves.popleft()
        self.failed_at[did] = self.clock.monotonic()
        if works:
            identity = self.identities[did] = self.document(did)
            if did in self.homes:
                self.homes[did].identity = identity
            then(identity)
        else:
            then(None)

    def feed(self, did: str, event: e.Event) -> None:
        if isinstance(event, e.OpenFramesRelief):
            self.failed_at[did] = self.clock.monotonic()  # no key is waited for any longer
        self._check_order(did, event)
        self._events.append((did, event))
        self._drain()

    def _drain(self) -> None:
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events:
                did, event = self._events.popleft()
                life = self.homes[did].life
                self._do(did, life.begin() if event is None else life.feed(event))
        finally:
            self._feeding = False

    def _do(self, did: str, effects: tuple[e.Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case e.Store():
                    self.changes.append((did, effect))
                case e.Done():
                    if effect.seq in self.finished:
                        raise Violation(f"{effect.seq} is done twice")
                    self.finished.add(effect.seq)
                    self.sequencer.done(effect.seq)
                case e.Verify():
                    if effect.frame is not None:
                        self.raw.add(effect.seq)
                    self.sequencer.verify(did, effect.seq, effect.frame)
                case e.Offer() | e.OfferAccount() | e.OfferIdentity():
                    self.lane.append((did, effect.token, effect))
                case e.Withdraw():
                    for entry in [each for each in self.lane if each[1] in effect.tokens]:
                        self.lane.remove(entry)
                        self._events.append((did, e.Withdrawn(token=entry[1])))
                case e.Overflowed():
                    self._events.append((effect.did, e.BufferOverflow(events=effect.events)))
                case e.ResolveIdentity():
                    if did not in self.lookups:
                        self.lookups.append(did)
                case e.StopSnapshot():
                    self.fetches.pop(did, None)
                    self._events.append((did, e.SnapshotStopped(fetch=effect.fetch)))
                case _:
                    pass

    # --- what a machine is told, and when -----------------------------------------------------------------------------

    def _check_order(self, did: str, event: e.Event) -> None:
        match event:
            case e.FrameSeen():
                self._rises(did, event.seq, self.seen, "told of")
                frame = self.truth[era_of(event.seq), seq_of(event.seq)]
                is_first = frame["kind"] == "commit" and frame["since"] is None
                if (event.rev or frame["rev"]) != frame["rev"] or event.is_first != is_first:
                    raise Violation(f"{event} is not {frame}")
            case e.Account() | e.IdentitySeen():
                self._rises(did, event.seq, self.seen, "told of")
                self._rises(did, event.seq, self.results, "told the result of")
                self._note(event.seq, "told")
            case e.Proved():
                self._result(did, event.event.seq)
                self._check_proved(did, event.event)
            case e.Invalid():
                self._result(did, event.seq)
                self._check_invalid(did, event)
        if isinstance(event, e.FrameSeen | e.Account | e.IdentitySeen):
            self.fed.add(event.seq)

    def _rises(self, did: str, position: int, last: dict[str, int], what: str) -> None:
        if position <= last.get(did, -1):
            raise Violation(f"{did} was {what} {position} after {last[did]}")
        last[did] = position

    def _result(self, did: str, position: int) -> None:
        if position not in self.raw:
            self._rises(did, position, self.results, "told the result of")

    def _note(self, position: int, what: str) -> None:
        if position in self.outcome:
            raise Violation(f"{position} has a second result")
        self.outcome[position] = what

    def _check_proved(self, did: str, event: LiveEvent) -> None:
        self._note(event.seq, "proved")
        frame = self.truth[era_of(event.seq), seq_of(event.seq)]
        self.proved[did] += 1
        if frame["fate"] == "unprovable" or frame["seq"] in self.narrow:
            if (event.since, event.prev_data, event.operations) != ("", None, 0):
                raise Violation(f"{event} can follow something")
            return
        if frame["fate"] not in ("good", "kills"):
            raise Violation(f"{frame} was proved")
        operations = payload_of(frame) if frame["kind"] == "commit" else b""
        if (frame["did"], frame["rev"], frame["data"]) != (did, event.rev, event.data) or event.payload != operations:
            raise Violation(f"{frame} became {event}")

    def _check_invalid(self, did: str, event: e.Invalid) -> None:
        self._note(event.seq, event.reason)
        frame = self.truth[era_of(event.seq), seq_of(event.seq)]
        if frame["fate"] == "future" and event.rev:
            raise Violation("a rev from the future is remembered")
        if frame["fate"] not in ("good", "unprovable", "kills"):
            return
        if event.reason == "worker_died" and self.deaths >= 2:
            return
        identity = self.homes[did].identity
        now = self.clock.now()
        if event.reason in ("bad_signature", "no_key") and (
            frame["key"] != f"key{self.accounts[did].key}"
            or (identity is not None and now - identity.resolved_at < refresh.FRESH_S)
            or self.clock.monotonic() - self.failed_at.get(did, -1000) < refresh.FRESH_S
        ):
            return
        raise Violation(f"{frame} is good and was called {event.reason}")

    # --- verify workers -----------------------------------------------------------------------------------------------

    def _send(self, seat: int, message: Any) -> bool:
        worker = self.workers[seat]
        if not worker.is_alive:
            return False
        # As on the pipe: what cannot travel fails here.
        match m.from_wire(msgpack.unpackb(msgpack.packb(m.to_wire(message)))):
            case VerifyFrames() as job:
                worker.jobs.append(job)
            case FreeSlots(slots):
                if set(slots) & set(worker.free):
                    raise Violation("an operation slot is given twice")
                worker.free.extend(slots)
        return True

    def start_worker(self, seat: int) -> None:
        self.workers[seat] = Worker(seat, is_alive=True)
        self.sequencer.child_started(seat)

    def kill_worker(self, seat: int) -> None:
        if self.workers[seat].is_alive:
            self.workers[seat] = Worker(seat)
            self.deaths += 1
            self.sequencer.child_died(seat)

    def work(self, seat: int, most: int = 1000) -> bool:
        """Answer up to `most` frames of the job in hand in one message; False: there is nothing to do."""
        worker = self.workers[seat]
        if not worker.jobs or not worker.free:
            return False
        job = worker.jobs[0]
        results: list[FrameResult] = []
        payloads: list[bytes] = []
        size = 0
        for wire in job.frames[worker.at : worker.at + most]:
            envelope = FrameToVerify(*wire)
            data = bytes(self.frames.view(job.slot, job.size)[envelope.offset : envelope.offset + envelope.length])
            frame = msgpack.unpackb(data)
            if frame["fate"] == "kills":
                if results:
                    break
                self.kill_worker(seat)
                return True
            result, payload = verdict(frame, envelope, job)
            results.append(result._replace(offset=size, length=len(payload)))
            payloads.append(payload)
            size += len(payload)
        worker.at += len(results)
        is_done = worker.at == len(job.frames)
        if is_done:
            worker.jobs.popleft()
            worker.at = 0
        slot = None
        if size:
            slot = worker.free.pop(0)
            self.operations.view(slot, size)[:] = b"".join(payloads)
        self.sequencer.answered(seat, FramesVerified(job.job, slot, size, None, list(results), is_done, 0.001))
        return True

    # --- the rest -----------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        self.sequencer.pump(self.clock.monotonic())

    def stored(self) -> None:
        did, store = self.changes.popleft()
        self.rows[did] = store.facts
        if did in self.homes:
            self.feed(did, e.RowStored(version=store.version))

    def acknowledged(self) -> None:
        did, token, _ = self.lane.popleft()
        self.feed(did, e.Acknowledged(token=token))

    def looked_up(self, *, works: bool = True) -> None:
        did = self.lookups.pop(0)
        if works:
            identity = self.identities[did] = self.document(did)
            self.homes[did].identity = identity
            self.feed(did, e.IdentityLearnt(handle=None, pds="https://pds.test", time_us=1))
        else:
            self.feed(did, e.IdentityFailed())

    def claim(self, did: str) -> None:
        home = self.homes.get(did)
        if home is not None and home.life.is_known and home.life.facts.state in FETCHABLE and not home.life.is_fresh:
            self.feed(did, e.Claimed())
            self.fetches[did] = home.life.fetch

    def fetched(self, did: str) -> None:
        """The fetch brings what the account has now, and nothing has to be sent."""
        fetch, rev = self.fetches.pop(did), self.accounts[did].rev
        assert rev is not None
        self.feed(did, e.SnapshotVerified(fetch=fetch, rev=rev, sends=False, is_last_try=True))
        self.feed(did, e.SnapshotDelivered(fetch=fetch, rev=rev, data=data_of(did, rev), covers=ALL))

    def step(self) -> bool:
        """Do one of the things that can be done; False: nothing can."""
        self.pump()
        if self.loads:
            self.loaded()
        elif self.resolves:
            self.resolved()
        elif self.lookups:
            self.looked_up()
        elif any(self.work(seat) for seat in range(len(self.workers))):
            pass
        elif dead := [worker.seat for worker in self.workers if not worker.is_alive]:
            self.start_worker(dead[0])
        elif self.changes:
            self.stored()
        elif self.lane:
            self.acknowledged()
        elif self.fetches:
            self.fetched(next(iter(self.fetches)))
        elif not self.pending or not self.batch():
            return False
        return True

    def settle(self) -> None:
        """Let everything come to rest."""
        self.is_blocked = False
        for _ in range(5000):
            if not self.step():
                self.clock.advance(1.5)
                if not self.step():
                    self.pump()
                    return
        raise Violation("does not come to rest")

    def check_rest(self) -> None:
        """Nothing is in hand any more, and everything is done."""
        view = self.sequencer.view(STATUS)
        if not self.sequencer.is_quiet or view.verifying or view.waiting_for_key or view.waiting_batches:
            raise Violation(f"something is still in hand: {view}")
        if view.open_frames or view.distance:
            raise Violation(f"open frames: {view}")
        if +self.holds:
            raise Violation(f"still held: {+self.holds}")
        if self.slots.in_use or self.sequencer._seats._own.in_use:
            raise Violation("a slot is not given back")
        keys = self.sequencer._turns.keys
        if keys.frames or keys.bytes:
            raise Violation("the account of what waits is wrong")
        if any(len(worker.free) != OPERATION_SLOTS for worker in self.workers):
            raise Violation("an operation slot is not given back")
        if self.newest_sent is not None and view.cursor != self.newest_sent:
            raise Violation(f"the cursor is {view.cursor}, the newest frame {self.newest_sent}")


def payload_of(frame: dict[str, Any]) -> bytes:
    return b"<%d>" % int(frame["seq"]) * int(frame["operations"])


def verdict(frame: dict[str, Any], envelope: FrameToVerify, job: VerifyFrames) -> tuple[FrameResult, bytes]:
    """What a worker finds."""
    seq, fate, kind = frame["seq"], frame["fate"], frame["kind"]
    if (seq, frame["did"]) != (envelope.seq, envelope.did):
        raise Violation(f"{frame} lies where {envelope} should")
    if fate == "bad_frame":
        return FrameResult(seq, Outcome.BAD_FRAME, "invalid_frame", "junk"), b""
    if fate == "internal":
        return FrameResult(seq, Outcome.INVALID, m.FAILED, "KeyError"), b""
    if fate == "invalid":
        return FrameResult(seq, Outcome.INVALID, "invalid_message", "nonsense"), b""
    if kind == "account":
        return FrameResult(seq, Outcome.ACCOUNT, active=frame.get("active", True), time_us=seq), b""
    if kind == "identity":
        return FrameResult(seq, Outcome.IDENTITY, handle=None, time_us=seq), b""
    rev = frame["rev"]
    if envelope.flags & FrameFlag.LOOK_ONLY:
        found = frame["operations"] if kind == "commit" and frame.get("collection") in job.sought else 0
        return FrameResult(seq, Outcome.LOOKED, rev=rev, operations=found), b""
    if envelope.key is None:
        return FrameResult(seq, Outcome.INVALID, m.NO_KEY, "no key", rev), b""
    if fate == "future":
        return FrameResult(seq, Outcome.INVALID, "future_rev", "too early", rev), b""
    if envelope.key != frame["key"]:
        return FrameResult(seq, Outcome.INVALID, "bad_signature", "another key", rev), b""
    if kind == "sync":
        return FrameResult(seq, Outcome.SYNC, rev=rev, data=frame["data"]), b""
    if fate == "unprovable":
        return FrameResult(seq, Outcome.UNPROVABLE, "too_big", "old", rev, frame["since"], None, frame["data"]), b""
    result = FrameResult(
        seq,
        Outcome.COMMIT,
        None,
        None,
        rev,
        frame["since"],
        frame["prev_data"],
        frame["data"],
        frame["prev_data"],
        operations=frame["operations"],
        ops_total=frame["operations"],
        is_first=frame["since"] is None,
        refused=frame.get("refused", ()),
    )
    return result, payload_of(frame)


def bad_frame(after_seq: int | None) -> BadFrame:
    return BadFrame(era=0, after_seq=after_seq, frame=b"junk", size=4, why="not CBOR")
