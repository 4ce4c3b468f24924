"""The XRPC calls that we make, typed and paged, and DID documents. Raw JSON ends here.

Source: PROTOCOL 7 (endpoints, pages, errors), 8 (DID documents).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import requests

from relay.atproto.cid import parse_cid_text
from relay.atproto.errors import AtprotoError
from relay.atproto.limits import DEFAULT_LIMITS
from relay.atproto.syntax import is_did, is_resolvable_did, is_tid
from relay.config.schema import BackfillerSettings, HttpSettings, IdentitySettings
from relay.net.address import InvalidAddress, did_web_url, listed_host_origin
from relay.net.body import BodySink
from relay.net.errors import (
    BadDocument,
    BadResponse,
    DeadlineExceeded,
    DidNotFound,
    DidTombstoned,
    DidUnsupported,
    DirectoryAway,
    HostDown,
    NetError,
    PrivateAddress,
    RateLimited,
    RepoNotFound,
    TooLarge,
    TooSlow,
    Truncated,
)
from relay.net.facts import HostFacts
from relay.net.http import Answer, Fetcher, FetchLimits
from relay.net.session import GuardedResponse, guarded_session

MIB = 1024 * 1024
PAGE_LIMIT = 1000  # the most that listRepos and listHosts take
COLLECTION_PAGE_LIMIT = 2000
# 1000 entries are some 200 KB; 16 MiB is what a careless server may send for them.
PAGE_BYTES = 16 * MIB
CURSOR_CHARS = 4096
_STATUS_CHARS = 64
CAR_TYPES = ("application/vnd.ipld.car", "application/octet-stream")
JSON_LIMITS = FetchLimits(max_bytes=PAGE_BYTES, total_s=60.0, head_timeout_s=30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRepo:
    """One entry of a listing. None: the listing does not say (a collection listing says nothing but the DID)."""

    did: str
    rev: str | None = None
    active: bool | None = None
    status: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedHost:
    """One entry of listHosts. `status` is `active`, `idle`, `offline`, `throttled`, `banned` or another word, or None."""

    origin: str
    status: str | None = None
    account_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoPage:
    """`cursor` None: the last page. `malformed`: entries that were skipped."""

    repos: list[ListedRepo]
    cursor: str | None
    malformed: int
    facts: HostFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPage:
    """`cursor` None: the last page. `malformed`: entries that were skipped."""

    hosts: list[ListedHost]
    cursor: str | None
    malformed: int
    facts: HostFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestCommit:
    """What getLatestCommit says: 36-byte CID of the commit, and its rev."""

    cid: bytes
    rev: str
    facts: HostFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoStatus:
    """What getRepoStatus says; `status` is None when nothing is said, `rev` when it is absent or no rev."""

    active: bool
    status: str | None
    rev: str | None
    facts: HostFacts


def repo_limits(backfiller: BackfillerSettings, http: HttpSettings) -> FetchLimits:
    """Return the limits of one getRepo."""
    return FetchLimits(
        max_bytes=backfiller.max_repo_bytes,
        total_s=backfiller.fetch_timeout_sec,
        connect_timeout_s=http.connect_timeout_sec,
        min_bytes_per_s=backfiller.min_bytes_per_sec,
        max_redirects=http.max_redirects,
    )


def document_limits(identity: IdentitySettings, http: HttpSettings) -> FetchLimits:
    """Return the limits of one DID document."""
    return FetchLimits(
        max_bytes=DEFAULT_LIMITS.did_document_bytes,
        total_s=identity.timeout_sec,
        connect_timeout_s=min(http.connect_timeout_sec, identity.timeout_sec),
        head_timeout_s=identity.timeout_sec,
        max_redirects=http.max_redirects,
    )


class Xrpc:
    """The calls, over one Fetcher; any number of threads. How often a host is asked is the caller's business (`hosts`, `gate`).

    Origins are `http(s)://host[:port]`. Every call raises every NetError; what each adds is in its docstring.
    """

    def __init__(self, fetcher: Fetcher, *, json_limits: FetchLimits = JSON_LIMITS) -> None:
        self.fetcher = fetcher
        self._session = guarded_session(fetcher, json_limits)

    def list_repos(self, origin: str, *, cursor: str | None = None, limit: int = PAGE_LIMIT) -> RepoPage:
        """Ask for one page of com.atproto.sync.listRepos. Raises BadResponse for a body of another shape."""
        return self._repo_page(origin, "com.atproto.sync.listRepos", {"limit": limit, "cursor": cursor})

    def list_repos_by_collection(
        self, origin: str, collection: str, *, cursor: str | None = None, limit: int = COLLECTION_PAGE_LIMIT
    ) -> RepoPage:
        """Ask for one page of com.atproto.sync.listReposByCollection: DIDs alone."""
        return self._repo_page(
            origin,
            "com.atproto.sync.listReposByCollection",
            {"collection": collection, "limit": limit, "cursor": cursor},
        )

    def list_hosts(self, origin: str, *, cursor: str | None = None, limit: int = PAGE_LIMIT) -> HostPage:
        """Ask for one page of com.atproto.sync.listHosts. A PDS does not serve it: BadResponse with status 400, 404 or 501."""
        response, body = self._ask(origin, "com.atproto.sync.listHosts", {"limit": limit, "cursor": cursor})
        entries = _list(response, body, "hosts")
        hosts = [host for host in map(_listed_host, entries) if host is not None]
        return HostPage(
            hosts=hosts,
            cursor=_cursor(response, body),
            malformed=len(entries) - len(hosts),
            facts=response.answer.facts,
        )

    def get_latest_commit(self, origin: str, did: str) -> LatestCommit:
        """Ask for com.atproto.sync.getLatestCommit. Raises RepoNotFound, RepoInactive; BadResponse without a rev or CID."""
        response, body = self._ask(origin, "com.atproto.sync.getLatestCommit", {"did": did})
        rev, cid = body.get("rev"), body.get("cid")
        if not isinstance(rev, str) or not is_tid(rev) or not isinstance(cid, str):
            raise _bad(response, "getLatestCommit without a rev and a CID")
        try:
            return LatestCommit(cid=parse_cid_text(cid), rev=rev, facts=response.answer.facts)
        except AtprotoError as exc:
            raise _bad(response, f"getLatestCommit with a bad CID ({exc})") from exc

    def get_repo_status(self, origin: str, did: str) -> RepoStatus:
        """Ask for com.atproto.sync.getRepoStatus. Raises RepoNotFound; BadResponse for another DID or without `active`."""
        response, body = self._ask(origin, "com.atproto.sync.getRepoStatus", {"did": did})
        active = body.get("active")
        if body.get("did") != did or not isinstance(active, bool):
            raise _bad(response, "getRepoStatus of another DID, or without `active`")
        return RepoStatus(
            active=active, status=_word(body.get("status")), rev=_rev(body.get("rev")), facts=response.answer.facts
        )

    def get_repo(self, pds: str, did: str, sink: BodySink, *, limits: FetchLimits) -> Answer:
        """Download the CAR of a repo into `sink`. Raises RepoNotFound, RepoInactive, TooLarge, and the sink's own errors."""
        return self.fetcher.get(
            self.fetcher.target(pds, f"/xrpc/com.atproto.sync.getRepo?did={quote(did, safe=':')}"),
            sink,
            limits=limits,
            accept=CAR_TYPES[0],
            content_types=CAR_TYPES,
        )

    def _repo_page(self, origin: str, method: str, params: dict[str, str | int | None]) -> RepoPage:
        response, body = self._ask(origin, method, params)
        entries = _list(response, body, "repos")
        repos = [repo for repo in map(_listed_repo, entries) if repo is not None]
        return RepoPage(
            repos=repos,
            cursor=_cursor(response, body),
            malformed=len(entries) - len(repos),
            facts=response.answer.facts,
        )

    def _ask(
        self, origin: str, method: str, params: dict[str, str | int | None]
    ) -> tuple[GuardedResponse, dict[str, Any]]:
        try:
            response = self._session.get(f"{origin}/xrpc/{method}", params=params, allow_redirects=False)
        except requests.RequestException as exc:
            # Only its reading of URLs can fail: everything behind that is the fetcher's.
            raise PrivateAddress(f"{origin[:200]}: not an address that can be asked ({exc})", host=origin) from exc
        assert isinstance(response, GuardedResponse)
        body = response.parsed()
        if not isinstance(body, dict):
            raise _bad(response, f"{method} did not answer with a JSON object")
        return response, body


