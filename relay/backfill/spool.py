"""Where a downloaded CAR goes: into its slot, and beyond the slot's size into a spool file of its own."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from relay.errors import Blame, FetchError

BUFFER_BYTES = 256 * 1024


def spool_name(job: int) -> str:
    """Return the name of a job's spool file: known to the supervisor too, which removes what a killed fetch process left."""
    return f"{job}.car"


class SpoolFull(FetchError):
    """The disk of the spool folder has no room: nobody's fault but ours, so no attempt is lost; we try again later."""

    reason, blame = "spool_full", Blame.US

    def __init__(self, path: Path, size: int, cause: OSError) -> None:
        super().__init__(
            f"{path.parent}: cannot spool a CAR of over {size:,} bytes: {cause.strerror}; free space there, or raise "
            "backfiller.slot_bytes"
        )


class CarSink:
    """Takes a body in pieces: `buffer()` is where the next bytes may be written, `wrote(n)` says how many were.

    `slot` is the shared-memory slot; what does not fit goes, with what is there already, into `spool_path`. Raises SpoolFull
    when the disk is full. `close(keep=False)` removes the file again.
    """

    def __init__(self, slot: memoryview, spool_path: Path) -> None:
        self._slot = slot
        self._spool_path = spool_path
        self._fd: int | None = None
        self._buffer: memoryview | None = None
        self.size = 0

    @property
    def spool(self) -> Path | None:
        return None if self._fd is None else self._spool_path

    def buffer(self) -> memoryview:
        if self._buffer is None:
            if self.size < len(self._slot):
                return self._slot[self.size :]
            self._open_spool()
        assert self._buffer is not None
        return self._buffer

    def wrote(self, count: int) -> None:
        if self._fd is not None and self._buffer is not None:
            self._write(self._buffer[:count])
        self.size += count

    def reset(self) -> None:
        """Forget everything: the request is made again (after a redirect, say)."""
        self.close(keep=False)
        self.size = 0

    def close(self, *, keep: bool) -> None:
        if self._fd is None:
            return
        os.close(self._fd)
        self._fd = self._buffer = None
        if not keep:
            self._spool_path.unlink(missing_ok=True)

    def _open_spool(self) -> None:
        try:
            self._fd = os.open(self._spool_path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise SpoolFull(self._spool_path, self.size, exc) from exc
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._write(self._slot[: self.size])

    def _write(self, data: memoryview) -> None:
        assert self._fd is not None
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                raise SpoolFull(self._spool_path, self.size, exc) from exc
            raise
