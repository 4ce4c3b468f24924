"""A network of listings in memory, with faults, and a sink that a kill may cut at any page."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

from relay.net.errors import BadResponse, NetError
from relay.net.facts import NO_FACTS
from relay.net.xrpc import HostPage, ListedHost, ListedRepo, RepoPage
from relay.store.listings import Listing
from relay.store.repos import Discovered

Fault = Callable[[str, str | None], NetError | None]


class Killed(BaseException):
    """The process ends here."""


class FakeNetwork:
    """`repos`: origin -> DIDs, paged by `page_size`; `hosts`: what listHosts gives, a list for each round.

    `fault(origin, cursor)` may raise instead of an answer. Cursors are `<origin>@<index>`, so that mixing them up is noticed.
    """

    def __init__(self, repos: dict[str, list[str]], *, page_size: int = 2) -> None:
        self.repos = repos
        self.page_size = page_size
        self.hosts: list[list[ListedHost]] = []
        self.collections: dict[str, list[str]] = {}
        self.fault: Fault = lambda origin, cursor: None
        self.malformed = 0
        self.ignores_cursors = False
        self.reshape: Callable[[RepoPage, str, str | None], RepoPage] = lambda page, name, cursor: page
        self.asked: Counter[tuple[str, str | None]] = Counter()
        self._lock = threading.Lock()

    def list_repos(self, origin: str, *, cursor: str | None = None) -> RepoPage:
        return self._page(origin, self.repos[origin], cursor)

    def list_repos_by_collection(self, origin: str, collection: str, *, cursor: str | None = None) -> RepoPage:
        return self._page(f"{origin}#{collection}", self.collections[collection], cursor)

    def list_hosts(self, origin: str, *, cursor: str | None = None) -> HostPage:
        self._ask(f"{origin}#hosts", cursor)
        if not self.hosts:
            raise BadResponse("no such method", host=origin, status=501)
        round_of_hosts = self.hosts[0]
        start = 0 if cursor is None else int(cursor)
        end = start + self.page_size
        is_last = end >= len(round_of_hosts)
        if is_last and len(self.hosts) > 1:
            self.hosts.pop(0)
        return HostPage(
            hosts=round_of_hosts[start:end], cursor=None if is_last else str(end), malformed=0, facts=NO_FACTS
        )

    def _ask(self, name: str, cursor: str | None) -> None:
        with self._lock:
            self.asked[name, cursor] += 1
            error = self.fault(name, cursor)
        if error is not None:
            raise error

    def _page(self, name: str, dids: list[str], cursor: str | None) -> RepoPage:
        self._ask(name, cursor)
        start = 0
        if cursor is not None and not self.ignores_cursors:
            owner, _, index = cursor.rpartition("@")
            assert owner == name
            start = int(index)
        end = start + self.page_size
        page = RepoPage(
            repos=[ListedRepo(did=did) for did in dids[start:end]],
            cursor=f"{name}@{end}" if end < len(dids) else None,
            malformed=self.malformed,
            facts=NO_FACTS,
        )
        return self.reshape(page, name, cursor)


class MemorySink:
    """The database as discovery sees it. `before_take` may raise: then nothing of the page is stored."""

    def __init__(self) -> None:
        self.dids: dict[str, bool] = {}
        self.revs: dict[str, str | None] = {}
        self.listings: dict[tuple[str, str, str], Listing] = {}
        self.before_take: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def load(self) -> list[Listing]:
        return list(self.listings.values())

    def take(self, entries: Sequence[Discovered], *, named: bool, listing: Listing | None) -> int:
        with self._lock:
            self.before_take()
            self.revs.update((entry.did, entry.rev) for entry in entries)
            new = [entry.did for entry in entries if entry.did not in self.dids]
            self.dids.update(dict.fromkeys(new, named))
            if listing is not None:
                self.listings[listing.kind, listing.host, listing.param] = listing
            return len(set(new))
