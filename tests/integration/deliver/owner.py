"""The side that hands segments in: keeps the books that the tests compare."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable

from relay.config.schema import DeliverySettings, GrpcSettings, RelaySettings
from relay.deliver.delivery import Delivery
from relay.deliver.segment import IngesterStatus, Refused, Segment
from relay.model import Lane
from relay.observe.metrics import Metrics
from tests.integration.deliver.stranger import Op
from tests.support.waiting import wait_until
from tests.unit.deliver.making import keys_of, segment_of

DEADLINE_S = 30.0


class Owner:
    """Events, books, and a Delivery with short times. Everything has a deadline."""

    def __init__(
        self,
        *addresses: str,
        ack_timeout_s: float = 20.0,
        failover_after_s: float = 0.0,
        batch_bytes: int = 1024,
        most_batches: int = 8,
        queue_operations: int = 2000,
        max_retries: int = 2,
        retry_backoff_ms: int = 20,
        tls: tuple[str, str, str] = ("", "", ""),
        metrics: Metrics | None = None,
    ) -> None:
        self.offered: list[Segment] = []
        self.acked: list[tuple[str, Segment]] = []
        self.dead: list[Refused] = []
        self.health: dict[str, list[tuple[bool, str]]] = defaultdict(list)
        self.deaths: list[BaseException] = []
        self.fails_on_acknowledged: Exception | None = None
        self._room = threading.Event()
        self.delivery = Delivery(
            addresses,
            DeliverySettings(
                ack_timeout_sec=ack_timeout_s,
                failover_after_sec=failover_after_s,
                batch_bytes=batch_bytes,
                max_in_flight_batches=most_batches,
                queue_operations=queue_operations,
                tls_ca=tls[0],
                tls_cert=tls[1],
                tls_key=tls[2],
            ),
            GrpcSettings(),
            RelaySettings(name="test relay", max_retries=max_retries, retry_backoff_ms=retry_backoff_ms),
            self,
            on_room=lambda _address: self._room.set(),
            on_death=lambda _name, exc: self.deaths.append(exc),
            metrics=metrics,
        )

    # DeliveryEvents

    def acknowledged(self, address: str, segments: list[Segment]) -> None:
        if self.fails_on_acknowledged is not None:
            raise self.fails_on_acknowledged
        self.acked += [(address, segment) for segment in segments]

    def refused(self, refused: Refused) -> None:
        assert refused.segment not in [segment for _, segment in self.acked], "refused is told before acknowledged"
        self.dead.append(refused)

    def ingester_changed(self, address: str, healthy: bool, reason: str) -> None:
        self.health[address].append((healthy, reason))

    # What a test does

    def __enter__(self) -> Owner:
        self.delivery.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.delivery.request_stop()
        assert self.delivery.join(time.monotonic() + DEADLINE_S)
        if self.fails_on_acknowledged is None:
            assert not self.deaths

    def offer(self, did: str, keys: Iterable[int], lane: Lane = Lane.BACKFILL, pad: int = 0) -> Segment:
        """Offer until there is room."""
        segment = segment_of(did, keys, lane=lane, pad=pad, received_at=time.monotonic())
        ends_at = time.monotonic() + DEADLINE_S
        while True:
            self._room.clear()
            if self.delivery.offer(segment):
                self.offered.append(segment)
                return segment
            assert self._room.wait(ends_at - time.monotonic()), "no room, and nobody says that there is"

    def feed(self, dids: int = 7, rounds: int = 60, each: int = 5, start: int = 0) -> None:
        """Offer `rounds` segments of each DID, `each` operations in a segment, keys rising."""
        for number in range(start, start + rounds):
            for did in range(dids):
                self.offer(f"did:plc:{did}", range(number * each, (number + 1) * each))

    def drain(self) -> None:
        assert self.delivery.drain(time.monotonic() + DEADLINE_S), self.delivery.status()

    def await_health(self, address: str, healthy: bool, reason: str, *, deadline_s: float = DEADLINE_S) -> None:
        told = self.health[address]
        wait_until(lambda: (healthy, reason) in told, f"{address} healthy={healthy} {reason}", deadline_s=deadline_s)

    def status(self, address: str) -> IngesterStatus:
        (found,) = [status for status in self.delivery.status() if status.address == address]
        return found

    # What must hold in the end

    def check(self, stored: list[Op], *, exactly_once: bool = False) -> None:
        """Everything offered is acknowledged once and stored at least once, first in the order of offer, but for dead letters."""
        assert sorted(id(segment) for _, segment in self.acked) == sorted(map(id, self.offered))
        dead = {(refused.segment.did, keys_of(refused.segment)[refused.index]) for refused in self.dead}
        expected: dict[str, list[int]] = defaultdict(list)
        for segment in self.offered:
            expected[segment.did] += [key for key in keys_of(segment) if (segment.did, key) not in dead]
        for did, keys in expected.items():
            assert list(dict.fromkeys(key for name, key in stored if name == did)) == keys
        if exactly_once:
            assert len(stored) == len(set(stored))
