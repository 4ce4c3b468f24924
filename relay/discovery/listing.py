"""Enumerations that resume: a host's listRepos, a collection's listReposByCollection, and the whole network's.

Each listing is a row (kind, host, param) of its batch: its cursor is stored in the transaction that stores the page's repos. What is
finished is not asked again in the same batch; what was cut goes on behind its last stored page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from relay.discovery.comparison import believed, latest_rev
from relay.discovery.pages import PagePolicy, PageReader
from relay.discovery.paging import MAX_HOSTS, AskRepos, list_hosts, turn_pages
from relay.discovery.progress import DiscoveryProgress, ProgressCounter
from relay.discovery.sink import ListingSink
from relay.errors import StoreAway
from relay.net.errors import NetError, Stopped
from relay.net.gate import HostGate
from relay.net.xrpc import HostPage, RepoPage
from relay.observe.log import get_logger
from relay.runtime.backoff import Backoff
from relay.runtime.clock import Clock, SystemClock
from relay.store.listings import Listing
from relay.store.repos import Discovered

log = get_logger(__name__)

KIND_REPOS = "repos"
KIND_COLLECTION = "collection"
KIND_HOSTS = "hosts"

HOST_THREADS = 16
MAX_ROUNDS = 10
NAMED_AT_A_TIME = 5000
_STORE_RETRY_FIRST_S = 0.5
_STORE_RETRY_LONGEST_S = 10.0
_PAUSE_LOOK_S = 0.25

_T = TypeVar("_T")


class Listings(Protocol):
    """The calls that an enumeration makes: `net.xrpc.Xrpc`."""

    def list_repos(self, origin: str, *, cursor: str | None = None) -> RepoPage: ...

    def list_repos_by_collection(self, origin: str, collection: str, *, cursor: str | None = None) -> RepoPage: ...

    def list_hosts(self, origin: str, *, cursor: str | None = None) -> HostPage: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedListing:
    """A listing that is not complete. `reason` is the error's word, `text` its message."""

    kind: str
    host: str
    param: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnumerationResult:
    """How an enumeration ended. `stopped`: by us, and it can be resumed; `failed`: listings without a complete answer."""

    stopped: bool
    failed: tuple[FailedListing, ...]
    progress: DiscoveryProgress

    @property
    def is_complete(self) -> bool:
        return not self.stopped and not self.failed


