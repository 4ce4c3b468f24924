"""One reconcile: every tracked repo's rev and status, as its host lists them, against what is stored (DESIGN 4).

    each host     its listRepos, page by page; what differs is noted with the page's cursor, in one transaction
                  few repos on a large host: getRepoStatus of each instead
                  its listing complete: which of our repos did it not have?
    second look   once the followed stream has passed the time of the note (`comparison.SecondLook`): what still differs is marked
    end           every host done, or silent for good; nothing noted is left; incidents from before the first page are closed

A kill at any page goes on there: the pass, its listings and its notes are rows.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from relay.discovery.comparison import SecondLook, listed_by
from relay.discovery.notebook import DECIDED_AT_A_TIME, Decided, Notebook, listing_of
from relay.discovery.pages import PagePolicy, PageReader
from relay.discovery.paging import AskRepos, ListsHosts, list_hosts, turn_pages
from relay.discovery.progress import ReconcileView
from relay.errors import StoreAway
from relay.net.errors import BadResponse, NetError, RepoInactive, RepoNotFound, Stopped
from relay.net.gate import HostGate
from relay.net.xrpc import ListedRepo, RepoPage, RepoStatus
from relay.observe.log import get_logger
from relay.runtime.backoff import Backoff
from relay.runtime.clock import Clock
from relay.store.listings import Listing
from relay.store.reconcile import Candidate, Pass

log = get_logger(__name__)

KIND = "reconcile"
# The params of its listings, beside the NSIDs of collections.
WHOLE = ""  # listRepos
EACH = "each"  # getRepoStatus of each repo
MISSING = "missing"  # what its listing did not have is noted

HOST_THREADS = 16
# So few of our repos on a host whose listing goes beyond a page are asked for one by one.
FEW = 50
ASKED_AT_A_TIME = 20
LOOK_EVERY_S = 1.0
_COUNTED_UP_TO = 2000
_STORE_RETRY_FIRST_S = 0.5
_STORE_RETRY_LONGEST_S = 10.0
_NAMED_HOSTS = 20
_T = TypeVar("_T")


class Calls(ListsHosts, Protocol):
    """The calls that a reconcile makes: `net.xrpc.Xrpc`."""

    def list_repos(self, origin: str, *, cursor: str | None = None) -> RepoPage: ...

    def list_repos_by_collection(self, origin: str, collection: str, *, cursor: str | None = None) -> RepoPage: ...

    def get_repo_status(self, origin: str, did: str) -> RepoStatus: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is found beside what is tracked: nothing, all that the hosts list, or the repos of `collections` at `collection_host`.

    `upstream`: whose listHosts names the hosts beside those that repos live on ("": nobody's). Origins.
    """

    finds_all: bool = False
    upstream: str = ""
    collections: tuple[str, ...] = ()
    collection_host: str = ""

    @property
    def text(self) -> str:
        """The form that is stored: a pass of another scope is another pass."""
        return json.dumps([self.finds_all, self.upstream, sorted(self.collections), self.collection_host])


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileResult:
    """How a pass ended. `stopped`: by us, and it goes on where it was. `silent`: hosts without a complete answer, and why.

    `answered`: most hosts were compared, so the incidents from before the pass are `closed` (ids).
    """

    stopped: bool
    counts: Pass
    silent: tuple[tuple[str, str], ...] = ()
    answered: bool = False
    closed: tuple[int, ...] = ()


