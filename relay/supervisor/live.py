"""The live half of the machine, plugged together: tailer, sequencer, verify workers, and the repos that the stream asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from relay.atproto.limits import Limits
from relay.config.schema import Settings
from relay.ipc.arena import Arena
from relay.ipc.child import ChildProcess
from relay.model import Identity, RecordEncoding
from relay.net.guard import Guard
from relay.net.http import user_agent
from relay.net.subscribe import MAX_MESSAGE_BYTES, Subscription
from relay.repos import live_events as e
from relay.repos.checkpointer import CursorChange, IncidentChange
from relay.repos.keeper import Keeper
from relay.repos.resident import Resident
from relay.repos.tasks import StoreTasks
from relay.runtime.clock import Clock
from relay.store import repos
from relay.store.dead_letters import DeadLetter
from relay.store.partitions import partition_of
from relay.store.repos import RepoRow
from relay.store.statements import Cursor
from relay.supervisor.engine import Engine
from relay.tail.messages import FramesVerified
from relay.tail.ports import TailView
from relay.tail.sequencer import OPERATION_SLOT_BYTES, OPERATION_SLOTS_PER_VERIFIER, Sequencer, frame_slots
from relay.tail.tailer import FrameBatch, Tailer, Told, make_reader
from relay.tail.verifier import VerifierSettings, verifier_main


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """Which stream to follow, and from where. `cursor` None: live from now on; `time_us`: of the cursor's event.

    `mode`, `collections`: discovery's. `on_incident(kind, text)`: in the engine's thread; that it is open is stored no later than
    any cursor that forgets it. `on_give_up(text)`: `firehose.max_reconnect_attempts` are used up; any thread.
    """

    upstream: str
    cursor: int | None
    time_us: int | None
    mode: str
    collections: tuple[str, ...]
    on_incident: Callable[[str, str], None]
    on_give_up: Callable[[str], None]


class StreamRepos:
    """Implements the `Residents` that the sequencer asks for: the keeper's, loaded in batches. Lives in the engine's thread.

    `resolve(resident, then)` reads a DID document for its key.
    """

    def __init__(
        self,
        keeper: Keeper,
        tasks: StoreTasks,
        *,
        partitions: int,
        resolve: Callable[[Resident, Callable[[Identity | None], None]], None],
    ) -> None:
        self._keeper, self._tasks, self._partitions, self._resolve = keeper, tasks, partitions, resolve

    def get(self, did: str) -> Resident | None:
        return self._keeper.get(did)

    def load(self, dids: list[str], then: Callable[[], None]) -> None:
        self._load(dids, [], then)

    def hold(self, did: str) -> None:
        self._keeper.hold(self._keeper.residents[did])

    def release(self, did: str) -> None:
        self._keeper.release(self._keeper.residents[did])

    def feed(self, did: str, event: e.Event) -> None:
        self._keeper.feed(self._keeper.residents[did], event)

    def keep_letters(self, letters: list[DeadLetter]) -> None:
        self._keeper.store_letters(letters)

    def checkpoint(self, cursor: CursorChange) -> None:
        self._keeper.checkpoint(cursor)

    def resolve(self, did: str, then: Callable[[Identity | None], None]) -> None:
        self._resolve(self._keeper.residents[did], then)

    def _load(self, dids: list[str], loaded: list[Resident], then: Callable[[], None]) -> None:
        look = self._keeper.begin_look()

        def ask(cursor: Cursor) -> dict[str, tuple[RepoRow, Identity | None]]:
            return repos.load_with_identities(cursor, dids)

        def answered(rows: dict[str, tuple[RepoRow, Identity | None]]) -> None:
            outdated = self._keeper.close_look(look)
            again: list[str] = []
            for did in dids:
                resident = self._keeper.get(did)
                if resident is not None:
                    self._keeper.hold(resident)
                    loaded.append(resident)
                elif did in outdated:  # stored and forgotten since the question
                    again.append(did)
                elif (found := rows.get(did)) is not None:
                    row, identity = found
                    loaded.extend(self._keeper.take([row], None if identity is None else {did: identity}))
                else:
                    loaded.append(self._keeper.take_unknown(did, partition_of(did, self._partitions)))
            if again:
                self._load(again, loaded, then)
                return
            then()
            for resident in loaded:
                self._keeper.release(resident)

        self._tasks.submit("rows of the stream", ask, answered)


class LiveHalf:
    """Everything between the websocket and the repos' machines. Start after the engine's parts are plugged, stop with `stop_reading`
    first and `close` last; the verify workers are the owner's children.
    """

    def __init__(
        self,
        follow: Follow,
        settings: Settings,
        *,
        engine: Engine,
        keeper: Keeper,
        tasks: StoreTasks,
        clock: Clock,
        patterns: Iterable[str],
        operator_origins: tuple[str, ...],
        limits: Limits,
        max_operation_bytes: int,
        blocked: Callable[[], bool],
        send: Callable[[int, object], bool],
        resolve: Callable[[Resident, Callable[[Identity | None], None]], None],
        on_death: Callable[[str, BaseException], None],
    ) -> None:
        verifiers = settings.verify.workers
        theirs, ours = frame_slots(verifiers)
        self._follow, self._keeper, self._clock = follow, keeper, clock
        self.frames = Arena("relay-frames", len(theirs) + len(ours), MAX_MESSAGE_BYTES)
        self.operations = Arena("relay-live-operations", verifiers * OPERATION_SLOTS_PER_VERIFIER, OPERATION_SLOT_BYTES)
        guard = Guard(allow_private=settings.security.allow_private_hosts, exempt=operator_origins)
        agent, idle_s = user_agent(settings.http.contact), settings.firehose.idle_timeout_sec

        def subscribe(cursor: int | None) -> Subscription:
            return Subscription(follow.upstream, cursor=cursor, guard=guard, user_agent=agent, idle_timeout_s=idle_s)

        self.tailer = Tailer(
            subscribe=subscribe,
            reader=make_reader(
                cursor=follow.cursor,
                time_us=follow.time_us,
                reconnect_delay_ms=settings.firehose.reconnect_delay_ms,
                max_reconnect_attempts=settings.firehose.max_reconnect_attempts,
            ),
            frames=self.frames,
            slots=theirs,
            deliver=lambda batch: engine.post(lambda: self._take(batch)),
            tell=lambda told: engine.post(lambda: self._tell(told)),
            on_death=on_death,
        )
        self.sequencer = Sequencer(
            upstream=follow.upstream,
            cursor=follow.cursor,
            time_us=follow.time_us,
            mode=follow.mode,
            collections=follow.collections,
            wanted=tuple(patterns),
            max_open_frames=settings.firehose.max_open_frames,
            verifiers=verifiers,
            frames=self.frames,
            operations=self.operations,
            own_slots=ours,
            residents=StreamRepos(keeper, tasks, partitions=settings.relay.partitions, resolve=resolve),
            send=send,
            free_slot=self.tailer.free,
            blocked=blocked,
            on_incident=self._incident,
            on_give_up=follow.on_give_up,
            clock=clock,
        )
        self._verifier = VerifierSettings(
            encoding=RecordEncoding(settings.delivery.record_encoding),
            signatures=settings.verify.signatures,
            proofs=settings.verify.proofs,
            max_operation_bytes=max_operation_bytes,
            limits=limits,
            log_level=settings.log_level,
            log_format=settings.log_format,
        )

    def start_verifier(self, seat: int) -> ChildProcess:
        return ChildProcess("verify", seat, verifier_main, (self.frames, self.operations, self._verifier))

    def pump(self) -> float | None:
        return self.sequencer.pump(self._clock.monotonic())

    def stop_reading(self, deadline: float) -> None:
        """End the connection; what was read and not sequenced is read again after the next start. Any thread but the engine's."""
        self.tailer.request_stop()
        self.tailer.join(deadline)

    def view(self) -> TailView:
        return self.sequencer.view(self.tailer.status)

    def close(self) -> None:
        self.frames.close()
        self.operations.close()

    def said(self, seat: int, message: object) -> None:
        assert isinstance(message, FramesVerified)
        self.sequencer.answered(seat, message)

    def _take(self, batch: FrameBatch) -> None:
        self.sequencer.take(batch)

    def _tell(self, told: Told) -> None:
        self.sequencer.tell(told)

    def _incident(self, kind: str, text: str) -> None:
        self._keeper.open_incident(IncidentChange(kind=kind, text=text, at=self._clock.now()))
        self._follow.on_incident(kind, text)
