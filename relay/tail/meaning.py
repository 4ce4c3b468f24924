"""What a verify worker's answer means to a repo, as an event of its machine or as dead letters (pure)."""

from __future__ import annotations

from typing import Final

from relay.repos import live_events as e
from relay.repos.handover import LiveEvent
from relay.store.dead_letters import FRAME, DeadLetter
from relay.tail.inhand import FrameInHand, seq_of
from relay.tail.messages import FAILED, NO_KEY, FrameResult, Outcome

WORKER_DIED: Final = "worker_died"  # reason of INVALID: workers died of this frame
# The key may have been rotated, or never have been known.
KEY_REASONS: Final = frozenset({NO_KEY, "bad_signature", "invalid_key"})
# Nobody knows what these frames would have brought: kept, for somebody to look at.
_KEPT_REASONS: Final = frozenset({FAILED, WORKER_DIED})
FIREHOSE: Final = "FIREHOSE"
# Type of a letter that is a whole frame, and not one operation.


def is_key_failure(result: FrameResult) -> bool:
    """Would another key make a difference?"""
    return result.outcome == Outcome.INVALID and result.reason in KEY_REASONS


def of_narrow(result: FrameResult) -> FrameResult:
    """Return what is left of a commit that was judged by a narrower filter than is in force: nobody can tell all that it changed."""
    return result._replace(outcome=Outcome.UNPROVABLE, reason="filter", operations=0, updates=0, deletes=0, refused=())


def is_kept(result: FrameResult) -> bool:
    """Does the frame itself go to the dead letters?"""
    return result.outcome == Outcome.BAD_FRAME or result.reason in _KEPT_REASONS


def event_of(frame: FrameInHand, result: FrameResult, payload: bytes) -> e.Proved | e.Invalid:
    """Return what the machine is told of a `#commit` or `#sync` that it asked to be proved."""
    match result.outcome:
        case Outcome.COMMIT:
            # An old PDS names no prevData: undoing the operations gave it.
            prev_data = result.prev_data if result.prev_data is not None else result.starting_data
            return _proved(
                frame,
                result,
                since=result.since,
                prev_data=None if result.since is None else prev_data,
                payload=payload,
            )
        case Outcome.SYNC:
            return _proved(frame, result, since=None, prev_data=None)
        case Outcome.UNPROVABLE:
            # The account's, but nobody can tell what it changed: it follows nothing, so the repo is fetched.
            return _proved(frame, result, since="", prev_data=None)
    # The rev as it was read and found not to be from the future; the worker's word for a bad frame is only what that claims.
    return e.Invalid(seq=frame.position, rev=frame.rev, reason=result.reason or "invalid")


def _proved(
    frame: FrameInHand, result: FrameResult, *, since: str | None, prev_data: bytes | None, payload: bytes = b""
) -> e.Proved:
    if result.rev is None or result.data is None:
        raise RuntimeError(f"frame {frame.position} of {frame.did} was proved without rev or data")
    return e.Proved(
        event=LiveEvent(
            seq=frame.position,
            is_sync=result.outcome == Outcome.SYNC,
            rev=result.rev,
            since=since,
            prev_data=prev_data,
            data=result.data,
            operations=result.operations,
            payload=payload,
            received_at=frame.received_at,
        )
    )


def account_event(frame: FrameInHand, result: FrameResult) -> e.Account | e.IdentitySeen | None:
    """Return what an `#account` or `#identity` says; None when it is not to be understood."""
    match result.outcome:
        case Outcome.ACCOUNT:
            return e.Account(
                seq=frame.position,
                active=result.active is not False,
                status=result.status or "",
                time_us=result.time_us,
            )
        case Outcome.IDENTITY:
            return e.IdentitySeen(seq=frame.position, handle=result.handle, time_us=result.time_us)
    return None


def refused_letters(frame: FrameInHand, result: FrameResult, at: float) -> list[DeadLetter]:
    """Return a letter for each operation of a commit that cannot be delivered."""
    return [
        DeadLetter(
            at=at,
            did=frame.did,
            collection=collection,
            rkey=rkey,
            cid=cid,
            rev=result.rev,
            type="CREATE",
            source=FIREHOSE,
            reason=reason,
            message=f"record of {size:,} bytes of frame {seq_of(frame.position)} is left out",
            ingester="",
            attempts=0,
            size=size,
            operation=None,
        )
        for collection, rkey, cid, reason, size in result.refused
    ]


def frame_letter(
    *, at: float, did: str, seq: int | None, rev: str | None, reason: str, text: str | None, frame: bytes, size: int
) -> DeadLetter:
    """Return the letter of a whole frame. `did` is empty where the frame has none that can be read."""
    return DeadLetter(
        at=at,
        did=did,
        collection=None,
        # A letter is the same as another of the same place and reason: frames differ by their seq.
        rkey=None if seq is None else str(seq),
        cid=None,
        rev=rev,
        type=FRAME,
        source=FIREHOSE,
        reason=reason,
        message=text,
        ingester="",
        attempts=0,
        size=size,
        operation=frame,
    )
