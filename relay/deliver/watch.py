"""The thread that looks after all ingesters a few times a second."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from relay.deliver.health import Away
from relay.deliver.segment import DeliveryEvents, IngesterStatus
from relay.deliver.sender import Sender
from relay.observe.log import get_logger
from relay.observe.metrics import Metrics
from relay.runtime.clock import Clock
from relay.runtime.service import ServiceThread

log = get_logger(__name__)

WATCH_INTERVAL_S = 0.25
SAY_AGAIN_S = 60.0


class Watched(Protocol):
    """The delivery."""

    @property
    def senders(self) -> list[Sender]: ...
    def forget_gone(self) -> list[str]: ...
    def look_after(self, now: float) -> None: ...
    def status(self) -> list[IngesterStatus]: ...


class Watch(ServiceThread):
    """Looks after all senders a few times a second, and tells of changes; it ends when they have."""

    def __init__(
        self,
        delivery: Watched,
        events: DeliveryEvents,
        clock: Clock,
        metrics: Metrics | None,
        on_death: Callable[[str, BaseException], None] | None,
    ) -> None:
        super().__init__("deliver-watch", on_death)
        self._delivery = delivery
        self._events = events
        self._clock = clock
        self._metrics = metrics
        self._woken = threading.Event()
        self._told: dict[str, tuple[bool, str]] = {}
        self._said_at: dict[str, float] = {}

    def wake(self) -> None:
        self._woken.set()

    def run(self) -> None:
        while not self.stopping.is_set() or any(sender.is_alive() for sender in self._delivery.senders):
            self._woken.wait(WATCH_INTERVAL_S)
            self._woken.clear()
            now = self._clock.monotonic()
            for sender in self._delivery.senders:
                sender.tick(now)
            for address in self._delivery.forget_gone():
                self._told.pop(address, None)
                self._said_at.pop(address, None)
                if self._metrics is not None:
                    self._metrics.forget_ingester(address)
            if not self.stopping.is_set():
                self._delivery.look_after(now)
            statuses = self._delivery.status()
            for status in statuses:
                self._tell(status, now)
            self._measure(statuses)

    def _tell(self, status: IngesterStatus, now: float) -> None:
        health = (status.healthy, status.reason)
        if status.reason == Away.STOPPED and self.stopping.is_set():
            return
        if self._told.get(status.address) == health or status.reason == Away.STARTING:
            if not status.healthy and now - self._said_at.get(status.address, now) >= SAY_AGAIN_S:
                self._say("ingester_still_away", status, now)
            return
        self._told[status.address] = health
        if status.healthy:
            log.info("ingester_connected", ingester=status.address, streams=status.streams)
        else:
            self._say("ingester_away", status, now)
        self._events.ingester_changed(status.address, status.healthy, status.reason)

    def _say(self, event: str, status: IngesterStatus, now: float) -> None:
        self._said_at[status.address] = now
        log.warning(
            event,
            ingester=status.address,
            reason=status.reason,
            detail=status.detail,
            in_flight_batches=status.in_flight_batches,
            queued_operations=status.queued_operations,
        )

    def _measure(self, statuses: list[IngesterStatus]) -> None:
        if self._metrics is None:
            return
        self._metrics.healthy_ingesters.set(sum(status.healthy for status in statuses))
        for status in statuses:
            self._metrics.ingester(
                status.address,
                in_flight_batches=status.in_flight_batches,
                oldest_unacked_s=status.oldest_unacked_s,
            )
