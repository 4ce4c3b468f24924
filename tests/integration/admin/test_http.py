"""The metrics and health server, over real sockets, with the clients that the internet has."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from relay.admin.http import AdminHttp, CannotListen
from relay.observe.metrics import Metrics
from relay.observe.status import IncidentView, Phase, StatusSnapshot


@dataclass
class _State:
    """What the callables answer; a test changes it."""

    health: tuple[int, str] = (200, "ok")
    ready: tuple[int, str] = (503, "no ingester answers")
    snapshot: StatusSnapshot = field(
        default_factory=lambda: StatusSnapshot(
            instance="<test>",
            phase=Phase.RUNNING,
            repos={"synced": 1204},
            incidents=(IncidentView(at="2026-01-01T00:00:00.000Z", kind="gap", text="<script>alert(1)</script>"),),
        )
    )
    gate: threading.Event = field(default_factory=threading.Event)

    def slow(self) -> StatusSnapshot:
        self.gate.wait(20)
        return self.snapshot


Make = Callable[..., AdminHttp]


@pytest.fixture
def state() -> _State:
    return _State()


@pytest.fixture
def make(state: _State) -> Iterator[Make]:
    servers: list[AdminHttp] = []

    def start(host: str = "127.0.0.1", port: int = 0, **options: object) -> AdminHttp:
        arguments: dict[str, object] = {
            "health": lambda: state.health,
            "ready": lambda: state.ready,
            "snapshot": lambda: state.snapshot,
            "metrics": Metrics(version="0.0.0").render,
            **options,
        }
        server = AdminHttp(host, port, **arguments)  # type: ignore[arg-type]
        servers.append(server)
        server.start()
        return server

    yield start
    state.gate.set()
    for server in servers:
        server.request_stop()
        assert server.join(time.monotonic() + 10)


def _get(server: AdminHttp, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(*server.address, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()
    finally:
        connection.close()


def _raw(server: AdminHttp, data: bytes) -> bytes:
    """Send `data`, and return everything until the server closes."""
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(data)
        received = b""
        while chunk := sock.recv(65536):
            received += chunk
        return received


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def _is_closed_by_server(sock: socket.socket) -> bool:
    sock.settimeout(10)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_health_and_ready_answer_what_they_were_told(make: Make, state: _State) -> None:
    server = make()
    assert _get(server, "/health")[::2] == (200, "ok\n")
    assert _get(server, "/ready")[::2] == (503, "no ingester answers\n")
    state.health = (503, "stopping")
    assert _get(server, "/health")[::2] == (503, "stopping\n")


def test_metrics_are_in_the_text_format(make: Make) -> None:
    status, headers, body = _get(make(), "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE relay_healthy_ingesters gauge" in body


def test_status_is_the_json_contract(make: Make, state: _State) -> None:
    status, headers, body = _get(make(), "/status.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert StatusSnapshot.from_json(body.encode()) == StatusSnapshot.from_json(state.snapshot.to_json())


def test_the_page_shows_the_numbers_and_escapes_foreign_text(make: Make) -> None:
    status, headers, body = _get(make(), "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "1,204" in body
    assert "<script>alert" not in body
    assert "&lt;script&gt;alert(1)" in body
    assert "&lt;test&gt;: running" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_head_answers_without_a_body_and_a_query_is_ignored(make: Make) -> None:
    server = make()
    status, headers, body = _get(server, "/health", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "3", "")
    assert _get(server, "/health?verbose=1")[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /health HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /none HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"hello\r\n\r\n", b"400"),
        (b"GET /health\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nX: " + b"a" * 20_000, b"431"),
        (b"GET /health HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\n\r\n", b"200"),
    ],
)
def test_odd_requests_get_one_plain_answer(make: Make, request_bytes: bytes, status: bytes) -> None:
    answer = _raw(make(), request_bytes)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"Connection: close") == 1


def test_a_request_that_comes_byte_by_byte_is_answered(make: Make) -> None:
    server = make()
    with socket.create_connection(server.address, timeout=10) as sock:
        for byte in b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n":
            sock.sendall(bytes([byte]))
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_clients_that_never_finish_their_request_do_not_keep_health_waiting(make: Make) -> None:
    server = make(most_connections=8)
    silent = [socket.create_connection(server.address, timeout=10) for _ in range(30)]
    try:
        for sock in silent[-7:]:
            sock.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        assert _get(server, "/health")[0] == 200
        assert _is_closed_by_server(silent[0])  # the oldest made room
    finally:
        for sock in silent:
            sock.close()


def test_a_client_that_never_finishes_its_request_is_dropped_at_its_deadline(make: Make) -> None:
    server = make(request_timeout_s=0.05)
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(b"GET /")
        assert _is_closed_by_server(sock)


def test_a_client_that_never_reads_its_answer_is_dropped_at_its_deadline(make: Make) -> None:
    server = make(answer_timeout_s=0.05, metrics=lambda: b"x" * 50_000_000)
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        _wait_until(lambda: server.connections == 1)
        _wait_until(lambda: server.connections == 0)
        received = 0
        try:
            while chunk := sock.recv(1 << 20):
                received += len(chunk)
        except ConnectionResetError:
            pass
        assert 0 <= received < 50_000_000


def test_an_answer_that_takes_long_does_not_keep_health_waiting(make: Make, state: _State) -> None:
    server = make(snapshot=state.slow, workers=2)
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(b"GET /status.json HTTP/1.1\r\n\r\n")
        assert _get(server, "/health")[0] == 200
        state.gate.set()
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_an_answer_that_fails_is_a_500_and_the_next_one_works(make: Make) -> None:
    def broken() -> bytes:
        raise RuntimeError("no such thing")

    server = make(metrics=broken)
    assert _get(server, "/metrics")[0] == 500
    assert _get(server, "/health")[0] == 200


def test_many_clients_at_once_are_all_answered(make: Make) -> None:
    server = make()
    results: list[int] = []

    def ask() -> None:
        for _ in range(20):
            results.append(_get(server, "/status.json")[0])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [200] * 160


def test_a_port_in_use_is_named_with_the_setting(make: Make) -> None:
    port = make().address[1]
    expected = f"cannot listen on 127.0.0.1:{port}: the address is in use by another program; set metrics.host and metrics.port"
    with pytest.raises(CannotListen, match=expected):
        make(port=port)


def test_an_address_that_is_not_ours_is_named(make: Make) -> None:
    with pytest.raises(CannotListen, match=r"cannot listen on 192\.0\.2\.1:0: "):
        make(host="192.0.2.1")


def test_ipv6_is_listened_on(make: Make) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        server = make(host="::1")
    except CannotListen as exc:
        pytest.skip(f"this machine has no IPv6 loopback: {exc}")
    assert _get(server, "/health")[0] == 200


def test_stopping_ends_open_connections_and_gives_the_port_back(make: Make) -> None:
    server = make()
    with socket.create_connection(server.address, timeout=10) as sock:
        assert _get(server, "/health")[0] == 200
        server.request_stop()
        server.request_stop()
        assert server.join(time.monotonic() + 10)
        assert _is_closed_by_server(sock)
    make(port=server.address[1])


def test_a_server_that_was_never_started_gives_the_port_back(state: _State) -> None:
    def server(port: int) -> AdminHttp:
        return AdminHttp(
            "127.0.0.1", port, health=lambda: (200, ""), ready=lambda: (200, ""), snapshot=lambda: state.snapshot,
            metrics=lambda: b"",
        )  # fmt: skip

    first = server(0)
    first.request_stop()
    assert first.join(time.monotonic() + 1)
    second = server(first.address[1])
    assert second.join(time.monotonic() + 1)
