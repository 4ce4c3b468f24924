"""Points between two durable steps at which tests kill the process, to the instruction (`tests/faults/test_crash_points.py`).

`RELAY_CRASH_AT=synced_stored:3` kills it, as SIGKILL does, when that point is passed for the third time; without a number, the
first time. Not a setting: nothing but a test sets it.
"""

from __future__ import annotations

import enum
import os
import signal

VARIABLE = "RELAY_CRASH_AT"


class CrashPoint(enum.StrEnum):
    """Each point, and what the next start must do."""

    DISCOVERED_STORED = "discovered_stored"  # a page and its cursor: go on behind it, fetch what it listed
    CLAIM_STORED = "claim_stored"  # repos are `active` and nobody works on them: pending again
    BEGUN_STORED = "begun_stored"  # a snapshot's rev is stored, nothing was sent: fetch again, never from an older copy
    END_ACKNOWLEDGED = "end_acknowledged"  # the ingester has all of it, our row says `active`: deliver once more
    SYNCED_STORED = "synced_stored"  # nothing, for this repo
    STATUS_STORED = "status_stored"  # a status is stored and untold: tell it
    STATUS_ACKNOWLEDGED = "status_acknowledged"  # the ingester knows, our row does not: tell it again


def _wanted(text: str) -> tuple[str, int]:
    name, _, count = text.partition(":")
    return name, int(count or 1)


_name, _left = _wanted(os.environ.get(VARIABLE, ""))


def crash_point(point: CrashPoint) -> None:
    """Die here if a test wants it. Costs a comparison otherwise."""
    if point == _name:
        _count_down()


def _count_down() -> None:
    global _left
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
