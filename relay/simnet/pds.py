"""A PDS: getRepo, listRepos, getLatestCommit, getRepoStatus, describeServer, as @atproto/pds answers them."""

from __future__ import annotations

import gzip
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from relay.simnet.answers import Request, Response, json_response
from relay.simnet.faults import (
    ANSWER_FAULTS,
    CAR_FAULTS,
    LISTING_FAULTS,
    Fault,
    FaultKind,
    FaultPlan,
    Place,
    bad_answer,
    bad_manners,
)
from relay.simnet.spoil import spoiled_car
from relay.simnet.traffic import Traffic
from relay.simnet.views import Hosted, Network, Style

CAR_TYPE = "application/vnd.ipld.car"
_PREFIX = "/xrpc/com.atproto."
_PACKED_CARS = 64  # gzip answers kept
_FIRST_MILLIS = 1_690_000_000_000
_ERROR_OF_STATUS = {"takendown": "RepoTakendown", "suspended": "RepoSuspended", "deactivated": "RepoDeactivated"}


@dataclass(slots=True, kw_only=True)
class RateLimit:
    """A fixed window of requests, told in RateLimit-* headers; `silent`: 429 as HTML without any header."""

    limit: int
    window_s: float
    silent: bool = False
    _until: float = 0.0
    _used: int = 0

    def take(self) -> tuple[bool, tuple[tuple[str, str], ...]]:
        """Use one request: (allowed, headers)."""
        now = time.time()
        if now >= self._until:
            self._until, self._used = now + self.window_s, 0
        self._used += 1
        allowed = self._used <= self.limit
        if self.silent:
            return allowed, ()
        headers: tuple[tuple[str, str], ...] = (
            ("RateLimit-Limit", str(self.limit)),
            ("RateLimit-Remaining", str(max(0, self.limit - self._used))),
            ("RateLimit-Reset", str(int(self._until) + 1)),
            ("RateLimit-Policy", f"{self.limit};w={self.window_s:.0f}"),
        )
        if not allowed:
            headers += (("Retry-After", str(int(self._until - now) + 1)),)
        return allowed, headers


