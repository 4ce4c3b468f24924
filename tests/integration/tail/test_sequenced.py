"""From the simulated firehose through the real tailer and a real verify process to the repos' machines."""

from __future__ import annotations

import multiprocessing
import multiprocessing.resource_tracker
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from relay.atproto.limits import DEFAULT_LIMITS
from relay.atproto.nsid_filter import NsidFilter
from relay.ipc.arena import Arena
from relay.ipc.child import Pipe
from relay.model import Identity, RecordEncoding, RepoState
from relay.net.subscribe import MAX_MESSAGE_BYTES, Subscription
from relay.pb.encode import decode_operation, split_operations
from relay.repos import live_events as e
from relay.repos.buffer import LiveBuffer
from relay.repos.checkpointer import CursorChange
from relay.repos.facts import Facts
from relay.repos.handover import LiveEvent
from relay.repos.live import LiveRepo
from relay.runtime.clock import SystemClock
from relay.simnet.network import SimNetwork
from relay.store.dead_letters import DeadLetter
from relay.tail import sequencer as s
from relay.tail.messages import FramesVerified, Stop, from_wire, to_wire
from relay.tail.tailer import Tailer, make_reader
from relay.tail.verifier import VerifierSettings, verifier_main
from tests.integration.tail.hostile import GUARD
from tests.support.simnet import StartNetwork
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

ALL = NsidFilter.parse([])
SETTINGS = VerifierSettings(
    encoding=RecordEncoding.JSON,
    signatures=True,
    proofs=True,
    max_operation_bytes=16 << 20,
    limits=DEFAULT_LIMITS,
    log_level="error",
    log_format="text",
)


class Home:
    def __init__(self, life: LiveRepo, identity: Identity | None) -> None:
        self.life, self.identity = life, identity


class Half:
    """A tail without database and ingester: rows are stored and operations acknowledged at once."""

    def __init__(self, network: SimNetwork) -> None:
        self.network = network
        self.homes: dict[str, Home] = {}
        self.buffer: LiveBuffer[LiveEvent] = LiveBuffer(max_operations=10_000)
        self.proved: dict[str, list[LiveEvent]] = {}
        self.invalid: list[e.Invalid] = []
        self.letters: list[DeadLetter] = []
        self.cursors: list[CursorChange] = []
        self.resolved: list[str] = []
        self.deaths = 0
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        mine, ours = s.frame_slots(1)
        self.frames = Arena("frames", ours.stop, MAX_MESSAGE_BYTES)
        self.operations = Arena("operations", s.OPERATION_SLOTS_PER_VERIFIER, s.OPERATION_SLOT_BYTES)
        cursor = network.log.newest_seq
        self.sequencer = s.Sequencer(
            upstream=network.firehose_url,
            cursor=cursor,
            time_us=None,
            mode="all",
            collections=(),
            wanted=(),
            max_open_frames=100_000,
            verifiers=1,
            frames=self.frames,
            operations=self.operations,
            own_slots=ours,
            residents=self,
            send=lambda _seat, message: self.pipe.send(to_wire(message)),
            free_slot=lambda slot: self.tailer.free(slot),
            blocked=lambda: False,
            on_incident=lambda kind, text: pytest.fail(f"{kind}: {text}"),
            on_give_up=pytest.fail,
            clock=SystemClock(),
        )
        for account in network.world.everyone():
            self.know(account.did)
        self.start_child()
        self.tailer = Tailer(
            subscribe=lambda at: Subscription(
                network.firehose_url,
                cursor=at,
                guard=GUARD,
                user_agent="test/1",
                idle_timeout_s=30,
                connect_timeout_s=5,
            ),
            reader=make_reader(cursor=cursor, time_us=None, reconnect_delay_ms=1, max_reconnect_attempts=-1),
            frames=self.frames,
            slots=mine,
            deliver=lambda batch: self._calls.put(lambda: self.sequencer.take(batch)),
            tell=lambda told: self._calls.put(lambda: self.sequencer.tell(told)),
        )
        self.tailer.start()

    def know(self, did: str) -> None:
        """The repo is synced at where it stands."""
        account = self.network.world.account(did)
        facts = Facts(state=RepoState.SYNCED, rev=account.rev, data=account.repo.data, covers="", touched=True)
        self.homes[did] = Home(LiveRepo(did, self.buffer, ALL, facts), self.document(did, 0.0))

    def document(self, did: str, at: float) -> Identity:
        account = self.network.world.account(did)
        return Identity(did=did, signing_key=account.multikey, pds=None, handle=None, resolved_at=at)

    def start_child(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=True)
        self.child = context.Process(
            target=verifier_main, args=(theirs, self.frames, self.operations, SETTINGS), daemon=True
        )
        self.child.start()
        theirs.close()
        self.pipe = Pipe(ours)
        self.sequencer.child_started(0)

    def round(self) -> None:
        """What the engine does in one."""
        try:
            for wire in self.pipe.receive_ready():
                message = from_wire(wire)
                assert isinstance(message, FramesVerified)
                self.sequencer.answered(0, message)
        except EOFError:
            self.end_child()
            self.deaths += 1
            self.sequencer.child_died(0)
            self.start_child()
        while not self._calls.empty():
            self._calls.get()()
        self.sequencer.pump(time.monotonic())

    def until(self, seq: int) -> None:
        def is_there() -> bool:
            self.round()
            return bool(self.cursors) and self.cursors[-1].seq >= seq

        wait_until(is_there, f"cursor {seq}", deadline_s=60)

    def end_child(self) -> None:
        self.pipe.close()
        self.child.join(10)
        self.child.close()

    def close(self) -> None:
        self.tailer.request_stop()
        wait_until(lambda: not self.tailer.is_alive(), "the tailer's end")
        self.pipe.send(to_wire(Stop()))
        self.end_child()
        self.frames.close()
        self.operations.close()

    # Residents

    def get(self, did: str) -> Home | None:
        return self.homes.get(did)

    def load(self, dids: list[str], then: Callable[[], None]) -> None:
        for did in dids:
            self.homes[did] = Home(LiveRepo(did, self.buffer, ALL, None), None)
        self._calls.put(then)

    def hold(self, did: str) -> None:
        assert did in self.homes

    def release(self, did: str) -> None:
        pass

    def keep_letters(self, letters: list[DeadLetter]) -> None:
        self.letters.extend(letters)

    def checkpoint(self, cursor: CursorChange) -> None:
        self.cursors.append(cursor)

    def resolve(self, did: str, then: Callable[[Identity | None], None]) -> None:
        self.resolved.append(did)
        identity = self.homes[did].identity = self.document(did, time.time())
        self._calls.put(lambda: then(identity))

    def feed(self, did: str, event: e.Event) -> None:
        match event:
            case e.Proved():
                self.proved.setdefault(did, []).append(event.event)
            case e.Invalid():
                self.invalid.append(event)
        self._do(did, self.homes[did].life.feed(event))

    def _do(self, did: str, effects: tuple[Any, ...]) -> None:
        for effect in effects:
            match effect:
                case e.Store():
                    self._later(did, e.RowStored(version=effect.version))
                case e.Done():
                    self.sequencer.done(effect.seq)
                case e.Verify():
                    self.sequencer.verify(did, effect.seq, effect.frame)
                case e.Offer() | e.OfferAccount() | e.OfferIdentity():
                    self._later(did, e.Acknowledged(token=effect.token))

    def _later(self, did: str, event: e.Event) -> None:
        self._calls.put(lambda: self.feed(did, event))


