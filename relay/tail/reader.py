"""What to do with a frame, an error frame, a close, a hole; and where to resume (pure; DESIGN 4, PROTOCOL 1.4).

The tailer feeds what happens on the connection and does what the answers say, in their order. Nothing is lost: the only place
to resume from is behind the newest event that was delivered, but for a fresh start, which is an incident and so means a reconcile.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass
from typing import Final, TypeAlias

from relay.runtime.backoff import Backoff

# The longest wait between two connections that fail, unless the server asked for more (PROTOCOL 1.5).
LONGEST_DELAY_S: Final = 64.0
# A server that says that it will never serve this (501, 404, ...) is asked rarely.
REFUSED_DELAY_S: Final = 300.0
# A connection that lasted this long was no failed one, even if it brought no event (a quiet upstream).
LASTED_S: Final = 30.0

# A gap in the events' times up to this is never called a hole: clocks differ, and so does what a relay does with `time`.
HOLE_S: Final = 60.0
# ... nor one up to this many times the pace of the events that follow.
HOLE_PACES: Final = 50
# So many events are looked at after a connection begins, or those that come within so many seconds.
SAMPLE_EVENTS: Final = 15
SAMPLE_S: Final = 3.0
_PACE_EVENTS: Final = 5  # fewer than this tell no pace

# Nothing above the cursor for so long: is it one from the future? Doubles with each time that it is not.
PROBE_S: Final = 30.0
LONGEST_PROBE_S: Final = 600.0
# So many events below the cursor that are younger than the cursor's own event prove a new numbering without a probe.
YOUNGER_EVENTS: Final = 10
_YOUNGER_S: Final = 5.0
# Silence on a connection that has proved itself means that we have read everything there was.
CAUGHT_UP_S: Final = 5.0


class IncidentKind(enum.StrEnum):
    """Why events may be missing: each is answered by a reconcile. The words stand in `status` and in metrics."""

    OUTDATED_CURSOR = "outdated_cursor"  # #info OutdatedCursor
    HOLE = "hole"  # ... the silent form of it
    FUTURE_CURSOR = "future_cursor"  # error frame FutureCursor
    SILENT_FUTURE_CURSOR = "silent_future_cursor"  # ... the silent form of it
    CONSUMER_TOO_SLOW = "consumer_too_slow"
    STREAM_ERROR = "stream_error"  # any other error frame


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand the event on: it is the next one."""


@dataclass(frozen=True, slots=True)
class Drop:
    """An event at or below the newest one: a replay."""


@dataclass(frozen=True, slots=True)
class ReconnectFrom:
    """Close what is open, wait `delay_s` seconds, and connect with `cursor` (None: live events only)."""

    cursor: int | None
    delay_s: float


@dataclass(frozen=True, slots=True)
class IncidentFound:
    """Events may be missing: to be stored as open until a reconcile is complete."""

    kind: IncidentKind
    text: str


@dataclass(frozen=True, slots=True)
class BeganAfresh:
    """Seqs of another numbering follow, in era `era`: no cursor of an earlier one means anything to upstream any more."""

    era: int


@dataclass(frozen=True, slots=True)
class KeepBadFrame:
    """The frame behind seq `after_seq` (None: the first one) was bad twice: into the dead letters, and go on behind it."""

    after_seq: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask for upstream's newest seq on a connection of its own, then tell `probed`."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """`firehose.max_reconnect_attempts` connections failed in a row."""

    text: str


Action: TypeAlias = Deliver | Drop | ReconnectFrom | IncidentFound | BeganAfresh | KeepBadFrame | Probe | GiveUp

_DELIVER: Final[tuple[Action, ...]] = (Deliver(),)
_DROP: Final[tuple[Action, ...]] = (Drop(),)
_S: Final = 1_000_000


class _Opening:
    """What the first events of a connection say about the cursor that it was opened with."""

    __slots__ = ("explained_us", "first_us", "has_risen", "next_probe_us", "probe_s", "times_us", "younger")

    def __init__(self, now_us: int) -> None:
        self.has_risen = False  # an event above the cursor has come
        self.times_us: list[int] = []
        self.first_us = now_us  # when the first of them came
        self.explained_us = now_us  # the time until which we know that nothing is missing
        self.younger = 0
        self.probe_s = PROBE_S
        self.next_probe_us = now_us + int(PROBE_S * _S)


