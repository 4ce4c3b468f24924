"""The relay that others look at the network through: listHosts, listRepos, listReposByCollection, getRepo by redirect, firehose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from relay.simnet.answers import Request, Response, json_response
from relay.simnet.events import Event, EventLog
from relay.simnet.faults import (
    ANSWER_FAULTS,
    HANDSHAKE_FAULTS,
    LISTING_FAULTS,
    FaultKind,
    FaultPlan,
    Place,
    bad_answer,
    bad_manners,
)
from relay.simnet.firehose import Source, subscribe
from relay.simnet.pds import listing_entry, page_limit, repo_status, xrpc_error
from relay.simnet.traffic import Traffic
from relay.simnet.views import Hosted, Network

UPSTREAM = -1  # the host number of the relay in a fault plan
OUTBOX_EVENTS = 16_384
_PREFIX = "/xrpc/com.atproto."


class Upstream:
    """An indigo relay with a collection directory. Runs in the server's thread.

    `blind_to`: every n-th account is missing from its listRepos (real relays know only who spoke since their last reset);
    0: it knows everybody. `outbox_events`: how far a live subscriber may fall behind; `on_lost`: see `firehose.Source`.
    """

    def __init__(
        self,
        network: Network,
        log: EventLog,
        plan: FaultPlan,
        traffic: Traffic,
        *,
        murmur: Callable[[], object] | None = None,
        blind_to: int = 0,
        outbox_events: int = OUTBOX_EVENTS,
        on_lost: Callable[[Sequence[Event]], None] = lambda _events: None,
    ) -> None:
        self.plan = plan
        self._network = network
        self._log = log
        self._traffic = traffic
        self._murmur = murmur
        self._blind_to = blind_to
        self._source = Source(
            log=log, plan=lambda: self.plan, outbox_events=outbox_events, host=UPSTREAM, on_lost=on_lost
        )

    def __call__(self, request: Request) -> Response:
        if not request.path.startswith(_PREFIX):
            return json_response({"status": "ok"})
        endpoint = request.path.rpartition(".")[2]
        place = Place(endpoint=endpoint, host=UPSTREAM, did=request.param("did"))
        self._traffic.count("relay", endpoint)
        fault = self.plan.pick(HANDSHAKE_FAULTS if endpoint == "subscribeRepos" else ANSWER_FAULTS, place)
        if fault is not None:
            wrong = bad_answer(fault)
            if wrong is not None:
                return wrong
        with self._network.lock:
            response = self._answer(request, place)
        return bad_manners(fault, response) if fault is not None else response

    def _answer(self, request: Request, place: Place) -> Response:
        match place.endpoint:
            case "listHosts":
                return self._list_hosts(request)
            case "listRepos":
                return self._list_repos(request, place)
            case "listReposByCollection":
                return self._by_collection(request)
            case "subscribeRepos":
                response = subscribe(request, self._source)
                if response.feed is not None and self._murmur is not None and request.param("cursor") is None:
                    self._murmur()
                return response
            case "getRepo" | "getLatestCommit" | "getRepoStatus":
                return self._of_account(place)
            case _:
                return xrpc_error(501, "MethodNotImplemented", "Method Not Implemented")

    def _of_account(self, place: Place) -> Response:
        account = self._network.find(place.did or "")
        if account is None or account.tombstoned:
            return xrpc_error(404, "RepoNotFound", "account not found")
        if place.endpoint == "getRepoStatus":
            return json_response(repo_status(account))
        if account.status:
            name = {"takendown": "RepoTakendown", "deactivated": "RepoDeactivated", "deleted": "RepoDeleted"}
            return xrpc_error(403, name.get(account.status, "RepoInactive"), f"account is {account.status}")
        if place.endpoint == "getLatestCommit":
            return json_response({"cid": account.head, "rev": account.rev})
        origin = account.pds_override or self._network.host_urls[account.host]
        return Response(status=302, headers=(("Location", f"{origin}{_PREFIX}sync.getRepo?did={quote(account.did)}"),))

    def _list_hosts(self, request: Request) -> Response:
        limit = page_limit(request, default=200, most=1000)
        start = _numeric_cursor(request)
        if limit is None or start is None:
            return xrpc_error(400, "InvalidRequest", "bad limit or cursor")
        urls = self._network.host_urls
        hosts = []
        for host in range(start, min(start + limit, len(urls))):
            accounts = len(self._network.on_host(host))
            name = urlsplit(urls[host]).netloc
            hosts.append({"hostname": name, "seq": self._log.newest_seq, "accountCount": accounts, "status": "active"})
        return _page("hosts", hosts, start + limit if start + limit < len(urls) else None)

    def _list_repos(self, request: Request, place: Place) -> Response:
        limit = page_limit(request, default=500, most=1000)
        start = _numeric_cursor(request)
        if limit is None or start is None:
            return xrpc_error(400, "InvalidRequest", "bad limit or cursor")
        fault = self.plan.pick(LISTING_FAULTS, place)
        page, following = _numbered_page(self._network.everyone(), start, limit, self._is_known)
        if fault is not None and fault.kind is FaultKind.REPEAT_CURSOR:
            following = limit
        return _page("repos", [listing_entry(account) for account in page], following)

    def _is_known(self, number: int, account: Hosted) -> bool:
        is_seen = not self._blind_to or bool(number % self._blind_to)
        return is_seen and not account.status and not account.tombstoned

    def _by_collection(self, request: Request) -> Response:
        limit = page_limit(request, default=500, most=2000)
        start = _numeric_cursor(request)
        collection = request.param("collection")
        if limit is None or start is None or not collection:
            return xrpc_error(400, "InvalidRequest", "bad collection, limit or cursor")
        everyone = self._network.everyone()
        page, following = _numbered_page(everyone, start, limit, lambda _number, account: _has(account, collection))
        return _page("repos", [{"did": account.did} for account in page], following)


def _has(account: Hosted, collection: str) -> bool:
    return not account.status and not account.tombstoned and collection in account.collections()


def _numbered_page(
    accounts: Sequence[Hosted], start: int, limit: int, is_listed: Callable[[int, Hosted], bool]
) -> tuple[list[Hosted], int | None]:
    """Return a page of the accounts with a number (from 1) above `start`, and the number to go on after.

    The cursor is an account's number, as the row of a real relay, so that nobody is skipped when others come and go.
    """
    page: list[Hosted] = []
    last = start
    for number, account in enumerate(accounts[start:], start + 1):
        if is_listed(number, account):
            if len(page) == limit:
                return page, last
            page.append(account)
            last = number
    return page, None


def _numeric_cursor(request: Request) -> int | None:
    text = request.param("cursor")
    if text is None or text == "":
        return 0
    return int(text) if text.isdigit() else None


def _page(name: str, items: list[Any], following: int | None) -> Response:
    return json_response({name: items} if following is None else {name: items, "cursor": str(following)})