class Reconcile:
    """One pass. `run` once, from one thread; `request_stop`, `hurry` and `view` from any.

    `rounds_s`: after these waits the hosts that did not answer are asked again; `hurry` ends that. `on_decided` hears of each second look
    that marked something, in the running thread. `closes_incidents`: the scope is all that an incident asks for.
    `on_stop` ends requests and connections (`net.http.Fetcher.abort`): when it is stopped, and at the end.
    The lock guards `_known`, `_failed`, `_view`.
    """

    def __init__(
        self,
        calls: Calls,
        gate: HostGate,
        notebook: Notebook,
        scope: Scope,
        *,
        clock: Clock,
        policy: PagePolicy | None = None,
        rounds_s: Sequence[float] = (),
        closes_incidents: bool = True,
        threads: int = HOST_THREADS,
        on_stop: Callable[[], None] | None = None,
        on_decided: Callable[[Decided], None] | None = None,
    ) -> None:
        self._calls, self._notebook, self._scope, self._clock = calls, notebook, scope, clock
        self._rounds_s, self._threads = tuple(rounds_s), threads
        self._closes_incidents, self._on_stop, self._on_decided = closes_incidents, on_stop, on_decided
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._reader = PageReader(gate, policy or PagePolicy(), self._stopping, clock)
        self._second_look = SecondLook()
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Listing] = {}
        self._failed: dict[str, str] = {}
        self._view = ReconcileView()

    # --- from any thread ----------------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """End at the next page; what runs is interrupted. Returns at once, any number of times."""
        self._stopping.set()
        self._hurry.set()
        if self._on_stop is not None:
            self._on_stop()

    def hurry(self) -> None:
        """Another pass is wanted: do not wait for hosts that are silent."""
        self._hurry.set()

    def view(self) -> ReconcileView:
        """Return how far it is."""
        with self._lock:
            return self._view

    # --- the pass -----------------------------------------------------------------------------------------------------------

    def run(self) -> ReconcileResult:
        """Do it, or go on with it. Raises StoreError (StoreFenced: the lease is lost) and nothing of a single host."""
        begun, known = self._retried(lambda: self._notebook.begin(self._scope.text))
        self._known = {(each.host, each.param): each for each in known}
        self._say(running=True, counts=begun)
        log.info("reconcile_begun", number=begun.id, resumed=bool(known), scope=self._scope.text)
        try:
            self._compare(begun)
            return self._finish(begun)
        except Stopped:
            log.info("reconcile_stopped", number=begun.id)
            return ReconcileResult(stopped=True, counts=begun, silent=self._silent())
        finally:
            self._say(running=False)
            if self._on_stop is not None:
                self._on_stop()

    def _compare(self, begun: Pass) -> None:
        hosts = self._hosts()
        work: dict[str, Callable[[], None]] = {
            host: lambda host=host, count=count: self._compare_host(begun, host, count)  # type: ignore[misc]
            for host, count in hosts.items()
        }
        origin = self._scope.collection_host
        for collection in self._scope.collections:
            work[f"{origin} {collection}"] = lambda at=collection: self._find_by_collection(begun, origin, at)  # type: ignore[misc]
        self._say(hosts_total=len(work))
        self._do_all(begun, work)
        for wait_s in self._rounds_s:
            with self._lock:
                again = {name: do for name, do in work.items() if name in self._failed}
            if not again or not self._wait(begun, wait_s):
                break
            log.info("reconcile_asks_again", hosts=len(again))
            self._do_all(begun, again)
        while self._retried(self._notebook.has_undecided):
            self._check_stopping()
            if not self._decide(begun):
                self._stopping.wait(LOOK_EVERY_S)

    def _finish(self, begun: Pass) -> ReconcileResult:
        silent, total = self._silent(), self.view().hosts_total
        answered = 2 * len(silent) <= total if total > 1 else not silent
        note = None
        if silent:
            names = ", ".join(f"{host} ({why})" for host, why in silent[:_NAMED_HOSTS])
            more = f" and {len(silent) - _NAMED_HOSTS} more" if len(silent) > _NAMED_HOSTS else ""
            note = f"{len(silent)} of {total} hosts did not answer: {names}{more}"
        ended, closed = self._retried(
            lambda: self._notebook.finish(
                begun,
                hosts_total=total,
                hosts_failed=len(silent),
                note=note,
                closes_incidents=answered and self._closes_incidents,
            )
        )
        self._say(counts=ended)
        log.info(
            "reconcile_ended", number=begun.id, hosts=total, hosts_silent=len(silent), compared=ended.compared,
            differed=ended.differed, queued=ended.queued, found=ended.found, incidents_closed=len(closed),
        )  # fmt: skip
        return ReconcileResult(stopped=False, counts=ended, silent=silent, answered=answered, closed=tuple(closed))

    def _hosts(self) -> dict[str, int]:
        """Return the hosts to compare, those with most of our repos first."""
        found = self._retried(lambda: self._notebook.hosts(_COUNTED_UP_TO))
        hosts = dict(sorted(found, key=lambda entry: (-entry[1], entry[0])))
        upstream = self._scope.upstream
        if self._scope.finds_all and upstream:
            listed, failure = list_hosts(
                self._reader, self._calls, upstream, self._stopping, lambda count: self._malformed(upstream, count)
            )
            # What upstream lists lives on the hosts that it names; only one that names none is asked itself.
            hosts |= {origin: 0 for origin in listed or [upstream] if origin not in hosts}
            if failure is not None:
                self._fail(upstream, failure)
        return hosts

    def _do_all(self, begun: Pass, work: dict[str, Callable[[], None]]) -> None:
        """Do it all, several at a time, with second looks meanwhile. Raises Stopped, and what is no failure of a single host."""
        with self._lock:
            for name in work:
                self._failed.pop(name, None)
            self._view = replace(self._view, hosts_failed=len(self._failed))
        if not work:
            return
        with ThreadPoolExecutor(min(self._threads, len(work)), thread_name_prefix="reconcile") as pool:
            running = [pool.submit(self._guarded, name, do) for name, do in work.items()]
            try:
                left: Collection[Future[None]] = running
                while left:
                    left = wait(left, timeout=LOOK_EVERY_S).not_done
                    if not self._stopping.is_set():
                        self._decide(begun)
            except BaseException:
                self.request_stop()
                raise
            finally:
                pool.shutdown(cancel_futures=self._stopping.is_set())
        for each in running:
            if not each.cancelled() and (exc := each.exception()) is not None and not isinstance(exc, Stopped):
                raise exc
        self._check_stopping()

    def _guarded(self, name: str, do: Callable[[], None]) -> None:
        try:
            self._check_stopping()
            do()
        except Stopped:
            raise
        except NetError as exc:
            self._fail(name, exc)
        except BaseException:
            # A fault of ours: no thread begins another host, and the others end at their next page.
            self.request_stop()
            raise
        else:
            with self._lock:
                self._view = replace(self._view, hosts_done=self._view.hosts_done + 1)

    # --- a host -------------------------------------------------------------------------------------------------------------

    def _compare_host(self, begun: Pass, host: str, tracked: int) -> None:
        """Compare what a host lists; raises NetError where it gives no complete answer."""
        if self._is_done(host, MISSING) or self._is_done(host, EACH):
            return
        is_few = not self._scope.finds_all and tracked < FEW
        listing = self._listing(begun, host, WHOLE)
        if listing.finished_at is None and not self._has_begun(host, EACH):
            listing = self._pages(
                begun,
                listing,
                lambda at: self._calls.list_repos(host, cursor=at),
                finds=self._scope.finds_all,
                at_most_one=is_few,
            )
        if listing.finished_at is None:
            self._ask_each(begun, host)
            return
        missing = replace(listing_of(begun, KIND, host, MISSING, self._clock.now()), finished_at=self._clock.now())
        count = self._retried(lambda: self._notebook.take_missing(missing))
        with self._lock:
            self._known[host, MISSING] = missing
        log.info("reconcile_host", host=host, pages=listing.pages, listed=listing.repos, missing=count)

    def _pages(
        self, begun: Pass, listing: Listing, ask: AskRepos, *, finds: bool, at_most_one: bool = False
    ) -> Listing:
        """Compare a listing from where it stands; return how far it came: to its end, unless it has more pages than `at_most_one`."""
        is_whole = listing.param == WHOLE
        for turn in turn_pages(self._reader, listing.host, ask, listing.cursor):
            if at_most_one and not turn.is_last:
                break
            self._malformed(listing.host, turn.page.malformed)
            listing = replace(
                listing,
                cursor=turn.cursor,
                pages=listing.pages + 1,
                repos=listing.repos + len(turn.page.repos),
                finished_at=self._clock.now() if turn.is_last else None,
            )
            said, refused = listed_by(listing.host, turn.page.repos, self._clock.now())
            if refused:
                log.warning("listing_revs_from_the_future", host=listing.host, entries=refused)
            seen = [entry.did for entry in turn.page.repos] if is_whole else None
            self._store(begun, listing, said, seen, finds=finds)
            if not turn.is_last:
                self._check_stopping()
        return listing

    def _ask_each(self, begun: Pass, host: str) -> None:
        """Ask a host for each of our few repos, instead of for all that it has."""
        listing = self._listing(begun, host, EACH)
        while True:
            after = listing.cursor or ""
            dids = self._retried(lambda at=after: self._notebook.dids_of(host, at, ASKED_AT_A_TIME))  # type: ignore[misc]
            said = [self._ask(host, did) for did in dids]
            is_last = len(dids) < ASKED_AT_A_TIME
            listing = replace(
                listing,
                cursor=dids[-1] if dids else listing.cursor,
                pages=listing.pages + 1,
                repos=listing.repos + len(dids),
                finished_at=self._clock.now() if is_last else None,
            )
            self._store(begun, listing, said, None, finds=False)
            if is_last:
                log.info("reconcile_host", host=host, asked=listing.repos)
                return
            self._check_stopping()

    def _ask(self, host: str, did: str) -> Candidate:
        """Return what a host says of one repo; that it does not have it is an answer."""
        try:
            status = self._reader.read(host, lambda: self._calls.get_repo_status(host, did))
        except RepoNotFound:
            return Candidate(did=did, host=host, missing=True)
        except RepoInactive as exc:
            return Candidate(did=did, host=host, active=False, status=exc.account_status or None)
        except BadResponse as exc:
            if not exc.answered:
                raise
            return Candidate(did=did, host=host)  # it does not serve getRepoStatus: getLatestCommit may say more
        said = ListedRepo(did=did, rev=status.rev, active=status.active, status=status.status)
        candidates, _refused = listed_by(host, [said], self._clock.now())
        return candidates[0] if candidates else Candidate(did=did, host=host)

    def _find_by_collection(self, begun: Pass, origin: str, collection: str) -> None:
        """Find the repos that hold a collection; of those that we know such a listing says nothing."""
        listing = self._listing(begun, origin, collection)
        if listing.finished_at is None:
            self._pages(
                begun,
                listing,
                lambda at: self._calls.list_repos_by_collection(origin, collection, cursor=at),
                finds=True,
            )

    def _store(
        self, begun: Pass, listing: Listing, said: list[Candidate], seen: list[str] | None, *, finds: bool
    ) -> None:
        compared = self._retried(lambda: self._notebook.take(begun.id, said, listing, seen=seen, finds=finds))
        with self._lock:
            self._known[listing.host, listing.param] = listing
            self._view = replace(self._view, compared=self._view.compared + compared)

    # --- the second look ------------------------------------------------------------------------------------------------------

    def _decide(self, begun: Pass) -> bool:
        """Look again at what may be decided by now; return whether there was anything."""
        stream = self._retried(self._notebook.stream)
        until = self._second_look.until(stream, self._clock.monotonic())
        any_decided = False
        while not self._stopping.is_set():
            decided = self._retried(lambda: self._notebook.decide(begun.id, until))
            if not decided.looked_at:
                break
            any_decided = True
            with self._lock:
                view = self._view
                self._view = replace(
                    view,
                    differed=view.differed + decided.differed,
                    queued=view.queued + decided.requeued + decided.to_check,
                    found=view.found + decided.found,
                )
            if self._on_decided is not None and (decided.requeued or decided.to_check or decided.found):
                self._on_decided(decided)
            if decided.looked_at < DECIDED_AT_A_TIME // 2:
                break
        return any_decided

    def _wait(self, begun: Pass, seconds: float) -> bool:
        """Wait, with second looks meanwhile; False: somebody is in a hurry."""
        deadline = self._clock.monotonic() + seconds
        while self._clock.monotonic() < deadline:
            if self._hurry.wait(min(LOOK_EVERY_S, seconds)):
                self._check_stopping()
                return False
            self._decide(begun)
        return True

    # --- small change -----------------------------------------------------------------------------------------------------------

    def _listing(self, begun: Pass, host: str, param: str) -> Listing:
        with self._lock:
            known = self._known.get((host, param))
        return known or listing_of(begun, KIND, host, param, self._clock.now())

    def _has_begun(self, host: str, param: str) -> bool:
        with self._lock:
            return (host, param) in self._known

    def _is_done(self, host: str, param: str) -> bool:
        with self._lock:
            known = self._known.get((host, param))
        return known is not None and known.finished_at is not None

    def _fail(self, name: str, exc: NetError) -> None:
        log.warning("reconcile_host_failed", host=name, reason=exc.reason, error=str(exc))
        with self._lock:
            self._failed[name] = exc.reason
            self._view = replace(self._view, hosts_failed=len(self._failed))

    def _silent(self) -> tuple[tuple[str, str], ...]:
        with self._lock:
            return tuple(sorted(self._failed.items()))

    def _malformed(self, host: str, count: int) -> None:
        if count:
            log.warning("listing_malformed_entries", host=host, kind=KIND, entries=count)

    def _say(self, *, running: bool | None = None, hosts_total: int | None = None, counts: Pass | None = None) -> None:
        with self._lock:
            view = self._view
            if running is not None:
                view = replace(view, running=running)
            if hosts_total is not None:
                view = replace(view, hosts_total=hosts_total)
            if counts is not None:
                view = replace(
                    view, compared=counts.compared, differed=counts.differed, queued=counts.queued, found=counts.found
                )
            self._view = view

    def _retried(self, do: Callable[[], _T]) -> _T:
        """Do it until the database is there. Doing it twice changes nothing. Raises Stopped, StoreError."""
        backoff = Backoff(_STORE_RETRY_FIRST_S, _STORE_RETRY_LONGEST_S)
        while True:
            try:
                return do()
            except StoreAway as exc:
                delay_s = backoff.next_delay_s()
                log.warning("reconcile_waits_for_store", wait_s=round(delay_s, 1), error=str(exc))
                if self._stopping.wait(delay_s):
                    raise Stopped("stopping", host="") from exc

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise Stopped("stopping", host="")
