"""How many processes and slots: enough for every download, and bounded by the settings alone."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from relay.config.schema import Settings
from relay.supervisor.arenas import DOWNLOADS_PER_FETCHER, OPERATION_SLOTS_PER_WORKER, plan


@given(parallel=st.integers(1, 2000), workers=st.integers(1, 128), slots=st.integers(1, 500))
def test_every_download_has_a_thread_and_every_worker_its_slots(parallel: int, workers: int, slots: int) -> None:
    defaults = Settings()
    backfiller = dataclasses.replace(defaults.backfiller, parallel_backfills=parallel, workers=workers, slots=slots)
    made = plan(dataclasses.replace(defaults, backfiller=backfiller))
    assert made.fetchers * made.downloads >= parallel + 2
    assert (made.fetchers - 1) * DOWNLOADS_PER_FETCHER < parallel
    assert made.downloads <= DOWNLOADS_PER_FETCHER + 2
    assert made.operation_slots == made.workers * OPERATION_SLOTS_PER_WORKER == workers * OPERATION_SLOTS_PER_WORKER
    assert (made.car_slots, made.car_slot_bytes) == (slots, backfiller.slot_bytes)


def test_a_slot_takes_a_whole_batch() -> None:
    settings = Settings()
    assert plan(settings).operation_slot_bytes == settings.delivery.batch_bytes
