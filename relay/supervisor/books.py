"""The books of a backfill: what it came to, read from the database at its end, and the batch marked as finished."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from relay.errors import StoreAway, StoreError, StoreFenced
from relay.model import RepoState
from relay.observe.log import get_logger
from relay.runtime.backoff import Backoff
from relay.store import batches, dead_letters, repos
from relay.store.pool import Database
from relay.store.statements import Cursor

log = get_logger(__name__)

QUARANTINED_LISTED = 1000
BOOKS_PATIENCE_S = 30.0


@dataclass(slots=True, kw_only=True)
class Summary:
    """How a backfill ended. `why`: set when it could not go on. Rates are over the time that the machine ran."""

    interrupted: bool = False
    why: str | None = None
    counts: dict[RepoState, int] = field(default_factory=dict)
    reasons: list[tuple[RepoState, str | None, int]] = field(default_factory=list)
    quarantined: list[tuple[str, str | None, str | None]] = field(default_factory=list)  # did, reason, last error
    failed_listings: list[str] = field(default_factory=list)
    dead_letters: int = 0
    records: int = 0
    operations: int = 0
    bytes_fetched: int = 0
    repos_synced: int = 0
    took_s: float = 0.0


class Books:
    """Closes the books of one batch. `epoch()` is the lease's; nothing of the run is at work any more."""

    def __init__(self, database: Database, epoch: Callable[[], int], summary: Summary, *, batch: int) -> None:
        self._database, self._epoch, self._summary, self._batch = database, epoch, summary, batch
        self._patience = threading.Event()  # never set: to wait

    def close(self, *, finished: bool, now: float) -> None:
        """Read the result into the summary; `finished` at wall time `now`: store that the batch is, and wait for the database."""
        deadline = time.monotonic() + (BOOKS_PATIENCE_S if finished else 0.0)
        backoff = Backoff(0.1, 2.0)
        while True:
            try:
                with self._database.transaction("close the books", epoch=self._epoch()) as cursor:
                    self._write(cursor, finished, now)
                return
            except (StoreError, StoreFenced) as exc:
                if isinstance(exc, StoreAway) and time.monotonic() < deadline:
                    if not backoff.failures:
                        log.warning("store_away", reason=str(exc), waiting="close the books")
                    self._patience.wait(backoff.next_delay_s())
                    continue
                log.warning("books_not_closed", reason=str(exc))
                if finished:
                    # Without the counts nobody could say whether some were given up: the exit code must not claim it.
                    self._summary.why = f"everything was delivered, but the result cannot be read: {exc}"
                return

    def _write(self, cursor: Cursor, finished: bool, now: float) -> None:
        read_result(cursor, self._batch, self._summary)
        if finished:
            batches.finish_batch(cursor, self._batch, now, json.dumps(self._summary.counts))


def read_result(cursor: Cursor, batch: int, summary: Summary) -> None:
    """Read how a batch's targets stand into the summary."""
    summary.counts = repos.count_by_state(cursor, batch)
    summary.dead_letters = sum(dead_letters.count_by_reason(cursor).values())
    summary.reasons = repos.reasons_of_batch(cursor, batch)
    summary.quarantined = [
        (row.did, row.reason, row.last_error) for row in repos.quarantined_of_batch(cursor, batch, QUARANTINED_LISTED)
    ]


def missing_targets(
    failed: Sequence[tuple[str, str]], *, upstream: str | None, counts: Mapping[RepoState, int]
) -> str | None:
    """Say what was not enumerated (host, why), where that means that targets may be missing.

    `upstream`: the origin a whole network is listed by. Of a whole network some hosts are always away, and their repos are known from
    the upstream: those only stand in the summary. None: the targets were named, and each listing counts.
    """
    counting = [each for each in failed if upstream is None or each[0] == upstream]
    if failed and not sum(counts.values()):
        counting = list(failed)
    if not counting:
        return None
    return "not everything could be enumerated, so targets may be missing: " + ": ".join(counting[0])
