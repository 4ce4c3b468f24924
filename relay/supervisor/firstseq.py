"""Before anything is enumerated: upstream's newest seq becomes the cursor, so that a `tail` afterwards has no hole."""

from __future__ import annotations

from collections.abc import Callable

from relay.config.schema import Settings
from relay.errors import StoreAway
from relay.net.guard import Guard
from relay.net.http import user_agent
from relay.net.subscribe import fetch_newest_event
from relay.observe.log import get_logger
from relay.store import partitions
from relay.store.pool import Database

log = get_logger(__name__)

WAIT_S = 3.0


def store_first_cursor(
    settings: Settings, database: Database, epoch: Callable[[], int], operator_origins: tuple[str, ...]
) -> None:
    """Store it where there is none of this upstream. Best effort: an upstream that is quiet or away is logged, and nothing else."""
    upstream = settings.firehose.relay_host
    if not upstream:
        return
    try:
        with database.transaction("look for a cursor") as cursor:
            stored = partitions.read(cursor)
        if stored.upstream == upstream and stored.cursor is not None:
            return
        newest = fetch_newest_event(
            upstream,
            guard=Guard(allow_private=settings.security.allow_private_hosts, exempt=operator_origins),
            user_agent=user_agent(settings.http.contact),
            timeout_s=WAIT_S,
        )
        if newest is None:
            return
        with database.transaction("store the first cursor", epoch=epoch()) as cursor:
            if partitions.store_first_cursor(cursor, upstream, newest.seq, newest.time_us):
                log.info("first_cursor_stored", upstream=upstream, seq=newest.seq)
    except StoreAway as exc:
        log.warning("first_cursor_not_stored", reason=str(exc))
