"""Claimed repos that wait for their host, and the downloads that run: spread over hosts, bounded in number and by slots.

Lives in the engine's thread. Limits of a host are `net.hosts.HostTable`'s; the number of downloads and of CAR slots is ours.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from relay.backfill.messages import FetchRepo
from relay.backfill.work import Stage, Work
from relay.ipc.arena import SlotAccount
from relay.net.gate import HostGate

# What waits longer than this for its host gives its place to repos of other hosts.
PATIENCE_S = 2.0


class Downloads:
    """`send(message) -> seat | None` hands a job to a fetch child; None: none is there."""

    def __init__(
        self,
        hosts: HostGate,
        slots: SlotAccount,
        send: Callable[[FetchRepo], int | None],
        *,
        parallel: int,
        waits: Callable[[str], bool] = lambda _did: False,
    ) -> None:
        """`waits(did)`: its ingester is behind; `unwanted` has those that were not started for that, the owner takes them out."""
        self._waits = waits
        self.unwanted: list[Work] = []
        self._hosts, self.slots, self._send, self._parallel = hosts, slots, send, parallel
        self._queues: OrderedDict[str, deque[Work]] = OrderedDict()  # hosts take turns
        self.running: dict[int, Work] = {}
        self.stalled: dict[str, float] = {}  # hosts that will not be ready for long: seconds; the owner takes them out
        self.queued = 0

    def add(self, work: Work) -> None:
        work.stage = Stage.QUEUED
        self._queues.setdefault(work.host, deque()).append(work)
        self.queued += 1

    def queued_of(self, host: str) -> int:
        queue = self._queues.get(host)
        return len(queue) if queue else 0

    def release_all(self) -> list[Work]:
        """Return everything that has not been started; the owner gives it back."""
        left = [work for queue in self._queues.values() for work in queue if not work.over]
        self._queues.clear()
        self.queued = 0
        return left

    def release_host(self, host: str) -> list[Work]:
        """Return what waits for one host."""
        left = [work for work in self._queues.pop(host, ()) if not work.over]
        self.queued = sum(len(queue) for queue in self._queues.values())
        return left

    def pump(self, now: float) -> float | None:
        """Start what may start at `now` (monotonic); return when a host that waits could be asked, or None."""
        soonest: float | None = None
        for host in list(self._queues):
            queue = self._queues[host]
            while queue:
                if queue[0].over:
                    queue.popleft()
                    self.queued -= 1
                    continue
                if len(self.running) >= self._parallel:
                    return soonest
                if self.slots.in_use >= self.slots.total:
                    return soonest
                if not self._hosts.try_start(host):
                    wait_s = self._hosts.ready_in_s(host)
                    if wait_s > PATIENCE_S:
                        self.stalled[host] = wait_s
                    if wait_s > 0 and (soonest is None or now + wait_s < soonest):
                        soonest = now + wait_s
                    break
                if self._waits(queue[0].did):
                    self._hosts.not_started(host)
                    self.queued -= 1
                    self.unwanted.append(queue.popleft())
                    continue
                if not self._start(queue.popleft(), now):
                    return soonest
            if not queue:
                del self._queues[host]
            else:
                self._queues.move_to_end(host)
        return soonest

    def _start(self, work: Work, now: float) -> bool:
        self.queued -= 1
        slot = self.slots.lease(work.number)
        assert slot is not None
        seat = self._send(FetchRepo(work.number, work.did, work.host, slot))
        if seat is None:
            self.slots.free(slot)
            self._hosts.not_started(work.host)
            self.add(work)
            return False
        work.slot, work.seat, work.stage, work.started_at = slot, seat, Stage.FETCHING, now
        self.running[work.number] = work
        return True

    def ended(self, work: Work) -> None:
        """A download is over, well or not."""
        self.running.pop(work.number, None)

    def of_seat(self, seat: int) -> list[Work]:
        return [work for work in self.running.values() if work.seat == seat]