class Pds:
    """One PDS of a network. Runs in the server's thread."""

    def __init__(self, network: Network, host: int, plan: FaultPlan, traffic: Traffic, *, style: Style) -> None:
        self.plan = plan
        self.rate_limit: RateLimit | None = None
        self._network = network
        self._host = host
        self._traffic = traffic
        self._style = style
        self._packed: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def __call__(self, request: Request) -> Response:
        if not request.path.startswith(_PREFIX):
            return json_response({"version": "0.5.35-simulated"} if request.path == "/xrpc/_health" else {}, 200)
        endpoint = request.path.rpartition(".")[2]
        place = Place(endpoint=endpoint, host=self._host, did=request.param("did"))
        self._traffic.count(f"pds{self._host}", endpoint)
        headers: tuple[tuple[str, str], ...] = ()
        if self.rate_limit is not None:
            allowed, headers = self.rate_limit.take()
            if not allowed:
                return _too_many(headers)
        fault = self.plan.pick(ANSWER_FAULTS, place)
        if fault is not None:
            wrong = bad_answer(fault)
            if wrong is not None:
                return wrong
        with self._network.lock:
            response = self._answer(request, place)
        if headers:
            response.headers += headers
        return bad_manners(fault, response) if fault is not None else response

    def _answer(self, request: Request, place: Place) -> Response:
        match place.endpoint:
            case "getRepo":
                return self._get_repo(request, place)
            case "listRepos":
                return self._list_repos(request, place)
            case "getLatestCommit":
                account = self._hosted(place.did)
                refusal = self._refusal(account, place.did)
                if refusal is not None or account is None:
                    return refusal or _not_found(place.did)
                return json_response({"cid": account.head, "rev": account.rev})
            case "getRepoStatus":
                account = self._hosted(place.did)
                if account is None:
                    return _not_found(place.did)
                return json_response(repo_status(account))
            case "describeServer":
                return json_response({"did": f"did:web:pds{self._host}.test", "availableUserDomains": [".test"]})
            case "listHosts" | "listReposByCollection":
                return xrpc_error(400, "InvalidRequest", "not served by a PDS")
            case _:
                return xrpc_error(501, "MethodNotImplemented", "Method Not Implemented")

    def _hosted(self, did: str | None) -> Hosted | None:
        """Return an account that this host knows: also an inactive one, not a deleted or moved one."""
        account = self._network.find(did or "")
        if account is None or account.host != self._host or account.tombstoned or account.status == "deleted":
            return None
        return account

    @staticmethod
    def _refusal(account: Hosted | None, did: str | None) -> Response | None:
        if account is None:
            return _not_found(did)
        if not account.status:
            return None
        name = _ERROR_OF_STATUS.get(account.status, "RepoNotFound")
        return xrpc_error(400, name, f"Repo is {account.status}: {did}")

    def _get_repo(self, request: Request, place: Place) -> Response:
        account = self._hosted(place.did)
        refusal = self._refusal(account, place.did)
        if refusal is not None or account is None:
            return refusal or _not_found(place.did)
        fault = self.plan.pick(CAR_FAULTS, place)
        if fault is not None:
            wrong = spoiled_car(fault, account, self._network)
            if wrong is not None:
                self._traffic.sent_repo(account.did, len(wrong))
                return Response(body=wrong, content_type=CAR_TYPE)
            self.plan.take_back(fault, place)
        car = account.car()
        self._traffic.sent_repo(account.did, len(car))
        if self._style.gzip and "gzip" in request.header("accept-encoding"):
            packed = self._pack(account, car)
            return Response(body=packed, content_type=CAR_TYPE, headers=(("Content-Encoding", "gzip"),))
        return Response(body=car, content_type=CAR_TYPE, chunked=self._style.chunked)

    def _pack(self, account: Hosted, car: bytes) -> bytes:
        key = (account.did, account.head)
        packed = self._packed.get(key)
        if packed is None:
            packed = self._packed[key] = gzip.compress(car, compresslevel=1, mtime=0)
            if len(self._packed) > _PACKED_CARS:
                self._packed.popitem(last=False)
        return packed

    def _list_repos(self, request: Request, place: Place) -> Response:
        """Page through the accounts in the order of their making; the cursor is `<millis>::<did>`."""
        limit = page_limit(request, default=500, most=1000)
        if limit is None:
            return xrpc_error(400, "InvalidRequest", "limit must be between 1 and 1000")
        fault = self.plan.pick(LISTING_FAULTS, place)
        accounts = list(self._network.on_host(self._host))
        if fault is not None and fault.kind is FaultKind.FALSE_CLAIM:
            accounts += [a for a in self._network.everyone() if a.host != self._host]
        cursor = request.param("cursor")
        start = self._place_after(cursor, accounts) if cursor else 0
        page = accounts[start : start + limit]
        answer: dict[str, Any] = {"repos": [listing_entry(account) for account in page]}
        if (page and start + limit < len(accounts)) or _repeats(fault):
            last = accounts[0] if _repeats(fault) else page[-1]
            answer["cursor"] = f"{_FIRST_MILLIS}::{last.did}"
        return json_response(answer)

    def _place_after(self, cursor: str, accounts: list[Hosted]) -> int:
        """Return how many of the accounts a cursor has passed. Its own account may have gone since the last page."""
        did = cursor.partition("::")[2]
        place = next((place for place, account in enumerate(accounts) if account.did == did), None)
        if place is not None:
            return place + 1
        passed: set[str] = set()
        for account in self._network.everyone():
            passed.add(account.did)
            if account.did == did:
                return sum(account.did in passed for account in accounts)
        return len(accounts)


def _repeats(fault: Fault | None) -> bool:
    return fault is not None and fault.kind is FaultKind.REPEAT_CURSOR


def _too_many(headers: tuple[tuple[str, str], ...]) -> Response:
    if not headers:
        return Response(status=429, body=b"<html><body>429 Too Many Requests</body></html>", content_type="text/html")
    return xrpc_error(429, "RateLimitExceeded", "Rate Limit Exceeded", headers)


def _not_found(did: str | None) -> Response:
    return xrpc_error(400, "RepoNotFound", f"Could not find repo for DID: {did}")


def xrpc_error(status: int, name: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return json_response({"error": name, "message": message}, status, headers)


def page_limit(request: Request, *, default: int, most: int) -> int | None:
    """Return the `limit` of a paged listing; None when it is not a number from 1 to `most`."""
    text = request.param("limit")
    if text is None:
        return default
    return int(text) if text.isdigit() and 1 <= int(text) <= most else None


def listing_entry(account: Hosted) -> dict[str, Any]:
    """Return an account as listRepos shows it."""
    entry: dict[str, Any] = {"did": account.did, "head": account.head, "rev": account.rev, "active": not account.status}
    if account.status:
        entry["status"] = account.status
    return entry


def repo_status(account: Hosted) -> dict[str, Any]:
    """Return an account as getRepoStatus shows it."""
    if account.status:
        return {"did": account.did, "active": False, "status": account.status}
    return {"did": account.did, "active": True, "rev": account.rev}
