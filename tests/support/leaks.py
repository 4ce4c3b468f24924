"""What a test must not leave behind: threads, child processes, open files and sockets, names in /dev/shm."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.processes import descendants
from tests.support.waiting import NotInTime, wait_until

_SETTLE_S = 5.0
_POSTGRES = "PostgreSQL."  # belongs to a server that shows as a process, or to another test run's


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What this process holds. `files` counts open descriptors by what they point at (socket:[123], /path, anon_inode:...)."""

    threads: frozenset[str]
    children: frozenset[str]
    files: Counter[str]
    shared_memory: frozenset[str]

    def beyond(self, before: Holdings) -> list[str]:
        """Return a line for everything that is here and was not there."""
        more = [f"thread {name}" for name in sorted(self.threads - before.threads)]
        more += [f"child process {name}" for name in sorted(self.children - before.children)]
        more += [f"open file {name}" for name in sorted((self.files - before.files).elements())]
        more += [f"/dev/shm/{name}" for name in sorted(self.shared_memory - before.shared_memory)]
        return more


def holdings() -> Holdings:
    """Look at this process now."""
    files: Counter[str] = Counter()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists the folder is gone
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            # A pipe or socket has a number that tells it from every other; a file may be open twice.
            files[target] += 1
    shared = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return Holdings(
        threads=frozenset(f"{thread.name} ({thread.ident})" for thread in threading.enumerate()),
        children=frozenset(f"{info.pid} {info.command or info.name}" for info in descendants(os.getpid())),
        files=files,
        shared_memory=frozenset(name for name in shared if not name.startswith(_POSTGRES)),
    )


@contextlib.contextmanager
def checked_for_leaks() -> Iterator[None]:
    """Raise AssertionError when the body leaves more behind than there was, after a moment in which things may end."""
    before = holdings()
    yield
    left: list[str] = []

    def clean() -> bool:
        left[:] = holdings().beyond(before)
        if left:
            gc.collect()  # what is closed by its finalizer is no leak yet
        return not left

    try:
        wait_until(clean, "nothing left behind", deadline_s=_SETTLE_S)
    except NotInTime:
        raise AssertionError("left behind:\n  " + "\n  ".join(left)) from None


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test when it leaves threads, processes, files or shared memory behind. Name it first: it must end last."""
    with checked_for_leaks():
        yield
