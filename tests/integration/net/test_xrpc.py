"""Typed XRPC calls and DID documents, against servers that answer well and badly."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.atproto.cid import cid_of, cid_text
from relay.config.schema import BackfillerSettings, HttpSettings, IdentitySettings
from relay.errors import Blame
from relay.net.body import BytesSink
from relay.net.errors import (
    BadDocument,
    BadResponse,
    DidNotFound,
    DidTombstoned,
    DidUnsupported,
    DirectoryAway,
    HostDown,
    NetError,
    PrivateAddress,
    RepoNotFound,
    TooLarge,
)
from relay.net.guard import Guard
from relay.net.http import Fetcher, FetchLimits
from relay.net.xrpc import DidDirectory, ListedHost, ListedRepo, Xrpc, document_limits, repo_limits
from tests.integration.net.rude import Call, RudeServer

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
OTHER = "did:web:alice.example.com"
REV = "3jzfcijpj2z2a"
CID = cid_of(b"\xa0")
Opened = Callable[..., Fetcher]


def on(server: RudeServer, method: str, *pages: Any, status: int = 200) -> None:
    """Answer the calls of `method` with `pages`, one after the other, the last one again and again."""
    left = list(pages)

    def handler(call: Call) -> None:
        page = left.pop(0) if len(left) > 1 else left[0]
        body = page if isinstance(page, bytes) else json.dumps(page).encode()
        call.answer(status, body, Content_Type="application/json")

    server.on(f"/xrpc/com.atproto.sync.{method}", handler)


@pytest.fixture
def xrpc(fetcher: Fetcher) -> Xrpc:
    return Xrpc(fetcher)


def test_list_repos_gives_entries_and_skips_malformed_ones(server: RudeServer, xrpc: Xrpc) -> None:
    on(
        server,
        "listRepos",
        {
            "cursor": "1:2::did",
            "repos": [
                {"did": DID, "head": "x", "rev": REV, "active": True},
                {"did": OTHER, "head": "x", "rev": "", "active": False, "status": "takendown"},
                {"did": "did:plc:x y", "rev": REV},
                {"did": 7},
                "did:plc:abc",
                None,
                {"did": DID, "rev": 5, "active": "yes", "status": "\n"},
            ],
        },
    )
    page = xrpc.list_repos(server.origin, cursor="a&b=c#?/ü", limit=7)
    assert page.repos == [
        ListedRepo(did=DID, rev=REV, active=True),
        ListedRepo(did=OTHER, rev=None, active=False, status="takendown"),
        ListedRepo(did=DID),
    ]
    assert page.malformed == 4
    assert page.cursor == "1:2::did"
    assert server.requests[0].path == ("/xrpc/com.atproto.sync.listRepos?limit=7&cursor=a%26b%3Dc%23%3F%2F%C3%BC")


def test_a_page_without_a_cursor_is_the_last_one_however_it_is_absent(server: RudeServer, xrpc: Xrpc) -> None:
    on(
        server,
        "listRepos",
        {"repos": []},
        {"repos": [], "cursor": None},
        {"repos": [], "cursor": ""},
        {"repos": [], "cursor": 17},
    )
    assert [xrpc.list_repos(server.origin).cursor for _ in range(4)] == [None, None, None, "17"]


@pytest.mark.parametrize(
    "body",
    [
        [],
        "x",
        {},
        {"repos": {}},
        {"repos": [], "cursor": []},
        {"repos": [], "cursor": "x" * 5000},
        {"repos": [], "cursor": "\0"},
        {"repos": [], "cursor": "5\ud800"},
        b"<html>",
    ],
)
def test_a_page_of_another_shape_is_a_bad_response(server: RudeServer, xrpc: Xrpc, body: Any) -> None:
    on(server, "listRepos", body)
    with pytest.raises(BadResponse):
        xrpc.list_repos(server.origin)


def test_list_hosts_entries_become_origins(server: RudeServer, xrpc: Xrpc) -> None:
    on(
        server,
        "listHosts",
        {
            "hosts": [
                {"hostname": "pds.example.com", "seq": 1, "accountCount": 5, "status": "active"},
                {"hostname": "localhost:2583", "status": "banned"},
                {"hostname": "https://evil/path"},
                {"hostname": None},
            ]
        },
    )
    page = xrpc.list_hosts(server.origin)
    assert page.hosts == [
        ListedHost(origin="https://pds.example.com", status="active", account_count=5),
        ListedHost(origin="http://localhost:2583", status="banned"),
    ]
    assert page.malformed == 2


def test_a_pds_has_no_list_hosts(server: RudeServer, xrpc: Xrpc) -> None:
    on(server, "listHosts", {"error": "MethodNotImplemented"}, status=501)
    with pytest.raises(BadResponse) as caught:
        xrpc.list_hosts(server.origin)
    assert caught.value.status == 501
    assert caught.value.answered


def test_list_repos_by_collection_gives_dids(server: RudeServer, xrpc: Xrpc) -> None:
    on(server, "listReposByCollection", {"repos": [{"did": DID}, {"did": OTHER}]})
    page = xrpc.list_repos_by_collection(server.origin, "app.bsky.feed.post")
    assert [repo.did for repo in page.repos] == [DID, OTHER]
    assert "collection=app.bsky.feed.post" in server.requests[0].path


def test_get_latest_commit_and_status(server: RudeServer, xrpc: Xrpc) -> None:
    on(server, "getLatestCommit", {"cid": cid_text(CID), "rev": REV})
    on(server, "getRepoStatus", {"did": DID, "active": False, "status": "deactivated"})
    commit = xrpc.get_latest_commit(server.origin, DID)
    assert (commit.rev, commit.cid) == (REV, CID)
    status = xrpc.get_repo_status(server.origin, DID)
    assert (status.active, status.status, status.rev) == (False, "deactivated", None)


@pytest.mark.parametrize("body", [{}, {"rev": REV}, {"rev": "x", "cid": cid_text(CID)}, {"rev": REV, "cid": "bafy"}])
def test_get_latest_commit_of_another_shape_is_a_bad_response(server: RudeServer, xrpc: Xrpc, body: Any) -> None:
    on(server, "getLatestCommit", body)
    with pytest.raises(BadResponse):
        xrpc.get_latest_commit(server.origin, DID)


@pytest.mark.parametrize("body", [{"did": OTHER, "active": True}, {"did": DID}, {"did": DID, "active": 1}])
def test_a_status_of_another_did_or_without_active_is_a_bad_response(server: RudeServer, xrpc: Xrpc, body: Any) -> None:
    on(server, "getRepoStatus", body)
    with pytest.raises(BadResponse):
        xrpc.get_repo_status(server.origin, DID)


def test_a_page_above_its_limit_is_too_large(server: RudeServer, fetcher: Fetcher) -> None:
    on(server, "listRepos", {"repos": [], "x": "y" * 3000})
    with pytest.raises(TooLarge):
        Xrpc(fetcher, json_limits=FetchLimits(max_bytes=2000, total_s=10)).list_repos(server.origin)


def test_listings_obey_the_total_deadline_too(server: RudeServer, fetcher: Fetcher) -> None:
    server.on("/xrpc/com.atproto.sync.listRepos", Call.wait_until_left)
    slow = Xrpc(fetcher, json_limits=FetchLimits(max_bytes=2000, total_s=60, head_timeout_s=0.1))
    with pytest.raises(HostDown):
        slow.list_repos(server.origin)


def test_listings_are_guarded(server: RudeServer, opened: Opened) -> None:
    on(server, "listRepos", {"repos": []})
    with pytest.raises(PrivateAddress):
        Xrpc(opened(Guard(allow_private=False))).list_repos(server.origin)
    assert server.connections == 0


@given(st.text(st.sampled_from("aZ0.-_:@/[]%*é \\?#"), max_size=20) | st.just("a" * 200) | st.just(".a.io"))
@settings(deadline=None)
def test_whatever_a_listing_calls_a_host_only_typed_errors_come_of_it(name: str) -> None:
    fetcher = Fetcher(Guard(allow_private=True, lookup=lambda host, port: []), user_agent="t")
    for address in (f"https://{name}", f"http://{name}"):
        with pytest.raises(NetError):
            Xrpc(fetcher).list_repos(address)
        with pytest.raises(NetError):
            Xrpc(fetcher).get_repo(address, DID, BytesSink(), limits=FetchLimits(max_bytes=1, total_s=1))


def test_get_repo_puts_the_car_into_the_sink(server: RudeServer, xrpc: Xrpc) -> None:
    server.on(
        "/xrpc/com.atproto.sync.getRepo", lambda call: call.answer(body=b"car", Content_Type="application/vnd.ipld.car")
    )
    sink = BytesSink()
    limits = repo_limits(BackfillerSettings(), HttpSettings())
    answer = xrpc.get_repo(server.origin, OTHER, sink, limits=limits)
    assert sink.body() == b"car"
    assert answer.body_bytes == 3
    assert server.requests[0].path.endswith("?did=did:web:alice.example.com")
    on(server, "getRepo", {"error": "RepoNotFound"}, status=400)
    with pytest.raises(RepoNotFound):
        xrpc.get_repo(server.origin, OTHER, sink, limits=limits)


# --- DID documents --------------------------------------------------------------------------------------------------


def directory(fetcher: Fetcher, server: RudeServer) -> DidDirectory:
    limits = document_limits(IdentitySettings(timeout_sec=10), HttpSettings())
    return DidDirectory(fetcher, plc_url=server.origin + "/", limits=limits)


def test_a_plc_document_comes_raw(server: RudeServer, fetcher: Fetcher) -> None:
    server.on(f"/{DID}", lambda call: call.answer(body=b'{"id": "anything"}'))
    assert directory(fetcher, server).fetch_did_document(DID) == b'{"id": "anything"}'


def test_a_did_web_document_comes_from_its_host(server: RudeServer, fetcher: Fetcher) -> None:
    server.on("/.well-known/did.json", lambda call: call.answer(body=b"{}"))
    assert directory(fetcher, server).fetch_did_document(f"did:web:localhost%3A{server.port}") == b"{}"


def test_did_web_on_localhost_is_refused_in_production(server: RudeServer, opened: Opened) -> None:
    did = f"did:web:localhost%3A{server.port + 1 if server.port < 65535 else 1}"
    with pytest.raises(PrivateAddress):
        directory(opened(Guard(allow_private=False, exempt=[server.origin])), server).fetch_did_document(did)


@pytest.mark.parametrize(
    "did",
    ["did:plc:short", "did:key:zQ3sh", "did:web:a.io:path", "did:web:a.io%3A8080", "nonsense", "did:plc:../../etc"],
)
def test_other_dids_are_not_asked_for(server: RudeServer, fetcher: Fetcher, did: str) -> None:
    with pytest.raises(DidUnsupported):
        directory(fetcher, server).fetch_did_document(did)
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "body", "kind", "blame"),
    [
        (404, b'{"message":"DID not registered: did:plc:x"}', DidNotFound, Blame.REPO),
        (404, b"<html>", DidNotFound, Blame.REPO),
        (404, b'{"message":"DID not available: did:plc:x"}', DidTombstoned, Blame.REPO),
        (410, b"", DidTombstoned, Blame.REPO),
        (400, b'{"message":"Invalid DID"}', DidNotFound, Blame.REPO),
        (403, b"<html>firewall</html>", DirectoryAway, Blame.HOST),
        (429, b"", DirectoryAway, Blame.HOST),
        (500, b"", DirectoryAway, Blame.HOST),
        (503, b"", DirectoryAway, Blame.HOST),
    ],
)
def test_each_refusal_of_the_directory_has_its_meaning(
    server: RudeServer, fetcher: Fetcher, status: int, body: bytes, kind: type[Exception], blame: Blame
) -> None:
    server.on(f"/{DID}", lambda call: call.answer(status, body))
    with pytest.raises(kind) as caught:
        directory(fetcher, server).fetch_did_document(DID)
    assert type(caught.value) is kind
    assert getattr(caught.value, "blame") is blame  # noqa: B009
    assert DID in str(caught.value)


def test_a_directory_that_limits_us_says_for_how_long(server: RudeServer, fetcher: Fetcher) -> None:
    server.on(f"/{DID}", lambda call: call.answer(429, Retry_After="30"))
    with pytest.raises(DirectoryAway) as caught:
        directory(fetcher, server).fetch_did_document(DID)
    assert caught.value.retry_after_s == 30


def test_a_directory_that_does_not_answer_is_away(server: RudeServer, fetcher: Fetcher) -> None:
    server.on(f"/{DID}", lambda call: call.send(b""))
    with pytest.raises(DirectoryAway):
        directory(fetcher, server).fetch_did_document(DID)


def test_a_document_without_end_is_a_bad_one(server: RudeServer, fetcher: Fetcher) -> None:
    server.on(f"/{DID}", lambda call: call.answer(body=b" " * 300_000))
    with pytest.raises(BadDocument):
        directory(fetcher, server).fetch_did_document(DID)
