"""Before anything is enumerated: where upstream's stream is now becomes the cursor, so that what follows it has no hole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from relay.config.schema import Settings
from relay.errors import StoreAway, StreamError
from relay.net.errors import NetError
from relay.net.guard import Guard
from relay.net.http import user_agent
from relay.net.subscribe import NewestEvent, Received, Subscription, fetch_newest_event
from relay.observe.log import get_logger
from relay.store import partitions
from relay.store.pool import Database
from relay.tail.envelope import ErrorHead, EventHead, Undecodable, parse_head

log = get_logger(__name__)

WAIT_S = 3.0
CONNECT_S = 3.0
LOOK_AGAIN_S = 1.0
# Before every event of any upstream.
BEGINNING = NewestEvent(seq=0, time_us=None)


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


def ask_position(
    settings: Settings, operator_origins: tuple[str, ...], *, wait_s: float = WAIT_S
) -> NewestEvent | None:
    """Return where the stream is now; None: upstream is away.

    One that lets us in and says nothing for `wait_s` seconds is quiet: its beginning is a right cursor, and a cheap one. (Of one that only
    pauses it is a right one too: its whole window is read then.) Takes at most some 12 seconds. Raises InvalidAddress.
    """
    upstream = settings.firehose.relay_host
    stream = Subscription(
        upstream,
        cursor=None,
        guard=Guard(allow_private=settings.security.allow_private_hosts, exempt=operator_origins),
        user_agent=user_agent(settings.http.contact),
        idle_timeout_s=10 * wait_s,
        connect_timeout_s=CONNECT_S,
    )
    try:
        stream.open()
        deadline = time.monotonic() + wait_s
        while (left_s := deadline - time.monotonic()) > 0:
            for message in stream.receive(left_s):
                position = _position(message)
                if position is not None:
                    return position
        log.info("upstream_quiet", upstream=upstream, waited_s=wait_s)
        return BEGINNING
    except (NetError, StreamError, _Refused) as exc:
        log.info("position_unknown", upstream=upstream, error=str(exc))
        return None
    finally:
        stream.release()


class _Refused(Exception):
    """The stream began with an error frame."""


def _position(message: Received) -> NewestEvent | None:
    """Return the place of one message, None where it has none. Raises _Refused."""
    if not isinstance(message, bytes):
        return None
    try:
        head = parse_head(message)
    except Undecodable:
        return None  # the next one has a seq
    if isinstance(head, ErrorHead):
        raise _Refused(str(head))
    return NewestEvent(seq=head.seq, time_us=head.time_us) if isinstance(head, EventHead) else None


def await_cursor(database: Database, upstream: str, stopping: threading.Event) -> bool:
    """Wait until a cursor of `upstream` is stored, by whoever follows it; False: `stopping` came first."""
    told = False
    while not stopping.is_set():
        try:
            with database.transaction("look for a cursor") as cursor:
                stored = partitions.read(cursor)
            if stored.upstream == upstream and stored.cursor is not None:
                return True
        except StoreAway as exc:
            log.debug("cursor_unknown", reason=str(exc))
        if not told:
            log.info("enumeration_waits_for_cursor", upstream=upstream)
            told = True
        stopping.wait(LOOK_AGAIN_S)
    return False
