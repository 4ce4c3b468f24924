"""One transaction before anything runs: while the database is away it waits, says why, and tries again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from relay.errors import StoreAway
from relay.observe.log import get_logger
from relay.runtime.backoff import Backoff
from relay.store.pool import Database
from relay.store.statements import Cursor

log = get_logger(__name__)

FIRST_S, LIMIT_S = 0.1, 2.0

T = TypeVar("T")


def store_patiently(
    database: Database,
    name: str,
    act: Callable[[Cursor], T],
    *,
    epoch: Callable[[], int],
    stopped_within: Callable[[float], bool],
    waiting: Callable[[str], None] = lambda _text: None,
) -> T | None:
    """Return what `act(cursor)` returned, in a fenced transaction; None: `stopped_within(seconds)`, which waits, said to stop.

    A commit that broke may have taken place: `act` runs again then, and has to bear that. `waiting(text)` is called once for each
    reason. Raises StoreFenced when another instance has taken over meanwhile, StoreError when waiting does not help.
    """
    backoff = Backoff(FIRST_S, LIMIT_S)
    said: set[str] = set()
    while True:
        try:
            with database.transaction(name, epoch=epoch()) as cursor:
                return act(cursor)
        except StoreAway as exc:
            text = str(exc)
        if not said:
            log.warning("store_away", reason=text, waiting=name)
        if text not in said:
            said.add(text)
            waiting(text)
        if stopped_within(backoff.next_delay_s()):
            return None
