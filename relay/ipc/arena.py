"""Fixed slots of shared memory in one memfd, and the supervisor's account of who holds which.

A memfd dies with its last holder: after `kill -9` of everything nothing is left to clean up.
"""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from typing import Any


class SlotError(RuntimeError):
    """A slot was freed twice, or by somebody who does not hold it: state of our own is broken, and we stop loudly."""


class Arena:
    """`slots` pieces of `slot_bytes` each, mapped by every process that was given this object.

    Pickles by handing its descriptor to a child that is being started. `view(n)` is a writable memoryview of slot n:
    who may write is decided by `SlotAccount`, not here.
    """

    def __init__(self, name: str, slots: int, slot_bytes: int, *, fd: int | None = None) -> None:
        if slots < 1 or slot_bytes < 1:
            raise ValueError(f"arena {name}: {slots} slots of {slot_bytes} bytes")
        self.name, self.slots, self.slot_bytes = name, slots, slot_bytes
        total = slots * slot_bytes
        if fd is None:
            fd = os.memfd_create(name, os.MFD_CLOEXEC)
            os.ftruncate(fd, total)
        self._fd = fd
        self._map = mmap.mmap(fd, total)
        self._view = memoryview(self._map)

    def view(self, slot: int, size: int | None = None) -> memoryview:
        """Return the first `size` bytes of a slot (all of it when None), writable, without a copy."""
        if not 0 <= slot < self.slots:
            raise SlotError(f"{self.name}: no slot {slot} of {self.slots}")
        if size is None:
            size = self.slot_bytes
        elif not 0 <= size <= self.slot_bytes:
            raise SlotError(f"{self.name}: {size} bytes in a slot of {self.slot_bytes}")
        start = slot * self.slot_bytes
        return self._view[start : start + size]

    def close(self) -> None:
        """Unmap. Views that are still held keep the memory until they go."""
        self._view.release()
        try:
            self._map.close()
        except BufferError:  # a view outlives us: the map is freed with it
            pass
        os.close(self._fd)

    def __reduce__(self) -> tuple[Any, ...]:
        # DupFd sends the descriptor along with the pickled arguments of a starting child.
        return _attach, (self.name, self.slots, self.slot_bytes, reduction.DupFd(self._fd))


def _attach(name: str, slots: int, slot_bytes: int, dup: Any) -> Arena:
    return Arena(name, slots, slot_bytes, fd=dup.detach())


class SlotAccount:
    """Which slots are free and who holds the others. One thread owns it: no lock.

    `lease` gives the lowest-numbered free slot, so that a quiet system keeps touching the same warm memory.
    """

    def __init__(self, slots: range) -> None:
        self.total = len(slots)
        self._free = sorted(slots, reverse=True)
        self._holder: dict[int, object] = {}

    def lease(self, holder: object) -> int | None:
        """Return a free slot, now held by `holder`, or None when there is none: that is the back pressure."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._holder[slot] = holder
        return slot

    def free(self, slot: int) -> None:
        """Give a held slot back. Raises SlotError when nobody holds it."""
        if self._holder.pop(slot, None) is None:
            raise SlotError(f"slot {slot} was freed and nobody held it")
        self._free.append(slot)

    @property
    def in_use(self) -> int:
        return len(self._holder)
