"""The cursor: everything up to it is done (pure)."""

from __future__ import annotations

from collections import deque


class SeqNotRising(RuntimeError):
    """A frame was opened at or below an earlier one: the reader drops those, so our own order is broken."""

    def __init__(self, seq: int, last: int) -> None:
        super().__init__(f"frame {seq} was opened after frame {last}")
        self.seq, self.last = seq, last


class SeqNotOpen(RuntimeError):
    """A frame was finished that is not open: finished twice, or never opened. Our own account is broken."""

    def __init__(self, seq: int) -> None:
        super().__init__(f"frame {seq} was finished and is not open")
        self.seq = seq


class SeqWatermark:
    """The cursor that is safe to store: every frame up to and with `cursor` is done.

    Frames open in rising seq and finish in any order; `cursor` never passes an open one, so a replay from it loses nothing.
    `cursor_time_us` is the event time (microseconds since 1970) of the frame at the cursor, which is stored beside it.
    Memory: an entry for each frame from the oldest open one to the newest. The owner (the engine) compares `distance` with
    `firehose.max_open_frames` before it lets more be read.

    One watermark is for one numbering: after a fresh start (another upstream, a cursor from the future) make a new one.
    """

    def __init__(self, cursor: int | None, time_us: int | None = None) -> None:
        """`cursor` None: nothing was ever done in this numbering, and the first frame may have any seq."""
        self.cursor = cursor
        self.cursor_time_us = time_us
        self.newest = cursor
        self._behind: deque[tuple[int, int | None]] = deque()  # from the oldest open frame on, finished ones among them
        self._open: set[int] = set()

    def open(self, seq: int, time_us: int | None = None) -> None:
        """A frame was read. Raise SeqNotRising unless `seq` is above every earlier one: the reader has dropped replays."""
        self._rise(seq)
        self._behind.append((seq, time_us))
        self._open.add(seq)

    def open_done(self, seq: int, time_us: int | None = None) -> None:
        """A frame was read that nothing has to be awaited for: `open` and `finish` in one, and cheaper. Raises SeqNotRising."""
        self._rise(seq)
        if self._behind:
            self._behind.append((seq, time_us))
        else:
            self.cursor, self.cursor_time_us = seq, time_us

    def finish(self, seq: int) -> None:
        """Everything that the frame caused is acknowledged and stored. Raise SeqNotOpen if it is not open."""
        if seq not in self._open:
            raise SeqNotOpen(seq)
        self._open.remove(seq)
        behind, still_open = self._behind, self._open
        while behind and behind[0][0] not in still_open:
            self.cursor, self.cursor_time_us = behind.popleft()

    def is_open(self, seq: int) -> bool:
        return seq in self._open

    @property
    def oldest_open(self) -> int | None:
        """The frame that holds the cursor; None when nothing does."""
        return self._behind[0][0] if self._behind else None

    @property
    def open_frames(self) -> int:
        """How many frames are open."""
        return len(self._open)

    @property
    def distance(self) -> int:
        """How many frames were read from the oldest open one on, both ends counted: what a crash now would read again.

        Frames and not seqs: upstream may leave gaps of any size (PROTOCOL 1.4), and they cost nothing. 0: none is open.
        """
        return len(self._behind)

    def _rise(self, seq: int) -> None:
        if self.newest is not None and seq <= self.newest:
            raise SeqNotRising(seq, self.newest)
        self.newest = seq
