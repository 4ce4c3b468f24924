"""How many children of each kind there are, and how much shared memory goes between them (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.schema import Settings

# Sixteen slots of one batch each: while one snapshot's beginning is being stored the worker writes the next ones.
OPERATION_SLOTS_PER_WORKER = 16
DOWNLOADS_PER_FETCHER = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Numbers of processes and slots. `downloads`: threads of one fetch process."""

    workers: int
    fetchers: int
    downloads: int
    car_slots: int
    car_slot_bytes: int
    operation_slots: int
    operation_slot_bytes: int


def plan(settings: Settings) -> Plan:
    """Return the sizes for these settings."""
    backfiller = settings.backfiller
    fetchers = max(1, -(-backfiller.parallel_backfills // DOWNLOADS_PER_FETCHER))
    return Plan(
        workers=backfiller.workers,
        fetchers=fetchers,
        downloads=-(-backfiller.parallel_backfills // fetchers) + 2,  # two more for checks
        car_slots=backfiller.slots,
        car_slot_bytes=backfiller.slot_bytes,
        operation_slots=backfiller.workers * OPERATION_SLOTS_PER_WORKER,
        operation_slot_bytes=settings.delivery.batch_bytes,
    )
