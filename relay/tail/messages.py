"""What the supervisor and its verify workers say to each other: small msgpack arrays; bulk bytes travel in slots.

As in `relay.backfill.messages`, each message is a NamedTuple, on the pipe it is `[tag, *fields]`, and a *job* is a number that the
supervisor chose: here a batch of frames. Frames of one DID always go to the same worker, which answers in the order of the frames.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple


class FrameFlag(enum.IntFlag):
    """How a frame is to be treated."""

    PROVE_ONLY = 1  # check everything, but encode no operations: nothing of this DID is forwarded now
    LOOK_ONLY = (
        2  # of a DID that we do not know: check nothing, and say whether a commit writes to a `sought` collection
    )


class Outcome(enum.IntEnum):
    """What became of a frame; which fields of its FrameResult are set depends on it."""

    COMMIT = 1  # proved: rev, since, prev_data, data, starting_data, ops_total, operations and their place, refused
    SYNC = 2  # proved: rev, data
    ACCOUNT = 3  # readable: active, status
    IDENTITY = 4  # readable: handle
    UNPROVABLE = (
        5  # signed, but its changes cannot be checked (a break in the chain): reason, rev, since, prev_data, data
    )
    INVALID = (
        6  # to be dropped: reason; rev as far as the message claims one. `bad_signature`: try again with a fresh key
    )
    BAD_FRAME = 7  # not a frame: reason. The connection is at fault
    SKIPPED = 8  # of a kind that we do not know: reason is `unknown_kind`
    LOOKED = 9  # as LOOK_ONLY asks: `operations` of them write to a sought collection, and nothing is proved


NO_KEY = "no_key"  # reason of INVALID: signatures are to be checked, and there is nothing to check this one with
WRONG_ENVELOPE = "wrong_envelope"  # reason of INVALID: the frame is not of the seq or DID that it came under
FAILED = (
    "internal_error"  # reason of INVALID: a mistake of ours that this frame brought to light; the log has the stack
)


class Stop(NamedTuple):
    """Finish what is in hand and end."""


class FreeSlots(NamedTuple):
    """These operation slots are the worker's to fill (again)."""

    slots: list[int]


class FrameToVerify(NamedTuple):
    """One frame in the slot: its place (bytes), and under which seq and DID it came. `key`: Multikey, None if there is none."""

    seq: int
    offset: int
    length: int
    did: str
    key: str | None
    flags: int


class VerifyFrames(NamedTuple):
    """Verify the frames in the first `size` bytes of frame slot `slot`. `frames`: FrameToVerify as lists, in the order to keep.

    `patterns`: the filter; empty: everything. `now_us`: our clock, microseconds since 1970, for revs from the future. `sought`:
    collections that LOOK_ONLY looks for; empty: none.
    """

    job: int
    slot: int
    size: int
    patterns: list[str]
    now_us: int
    frames: list[Any]
    sought: list[str] = []  # noqa: RUF012  (a NamedTuple's default; nobody changes it)


class FrameResult(NamedTuple):
    """What became of one frame. CIDs have 36 bytes. `operations`: how many stand at `offset`, `length` bytes of them; `updates` and
    `deletes` of those, the others create. `ops_total`: operations of the commit, wanted or not. `is_first`: a repo's first commit,
    which holds all of it. `refused`: wanted operations that cannot be delivered, as (collection, rkey, CID as text, reason,
    bytes): for the dead letters.
    """

    seq: int
    outcome: int
    reason: str | None = None
    text: str | None = None
    rev: str | None = None
    since: str | None = None
    prev_data: bytes | None = None
    data: bytes | None = None
    starting_data: bytes | None = None
    time_us: int = 0
    ops_total: int = 0
    is_first: bool = False
    operations: int = 0
    offset: int = 0
    length: int = 0
    refused: tuple[Any, ...] | list[Any] = ()
    active: bool | None = None
    status: str | None = None
    handle: str | None = None
    updates: int = 0
    deletes: int = 0


class FramesVerified(NamedTuple):
    """What became of the next frames of a job; `results`: FrameResult as lists.

    Their operations are the first `size` bytes of operation slot `slot`, None if there are none. `inline`: the bytes themselves,
    of a single frame with more than a slot holds; it holds a slot all the same, so that their number is bounded. `done`: nothing
    of this job follows, and its frame slot is free. `cpu_s`: what the job cost, once it is done.
    """

    job: int
    slot: int | None
    size: int
    inline: bytes | None
    results: list[Any]
    done: bool
    cpu_s: float


_KINDS: tuple[type[Any], ...] = (Stop, FreeSlots, VerifyFrames, FramesVerified)
_TAG = {kind: tag for tag, kind in enumerate(_KINDS)}


def to_wire(message: Any) -> list[Any]:
    """Return the msgpack-able form of one of the messages above."""
    return [_TAG[type(message)], *message]


def from_wire(wire: list[Any]) -> Any:
    """Return the message that `to_wire` made `wire` from. Both ends are the same program: anything else is a KeyError."""
    kind = _KINDS[wire[0]]
    if kind is FramesVerified:
        wire[5] = [FrameResult(*result) for result in wire[5]]
    elif kind is VerifyFrames:
        wire[6] = [FrameToVerify(*frame) for frame in wire[6]]
    return kind(*wire[1:])