class StreamReader:
    """The state of one subscription over all its connections. Times: wall, microseconds since 1970, passed in as `now_us`.

    `newest` is the seq of the newest event delivered (at first: the stored cursor), `newest_time_us` its own time, never
    later than when it was read. `era` counts fresh starts. After ReconnectFrom nothing of the old connection counts.

    A hole (the silent form of OutdatedCursor): the first events of a connection are later than the newest one before it by
    more than `HOLE_S` and the pace of the stream, less the time until which we had read everything. No gap in seq, or the
    cursor's own event again, proves that there is none. The median of the first times counts: a single event may lie.
    """

    def __init__(
        self,
        *,
        cursor: int | None,
        time_us: int | None,
        first_delay_s: float,
        max_attempts: int,
        rng: random.Random | None = None,
    ) -> None:
        """`cursor` and the `time_us` of its event as stored (None: live). `max_attempts`: failed connections in a row; -1: any."""
        self.newest = cursor
        self.newest_time_us = time_us
        self.era = 0
        self.failures = 0  # in a row
        self._max_attempts = max_attempts
        self._backoff = Backoff(first_delay_s, max(first_delay_s, LONGEST_DELAY_S), rng)
        self._opening: _Opening | None = None  # None: the cursor has proved good, or there is none
        self._connected_us: int | None = None
        self._has_come = False  # an event above the newest, on this connection
        self._caught_up_us: int | None = None
        self._bad_at: tuple[int, int | None] | None = None  # (era, newest): reconnected for a bad frame behind it
        self._bad_seen = 0  # bad frames there, on this connection
        self._bad_kept = 0  # ... and how many of them are kept
        self._told: str | None = None  # the last error frame, until an event comes: the same one again is no news

    def connected(self, now_us: int) -> None:
        """A connection is open, with `newest` as its cursor."""
        self._connected_us = now_us
        self._has_come = False
        self._bad_seen = 0
        self._opening = None if self.newest is None else _Opening(now_us)

    def event(self, seq: int, time_us: int | None, now_us: int) -> tuple[Action, ...]:
        """A frame with this seq and event time. Deliver or Drop it first; what follows may end the connection."""
        if self.newest is not None and seq <= self.newest:
            return _DROP if self._opening is None else self._not_above(self._opening, seq, time_us, now_us)
        before, before_time_us = self.newest, self.newest_time_us
        self.newest = seq
        if time_us is not None:
            self.newest_time_us = min(time_us, now_us)
        if not self._has_come:
            self._has_come = True
            self.failures = 0
            self._told = None
            self._backoff.reset()
        if self._opening is None:
            return _DELIVER
        return self._above(self._opening, seq, time_us, now_us, before, before_time_us)

    def undecodable(self, why: str) -> tuple[Action, ...]:
        """A frame that has no meaning and no seq (bad CBOR, text, oversize). Reconnect once from before it; then keep it.

        However many such frames stand at one place, and whatever they are: one reconnect for all, and each is kept once, also
        when connections are lost before an event comes behind them. No action: it is kept already.
        """
        place = (self.era, self.newest)
        if self._bad_at == place:
            self._bad_seen += 1
            if self._bad_seen <= self._bad_kept:
                return ()
            self._bad_kept = self._bad_seen
            return (KeepBadFrame(self.newest, why),)
        self._bad_at = place
        self._bad_kept = 0
        return (*self._judge_now(), self._again(self._backoff.next_delay_s()))

    def error_frame(self, error: str, message: str | None) -> tuple[Action, ...]:
        """The last frame of a connection says why. An incident, but not the same one again before an event has come."""
        text = f"upstream says {error}" + (f": {message}" if message else "")
        kind = _KINDS.get(error, IncidentKind.STREAM_ERROR)
        found: tuple[Action, ...] = self._judge_now()
        if self._told != error:
            found += (IncidentFound(kind, text),)
        self._told = error
        if kind in (IncidentKind.FUTURE_CURSOR, IncidentKind.OUTDATED_CURSOR) and self.newest is not None:
            return found + self._afresh()
        if self._connected_us is not None and self._has_come:
            return (*found, self._again(self._backoff.next_delay_s()))  # it brought events: no failed connection
        return found + self._failed(text, None)

    def info(self, name: str, message: str | None) -> tuple[Action, ...]:
        """An `#info`. OutdatedCursor: events were lost, and the stream goes on with the oldest that there are."""
        if name != "OutdatedCursor":
            return ()
        self._opening = None  # whatever comes, the hole is told already
        text = f"cursor {self.newest} is older than what upstream still has" + (f": {message}" if message else "")
        return (IncidentFound(IncidentKind.OUTDATED_CURSOR, text),)

    def failed(
        self, text: str, now_us: int, *, retry_after_s: float | None = None, is_refused: bool = False
    ) -> tuple[Action, ...]:
        """No connection, or it ended (closed, silent, cut, against the rules). `is_refused`: it will be so the next time.

        A connection that lasted, or brought an event, is no failed one. `retry_after_s` is obeyed, and costs no attempt.
        """
        lasted = self._connected_us is not None and now_us - self._connected_us >= LASTED_S * _S
        if lasted:
            self.failures = 0
            self._backoff.reset()
        if self._connected_us is not None and (lasted or self._has_come):
            return (*self._judge_now(), self._again(self._backoff.next_delay_s()))
        return self._failed(text, retry_after_s, is_refused=is_refused)

    def tick(self, now_us: int, *, idle_s: float) -> tuple[Action, ...]:
        """Time passes, and everything that had come was told; nothing has come for `idle_s` seconds. About once a second."""
        opening = self._opening
        if opening is None:
            if idle_s >= CAUGHT_UP_S and self._connected_us is not None and self._has_come:
                self._caught_up_us = now_us
            return ()
        if opening.has_risen:
            return self._judge(opening) if now_us - opening.first_us >= SAMPLE_S * _S else ()
        if now_us < opening.next_probe_us:
            return ()
        opening.probe_s = min(LONGEST_PROBE_S, opening.probe_s * 2)
        opening.next_probe_us = now_us + int(opening.probe_s * _S)
        return (Probe(),)

    def probed(self, newest_seq: int | None) -> tuple[Action, ...]:
        """Answer to Probe: the seq of upstream's newest event, None when it tells none (it is quiet)."""
        if newest_seq is None or self.newest is None or self._opening is None or newest_seq >= self.newest:
            return ()
        text = f"upstream is at {newest_seq}, below our cursor {self.newest}, and says nothing"
        return (IncidentFound(IncidentKind.SILENT_FUTURE_CURSOR, text), *self._afresh())

    def _above(
        self,
        opening: _Opening,
        seq: int,
        time_us: int | None,
        now_us: int,
        before: int | None,
        before_time_us: int | None,
    ) -> tuple[Action, ...]:
        if not opening.has_risen:
            opening.has_risen = True
            opening.first_us = now_us
            if before_time_us is None or (before is not None and seq == before + 1):
                self._opening = None  # nothing to compare with, or nothing can be missing
                return _DELIVER
            opening.explained_us = max(before_time_us, self._caught_up_us or before_time_us)
        if time_us is not None:
            opening.times_us.append(min(time_us, now_us))
        if len(opening.times_us) >= SAMPLE_EVENTS:
            return _DELIVER + self._judge(opening)
        return _DELIVER

    @property
    def is_judging(self) -> bool:
        """Events above the cursor have come and it is not decided whether some are missing before them.

        For `SAMPLE_S` seconds at most. A cursor among them must not be stored before: a crash would forget the hole.
        """
        return self._opening is not None and self._opening.has_risen

    def _judge_now(self) -> tuple[Action, ...]:
        """The connection ends: decide with what there is."""
        opening = self._opening
        return self._judge(opening) if opening is not None and opening.has_risen else ()

    def _judge(self, opening: _Opening) -> tuple[Action, ...]:
        """Enough of the first events have come: is something missing before them?"""
        self._opening = None
        times = sorted(opening.times_us)
        if not times:
            return ()
        gap_s = (times[len(times) // 2] - opening.explained_us) / _S
        pace_s = 0.0
        if len(times) >= _PACE_EVENTS:
            # The middle half: neither the liars at the beginning nor those at the end.
            low, high = len(times) // 4, len(times) * 3 // 4
            pace_s = (times[high] - times[low]) / (high - low) / _S
        if gap_s <= max(HOLE_S, HOLE_PACES * pace_s):
            return ()
        text = f"the stream resumed {gap_s:,.0f} s later than where it was left, without a word"
        return (IncidentFound(IncidentKind.HOLE, text),)

    def _not_above(self, opening: _Opening, seq: int, time_us: int | None, now_us: int) -> tuple[Action, ...]:
        """An event at or below the cursor before any above it: the server repeats a little, or numbers anew."""
        if opening.has_risen:
            return _DROP
        if seq == self.newest:
            # The cursor's own event: what follows it is there too, so nothing is missing (and nothing is numbered anew).
            self._opening = None
            return _DROP
        known_us = self.newest_time_us
        if known_us is None or time_us is None or min(time_us, now_us) <= known_us + _YOUNGER_S * _S:
            return _DROP
        opening.younger += 1
        if opening.younger < YOUNGER_EVENTS:
            return _DROP
        text = f"upstream numbers anew: {opening.younger} events below our cursor {self.newest} are younger than it"
        return (*_DROP, IncidentFound(IncidentKind.SILENT_FUTURE_CURSOR, text), *self._afresh())

    def _failed(self, text: str, retry_after_s: float | None, *, is_refused: bool = False) -> tuple[Action, ...]:
        if retry_after_s is None:
            self.failures += 1
            if 0 <= self._max_attempts <= self.failures:
                return (GiveUp(f"{self.failures} connections failed in a row, the last one: {text}"),)
        delay_s = self._backoff.next_delay_s()
        if is_refused:
            delay_s = max(delay_s, REFUSED_DELAY_S)
        return (self._again(max(delay_s, retry_after_s or 0.0)),)

    def _again(self, delay_s: float) -> ReconnectFrom:
        self._connected_us = None
        self._opening = None
        return ReconnectFrom(self.newest, delay_s)

    def _afresh(self) -> tuple[Action, ...]:
        """Our cursor is of no use: live events from here on, whatever their seqs."""
        self.era += 1
        self.newest = self.newest_time_us = self._caught_up_us = None
        return (BeganAfresh(self.era), self._again(self._backoff.next_delay_s()))


_KINDS: Final[dict[str, IncidentKind]] = {
    "FutureCursor": IncidentKind.FUTURE_CURSOR,
    "OutdatedCursor": IncidentKind.OUTDATED_CURSOR,
    "ConsumerTooSlow": IncidentKind.CONSUMER_TOO_SLOW,
}
