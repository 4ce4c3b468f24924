"""The log behind a firehose: events in rising seq, encoded as the frames that subscribers get. Bounded: the replay window."""

from __future__ import annotations

import datetime
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay.simnet.block import encode, link, write_car
from relay.simnet.repo import Commit

Payload = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event: `kind` is the frame's type without `#`, `frame` the whole websocket message."""

    seq: int
    kind: str
    did: str
    time_us: int
    frame: bytes


class EventLog:
    """The newest `window` events. Any thread may append and read; `listeners` are called after an append, without the lock.

    Seqs rise, with gaps where an event was dropped or purged. An append and a read at any place cost the same in a full log.
    """

    def __init__(self, *, first_seq: int = 1, window: int = 20_000) -> None:
        self._lock = threading.Lock()  # guards everything below but the listeners
        self._window = window
        self._events: list[Event] = []  # from _start on; before it stands what the window has left behind
        self._seqs: list[int] = []
        self._start = 0
        self._next_seq = first_seq
        self._lost_seq = 0
        self.listeners: list[Callable[[], None]] = []

    @property
    def newest_seq(self) -> int:
        """The newest seq that was given, or one below the first that there will be."""
        with self._lock:
            return self._next_seq - 1

    @property
    def oldest_seq(self) -> int | None:
        """The seq of the oldest event that can still be replayed."""
        with self._lock:
            return self._seqs[self._start] if self._start < len(self._seqs) else None

    @property
    def lost_seq(self) -> int:
        """The newest seq that has left the window: below it a replay has holes. 0: nothing was lost."""
        with self._lock:
            return self._lost_seq

    def after(self, seq: int, limit: int = 64) -> list[Event]:
        """Return up to `limit` events with a higher seq, in order."""
        with self._lock:
            start = bisect_right(self._seqs, seq, self._start)
            return self._events[start : start + limit]

    def until(self, seq: int, limit: int) -> list[Event]:
        """Return the newest `limit` events up to and with `seq`, in order."""
        with self._lock:
            end = bisect_right(self._seqs, seq, self._start)
            return self._events[max(self._start, end - limit) : end]

    def append(self, kind: str, did: str, payload: Payload, time_us: int) -> Event:
        """Add an event; its `seq` and `time` are put into the payload."""

        def as_frame(seq: int) -> bytes:
            return frame(kind, {**payload, "seq": seq, "time": iso_time(time_us)})

        return self.append_frame(kind, did, as_frame, time_us)

    def append_frame(self, kind: str, did: str, as_frame: Callable[[int], bytes], time_us: int) -> Event:
        """Add an event whose frame, right or wrong, is made from its seq."""
        with self._lock:
            seq = self._next_seq
            self._next_seq += 1
            event = Event(seq=seq, kind=kind, did=did, time_us=time_us, frame=as_frame(seq))
            self._events.append(event)
            self._seqs.append(seq)
            self._trim(self._window)
        for listener in tuple(self.listeners):
            listener()
        return event

    def skip(self) -> int:
        """Use up a seq without an event, and return it."""
        with self._lock:
            self._next_seq += 1
            return self._next_seq - 1

    def lose(self, keep: int = 0) -> int:
        """Forget all but the newest `keep` events; return how many were lost."""
        with self._lock:
            return self._trim(keep)

    def renumber(self, first_seq: int) -> None:
        """Forget everything and go on with another numbering, as a server that lost its state."""
        with self._lock:
            self._trim(0)
            self._next_seq = first_seq
            self._lost_seq = first_seq - 1

    def purge(self, did: str) -> int:
        """Take out a DID's events, as a server does with those of a deleted account; return how many there were."""
        with self._lock:
            kept = [event for event in self._events[self._start :] if event.did != did]
            purged = len(self._events) - self._start - len(kept)
            self._events, self._seqs, self._start = kept, [event.seq for event in kept], 0
            return purged

    def _trim(self, keep: int) -> int:
        """Lose the oldest events down to `keep`. The lock is held."""
        assert self._lock.locked()
        lost = max(0, len(self._seqs) - self._start - keep)
        if lost:
            self._start += lost
            self._lost_seq = self._seqs[self._start - 1]
            # Now and then, so that an append does not move the whole window.
            if not keep or self._start > max(1000, len(self._seqs) // 8):
                del self._events[: self._start], self._seqs[: self._start]
                self._start = 0
        return lost


def commit_payload(did: str, commit: Commit) -> Payload:
    """Return the body of a `#commit`, without seq and time."""
    ops: list[Payload] = []
    for op in commit.ops:
        value: Payload = {"action": op.action, "path": op.path.decode(), "cid": _link(op.cid)}
        if op.prev is not None:
            value["prev"] = link(op.prev)
        ops.append(value)
    payload: Payload = {
        "repo": did,
        "commit": link(commit.cid),
        "rev": commit.rev,
        "since": commit.since,
        "blocks": commit.blocks,
        "ops": ops,
        "blobs": [],
        "tooBig": False,
        "rebase": False,
    }
    if commit.prev_data is not None:
        payload["prevData"] = link(commit.prev_data)
    return payload


def sync_payload(did: str, commit_cid: bytes, commit_block: bytes, rev: str) -> Payload:
    """Return the body of a `#sync`. `rev` is what it says outside of the commit."""
    return {"did": did, "blocks": write_car(commit_cid, [(commit_cid, commit_block)]), "rev": rev}


def identity_payload(did: str, handle: str | None) -> Payload:
    """Return the body of an `#identity`."""
    return {"did": did} if handle is None else {"did": did, "handle": handle}


def account_payload(did: str, status: str) -> Payload:
    """Return the body of an `#account`; an empty status is active."""
    return {"did": did, "active": False, "status": status} if status else {"did": did, "active": True}


def frame(kind: str, payload: Payload) -> bytes:
    """Return a message frame: header and payload, one DAG-CBOR item each."""
    return encode({"op": 1, "t": f"#{kind}"}) + encode(payload)


def error_frame(error: str, message: str) -> bytes:
    """Return an error frame."""
    return encode({"op": -1}) + encode({"error": error, "message": message})


def iso_time(time_us: int) -> str:
    """Return a datetime as AT Protocol writes it, to the millisecond."""
    moment = datetime.datetime.fromtimestamp(time_us / 1_000_000, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _link(cid: bytes | None) -> Any:
    return None if cid is None else link(cid)
