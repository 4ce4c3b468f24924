"""Refused operations that an operator wants sent again (`deadletter requeue`), in the order of their repos."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from relay.deliver.segment import Segment
from relay.model import Identity, Lane, RepoState
from relay.observe.log import get_logger
from relay.pb.encode import OPERATION_TAG, varint
from relay.repos.keeper import Keeper
from relay.repos.letters import Refusal, letter_of
from relay.repos.resident import Resident
from relay.repos.tasks import StoreTasks
from relay.runtime.clock import Clock
from relay.store import dead_letters, identities, notices, repos
from relay.store.dead_letters import DeadLetter
from relay.store.notices import Kind
from relay.store.repos import RepoRow
from relay.store.statements import Cursor

log = get_logger(__name__)

AT_A_TIME = 100
"""Letters in hand: each holds an operation, of up to grpc.max_message_size."""

_Found = tuple[list[DeadLetter], dict[str, RepoRow], dict[str, Identity]]


class Requeueing:
    """Lives in the engine's thread; `look` is to be called about once a second. `offer(segment)` False: there is no room now.

    An operation is sent only if its rev is the newest one that was accepted of its repo, so it overtakes nothing, and only by itself: the
    stream's next operations of that DID queue behind it. Otherwise the repo is delivered again. Its letter stays until the acknowledgement,
    so after a crash it is sent once more.
    """

    def __init__(self, keeper: Keeper, tasks: StoreTasks, clock: Clock, offer: Callable[[Segment], bool]) -> None:
        self._keeper, self._tasks, self._clock, self._offer = keeper, tasks, clock, offer
        self._in_hand: set[int] = set()
        self._is_asking = False

    @property
    def in_flight(self) -> int:
        """Operations that are on their way."""
        return len(self._in_hand)

    def look(self) -> None:
        room = AT_A_TIME - len(self._in_hand)
        if self._is_asking or room <= 0:
            return
        self._is_asking = True
        look, exclude = self._keeper.begin_look(), sorted(self._in_hand)

        def ask(cursor: Cursor) -> _Found:
            letters = dead_letters.requeued(cursor, room, exclude=exclude)
            dids = sorted({letter.did for letter in letters})
            return letters, repos.load(cursor, dids) if dids else {}, identities.load_many(cursor, dids) if dids else {}

        self._tasks.submit("requeued letters", ask, lambda found: self._found(look, found))

    def _found(self, look: int, found: _Found) -> None:
        self._is_asking = False
        letters, rows, known = found
        current = {row.did: row for row in self._keeper.end_look(look, rows.values())}
        for letter in letters:
            row = current.get(letter.did)
            if row is None:
                continue  # stored since the question: the next look finds it
            (resident,) = self._keeper.take([row], known)
            if not self._send(letter, resident):
                self._keeper.release(resident)

    def _send(self, letter: DeadLetter, resident: Resident) -> bool:
        """Queue it; False: not now, or not at all."""
        assert letter.id is not None
        life = resident.life
        if life.is_removed:
            log.warning("dead_letter_kept", id=letter.id, did=letter.did, reason="its repo is not tracked any more")
            self._tasks.submit(
                "keep a letter", lambda cursor: dead_letters.requeue(cursor, _ids(letter), None), _nothing
            )
            return False
        if letter.operation is None or life.state is not RepoState.SYNCED or life.accepted_rev != letter.rev:
            self._resync(letter)
            return False
        payload = _field(letter.operation)
        segment = Segment(
            did=letter.did,
            lane=Lane.LIVE,
            payload=payload,
            size=len(payload),
            operations=1,
            rev=letter.rev or "",
            token=_Again(self, letter, resident),
            received_at=time.monotonic(),
        )
        if not self._offer(segment):
            return False
        self._in_hand.add(letter.id)
        return True

    # --- how it went ----------------------------------------------------------------------------------------------------

    def taken(self, letter: DeadLetter, resident: Resident) -> None:
        log.info("dead_letter_delivered", id=letter.id, did=letter.did, collection=letter.collection, rkey=letter.rkey)
        self._keeper.release(resident)
        self._drop(letter)

    def refused(self, letter: DeadLetter, resident: Resident, refusal: Refusal) -> None:
        """Again: the letter that it becomes replaces this one, which may have had another reason."""
        self._keeper.release(resident)
        new = letter_of(refusal, self._clock.now())
        new = replace(new, attempts=letter.attempts + refusal.attempts)

        def store(cursor: Cursor) -> None:
            dead_letters.delete(cursor, _ids(letter))
            dead_letters.add_many(cursor, [new])

        self._tasks.submit("refused again", store, lambda _: self._in_hand.difference_update(_ids(letter)))

    def _drop(self, letter: DeadLetter) -> None:
        self._tasks.submit(
            "drop a letter",
            lambda cursor: dead_letters.delete(cursor, _ids(letter)),
            lambda _: self._in_hand.difference_update(_ids(letter)),
        )

    def _resync(self, letter: DeadLetter) -> None:
        """Its repo has gone on since."""
        now = self._clock.now()

        def store(cursor: Cursor) -> None:
            dead_letters.delete(cursor, _ids(letter))
            repos.resync(cursor, now=now, dids=[letter.did])
            notices.add(cursor, Kind.RESYNC, [letter.did])

        self._in_hand.update(_ids(letter))
        self._tasks.submit("resync instead", store, lambda _: self._in_hand.difference_update(_ids(letter)))


class _Again:
    """What comes back with the operation, in the engine's thread."""

    __slots__ = ("_letter", "_owner", "_resident", "_was_refused", "token")

    def __init__(self, owner: Requeueing, letter: DeadLetter, resident: Resident) -> None:
        self._owner, self._letter, self._resident = owner, letter, resident
        self._was_refused = False
        self.token = None  # not one of the keeper's

    def acknowledged(self) -> None:
        if not self._was_refused:
            self._owner.taken(self._letter, self._resident)

    def refused(self, refusal: Refusal) -> None:
        self._was_refused = True
        self._owner.refused(self._letter, self._resident, refusal)


def _nothing(_: object) -> None:
    return None


def _ids(letter: DeadLetter) -> list[int]:
    assert letter.id is not None
    return [letter.id]


def _field(operation: bytes) -> bytes:
    """Return an operation as a field of a batch. (A message never begins with the byte of that field's tag.)"""
    if operation[:1] == bytes((OPERATION_TAG,)):
        return operation
    return bytes((OPERATION_TAG,)) + varint(len(operation)) + operation
