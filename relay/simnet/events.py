"""The log behind a firehose: events in rising seq, encoded as the frames that subscribers get. Bounded: the replay window."""

from __future__ import annotations

import datetime
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay.simnet.block import encode, link, write_car
from relay.simnet.repo import Commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event: `kind` is the frame's type without `#`, `frame` the whole websocket message."""

    seq: int
    kind: str
    did: str
    time_us: int
    frame: bytes


class EventLog:
    """The newest `window` events. Any thread may append and read; `listeners` are called after an append, without the lock."""

    def __init__(self, *, first_seq: int = 1, window: int = 20_000) -> None:
        self._lock = threading.Lock()  # guards _events and _next_seq
        self._events: deque[Event] = deque(maxlen=window)
        self._next_seq = first_seq
        self.listeners: list[Callable[[], None]] = []

    @property
    def newest_seq(self) -> int:
        """The seq of the newest event, or one below the first that there will be."""
        with self._lock:
            return self._next_seq - 1

    @property
    def oldest_seq(self) -> int | None:
        """The seq of the oldest event that can still be replayed."""
        with self._lock:
            return self._events[0].seq if self._events else None

    def after(self, seq: int, limit: int = 64) -> list[Event]:
        """Return up to `limit` events with a higher seq, in order."""
        with self._lock:
            if not self._events or seq >= self._next_seq - 1:
                return []
            # Seqs have no gaps inside the log, so the place follows from the seq.
            start = max(0, seq + 1 - self._events[0].seq)
            return [self._events[at] for at in range(start, min(start + limit, len(self._events)))]

    def add_commit(self, did: str, commit: Commit, time_us: int) -> Event:
        ops: list[dict[str, Any]] = []
        for op in commit.ops:
            value: dict[str, Any] = {"action": op.action, "path": op.path.decode(), "cid": _link(op.cid)}
            if op.prev is not None:
                value["prev"] = link(op.prev)
            ops.append(value)
        payload: dict[str, Any] = {
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
        return self._add("commit", did, payload, time_us)

    def add_sync(self, did: str, commit_cid: bytes, commit_block: bytes, rev: str, time_us: int) -> Event:
        blocks = write_car(commit_cid, [(commit_cid, commit_block)])
        return self._add("sync", did, {"did": did, "blocks": blocks, "rev": rev}, time_us)

    def add_identity(self, did: str, handle: str | None, time_us: int) -> Event:
        payload = {"did": did} if handle is None else {"did": did, "handle": handle}
        return self._add("identity", did, payload, time_us)

    def add_account(self, did: str, status: str, time_us: int) -> Event:
        payload: dict[str, Any] = {"did": did, "active": not status}
        if status:
            payload["status"] = status
        return self._add("account", did, payload, time_us)

    def _add(self, kind: str, did: str, payload: dict[str, Any], time_us: int) -> Event:
        with self._lock:
            seq = self._next_seq
            self._next_seq += 1
            payload |= {"seq": seq, "time": iso_time(time_us)}
            event = Event(seq=seq, kind=kind, did=did, time_us=time_us, frame=frame(kind, payload))
            self._events.append(event)
        for listener in tuple(self.listeners):
            listener()
        return event


def frame(kind: str, payload: dict[str, Any]) -> bytes:
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
