"""Fetch children and workers: started, replaced when they die, stopped. Lives in the engine's thread."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay.backfill.messages import Stop, from_wire, to_wire
from relay.errors import Blame, RelayError
from relay.ipc.child import ChildProcess
from relay.observe.log import get_logger
from relay.runtime.backoff import Backoff
from relay.tail import messages as live

log = get_logger(__name__)

STEADY_S = 10.0
STILLBORN_S = 1.0
STILLBORN_TIMES = 10


class CannotStart(RelayError):
    """A kind of child dies at once, every time: a broken installation, and trying again would only loop."""

    reason, blame = "cannot_start", Blame.OPERATOR


@dataclass(slots=True)
class _Seat:
    role: str
    number: int
    start: Callable[[int], ChildProcess]
    backoff: Backoff
    child: ChildProcess | None = None
    start_at: float = 0.0
    restarts: int = 0
    stillborn: int = 0  # times in a row that it ended right after its start by itself
    load: int = 0  # requests sent and not answered, of fetch children


class ChildSeats:
    """Seats by role. `on_started(role, seat)`, `on_died(role, seat, why)` and `watch(child)`/`unwatch(child)` are the engine's."""

    def __init__(
        self,
        *,
        on_started: Callable[[str, int], None],
        on_died: Callable[[str, int, str], None],
        watch: Callable[[ChildProcess], None],
        unwatch: Callable[[ChildProcess], None],
    ) -> None:
        self._on_started, self._on_died, self._watch, self._unwatch = on_started, on_died, watch, unwatch
        self._seats: dict[tuple[str, int], _Seat] = {}
        self._stopping = False
        self.replaced: Counter[tuple[str, str]] = Counter()  # children that ended by themselves, by role and how

    def add(self, role: str, number: int, start: Callable[[int], ChildProcess]) -> None:
        self._seats[role, number] = _Seat(role, number, start, Backoff(0.1, 10.0))

    def start_due(self) -> None:
        """Start what should run and does not, unless it died a moment ago again and again."""
        now = time.monotonic()
        for seat in self._seats.values():
            if seat.child is None and not self._stopping and now >= seat.start_at:
                seat.child = seat.start(seat.number)
                seat.load = 0
                self._watch(seat.child)
                log.debug("child_started", child=seat.child.name, pid=seat.child.pid)
                self._on_started(seat.role, seat.number)

    def ended(self, child: ChildProcess) -> None:
        """The pipe of a child is closed: it has ended, or is about to be."""
        self._unwatch(child)
        seat = self._seats[child.role, child.seat]
        seat.child = None
        child.kill()
        why = child.why_ended()
        code = child.process.exitcode
        lived_s = time.monotonic() - child.started_at
        child.close()
        if self._stopping:
            return
        log.warning("child_died", child=child.name, why=why, lived_s=round(lived_s, 1))
        seat.stillborn = seat.stillborn + 1 if lived_s < STILLBORN_S and code != -signal.SIGKILL else 0
        if seat.stillborn >= STILLBORN_TIMES:
            raise CannotStart(
                f"{child.name} ended {seat.stillborn} times right after its start ({why}): see its lines above"
            )
        if lived_s > STEADY_S:
            seat.backoff.reset()
        seat.start_at = time.monotonic() + (seat.backoff.next_delay_s() if lived_s <= STEADY_S else 0.0)
        seat.restarts += 1
        self.replaced[seat.role, "killed" if code is not None and code < 0 else "ended"] += 1
        self._on_died(child.role, child.seat, why)

    def decode(self, role: str, wire: Any) -> Any:
        """Return the message that a child of this role has sent."""
        return live.from_wire(wire) if role == "verify" else from_wire(wire)

    # --- what the pipeline needs -----------------------------------------------------------------------------------------

    def send_fetch(self, message: Any) -> int | None:
        seat = min(
            (s for s in self._seats.values() if s.role == "fetch" and s.child is not None),
            key=lambda s: s.load,
            default=None,
        )
        if seat is None or seat.child is None:
            return None
        seat.child.pipe.send_later(to_wire(message))
        seat.load += 1
        return seat.number

    def answered(self, role: str, number: int) -> None:
        self._seats[role, number].load -= 1

    def send_worker(self, number: int, message: Any) -> bool:
        seat = self._seats["worker", number]
        if seat.child is None:
            return False
        seat.child.pipe.send_later(to_wire(message))
        return True

    def send_verify(self, number: int, message: Any) -> bool:
        seat = self._seats["verify", number]
        if seat.child is None:
            return False
        seat.child.pipe.send_later(live.to_wire(message))
        return True

    def flush(self) -> None:
        """Send what this round left for later. A child that is gone is noticed by its pipe's end."""
        for seat in self._seats.values():
            if seat.child is not None:
                seat.child.pipe.flush()

    def kill(self, role: str, number: int, why: str) -> None:
        seat = self._seats[role, number]
        if seat.child is not None:
            log.error("child_killed", child=seat.child.name, why=why)
            seat.child.kill(with_stack=True)

    # --- status and stopping -----------------------------------------------------------------------------------------------

    def snapshot(self) -> list[tuple[str, int, int | None, int]]:
        """Return (role, number, pid or None, restarts) of every seat."""
        return [(s.role, s.number, s.child.pid if s.child else None, s.restarts) for s in self._seats.values()]

    def stop(self, deadline: float) -> None:
        """Ask all to end, and kill what has not ended at `deadline` (monotonic seconds)."""
        self._stopping = True
        children = [seat.child for seat in self._seats.values() if seat.child is not None]
        for child in children:
            child.pipe.send(live.to_wire(live.Stop()) if child.role == "verify" else to_wire(Stop()))
        for child in children:
            if not child.join(deadline):
                child.kill()
                child.join(time.monotonic() + 2.0)
            self._unwatch(child)
            child.close()
        for seat in self._seats.values():
            seat.child = None
