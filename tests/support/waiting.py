"""Waiting for a condition with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_POLL_S = 0.02
_never = threading.Event()


class NotInTime(AssertionError):
    """A condition did not come true before its deadline."""


def wait_until(condition: Callable[[], object], what: str, *, deadline_s: float = 30.0) -> None:
    """Return as soon as `condition()` is true. Raise NotInTime, naming `what`, after `deadline_s` seconds."""
    ends_at = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() >= ends_at:
            raise NotInTime(f"not within {deadline_s:g} s: {what}")
        _never.wait(_POLL_S)


def let_pass(seconds: float) -> None:
    """Let a fault last. Not for synchronising: nothing is known of what has happened meanwhile."""
    _never.wait(seconds)