class Enumeration:
    """One run of discovery over `sink`. Call one of the `enumerate_` functions, from one thread; `request_stop` from any.

    A host that is down is tried again with back-off, then its listing is recorded as failed, and the rest goes on. The database away:
    the page waits. `on_stop` interrupts requests that run (`net.http.Fetcher.abort`). The lock guards `_known` and `_failed`.
    """

    def __init__(
        self,
        xrpc: Listings,
        gate: HostGate,
        sink: ListingSink,
        *,
        batch: int | None,
        policy: PagePolicy | None = None,
        clock: Clock | None = None,
        threads: int = HOST_THREADS,
        on_stop: Callable[[], None] | None = None,
        may_go: threading.Event | None = None,
    ) -> None:
        """`may_go`: while it is not set, no page is asked for."""
        self._xrpc = xrpc
        self._may_go = may_go
        self._sink = sink
        self._batch = batch or 0
        self._clock = clock or SystemClock()
        self._threads = threads
        self._on_stop = on_stop
        self._stopping = threading.Event()
        self._reader = PageReader(gate, policy or PagePolicy(), self._stopping, self._clock)
        self._progress = ProgressCounter()
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], Listing] = {}
        self._upstream: str | None = None  # may speak for any host
        self._failed: list[FailedListing] = []

    # --- from any thread --------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """End at the next page; what runs is interrupted. Returns at once, any number of times."""
        self._stopping.set()
        if self._on_stop is not None:
            self._on_stop()

    def snapshot(self) -> DiscoveryProgress:
        """Return how far it is."""
        return self._progress.snapshot()

    # --- the enumerations -------------------------------------------------------------------------------------------

    def enumerate_dids(self, dids: Sequence[str]) -> EnumerationResult:
        """Take the DIDs that the operator named; a removed one is tracked again."""
        return self._run(f"{len(dids):,} named DIDs", lambda: self._take_named(dids))

    def enumerate_hosts(self, origins: Sequence[str]) -> EnumerationResult:
        """List the repos of each host (`backfill --host`)."""
        return self._run(f"listRepos of {_hosts(origins)}", lambda: self._list_hosts_repos(origins))

    def enumerate_collections(self, origin: str, collections: Sequence[str]) -> EnumerationResult:
        """List the repos that hold one of the collections, as `origin` knows them (`backfill --collection`)."""
        source = f"listReposByCollection of {origin}"
        return self._run(source, lambda: self._list_collections(origin, collections))

    def enumerate_network(self, upstream: str) -> EnumerationResult:
        """List the hosts that the upstream knows (all but banned ones), the repos of each, then the upstream's own.

        Repeated until no new host appears. An upstream without listHosts (a PDS) is its own only host. Source: PROTOCOL 6.3.
        """
        return self._run(f"the network, from {upstream}", lambda: self._list_network(upstream))

    def _run(self, source: str, do: Callable[[], None]) -> EnumerationResult:
        self._progress.say(running=True, source=source)
        try:
            known = self._retried(self._sink.load)
            self._known = {(each.kind, each.host, each.param): each for each in known}
            do()
        except Stopped:
            log.info("discovery_stopped", source=source)
        finally:
            self._progress.say(running=False)
        with self._lock:
            failed = tuple(self._failed)
        progress = self._progress.snapshot()
        log.info(
            "discovery_ended",
            source=source,
            repos_seen=progress.repos_seen,
            repos_new=progress.repos_new,
            hosts_done=progress.hosts_done,
            hosts_failed=progress.hosts_failed,
            malformed=progress.malformed,
            stopped=self._stopping.is_set(),
        )
        return EnumerationResult(stopped=self._stopping.is_set(), failed=failed, progress=progress)

    # --- what is enumerated -----------------------------------------------------------------------------------------

    def _take_named(self, dids: Sequence[str]) -> None:
        for start in range(0, len(dids), NAMED_AT_A_TIME):
            self._check_stopping()
            entries = [Discovered(did=did) for did in dids[start : start + NAMED_AT_A_TIME]]
            self._store(entries, named=True, listing=None)

    def _list_hosts_repos(self, origins: Iterable[str]) -> None:
        """List several hosts in parallel. Raises Stopped, and what is no NetError of a single host (a fenced store)."""
        pending = list(dict.fromkeys(origins))
        if not pending:
            return
        self._progress.add(hosts_total=len(pending))
        with ThreadPoolExecutor(min(self._threads, len(pending)), thread_name_prefix="listing") as pool:
            running: list[Future[None]] = [pool.submit(self._list_repos_of, origin) for origin in pending]
            wait(running, return_when=FIRST_EXCEPTION)
            pool.shutdown(cancel_futures=self._stopping.is_set())
        for each in running:
            if not each.cancelled() and (exc := each.exception()) is not None and not isinstance(exc, Stopped):
                raise exc
        self._check_stopping()

    def _list_repos_of(self, origin: str) -> None:
        try:
            self._check_stopping()
            self._list_repos(KIND_REPOS, origin, "", lambda cursor: self._xrpc.list_repos(origin, cursor=cursor))
        except BaseException:
            # A fault of ours, or stopping: no thread begins another host, and the others end at their next page.
            self.request_stop()
            raise

    def _list_collections(self, origin: str, collections: Sequence[str]) -> None:
        wanted = list(dict.fromkeys(collections))
        self._progress.add(hosts_total=len(wanted))
        for collection in wanted:
            self._progress.say(source=f"listReposByCollection {collection} of {origin}")

            def ask(cursor: str | None, collection: str = collection) -> RepoPage:
                return self._xrpc.list_repos_by_collection(origin, collection, cursor=cursor)

            self._list_repos(KIND_COLLECTION, origin, collection, ask)

    def _list_network(self, upstream: str) -> None:
        self._upstream = upstream
        listed: set[str] = set()
        for _ in range(MAX_ROUNDS):
            new = [origin for origin in self._hosts_of(upstream) if origin not in listed and origin != upstream]
            new = new[: MAX_HOSTS - len(listed)]
            if not new:
                break
            listed.update(new)
            self._progress.say(source=f"listRepos of {len(listed):,} hosts that {upstream} knows")
            self._list_hosts_repos(new)
        self._progress.say(source=f"listRepos of {upstream}")
        self._list_hosts_repos([upstream])

    def _hosts_of(self, upstream: str) -> list[str]:
        """Return the origins that listHosts gives, the largest hosts first. An upstream without it knows no other host."""
        self._progress.say(source=f"listHosts of {upstream}")
        started_at = self._clock.now()
        hosts, failure = list_hosts(
            self._reader,
            self._xrpc,
            upstream,
            self._stopping,
            lambda count: self._count_malformed(upstream, "listHosts", count),
        )
        if failure is not None:
            self._fail(KIND_HOSTS, upstream, "", failure, None, started_at)
        return hosts

    # --- one listing ------------------------------------------------------------------------------------------------

    def _list_repos(self, kind: str, host: str, param: str, ask: AskRepos) -> None:
        """Page through one listing from where it stands. A failure of the host is recorded; raises Stopped, StoreError."""
        with self._lock:
            listing = self._known.get((kind, host, param))
        if listing is not None and listing.finished_at is not None and listing.error is None:
            self._progress.add(hosts_done=1)
            return
        if listing is None:
            listing = Listing(kind=kind, host=host, param=param, batch=self._batch, started_at=self._clock.now())
        speaker = None if kind == KIND_COLLECTION or host == self._upstream else host
        try:
            for turn in turn_pages(self._reader, host, ask, listing.cursor):
                page = turn.page
                self._count_malformed(host, kind, page.malformed)
                listing = replace(
                    listing,
                    cursor=turn.cursor,
                    pages=listing.pages + 1,
                    repos=listing.repos + len(page.repos),
                    finished_at=self._clock.now() if turn.is_last else None,
                    error=None,
                )
                latest = latest_rev(self._clock.now())
                entries = [
                    Discovered(did=r.did, rev=believed(r.rev, latest), active=r.active, host=speaker)
                    for r in page.repos
                ]
                self._store(entries, named=False, listing=listing)
                self._progress.add(pages=1)
                if not turn.is_last:
                    self._check_stopping()
        except Stopped:
            raise
        except NetError as exc:
            self._fail(kind, host, param, exc, listing, listing.started_at)
            return
        with self._lock:
            self._known[kind, host, param] = listing
        self._progress.add(hosts_done=1)
        log.info("listing_done", host=host, kind=kind, param=param, pages=listing.pages, repos=listing.repos)

    def _fail(
        self, kind: str, host: str, param: str, exc: NetError, listing: Listing | None, started_at: float
    ) -> None:
        """Record that a listing is not complete; its cursor stays, for the next run."""
        failed = FailedListing(kind=kind, host=host, param=param, reason=exc.reason, text=str(exc))
        log.warning("listing_failed", host=host, kind=kind, param=param, reason=exc.reason, error=str(exc))
        row = listing or Listing(kind=kind, host=host, param=param, batch=self._batch, started_at=started_at)
        self._store([], named=False, listing=replace(row, finished_at=None, error=f"{exc.reason}: {exc}"))
        with self._lock:
            self._failed.append(failed)
        if kind != KIND_HOSTS:
            self._progress.add(hosts_failed=1)

    def _store(self, entries: Sequence[Discovered], *, named: bool, listing: Listing | None) -> None:
        new = self._retried(lambda: self._sink.take(entries, named=named, listing=listing))
        self._progress.add(repos_seen=len(entries), repos_new=new)

    def _retried(self, do: Callable[[], _T]) -> _T:
        """Do it until the database is there. Storing a page twice changes nothing. Raises Stopped, StoreError."""
        backoff = Backoff(_STORE_RETRY_FIRST_S, _STORE_RETRY_LONGEST_S)
        while True:
            try:
                return do()
            except StoreAway as exc:
                delay_s = backoff.next_delay_s()
                log.warning("discovery_waits_for_store", wait_s=round(delay_s, 1), error=str(exc))
                if self._stopping.wait(delay_s):
                    raise Stopped("stopping", host="") from exc

    def _count_malformed(self, host: str, kind: str, count: int) -> None:
        if count:
            log.warning("listing_malformed_entries", host=host, kind=kind, entries=count)
            self._progress.add(malformed=count)

    def _check_stopping(self) -> None:
        """Raises Stopped; while it is paused, waits."""
        while not self._stopping.is_set():
            if self._may_go is None or self._may_go.wait(_PAUSE_LOOK_S):
                return
        raise Stopped("stopping", host="")


def _hosts(origins: Sequence[str]) -> str:
    return origins[0] if len(origins) == 1 else f"{len(origins):,} hosts"