class DidDirectory:
    """Where DID documents come from: the PLC directory, and the hosts of did:web."""

    def __init__(self, fetcher: Fetcher, *, plc_url: str, limits: FetchLimits) -> None:
        self._fetcher = fetcher
        self._plc_url = plc_url.rstrip("/")
        self._limits = limits

    def fetch_did_document(self, did: str) -> bytes:
        """Return the raw document of `did`, at most `limits.max_bytes`; nothing in it has been checked.

        Raises DidNotFound, DidTombstoned, DidUnsupported, BadDocument (too large), DirectoryAway (also for a did:web whose host
        is down or limits us), PrivateAddress (a did:web host that the guard refuses), Stopped.
        """
        if not is_resolvable_did(did):
            raise DidUnsupported(f"{did[:200]}: neither did:plc nor a did:web that can be asked for", did=did)
        is_plc = did.startswith("did:plc:")
        try:
            url = self._fetcher.target(self._plc_url, f"/{did}") if is_plc else did_web_url(did)
        except InvalidAddress as exc:
            raise DidUnsupported(f"{did}: {exc}", did=did) from exc
        try:
            return self._fetcher.get_bytes(
                url, limits=self._limits, accept="application/did+ld+json, application/json"
            )[1]
        except (HostDown, RateLimited, TooSlow, DeadlineExceeded, Truncated) as exc:
            raise DirectoryAway(f"{did}: {exc}", did=did, retry_after_s=exc.retry_after_s) from exc
        except TooLarge as exc:
            raise BadDocument(f"{did}: {exc}", did=did) from exc
        except (RepoNotFound, BadResponse) as exc:
            raise _refused_document(did, exc, is_plc) from exc


