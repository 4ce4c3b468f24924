"""Whose turn it is: the answers of the verify workers become events of the machines, of each DID in the order of its frames.

An answer waits for those of earlier frames, and for a fresh key where a signature failed (`refresh`); `#account` and `#identity`
are barriers, behind everything earlier of their DID and before everything later. Lives in the engine's thread.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay.model import Identity, OpType
from relay.observe.log import get_logger
from relay.repos import live_events as e
from relay.runtime.clock import Clock
from relay.tail import meaning
from relay.tail.dispatch import VerifySeats
from relay.tail.inhand import FrameInHand, seq_of
from relay.tail.messages import FrameResult, Outcome
from relay.tail.ports import Resident, Residents
from relay.tail.refresh import DidQueue, KeyRefresh

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFrame:
    """What FrameSeen carries of a frame that may have to wait for its repo's identity."""

    frame: bytes
    kind: str
    rev: str


class Turns:
    """The queues of the DIDs of which frames are in hand. `done(position)` ends a frame that no machine is told of."""

    def __init__(self, *, seats: VerifySeats, residents: Residents, done: Callable[[int], None], clock: Clock) -> None:
        self._seats, self._residents, self._done, self._clock = seats, residents, done, clock
        self.keys = KeyRefresh()
        self.queues: dict[str, DidQueue] = {}
        self.outcomes: Counter[str] = Counter()  # frames by what became of them
        self.invalid: Counter[str] = Counter()  # by reason
        self.made: Counter[OpType] = Counter()  # operations of proved commits
        self._asked: int | None = None  # the position whose proof was asked for while its FrameSeen was fed

    # --- queues -------------------------------------------------------------------------------------------------------

    def queue(self, did: str) -> DidQueue:
        queue = self.queues.get(did)
        if queue is None:
            queue = self.queues[did] = DidQueue(did)
        return queue

    def pin(self, queue: DidQueue) -> None:
        """Keep the DID, which is in memory, there until `let_go`."""
        if not queue.is_pinned:
            queue.is_pinned = True
            self._residents.hold(queue.did)

    def let_go(self, queue: DidQueue) -> None:
        """Forget the queue if no frame of the DID is in hand any more."""
        if queue.is_empty and self.queues.get(queue.did) is queue:
            del self.queues[queue.did]
            if queue.is_pinned:
                self._residents.release(queue.did)

    def resident(self, did: str) -> Resident:
        resident = self._residents.get(did)
        if resident is None:
            raise RuntimeError(f"{did} is not in memory, and frames of it are in hand")
        return resident

    def key_of(self, did: str) -> str | None:
        identity = self.resident(did).identity
        return None if identity is None else identity.signing_key

    # --- a frame is read ----------------------------------------------------------------------------------------------

    def see(self, frame: FrameInHand) -> bool:
        """Tell the machine of a commit or sync; return whether it asks for the proof. If not, it is through with the frame."""
        life = self.resident(frame.did).life
        kept = None
        if life.is_fresh or (frame.is_first and not life.is_known):
            kept = KeptFrame(frame=self._seats.bytes_of(frame), kind=frame.kind, rev=frame.rev)
        self._asked = None
        self._residents.feed(
            frame.did,
            e.FrameSeen(
                seq=frame.position,
                kind="sync" if frame.kind == "sync" else "commit",
                rev=frame.rev,
                is_first=frame.is_first,
                frame=kept,
                operations=max(1, frame.operations),
            ),
        )
        asked = self._take_asked()
        if asked is None:
            self.outcomes["unproved"] += 1
            return False
        if asked != frame.position:
            raise RuntimeError(
                f"frame {frame.position} of {frame.did} was told of, and the proof of {asked} is asked for"
            )
        frame.is_seen = True
        return True

    def _take_asked(self) -> int | None:
        asked, self._asked = self._asked, None
        return asked

    def verify(self, did: str, position: int, frame: Any) -> None:
        """Effect `Verify`. `frame` None: of the frame that is being fed; else what its FrameSeen carried."""
        if frame is None:
            self._asked = position
            return
        if not isinstance(frame, KeptFrame):
            raise TypeError(f"frame {position} of {did} comes back as {type(frame).__name__}")
        kept = FrameInHand(position, did, frame.kind, frame.rev)
        kept.frame, kept.is_seen, kept.received_at = frame.frame, True, self._clock.monotonic()
        queue = self.queue(did)
        self.pin(queue)
        queue.put(kept)
        self._verify_again(kept)

    # --- a frame is answered ------------------------------------------------------------------------------------------

    def answered(self, frame: FrameInHand, result: FrameResult, payload: bytes) -> None:
        """What became of a frame, whose bytes can still be had now. `payload`: its operations."""
        frame.result, frame.payload = result, payload
        if frame.frame is None and (_may_wait_for_key(frame, result) or meaning.is_kept(result)):
            frame.frame = self._seats.bytes_of(frame)
        queue = self.queues[frame.did]
        if queue.refresh is None and queue.frames[0] is frame:
            self._settle(queue)
            return
        self.keys.hold(queue, frame)
        if queue.refresh is not None and self.keys.is_over(queue):
            log.warning("key_not_waited_for", did=queue.did, frames=queue.held, bytes=queue.held_bytes)
            self._key_answered(queue, None)

    def _settle(self, queue: DidQueue) -> None:
        """Take the frames that are answered, up to one that is not, or has to wait for a key."""
        while queue.frames and queue.refresh is None:
            frame = queue.frames[0]
            if frame.result is None:
                return
            queue.frames.popleft()
            self.keys.drop(queue, frame)
            if self._turn_of(queue, frame, frame.result):
                continue
            queue.put(frame)
            if frame.result is not None:
                self.keys.hold(queue, frame)
                number = self.keys.ask(queue)
                self._residents.resolve(queue.did, functools.partial(self._resolved, queue, number))
            return
        self.let_go(queue)

    def _turn_of(self, queue: DidQueue, frame: FrameInHand, result: FrameResult) -> bool:
        """Everything earlier of the DID is through. False: the frame stays the next one, being verified again or for a key."""
        if frame.is_gate:
            frame.is_gate = False
            queue.gates -= 1
            if frame.kind not in ("commit", "sync"):
                self._told(frame, result)
                return True
            if not self._see_late(frame, result):
                return True
        if result.outcome == Outcome.LOOKED:
            self._verify_again(frame)  # it was not proved, and the DID has become known since
            return False
        if _may_wait_for_key(frame, result) and self._wants_other_key(queue, frame):
            return False
        if result.outcome == Outcome.COMMIT and self._seats.is_narrow(frame):
            # Its repo may have been claimed since with the filter in force, and would seem to cover what this lacks: it is fetched once more.
            result, frame.payload = meaning.of_narrow(result), b""
        self._note(frame, result)
        if result.refused:
            self._residents.keep_letters(meaning.refused_letters(frame, result, self._clock.now()))
        self._residents.feed(frame.did, meaning.event_of(frame, result, frame.payload))
        return True

    def _told(self, frame: FrameInHand, result: FrameResult) -> None:
        event = meaning.account_event(frame, result)
        self._note(frame, result)
        if event is None:
            self._done(frame.position)
        else:
            self._residents.feed(frame.did, event)

    def _see_late(self, frame: FrameInHand, result: FrameResult) -> bool:
        """A commit or sync that came behind others is told of with its answer; return whether that is asked for."""
        if not self.resident(frame.did).life.is_known and not (result.outcome == Outcome.LOOKED and result.operations):
            self._note(frame, result)  # of a DID that nobody wants to know
            self._done(frame.position)
            return False
        return self.see(frame)

    def _note(self, frame: FrameInHand, result: FrameResult) -> None:
        """Count what became of a frame, and keep it if nobody knows what it would have brought."""
        self.outcomes[Outcome(result.outcome).name.lower()] += 1
        if result.operations and result.outcome == Outcome.COMMIT:
            self.made[OpType.CREATE] += result.operations - result.updates - result.deletes
            self.made[OpType.UPDATE] += result.updates
            self.made[OpType.DELETE] += result.deletes
        if result.outcome == Outcome.INVALID or result.outcome == Outcome.BAD_FRAME:
            reason = result.reason or "invalid"
            self.invalid[reason] += 1
            log.info(
                "frame_invalid", did=frame.did, seq=seq_of(frame.position), kind=frame.kind, reason=reason,
                text=result.text,
            )  # fmt: skip
        if meaning.is_kept(result):
            data = self._seats.bytes_of(frame)
            letter = meaning.frame_letter(
                at=self._clock.now(),
                did=frame.did,
                seq=seq_of(frame.position),
                rev=frame.rev or None,
                reason=result.reason or "bad_frame",
                text=result.text,
                frame=data,
                size=len(data),
            )
            self._residents.keep_letters([letter])

    # --- keys ---------------------------------------------------------------------------------------------------------

    def _verify_again(self, frame: FrameInHand) -> None:
        """Have a frame verified whose bytes are its own, with the key that is known now."""
        frame.result, frame.payload, frame.flags = None, b"", 0
        frame.key = self.key_of(frame.did)
        self._seats.put_again(frame)

    def _wants_other_key(self, queue: DidQueue, frame: FrameInHand) -> bool:
        """Is it worth waiting, for the verification with a key that is known by now, or for a fresh document?"""
        identity = self.resident(frame.did).identity
        if identity is not None and identity.signing_key not in (None, frame.key):
            self._verify_again(frame)
            return True
        age_s = None if identity is None else self._clock.now() - identity.resolved_at
        return not self.keys.is_over(queue) and self.keys.may_ask(frame.did, age_s=age_s, now=self._clock.monotonic())

    def give_way(self, did: str) -> None:
        """The DID's oldest frame is open for too long: a directory that is slow, or limits us for an hour, is not waited for by all."""
        queue = self.queues.get(did)
        if queue is not None and queue.refresh is not None:
            log.warning("key_not_waited_for", did=did, frames=queue.held, bytes=queue.held_bytes)
            self._key_answered(queue, None)

    def _resolved(self, queue: DidQueue, number: int, identity: Identity | None) -> None:
        if queue.refresh == number:  # else it is not waited for any longer
            self._key_answered(queue, identity)

    def _key_answered(self, queue: DidQueue, identity: Identity | None) -> None:
        """The signatures that failed are checked once more if the key is another one; else they failed for good."""
        self.keys.answered(queue, self._clock.monotonic())
        for frame in queue.frames:
            if frame.result is None or not meaning.is_key_failure(frame.result):
                continue
            frame.has_fresh_key = True
            if identity is not None and identity.signing_key not in (None, frame.key):
                self.keys.drop(queue, frame)
                self._verify_again(frame)
        self._settle(queue)


def _may_wait_for_key(frame: FrameInHand, result: FrameResult) -> bool:
    return not frame.has_fresh_key and meaning.is_key_failure(result)
