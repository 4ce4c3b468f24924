"""Work that waits for its turn: the policy belongs to the thread that asked for it, and to those that it starts."""

from __future__ import annotations

import os
import threading

from relay.ipc.child import run_as_batch


def _policies(before: int) -> list[int]:
    """Run `run_as_batch` in a thread of policy `before`; return the policies of that thread and of one that it started."""
    found: list[int] = []

    def note() -> None:
        found.append(os.sched_getscheduler(0))

    def run() -> None:
        os.sched_setscheduler(0, before, os.sched_param(0))
        run_as_batch()
        note()
        inner = threading.Thread(target=note)
        inner.start()
        inner.join()

    outer = threading.Thread(target=run)
    outer.start()
    outer.join()
    return found


def test_the_thread_and_those_that_it_starts_are_batch_and_no_other() -> None:
    mine = os.sched_getscheduler(0)
    assert _policies(os.SCHED_OTHER) == [os.SCHED_BATCH, os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == mine


def test_a_policy_that_somebody_chose_is_left_as_it_is() -> None:
    assert _policies(os.SCHED_IDLE) == [os.SCHED_IDLE, os.SCHED_IDLE]
