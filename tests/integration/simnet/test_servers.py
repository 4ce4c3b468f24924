"""PLC, PDSes and relay over real sockets, through an ordinary HTTP client."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests

from relay.simnet.faults import Fault, FaultKind
from relay.simnet.network import SimNetwork
from relay.simnet.spoil import sections
from tests.support.simnet import StartNetwork
from tests.support.waiting import wait_until
from tests.unit.simnet.reading import read_export

pytestmark = pytest.mark.usefixtures("no_leaks")
Get = Callable[..., requests.Response]


@pytest.fixture
def get() -> Any:
    """GET of an XRPC method: `get(origin, "getRepo", did=...)`; through one session, so connections are used again."""
    with requests.Session() as session:
        session.trust_env = False

        def ask(origin: str, method: str, *, headers: dict[str, str] | None = None, **params: Any) -> requests.Response:
            url = f"{origin}/xrpc/com.atproto.sync.{method}"
            return session.get(url, params=params, headers=headers, timeout=10, allow_redirects=False)

        yield ask


def _page_through(get: Get, origin: str, method: str, key: str, **params: Any) -> tuple[list[dict[str, Any]], int]:
    found: list[dict[str, Any]] = []
    pages = 0
    cursor: dict[str, str] = {}
    while True:
        answer = get(origin, method, **params, **cursor).json()
        found += answer[key]
        pages += 1
        if "cursor" not in answer:
            return found, pages
        cursor = {"cursor": answer["cursor"]}


@pytest.mark.parametrize("host", [0, 1, 2])
def test_each_style_of_host_sends_the_whole_repo(simnet: SimNetwork, get: Get, host: int) -> None:
    accounts = simnet.world.on_host(host)
    assert accounts
    for account in accounts:
        answer = get(simnet.host_urls[host], "getRepo", did=account.did)
        assert answer.headers["Content-Type"] == "application/vnd.ipld.car"
        assert answer.content == account.car()
    names = ("Content-Length", "Transfer-Encoding", "Content-Encoding")
    told = tuple(name in answer.headers for name in names)
    assert told == ((True, False, False), (False, True, False), (True, False, True))[host]
    plain = get(simnet.host_urls[host], "getRepo", did=account.did, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.content == account.car()


def test_documents_name_key_host_and_handle(simnet: SimNetwork) -> None:
    for account in simnet.world.accounts:
        answer = requests.get(f"{simnet.plc_url}/{account.did}", timeout=10)
        document = answer.json()
        assert answer.headers["Content-Type"] == "application/did+ld+json"
        assert document["id"] == account.did
        assert document["alsoKnownAs"] == [f"at://{account.handle}"]
        assert document["verificationMethod"][0]["publicKeyMultibase"] == account.multikey
        assert document["service"][0]["serviceEndpoint"] == simnet.host_urls[account.host]


def test_web_accounts_have_their_document_under_their_name(start_simnet: StartNetwork, get: Get) -> None:
    network = start_simnet(web_accounts=2)
    for did in network.dids()[-2:]:
        name = did.removeprefix("did:web:").replace("%3A", ":")
        document = requests.get(f"http://{name}/.well-known/did.json", timeout=10).json()
        assert document["id"] == did
        answer = get(document["service"][0]["serviceEndpoint"], "getRepo", did=did)
        commit = read_export(answer.content).commit
        assert commit is not None
        assert commit["did"] == did
        assert requests.get(f"{network.plc_url}/{quote(did)}", timeout=10).status_code == 404


def test_unknown_and_tombstoned_dids_are_gone(start_simnet: StartNetwork) -> None:
    network = start_simnet()
    did = network.dids()[0]
    network.world.tombstone(did)
    assert requests.get(f"{network.plc_url}/{did}", timeout=10).status_code == 410
    assert requests.get(f"{network.plc_url}/did:plc:unknown", timeout=10).status_code == 404
    other = start_simnet(options={"gone_status": 404})
    other.world.tombstone(other.dids()[0])
    assert requests.get(f"{other.plc_url}/{other.dids()[0]}", timeout=10).status_code == 404


def test_listings_page_through_every_account_once(start_simnet: StartNetwork, get: Get) -> None:
    network = start_simnet(accounts=25, median_records=3, inactive_share=0.3, seed=3)
    listed: list[dict[str, Any]] = []
    for host, origin in enumerate(network.host_urls):
        repos, pages = _page_through(get, origin, "listRepos", "repos", limit=4)
        assert pages == max(1, -(-len(network.world.on_host(host)) // 4))
        listed += repos
    truth = {account.did: account for account in network.truth()}
    present = [did for did, account in truth.items() if account.status != "deleted"]
    assert sorted(repo["did"] for repo in listed) == sorted(present)
    for repo in listed:
        account = truth[repo["did"]]
        assert repo["rev"] == account.rev
        assert (repo["active"], repo.get("status", "")) == (not account.status, account.status)
    assert any(repo.get("status") for repo in listed)
    known, pages = _page_through(get, network.relay_url, "listRepos", "repos", limit=5)
    assert pages > 1
    assert [repo["did"] for repo in known] == [did for did, account in truth.items() if not account.status]


def test_the_relay_lists_hosts_and_may_not_know_everybody(start_simnet: StartNetwork, get: Get) -> None:
    network = start_simnet(options={"blind_to": 4})
    hosts, pages = _page_through(get, network.relay_url, "listHosts", "hosts", limit=2)
    assert pages == 2
    assert [host["hostname"] for host in hosts] == [urlsplit(url).netloc for url in network.host_urls]
    assert sum(host["accountCount"] for host in hosts) == 12
    known, _ = _page_through(get, network.relay_url, "listRepos", "repos")
    assert len(known) == 9


def test_collections_are_listed_by_their_holders(simnet: SimNetwork, get: Get) -> None:
    for collection in ("app.bsky.feed.like", "com.example.note", "not.there.ever"):
        found, _ = _page_through(
            get, simnet.relay_url, "listReposByCollection", "repos", collection=collection, limit=3
        )
        holders = {a.did for a in simnet.truth() if any(path.startswith(f"{collection}/") for path in a.records)}
        assert {repo["did"] for repo in found} == holders
    assert get(simnet.relay_url, "listReposByCollection").status_code == 400


def test_statuses_are_told_as_a_pds_and_a_relay_tell_them(simnet: SimNetwork, get: Get) -> None:
    names = {
        "takendown": ("RepoTakendown", "RepoTakendown"),
        "suspended": ("RepoSuspended", "RepoInactive"),
        "deactivated": ("RepoDeactivated", "RepoDeactivated"),
        "deleted": ("RepoNotFound", "RepoDeleted"),
    }
    for did, (status, (at_pds, at_relay)) in zip(simnet.dids(), names.items(), strict=False):
        account = simnet.world.account(did)
        origin = simnet.host_urls[account.host]
        simnet.world.set_status(did, status)
        for method in ("getRepo", "getLatestCommit"):
            answer = get(origin, method, did=did)
            assert (answer.status_code, answer.json()["error"]) == (400, at_pds)
            answer = get(simnet.relay_url, method, did=did)
            assert (answer.status_code, answer.json()["error"]) == (403, at_relay)
        told = get(origin, "getRepoStatus", did=did)
        if status == "deleted":
            assert told.json()["error"] == "RepoNotFound"
        else:
            assert told.json() == {"did": did, "active": False, "status": status}


def test_latest_commit_and_status_follow_a_write(simnet: SimNetwork, get: Get) -> None:
    did = simnet.dids()[0]
    origin = simnet.host_urls[simnet.world.account(did).host]
    before = get(origin, "getLatestCommit", did=did).json()
    commit = simnet.world.write(did, {"com.example.note/x": {"$type": "com.example.note"}})
    after = get(origin, "getLatestCommit", did=did).json()
    assert after["rev"] == commit.rev > before["rev"]
    assert after["cid"] != before["cid"]
    assert get(origin, "getRepoStatus", did=did).json() == {"did": did, "active": True, "rev": commit.rev}
    found = read_export(get(origin, "getRepo", did=did).content)
    assert "com.example.note/x" in found.records


def test_the_relay_sends_for_a_repo_to_its_host(simnet: SimNetwork, get: Get) -> None:
    did = simnet.dids()[0]
    answer = get(simnet.relay_url, "getRepo", did=did)
    assert answer.status_code == 302
    assert requests.get(answer.headers["Location"], timeout=10).content == simnet.world.account(did).car()
    assert get(simnet.relay_url, "getRepo", did="did:plc:unknown").json()["error"] == "RepoNotFound"


def test_a_moved_account_is_found_at_its_new_host_only(simnet: SimNetwork, get: Get) -> None:
    account = simnet.world.accounts[0]
    old, new = account.host, (account.host + 1) % 3
    simnet.world.migrate(account.did, new)
    assert get(simnet.host_urls[old], "getRepo", did=account.did).json()["error"] == "RepoNotFound"
    assert get(simnet.host_urls[new], "getRepo", did=account.did).content == account.car()


def test_methods_that_are_not_served_say_so(simnet: SimNetwork, get: Get) -> None:
    assert get(simnet.host_urls[0], "listHosts").status_code == 400
    assert get(simnet.host_urls[0], "getBlocks").json()["error"] == "MethodNotImplemented"
    assert get(simnet.relay_url, "getBlocks").status_code == 501
    assert get(simnet.host_urls[0], "listRepos", limit=1001).status_code == 400
    assert requests.get(f"{simnet.host_urls[0]}/xrpc/com.atproto.server.describeServer", timeout=10).json()["did"]


def test_a_rate_limit_counts_tells_and_ends(simnet: SimNetwork, get: Get) -> None:
    simnet.set_rate_limit(0, limit=3, window_s=300)
    answers = [get(simnet.host_urls[0], "listRepos") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["RateLimit-Remaining"] for answer in answers[:3]] == ["2", "1", "0"]
    assert answers[0].headers["RateLimit-Policy"] == "3;w=300"
    assert 290 <= int(answers[3].headers["Retry-After"]) <= 301
    assert get(simnet.host_urls[1], "listRepos").status_code == 200
    simnet.set_rate_limit(0, limit=1, window_s=300, silent=True)
    assert get(simnet.host_urls[0], "listRepos").status_code == 200
    silent = get(simnet.host_urls[0], "listRepos")
    assert (silent.status_code, silent.headers.get("Retry-After")) == (429, None)
    simnet.set_rate_limit(0, limit=0, window_s=1)
    assert get(simnet.host_urls[0], "listRepos").status_code == 200


# Faults


def _fail(simnet: SimNetwork, get: Get, fault: Fault) -> requests.Response:
    did = simnet.dids()[0]
    simnet.set_faults([fault])
    try:
        return get(simnet.host_urls[simnet.world.account(did).host], "getRepo", did=did)
    finally:
        assert simnet.fault_counts() == {fault.kind.value: 1}
        simnet.set_faults()


@pytest.mark.parametrize(
    ("fault", "status", "mark"),
    [
        (Fault(kind=FaultKind.TOO_MANY, seconds=7), 429, "RateLimitExceeded"),
        (Fault(kind=FaultKind.TOO_MANY, text="html"), 429, "<html>"),
        (Fault(kind=FaultKind.STATUS, status=502, text="html"), 502, "<html>"),
        (Fault(kind=FaultKind.STATUS, status=400, text="RepoNotFound"), 400, "RepoNotFound"),
        (Fault(kind=FaultKind.GARBAGE), 200, "<html>"),
    ],
)
def test_wrong_answers(simnet: SimNetwork, get: Get, fault: Fault, status: int, mark: str) -> None:
    answer = _fail(simnet, get, fault)
    assert answer.status_code == status
    assert mark in answer.text


def test_a_redirect_leads_to_a_private_address(simnet: SimNetwork, get: Get) -> None:
    answer = _fail(simnet, get, Fault(kind=FaultKind.REDIRECT))
    assert (answer.status_code, answer.headers["Location"]) == (302, "http://127.0.0.1:1/latest/meta-data")


@pytest.mark.parametrize("kind", [FaultKind.CUT, FaultKind.RESET])
@pytest.mark.parametrize("host", [0, 1, 2])
def test_a_cut_connection_is_an_error_of_the_transport(
    simnet: SimNetwork, get: Get, kind: FaultKind, host: int
) -> None:
    did = simnet.world.on_host(host)[0].did
    simnet.set_faults([Fault(kind=kind, endpoint="getRepo", times=1)])
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        get(simnet.host_urls[host], "getRepo", did=did)
    assert simnet.fault_counts() == {kind.value: 1}
    assert get(simnet.host_urls[host], "getRepo", did=did).content == simnet.world.account(did).car()


def test_a_car_cut_at_a_block_arrives_with_the_right_length(simnet: SimNetwork, get: Get) -> None:
    answer = _fail(simnet, get, Fault(kind=FaultKind.CUT_AT_BLOCK))
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    whole = simnet.world.accounts[0].car()
    assert whole.startswith(answer.content)
    assert [end for _, end in sections(whole)][-2] == len(answer.content)


def test_a_slow_answer_trickles(simnet: SimNetwork, get: Get) -> None:
    account = simnet.world.accounts[0]
    simnet.set_faults([Fault(kind=FaultKind.SLOW, bytes=1000)])
    origin = urlsplit(simnet.host_urls[account.host])
    with socket.create_connection((origin.hostname or "", origin.port or 0), timeout=10) as client:
        client.sendall(f"GET /xrpc/com.atproto.sync.getRepo?did={account.did} HTTP/1.0\r\n\r\n".encode())
        pieces = [client.recv(65536) for _ in range(4)]
    # 50 bytes every 50 ms: the first pieces are far from the whole.
    assert all(pieces)
    assert sum(map(len, pieces)) < len(account.car()) / 2
    assert simnet.fault_counts() == {"slow": 1}


def test_a_hanging_host_answers_late_or_never(simnet: SimNetwork, get: Get) -> None:
    late = _fail(simnet, get, Fault(kind=FaultKind.HANG, seconds=0.05))
    assert late.content == simnet.world.accounts[0].car()
    simnet.set_faults([Fault(kind=FaultKind.HANG)])
    origin = simnet.host_urls[0]
    with pytest.raises(requests.ReadTimeout):
        requests.get(f"{origin}/xrpc/com.atproto.sync.listRepos", timeout=(5, 0.1))
    # Only that connection hung.
    simnet.set_faults()
    assert get(origin, "listRepos").status_code == 200


def test_an_endless_body_can_be_left(simnet: SimNetwork) -> None:
    simnet.set_faults([Fault(kind=FaultKind.OVERSIZE)])
    url = f"{simnet.host_urls[0]}/xrpc/com.atproto.sync.getRepo?did=x"
    with requests.get(url, stream=True, timeout=10) as answer:
        assert sum(len(answer.raw.read(1 << 20)) for _ in range(8)) > 6 << 20
    simnet.set_faults()
    assert requests.get(url, timeout=10).status_code == 400


def test_a_stale_document_is_the_one_before_the_last_change(simnet: SimNetwork) -> None:
    account = simnet.world.accounts[0]
    old = account.multikey
    url = f"{simnet.plc_url}/{account.did}"
    simnet.set_faults([Fault(kind=FaultKind.STALE_DOCUMENT, per_did=2)])
    assert requests.get(url, timeout=10).json()["verificationMethod"][0]["publicKeyMultibase"] == old
    assert simnet.fault_counts() == {"stale_document": 0}  # there was no other document yet
    assert simnet.struck(FaultKind.STALE_DOCUMENT) == set()
    simnet.world.rotate_key(account.did)
    keys = [requests.get(url, timeout=10).json()["verificationMethod"][0]["publicKeyMultibase"] for _ in range(3)]
    assert keys == [old, old, account.multikey]
    assert simnet.fault_counts() == {"stale_document": 2}
    assert simnet.struck(FaultKind.STALE_DOCUMENT) == {account.did}
    assert simnet.struck(FaultKind.NO_KEY) == set()


@pytest.mark.parametrize("kind", [FaultKind.NO_KEY, FaultKind.NO_PDS, FaultKind.OTHER_DOCUMENT])
def test_documents_can_lack_or_lie(simnet: SimNetwork, kind: FaultKind) -> None:
    did = simnet.dids()[0]
    simnet.set_faults([Fault(kind=kind, did=did)])
    document = requests.get(f"{simnet.plc_url}/{did}", timeout=10).json()
    told = {
        "no_key": not document["verificationMethod"],
        "no_pds": not document["service"],
        "other_document": document["id"] != did,
    }
    assert [name for name, wrong in told.items() if wrong] == [kind.value]


def test_the_directory_can_be_down(simnet: SimNetwork) -> None:
    simnet.set_faults([Fault(kind=FaultKind.STATUS, endpoint="plc", times=2)])
    url = f"{simnet.plc_url}/{simnet.dids()[0]}"
    assert [requests.get(url, timeout=10).status_code for _ in range(3)] == [503, 503, 200]


def test_a_document_can_name_any_host(simnet: SimNetwork) -> None:
    did = simnet.dids()[0]
    url = f"{simnet.plc_url}/{did}"
    simnet.world.name_pds(did, "http://pds.invalid")
    assert requests.get(url, timeout=10).json()["service"][0]["serviceEndpoint"] == "http://pds.invalid"
    simnet.world.name_pds(did, None)
    assert requests.get(url, timeout=10).json()["service"][0]["serviceEndpoint"] in simnet.host_urls


def test_a_listing_can_turn_in_circles_or_claim_others(simnet: SimNetwork, get: Get) -> None:
    origin = simnet.host_urls[2]
    simnet.set_faults([Fault(kind=FaultKind.REPEAT_CURSOR, times=3)])
    cursors = [get(origin, "listRepos", limit=1).json()["cursor"]]
    cursors += [get(origin, "listRepos", limit=1, cursor=cursors[0]).json()["cursor"] for _ in range(2)]
    assert len(set(cursors)) == 1
    simnet.set_faults([Fault(kind=FaultKind.FALSE_CLAIM)])
    claimed = {repo["did"] for repo in get(origin, "listRepos").json()["repos"]}
    assert claimed == set(simnet.dids())
    stranger = simnet.world.on_host(0)[0]
    assert get(origin, "getRepo", did=stranger.did).json()["error"] == "RepoNotFound"


def test_a_silenced_host_refuses_until_it_is_restored(simnet: SimNetwork, get: Get) -> None:
    origin = simnet.host_urls[0]
    assert get(origin, "listRepos").status_code == 200
    simnet.silence(0)

    def refused() -> bool:
        try:
            requests.get(f"{origin}/xrpc/_health", timeout=5)
        except requests.ConnectionError:
            return True
        return False

    wait_until(refused, "connections to be refused", deadline_s=5)
    assert get(simnet.host_urls[1], "listRepos").status_code == 200
    simnet.restore(0)
    wait_until(lambda: not refused(), "connections to be accepted", deadline_s=5)
    assert get(origin, "listRepos").status_code == 200


# The server


def test_many_clients_at_once_each_get_their_own_repo(simnet: SimNetwork) -> None:
    wrong: list[str] = []

    def fetch(number: int) -> None:
        with requests.Session() as session:
            for turn in range(10):
                account = simnet.world.accounts[(number + turn) % 12]
                url = f"{simnet.host_urls[account.host]}/xrpc/com.atproto.sync.getRepo?did={account.did}"
                if session.get(url, timeout=20).content != account.car():
                    wrong.append(account.did)

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert sum(simnet.traffic.repos().values()) == 80


def test_a_large_repo_leaves_through_a_small_window(start_simnet: StartNetwork) -> None:
    network = start_simnet(accounts=1, hosts=1, sizes=(20_000,))
    car = network.world.accounts[0].car()
    origin = urlsplit(network.host_urls[0])
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", origin.port))
        client.sendall(f"GET /xrpc/com.atproto.sync.getRepo?did={network.dids()[0]} HTTP/1.0\r\n\r\n".encode())
        received = bytearray()
        while piece := client.recv(65536):
            received += piece
    assert bytes(received).partition(b"\r\n\r\n")[2] == car


def test_requests_in_one_packet_are_answered_in_order(simnet: SimNetwork) -> None:
    origin = urlsplit(simnet.host_urls[0])
    request = b"GET /xrpc/_health HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", origin.port), timeout=10) as client:
        client.sendall(request * 3 + request.replace(b"Host", b"Connection: close\r\nHost"))
        received = b""
        while piece := client.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\r\n\r\n", b"GET /\r\n\r\n", b"x" * 100_000])
def test_what_is_no_http_is_hung_up_on(simnet: SimNetwork, junk: bytes) -> None:
    origin = urlsplit(simnet.host_urls[0])
    with socket.create_connection(("127.0.0.1", origin.port), timeout=10) as client:
        client.sendall(junk)
        with pytest.raises(ConnectionResetError):
            client.recv(65536)
    assert requests.get(f"{simnet.host_urls[0]}/xrpc/_health", timeout=10).status_code == 200


def test_traffic_is_counted_by_server_endpoint_and_repo(simnet: SimNetwork, get: Get) -> None:
    account = simnet.world.on_host(0)[0]
    for _ in range(2):
        get(simnet.host_urls[0], "getRepo", did=account.did)
    get(simnet.relay_url, "listHosts")
    assert simnet.traffic.requests() == {"pds0/getRepo": 2, "relay/listHosts": 1}
    assert simnet.traffic.repos() == {account.did: 2}
    assert simnet.traffic.repo_bytes() == 2 * len(account.car())
    simnet.traffic.reset()
    assert simnet.traffic.requests() == {}
