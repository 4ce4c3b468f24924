"""A listing from one page to the next: cursors that are refused, repeated, or lead nowhere; and listHosts as a whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from relay.discovery.pages import PageReader
from relay.net.errors import BadResponse, NetError, Stopped
from relay.net.xrpc import HostPage, ListedHost, RepoPage
from relay.observe.log import get_logger

log = get_logger(__name__)

# An upstream that invents hosts must not keep us for ever.
MAX_HOSTS = 100_000
_NO_LIST_HOSTS = frozenset((400, 404, 501))

AskRepos = Callable[[str | None], RepoPage]


class ListsHosts(Protocol):
    """The call that `list_hosts` makes."""

    def list_hosts(self, origin: str, *, cursor: str | None = None) -> HostPage: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A page, and where the next one begins; `cursor` None: this was the last."""

    page: RepoPage
    cursor: str | None

    @property
    def is_last(self) -> bool:
        return self.cursor is None


def turn_pages(reader: PageReader, host: str, ask: AskRepos, cursor: str | None) -> Iterator[Turn]:
    """Yield the pages of a listing from `cursor` on. A cursor of another day that is refused: from the start, at once.

    Raises NetError: the host gave no page, or repeats itself; Stopped. Source: PROTOCOL 7, "Pagination".
    """
    is_resumed = cursor is not None
    seen: set[str] = set() if cursor is None else {cursor}
    while True:
        try:
            page = reader.read(host, lambda at=cursor: ask(at))  # type: ignore[misc]
        except BadResponse as exc:
            if not is_resumed or not exc.answered:
                raise
            log.info("listing_restarted", host=host, error=str(exc))
            cursor, is_resumed = None, False
            seen.clear()
            continue
        is_resumed = False
        cursor = page.cursor
        if cursor is not None and _is_end(host, cursor, seen, is_empty=not page.repos):
            cursor = None
        yield Turn(page=page, cursor=cursor)
        if cursor is None:
            return


def list_hosts(
    reader: PageReader,
    xrpc: ListsHosts,
    upstream: str,
    stopping: threading.Event,
    on_malformed: Callable[[int], None],
) -> tuple[list[str], NetError | None]:
    """Return the origins that listHosts gives (all but banned ones), the largest hosts first, and why there are not more.

    An upstream without it (a PDS) knows no other host, which is no error. Raises Stopped.
    """
    hosts: dict[str, ListedHost] = {}
    cursor: str | None = None
    seen: set[str] = set()
    failure: NetError | None = None
    pages = 0
    try:
        while len(hosts) < MAX_HOSTS:
            if stopping.is_set():
                raise Stopped("stopping", host="")
            page = reader.read(upstream, lambda at=cursor: xrpc.list_hosts(upstream, cursor=at))  # type: ignore[misc]
            pages += 1
            on_malformed(page.malformed)
            hosts |= {host.origin: host for host in page.hosts if host.status != "banned"}
            if page.cursor is None or _is_end(upstream, page.cursor, seen, is_empty=not page.hosts):
                break
            cursor = page.cursor
    except Stopped:
        raise
    except NetError as exc:
        if isinstance(exc, BadResponse) and exc.status in _NO_LIST_HOSTS and not pages:
            log.info("upstream_without_list_hosts", host=upstream, status=exc.status)
        else:
            failure = exc
    return sorted(hosts, key=lambda origin: (-(hosts[origin].account_count or 0), origin)), failure


def _is_end(host: str, cursor: str, seen: set[str], *, is_empty: bool) -> bool:
    """Note a cursor. Raises BadResponse for one that was there before (a loop); an empty page that names its own again is an end."""
    if cursor not in seen:
        seen.add(cursor)
        return False
    if is_empty:
        return True
    raise BadResponse(f"{host}: the listing repeats its cursor {cursor[:100]!r}", host=host, status=200)
