"""The front door of the room: one sender an ingester, and the thread that watches them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace

from relay.config.schema import DeliverySettings, GrpcSettings, RelaySettings
from relay.deliver.absence import Absence
from relay.deliver.channel import Connector
from relay.deliver.health import Away
from relay.deliver.outbox import Outbox
from relay.deliver.router import Router
from relay.deliver.segment import DeliveryEvents, IngesterStatus, Segment
from relay.deliver.sender import Sender
from relay.model import Lane
from relay.observe.log import get_logger
from relay.observe.metrics import Metrics
from relay.runtime.clock import Clock, SystemClock
from relay.runtime.service import ServiceThread

log = get_logger(__name__)

WATCH_INTERVAL_S = 0.25
SAY_AGAIN_S = 60.0
REPO_OPERATIONS = 1000  # the default of backfiller.parallel_record_creates


class Delivery:
    """Takes segments, and tells when each is acknowledged. Nothing that was accepted is dropped: it is acknowledged, discarded
    by the owner, or still here when the process ends (and then comes again, because no acknowledgement was stored).

    Order: segments of one DID and lane arrive in the order of `offer`; between the two lanes of a DID the owner sees to it
    that only one is in use. An ingester that has been away for `delivery.failover_after_sec` loses its DIDs to the others, what it has not
    acknowledged first; no two have segments of a DID at a time. `offer`, `has_room` and `discard` belong to one thread, the rest to any. Memory: for each ingester
    `delivery.queue_operations` (and 1 KiB for each of them) queued, and `max_in_flight_batches` batches in flight.

    Threads: one for each ingester (`deliver-ADDRESS`), gRPC's own beside it, and `deliver-watch`, the only one that calls
    `ingester_changed`. A callback must not block; if one raises, the thread dies and `on_death` hears of it.
    """

    name = "delivery"

    def __init__(
        self,
        addresses: tuple[str, ...],
        settings: DeliverySettings,
        grpc_settings: GrpcSettings,
        relay: RelaySettings,
        events: DeliveryEvents,
        *,
        repo_operations: int = REPO_OPERATIONS,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        on_room: Callable[[str], None] | None = None,
        metrics: Metrics | None = None,
        on_death: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        """`repo_operations`: operations of one repo in one batch, where several segments of it would meet
        (backfiller.parallel_record_creates). `on_room(address)`: a queue that was full has room again, from a thread of ours.

        Raises ConfigError for TLS files that cannot be read, ValueError for no or doubled addresses.
        """
        self._clock = clock or SystemClock()
        rng = rng or random.Random()
        # Held while a segment is routed and queued, and while DIDs are moved: before a sender's own lock, never within it.
        self._routing = threading.Lock()
        self._router = Router(addresses)
        self._absences = {address: Absence(settings.failover_after_sec) for address in self._router.addresses}
        self._moved_repos = dict.fromkeys(self._router.addresses, 0)
        self._metrics = metrics
        events = _Settling(events, self._settled)
        connector = Connector(settings, grpc_settings, relay)
        self._watch = _Watch(self, events, self._clock, metrics, on_death)
        self._senders = {
            address: Sender(
                Outbox(
                    address,
                    batch_bytes=settings.batch_bytes,
                    max_message_bytes=grpc_settings.max_message_size,
                    most_batches=settings.max_in_flight_batches,
                    queue_operations=settings.queue_operations,
                    backfill_share=settings.backfill_share,
                    max_retries=relay.max_retries,
                    repo_operations=repo_operations,
                ),
                connector,
                events,
                retry_backoff_s=relay.retry_backoff_ms / 1000,
                ack_timeout_s=settings.ack_timeout_sec,
                clock=self._clock,
                rng=random.Random(rng.random()),
                on_change=self._watch.wake,
                on_room=on_room,
                metrics=metrics,
                on_death=on_death,
            )
            for address in self._router.addresses
        }
        if metrics is not None:
            metrics.declare_ingesters(self._router.addresses)

    def start(self) -> None:
        for sender in self._senders.values():
            sender.start()
        self._watch.start()

    def address_of(self, did: str) -> str:
        """Return the ingester that a DID's next operations go to."""
        with self._routing:
            return self._router.address_of(did)

    def offer(self, segment: Segment) -> bool:
        """Queue a segment at its DID's ingester. False: it stays the caller's, because that queue is full (`on_room` tells
        when to offer again) or delivery is stopping. ValueError: its `size` or `operations` cannot be right."""
        with self._routing:
            is_taken = False
            address = self._router.sends(segment)
            try:
                is_taken = self._senders[address].offer(segment)
            finally:
                if not is_taken:
                    self._router.settled((segment,))
            return is_taken

    def has_room(self, did: str, lane: Lane = Lane.BACKFILL) -> bool:
        """Would `offer` take a segment of this DID? When not, `on_room` is called once it would."""
        with self._routing:
            return self._senders[self._router.address_of(did)].has_room(lane)

    def discard(self, did: str, lane: Lane, chosen: Callable[[Segment], bool] | None = None) -> list[Segment]:
        """Take back what is queued of a DID in a lane and was never written, in order; the rest will be acknowledged.

        `chosen`: only the segments that it says yes to.
        """
        with self._routing:
            gone = self._senders[self._router.address_of(did)].discard(did, lane, chosen)
            self._router.settled(gone)
        return gone

    def is_healthy(self, address: str) -> bool:
        return self._senders[address].look()[0]

    def is_full(self, lane: Lane = Lane.LIVE) -> bool:
        """Is there no ingester left that takes anything more in this lane? One that is away takes nothing, whatever room its queue has."""
        with self._routing:
            failed_over = self._router.failed_over
        return not any(
            sender.look()[0] and sender.has_room(lane)
            for address, sender in self._senders.items()
            if address not in failed_over
        )

    def drain(self, deadline: float) -> bool:
        """Send what is queued without waiting for full batches, and wait until all is acknowledged, at most until `deadline`
        (monotonic seconds). False: something is left."""
        for sender in self._senders.values():
            sender.flush(flushing=True)
        try:
            while all(sender.wait_idle(deadline) for sender in self._senders.values()):
                with self._routing:  # what one had to surrender, another may have adopted behind our back
                    if all(sender.is_idle for sender in self._senders.values()):
                        return True
            return False
        finally:
            for sender in self._senders.values():
                sender.flush(flushing=False)

    def request_stop(self) -> None:
        """End the streams now; what is not acknowledged stays so. Call `drain` before for a stop in good order."""
        for sender in self._senders.values():
            sender.request_stop()
        self._watch.request_stop()

    def join(self, deadline: float) -> bool:
        joined = [sender.join(deadline) for sender in self._senders.values()]
        return all([*joined, self._watch.join(deadline)])

    def status(self) -> list[IngesterStatus]:
        """Return what each ingester is doing, by address."""
        with self._routing:
            failed_over = self._router.failed_over
        return [self._shown(sender.status(), failed_over) for sender in self._senders.values()]

    def _shown(self, status: IngesterStatus, failed_over: frozenset[str]) -> IngesterStatus:
        moved = self._moved_repos[status.address]
        if status.address not in failed_over or status.reason == Away.STOPPED:
            return replace(status, moved_repos=moved)
        words = [
            word for word in (status.reason or "answers again, and gets its repos back later", status.detail) if word
        ]
        return replace(status, moved_repos=moved, healthy=False, reason=Away.FAILED_OVER.value, detail=": ".join(words))

    # -- the watch thread

    def look_after(self, now: float) -> None:
        """Called a few times a second: whoever has been away for too long loses its DIDs, and whoever is back gets them."""
        looks = {address: sender.look() for address, sender in self._senders.items()}
        for address, (is_healthy, acknowledged, _) in looks.items():
            absence = self._absences[address]
            absence.look(now, is_healthy=is_healthy)
            if absence.may_return(now):
                absence.returned(acknowledged)
                self._take_back(address)
        for address, (_, acknowledged, _) in looks.items():
            absence = self._absences[address]
            if not absence.may_go(now):
                continue
            others = [looks[each] for each in looks if each != address and each not in self._router.failed_over]
            # With nobody there it is no better elsewhere. What others have adopted already is beyond the bounds of their queues.
            if any(is_healthy for is_healthy, _, _ in others) and not any(burdened for _, _, burdened in others):
                absence.gone(now, acknowledged)
                self._fail_over(address)

    def _fail_over(self, address: str) -> None:
        sender = self._senders[address]
        with self._routing:
            batches, segments = sender.surrender()
            dids = {span.segment.did for batch in batches for span in batch.spans}
            dids.update(segment.did for segment in segments)
            cargos = self._router.fail_over(address, batches, segments)
            for target, cargo in cargos.items():
                self._senders[target].adopt(cargo.batches, cargo.segments)
            self._moved_repos[address] += len(dids)
        log.warning(
            "ingester_failed_over",
            ingester=address,
            repos=len(dids),
            operations=sum(cargo.operations for cargo in cargos.values()),
            to=",".join(cargos),
        )
        if self._metrics is not None:
            self._metrics.moved(address, len(dids))
        sender.tell_room()

    def _take_back(self, address: str) -> None:
        with self._routing:
            self._router.take_back(address)
            pinned = self._router.pinned_dids
        log.info("ingester_taken_back", ingester=address, repos_held_elsewhere=pinned)
        for sender in self._senders.values():
            sender.tell_room()

    # -- the senders' threads

    def _settled(self, segments: list[Segment]) -> None:
        with self._routing:
            self._router.settled(segments)

    @property
    def senders(self) -> list[Sender]:
        return list(self._senders.values())


class _Settling:
    """Between the senders and the owner: what is acknowledged is no longer counted where it was."""

    def __init__(self, events: DeliveryEvents, settled: Callable[[list[Segment]], None]) -> None:
        self._events, self._settled = events, settled
        self.refused = events.refused
        self.ingester_changed = events.ingester_changed

    def acknowledged(self, address: str, segments: list[Segment]) -> None:
        if any(segment.is_pinned for segment in segments):
            self._settled(segments)
        self._events.acknowledged(address, segments)


class _Watch(ServiceThread):
    """Looks after all senders a few times a second, and tells of changes; it ends when they have."""

    def __init__(
        self,
        delivery: Delivery,
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
