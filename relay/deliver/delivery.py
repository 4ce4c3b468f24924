"""The front door of the room: one sender an ingester, and the thread that watches them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from relay.config.schema import DeliverySettings, GrpcSettings, RelaySettings
from relay.deliver.absence import Absence, Departure, Step
from relay.deliver.channel import Connector
from relay.deliver.gobackn import Batch
from relay.deliver.health import Away
from relay.deliver.outbox import Outbox
from relay.deliver.router import Cargo, Router
from relay.deliver.segment import DeliveryEvents, IngesterStatus, Segment
from relay.deliver.sender import Sender
from relay.deliver.watch import Watch
from relay.model import Lane
from relay.observe.log import get_logger
from relay.observe.metrics import Metrics
from relay.runtime.clock import Clock, SystemClock

log = get_logger(__name__)

REPO_OPERATIONS = 1000  # the default of backfiller.parallel_record_creates


class Delivery:
    """Takes segments, and tells when each is acknowledged. Nothing that was accepted is dropped: it is acknowledged, discarded
    by the owner, or still here when the process ends (and then comes again, because no acknowledgement was stored).

    Order: segments of one DID and lane arrive in the order of `offer`; between the two lanes of a DID the owner sees to it
    that only one is in use. An ingester that has been away for `delivery.failover_after_sec` loses its DIDs to the others, what it has not
    acknowledged first; no two have segments of a DID at a time. `offer`, `has_room` and `discard` belong to one thread, the rest to any. Memory: for each ingester
    `delivery.queue_operations` (and 1 KiB for each of them) queued, and `max_in_flight_batches` batches in flight.

    Ingesters are added and removed at any time (`set_addresses`). One that is added gets its DIDs when it is there, each when nothing of it
    is under way elsewhere; one that is removed goes when another is there, and what was written to it is acknowledged.

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
        self._settings, self._metrics = settings, metrics
        settling = _Settling(events, self._settled)
        connector = Connector(settings, grpc_settings, relay)
        self._watch = Watch(self, settling, self._clock, metrics, on_death)

        def make(address: str) -> Sender:
            if metrics is not None:
                metrics.declare_ingesters([address])
            outbox = Outbox(
                address,
                batch_bytes=settings.batch_bytes,
                max_message_bytes=grpc_settings.max_message_size,
                most_batches=settings.max_in_flight_batches,
                queue_operations=settings.queue_operations,
                backfill_share=settings.backfill_share,
                max_retries=relay.max_retries,
                repo_operations=repo_operations,
            )
            return Sender(
                outbox,
                connector,
                settling,
                retry_backoff_s=relay.retry_backoff_ms / 1000,
                ack_timeout_s=settings.ack_timeout_sec,
                clock=self._clock,
                rng=random.Random(rng.random()),
                on_change=self._watch.wake,
                on_room=on_room,
                metrics=metrics,
                on_death=on_death,
            )

        self._make = make
        # The routing lock guards changes of these. Each is replaced as a whole, so whoever only looks needs no lock.
        self._senders = {address: make(address) for address in self._router.addresses}
        self._absences = {address: Absence(settings.failover_after_sec) for address in self._router.addresses}
        self._moved_repos = dict.fromkeys(self._router.addresses, 0)
        self._joining: frozenset[str] = frozenset()  # added, and not there yet
        self._departures: dict[str, Departure] = {}  # removed, and not gone yet
        self._leaving: frozenset[str] = frozenset()  # of these, to whom nothing more is written
        self._gone: tuple[Sender, ...] = ()  # their threads end
        self._is_stopping = False
        self.departed = Departed()

    def start(self) -> None:
        for sender in self._senders.values():
            sender.start()
        self._watch.start()

    # -- joining and leaving, any thread

    @property
    def addresses(self) -> tuple[str, ...]:
        """The ingesters that are wanted: one that is leaving is not among them."""
        with self._routing:
            return tuple(each for each in self._router.addresses if each not in self._departures)

    @property
    def is_settled(self) -> bool:
        """Has everybody joined and left who was to?"""
        return not self._joining and not self._departures

    def set_addresses(self, addresses: Collection[str]) -> tuple[list[str], list[str]]:
        """Have these ingesters from now on; return those that join and those that leave, which they do as soon as they can.

        Raises ValueError for no or doubled addresses, and while stopping.
        """
        if not addresses or len(set(addresses)) != len(addresses):
            raise ValueError("at least one ingester, and each once")
        with self._routing:
            if self._is_stopping:
                raise ValueError("delivery is stopping")
            there = self._router.addresses
            added = sorted(set(addresses) - set(there))
            stay = {each for each in self._departures if each in addresses}
            removed = sorted(set(there) - set(addresses) - self._departures.keys())
            for address in added:
                self._join(address)
            for address in stay:
                self._senders[address].freeze(is_frozen=False)
            self._leaving -= stay
            self._departures = {
                **{each: left for each, left in self._departures.items() if each not in stay},
                **{each: Departure(self._settings.ack_timeout_sec) for each in removed},
            }
        for address in [*added, *stay]:
            log.info("ingester_added", ingester=address)
        for address in removed:
            log.info(
                "ingester_removed", ingester=address, goes="when another is there, and its batches are acknowledged"
            )
        self._watch.wake()
        return sorted([*added, *stay]), removed

    def _join(self, address: str) -> None:
        """It gets its DIDs when it is there."""
        sender = self._make(address)
        absence = Absence(self._settings.failover_after_sec)
        absence.joins()
        self._router.join(address)
        for each in self._senders.values():
            each.pin(self._router.keep)
        self._absences = {**self._absences, address: absence}
        self._moved_repos = {**self._moved_repos, address: 0}
        self._joining |= {address}
        self._senders = {**self._senders, address: sender}
        sender.start()

    # -- the owner's thread

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
            why = "failed_over" if segment.is_pinned else "home"
            try:
                is_taken = self._senders[address].offer(segment)
            finally:
                if not is_taken:
                    self._router.settled((segment,))
        log.debug(
            "segment_routed",
            did=segment.did,
            ingester=address,
            reason=why,
            lane=segment.lane.value,
            rev=segment.rev,
            taken=is_taken,
        )
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
        """One that is not among them any more is not."""
        sender = self._senders.get(address)
        return sender is not None and sender.look()[0]

    def is_behind(self, did: str) -> bool:
        """Has the ingester of a DID so much to take already that its backfill should wait, while another one has not?"""
        with self._routing:
            address, failed_over = self._router.address_of(did), self._router.failed_over
            sender = self._senders[address]
        return sender.is_behind and any(
            each.look()[0] and not each.is_behind
            for each in self._senders.values()
            if each is not sender and each.address not in failed_over
        )

    def is_anybody_there(self) -> bool:
        """Can anything be acknowledged?"""
        return any(sender.look()[0] for sender in self._senders.values())

    @property
    def operations(self) -> int:
        """How many are queued or unacknowledged."""
        return sum(sender.operations for sender in self._senders.values())

    def is_full(self, lane: Lane = Lane.LIVE) -> bool:
        """Is there no ingester left that takes anything more in this lane? One that is away takes nothing, whatever room its queue has."""
        with self._routing:
            failed_over, senders = self._router.failed_over, self._senders
        return not any(
            sender.look()[0] and sender.has_room(lane)
            for address, sender in senders.items()
            if address not in failed_over
        )

    def drain(self, deadline: float) -> bool:
        """Send what is queued without waiting for full batches, and wait until all is acknowledged, at most until `deadline`
        (monotonic seconds). False: something is left."""
        for sender in self._senders.values():
            sender.flush(flushing=True)
        try:
            while all(self._wait_idle(sender, deadline) for sender in self._senders.values()):
                with self._routing:  # what one had to surrender, another may have adopted behind our back
                    if all(sender.is_idle for sender in self._senders.values()):
                        return True
            return False
        finally:
            for sender in self._senders.values():
                sender.flush(flushing=False)

    def _wait_idle(self, sender: Sender, deadline: float) -> bool:
        if sender.wait_idle(deadline):
            return True
        with self._routing:  # one that left has given away what it had, and what that is is waited for elsewhere
            return self._senders.get(sender.address) is not sender

    def request_stop(self) -> None:
        """End the streams now; what is not acknowledged stays so. Call `drain` before for a stop in good order."""
        with self._routing:
            self._is_stopping = True
        for sender in self._senders.values():
            sender.request_stop()
        self._watch.request_stop()

    def join(self, deadline: float) -> bool:
        joined = [sender.join(deadline) for sender in self.senders]
        return all([*joined, self._watch.join(deadline)])

    def status(self) -> list[IngesterStatus]:
        """Return what each ingester is doing, by address."""
        with self._routing:
            failed_over, senders = self._router.failed_over - self._joining, self._senders
        return [self._shown(sender.status(), failed_over) for sender in senders.values()]

    def _shown(self, status: IngesterStatus, failed_over: frozenset[str]) -> IngesterStatus:
        moved = self._moved_repos.get(status.address, 0)
        if status.address in self._leaving:
            return replace(status, moved_repos=moved, healthy=False, reason=Away.LEAVING.value)
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
        # Whoever has joined since is looked at the next time.
        for address, (is_healthy, acknowledged, _) in looks.items():
            absence = self._absences[address]
            absence.look(now, is_healthy=is_healthy)
            if absence.may_return(now):
                absence.returned(acknowledged)
                self._take_back(address)
        for address, departure in self._departures.items():
            if address in looks:
                self._look_after_leaving(address, departure, now, looks)
        for address, (_, acknowledged, _) in looks.items():
            going = self._absences.get(address)
            if going is None or address in self._departures or not going.may_go(now):
                continue
            others = [looks[each] for each in self._stand_ins(address, looks)]
            # With nobody there it is no better elsewhere. What others have adopted already is beyond the bounds of their queues.
            if any(is_healthy for is_healthy, _, _ in others) and not any(burdened for _, _, burdened in others):
                going.gone(now, acknowledged)
                self._fail_over(address)

    def _stand_ins(self, address: str, looks: Collection[str]) -> list[str]:
        """Return who may get an ingester's DIDs."""
        away = self._router.failed_over
        return [each for each in looks if each != address and each not in away and each not in self._departures]

    def _look_after_leaving(
        self, address: str, departure: Departure, now: float, looks: Mapping[str, tuple[bool, int, bool]]
    ) -> None:
        sender = self._senders[address]
        # Nobody but those who are failed over: then whoever of them is healthy does.
        others = self._stand_ins(address, looks) or [each for each in looks if each not in self._departures]
        is_frozen = address in self._leaving
        with self._routing:
            if self._departures.get(address) is not departure:
                return  # it stays after all
            step = departure.look(
                now,
                is_healthy=looks[address][0],
                is_awaited=sender.freeze(is_frozen=is_frozen),
                is_another_there=any(looks[each][0] for each in others),
            )
            if step is not Step.GO:
                sender.freeze(is_frozen=step is Step.AWAIT)
                self._leaving = self._leaving | {address} if step is Step.AWAIT else self._leaving - {address}
                return
            sender.request_stop()
            away = self._router.failed_over
            dids, cargos = self._move(sender, self._router.leave)
            for each in away - self._router.failed_over - {address}:
                self._absences[each].returned(looks[each][1] if each in looks else 0)
                self._joining -= {each}
            self._drop(sender)
        log.info(
            "ingester_left",
            ingester=address,
            repos=len(dids),
            operations=sum(cargo.operations for cargo in cargos.values()),
            to=",".join(cargos),
        )
        for one in [sender, *self._senders.values()]:
            one.tell_room()

    def _drop(self, sender: Sender) -> None:
        address = sender.address
        status = sender.status()
        self.departed.add(status)
        self._senders = _without(self._senders, address)
        self._absences = _without(self._absences, address)
        self._moved_repos = _without(self._moved_repos, address)
        self._departures = _without(self._departures, address)
        self._leaving -= {address}
        self._joining -= {address}
        self._gone += (sender,)

    def _move(self, sender: Sender, route: Route) -> tuple[set[str], dict[str, Cargo]]:
        """Give what an ingester holds to those that `route` names; return whose it was. With the routing lock held."""
        batches, segments = sender.surrender()
        dids = {span.segment.did for batch in batches for span in batch.spans}
        dids.update(segment.did for segment in segments)
        cargos = route(sender.address, batches, segments)
        for target, cargo in cargos.items():
            self._senders[target].adopt(cargo.batches, cargo.segments)
        self._moved_repos = {**self._moved_repos, sender.address: self._moved_repos[sender.address] + len(dids)}
        if self._metrics is not None:
            self._metrics.moved(sender.address, len(dids))
        return dids, cargos

    def _fail_over(self, address: str) -> None:
        sender = self._senders[address]
        with self._routing:
            dids, cargos = self._move(sender, self._router.fail_over)
        log.warning(
            "ingester_failed_over",
            ingester=address,
            repos=len(dids),
            operations=sum(cargo.operations for cargo in cargos.values()),
            to=",".join(cargos),
        )
        sender.tell_room()

    def _take_back(self, address: str) -> None:
        with self._routing:
            self._router.take_back(address)
            pinned = self._router.pinned_dids
            is_new = address in self._joining
            self._joining -= {address}
        log.info("ingester_joined" if is_new else "ingester_taken_back", ingester=address, repos_held_elsewhere=pinned)
        for sender in self._senders.values():
            sender.tell_room()

    # -- the senders' threads

    def _settled(self, segments: list[Segment]) -> None:
        with self._routing:
            self._router.settled(segments)

    @property
    def senders(self) -> list[Sender]:
        """All of them, also those that have left and whose threads have not ended."""
        return [*self._senders.values(), *self._gone]

    def forget_gone(self) -> list[str]:
        """Forget those that have left and whose threads have ended; return their addresses. The watch thread."""
        ended = [sender for sender in self._gone if not sender.is_alive()]
        if ended:
            with self._routing:
                self._gone = tuple(sender for sender in self._gone if sender not in ended)
        return [sender.address for sender in ended if sender.address not in self._senders]


Route = Callable[[str, Sequence[Batch], Sequence[Segment]], dict[str, Cargo]]
Each = TypeVar("Each")


def _without(mapping: Mapping[str, Each], address: str) -> dict[str, Each]:
    return {each: value for each, value in mapping.items() if each != address}


@dataclass(slots=True)
class Departed:
    """Operations of ingesters that have left, since the start."""

    sent_operations: int = 0
    delivered_operations: int = 0

    def add(self, status: IngesterStatus) -> None:
        self.sent_operations += status.sent_operations
        self.delivered_operations += status.delivered_operations


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