@pytest.fixture(scope="module", autouse=True)
def tracker() -> None:
    """Python's own helper of child processes stays until we end."""
    multiprocessing.resource_tracker.ensure_running()


@pytest.fixture
def half(start_simnet: StartNetwork) -> Iterator[Half]:
    half = Half(start_simnet(accounts=50))
    try:
        yield half
    finally:
        half.close()


def is_at_the_truth(half: Half) -> bool:
    for account in half.network.world.everyone():
        facts = half.homes[account.did].life.facts
        if (facts.state, facts.rev, facts.data) != (RepoState.SYNCED, account.rev, account.repo.data):
            return False
    return True


def test_all_commits_of_fifty_repos_are_proved_in_order(half: Half) -> None:
    written = half.network.write(500)
    half.until(half.network.log.newest_seq)
    assert (half.invalid, half.letters, half.resolved) == ([], [], [])
    assert is_at_the_truth(half)
    operations = 0
    for did, events in half.proved.items():
        assert [event.rev for event in events] == sorted({event.rev for event in events})
        for event in events:
            for at, size in split_operations(event.payload):
                operation = decode_operation(event.payload[at : at + size])
                assert (operation.did, operation.rev, operation.seq) == (did, event.rev, event.seq)
                operations += 1
    assert operations == written.creates + written.updates + written.deletes


def test_a_rotated_key_and_a_killed_worker_lose_nothing(half: Half) -> None:
    did = half.network.dids()[0]
    half.network.write(200)
    half.network.world.rotate_key(did)
    half.network.write(20, [did])
    assert half.child.pid is not None
    os.kill(half.child.pid, signal.SIGKILL)
    half.network.write(200)
    half.until(half.network.log.newest_seq)
    assert half.deaths == 1
    assert did in half.resolved
    assert half.invalid == []
    assert is_at_the_truth(half)