def _refused_document(did: str, exc: NetError, is_plc: bool) -> DidNotFound | DidTombstoned | DirectoryAway:
    """A directory's 4xx. 404: unknown, or tombstoned where plc.directory says "not available"; 410: tombstoned."""
    text = f"{did}: {exc}"
    if exc.status == 410 or (exc.status == 404 and is_plc and "not available" in str(exc).lower()):
        return DidTombstoned(text, did=did)
    if exc.status in (400, 404) or (exc.status is not None and exc.status >= 400 and not is_plc):
        return DidNotFound(text, did=did)
    # 401, 403, 501 of the directory itself: a firewall's answer, which says nothing of the DID.
    return DirectoryAway(text, did=did)


def _bad(response: GuardedResponse, text: str) -> BadResponse:
    answer = response.answer
    return BadResponse(f"{answer.origin}: {text}", host=answer.origin, status=answer.status, facts=answer.facts)


def _list(response: GuardedResponse, body: dict[str, Any], name: str) -> list[Any]:
    entries = body.get(name)
    if not isinstance(entries, list):
        raise _bad(response, f"a page without a list of {name}")
    return entries


def _cursor(response: GuardedResponse, body: dict[str, Any]) -> str | None:
    cursor = body.get("cursor")
    if isinstance(cursor, int) and not isinstance(cursor, bool):
        cursor = str(cursor)
    if cursor is None or cursor == "":
        return None
    if not isinstance(cursor, str) or len(cursor) > CURSOR_CHARS or not _is_sendable(cursor):
        raise _bad(response, f"a page whose cursor is not a text of at most {CURSOR_CHARS} characters")
    return cursor


def _is_sendable(text: str) -> bool:
    """JSON may spell what is no text: half a surrogate pair goes into no URL and no row, and a NUL into no row."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _listed_repo(entry: Any) -> ListedRepo | None:
    if not isinstance(entry, dict):
        return None
    did, active = entry.get("did"), entry.get("active")
    if not isinstance(did, str) or not is_did(did):
        return None
    return ListedRepo(
        did=did,
        rev=_rev(entry.get("rev")),
        active=active if isinstance(active, bool) else None,
        status=_word(entry.get("status")),
    )


def _listed_host(entry: Any) -> ListedHost | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("hostname"), str):
        return None
    count = entry.get("accountCount")
    try:
        return ListedHost(
            origin=listed_host_origin(entry["hostname"]),
            status=_word(entry.get("status")),
            account_count=count if isinstance(count, int) and not isinstance(count, bool) else None,
        )
    except InvalidAddress:
        return None


def _rev(value: Any) -> str | None:
    """A PDS's listRepos may say "" (PROTOCOL 7)."""
    return value if isinstance(value, str) and is_tid(value) else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _STATUS_CHARS and value.isprintable() else None
