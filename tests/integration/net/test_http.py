"""The one GET, against servers that misbehave in every way that we know."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable

import pytest

from relay.net.body import BytesSink
from relay.net.errors import (
    BadResponse,
    DeadlineExceeded,
    HostDown,
    NetError,
    PrivateAddress,
    RateLimited,
    RepoInactive,
    RepoNotFound,
    Stopped,
    TooLarge,
    TooSlow,
    Truncated,
)
from relay.net.guard import AddressInfo, Guard
from relay.net.http import Answer, Fetcher, FetchLimits, user_agent
from tests.integration.net.rude import Call, RudeServer, rude_server

Opened = Callable[..., Fetcher]
LIMITS = FetchLimits(max_bytes=1_000_000, total_s=20.0, connect_timeout_s=5.0, head_timeout_s=20.0)
QUICK = FetchLimits(max_bytes=1_000_000, total_s=0.3, connect_timeout_s=5.0, head_timeout_s=20.0)
BODY = bytes(range(256)) * 600  # 153,600 bytes


def get(fetcher: Fetcher, url: str, limits: FetchLimits = LIMITS) -> tuple[Answer, bytes]:
    sink = BytesSink()
    answer = fetcher.get(url, sink, limits=limits)
    return answer, sink.body()


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"


# --- what works -----------------------------------------------------------------------------------------------------


def test_a_body_arrives_whole_and_the_connection_is_used_again(server: RudeServer, fetcher: Fetcher) -> None:
    url = server.on("/car", lambda call: call.answer(body=BODY, Content_Type="application/vnd.ipld.car"))
    for _ in range(5):
        answer, body = get(fetcher, url)
        assert body == BODY
        assert answer.body_bytes == len(BODY)
        assert answer.content_type == "application/vnd.ipld.car"
    assert server.connections == 1


def test_a_chunked_body_arrives_whole(server: RudeServer, fetcher: Fetcher) -> None:
    def handler(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(BODY, 1000))
        call.keep = True

    url = server.on("/car", handler)
    assert get(fetcher, url)[1] == BODY
    assert get(fetcher, url)[1] == BODY
    assert server.connections == 1


def test_a_body_that_ends_with_the_connection_arrives(server: RudeServer, fetcher: Fetcher) -> None:
    url = server.on("/car", lambda call: call.send(b"HTTP/1.0 200 OK\r\n\r\n" + BODY))
    assert get(fetcher, url)[1] == BODY


def test_an_empty_body_is_a_body(server: RudeServer, fetcher: Fetcher) -> None:
    url = server.on("/car", lambda call: call.answer(body=b""))
    assert get(fetcher, url)[1] == b""
    assert get(fetcher, url)[1] == b""
    assert server.connections == 1


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_gzip_body_is_unpacked(server: RudeServer, fetcher: Fetcher, framing: str) -> None:
    packed = gzip.compress(BODY)

    def handler(call: Call) -> None:
        if framing == "length":
            call.answer(body=packed, Content_Encoding="gzip")
        else:
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n"
            call.send(head + chunked(packed, 7))
            call.keep = True

    url = server.on("/car", handler)
    answer, body = get(fetcher, url)
    assert body == BODY
    assert answer.body_bytes == len(BODY)
    assert get(fetcher, url)[1] == BODY
    assert server.connections == 1


def test_the_request_names_us_and_carries_nothing_else(
    server: RudeServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    url = server.on("/car", lambda call: call.answer(body=b"x", Set_Cookie="a=b; Path=/"))
    get(fetcher, url)
    get(fetcher, url)
    head = server.requests[1].head
    assert "User-Agent: test/1 (+mail@example.com)\r\n" in head
    assert "gzip" in head
    assert "cookie" not in head.lower()


def test_the_user_agent_has_product_version_and_contact_and_cannot_be_broken() -> None:
    assert user_agent().startswith("tradr-relay/")
    assert user_agent("mail@example.com").endswith(" (+mail@example.com)")
    assert "\n" not in user_agent("a\r\nX-Evil: 1)")


def test_rate_limit_headers_come_with_every_answer(server: RudeServer, fetcher: Fetcher) -> None:
    url = server.on(
        "/a", lambda call: call.answer(body=b"x", RateLimit_Limit="3000", RateLimit_Remaining="7", RateLimit_Reset="60")
    )
    facts = get(fetcher, url)[0].facts
    assert (facts.limit, facts.remaining, facts.reset_after_s) == (3000, 7, 60)


def test_an_idle_connection_that_the_server_closed_is_not_a_failure(server: RudeServer, fetcher: Fetcher) -> None:
    closed = threading.Event()

    def handler(call: Call) -> None:
        call.answer(body=b"x", keep=False)  # says nothing of closing, and closes
        call.sock.close()
        closed.set()

    url = server.on("/a", handler)
    for _ in range(3):
        closed.clear()
        assert get(fetcher, url)[1] == b"x"
        assert closed.wait(10)
    assert server.connections == 3


def test_a_connection_closed_under_the_request_is_tried_once_more_on_a_new_one(
    server: RudeServer, fetcher: Fetcher
) -> None:
    answered = 0

    def handler(call: Call) -> None:
        nonlocal answered
        if len(server.requests) == 2:
            return  # the second request on the first connection: gone without a byte
        answered += 1
        call.answer(body=b"x")

    url = server.on("/a", handler)
    assert get(fetcher, url)[1] == b"x"
    assert get(fetcher, url)[1] == b"x"
    assert answered == 2
    assert server.connections == 2


def test_idle_connections_are_bounded(server: RudeServer, opened: Opened) -> None:
    fetcher = opened(Guard(allow_private=True), max_idle=3, idle_per_origin=2)
    together = threading.Barrier(6)

    def handler(call: Call) -> None:
        together.wait(10)
        call.answer(body=b"x")

    url = server.on("/a", handler)
    threads = [threading.Thread(target=get, args=(fetcher, url)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert server.connections == 6
    assert fetcher.idle_connections == 2
    fetcher.abort()
    assert fetcher.idle_connections == 0


# --- size -----------------------------------------------------------------------------------------------------------


def test_a_length_above_the_limit_is_refused_before_the_body(server: RudeServer, fetcher: Fetcher) -> None:
    url = server.on("/a", lambda call: stall(call, length=2_000_000_000))
    with pytest.raises(TooLarge, match="2,000,000,000"):
        get(fetcher, url)


def stall(call: Call, body: bytes = b"", *, length: int) -> None:
    call.answer(body=body, length=length)
    call.wait_until_left()


def endless(call: Call, head: bytes, piece: bytes) -> None:
    call.send(head)
    while not call.server.closing.is_set():
        call.send(piece)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + bytes(65536) + b"\r\n"),
        (b"HTTP/1.0 200 OK\r\n\r\n", bytes(65536)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Trailer: y\r\n" * 5000),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65536),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
        (b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 60000 + b"\r\n"),
    ],
    ids=["chunks", "until-close", "trailers", "header-line", "continue", "headers"],
)
def test_an_endless_answer_is_cut_at_the_limit(server: RudeServer, fetcher: Fetcher, head: bytes, piece: bytes) -> None:
    url = server.on("/a", lambda call: endless(call, head, piece))
    with pytest.raises((TooLarge, BadResponse)):
        get(fetcher, url)


def test_a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not(server: RudeServer, fetcher: Fetcher) -> None:
    limits = FetchLimits(max_bytes=1000, total_s=20)
    for framing in ("length", "chunked", "close"):
        for size in (1000, 1001):
            body = bytes(size)

            def handler(call: Call, body: bytes = body, framing: str = framing) -> None:
                if framing == "length":
                    call.answer(body=body)
                elif framing == "chunked":
                    call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, 100))
                else:
                    call.send(b"HTTP/1.0 200 OK\r\n\r\n" + body)

            url = server.on("/a", handler)
            if size == 1000:
                assert get(fetcher, url, limits)[1] == body
            else:
                with pytest.raises(TooLarge):
                    get(fetcher, url, limits)


def test_a_gzip_bomb_is_cut_at_the_unpacked_limit(server: RudeServer, fetcher: Fetcher) -> None:
    bomb = gzip.compress(bytes(100_000_000), compresslevel=1)
    url = server.on("/a", lambda call: call.answer(body=bomb, Content_Encoding="gzip"))
    sink = BytesSink()
    with pytest.raises(TooLarge):
        fetcher.get(url, sink, limits=LIMITS)
    assert len(sink.body()) <= LIMITS.max_bytes


def test_a_gzip_stream_that_never_unpacks_to_anything_is_cut_too(server: RudeServer, fetcher: Fetcher) -> None:
    empty = gzip.compress(b"") * 3000
    head = b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    url = server.on("/a", lambda call: endless(call, head, empty))
    with pytest.raises(TooLarge):
        get(fetcher, url)


def test_a_sinks_own_error_passes_through_and_the_connection_is_not_used_again(
    server: RudeServer, fetcher: Fetcher
) -> None:
    class Full(BytesSink):
        def wrote(self, count: int) -> None:
            raise OSError(28, "No space left on device")

    url = server.on("/a", lambda call: call.answer(body=BODY))
    with pytest.raises(OSError, match="No space left"):
        fetcher.get(url, Full(), limits=LIMITS)
    assert fetcher.idle_connections == 0
    assert get(fetcher, url)[1] == BODY


# --- time -----------------------------------------------------------------------------------------------------------


def test_a_silent_accept_ends_at_the_head_timeout_and_is_the_hosts(server: RudeServer, fetcher: Fetcher) -> None:
    url = server.on("/a", Call.wait_until_left)
    with pytest.raises(HostDown, match="did not answer"):
        get(fetcher, url, FetchLimits(max_bytes=1000, total_s=60, head_timeout_s=0.2))


def trickle(call: Call, head: bytes, byte: bytes) -> None:
    call.send(head)
    while not call.server.closing.wait(0.01):
        call.send(byte)


@pytest.mark.parametrize(
    ("head", "byte"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"y"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\ny\r\n"),
        (b"HTTP/1.1 302 Found\r\nLocation: /b\r\nX: ", b"y"),
    ],
    ids=["head", "continue", "body", "chunks", "redirect"],
)
def test_a_trickling_server_meets_the_total_deadline(
    server: RudeServer, fetcher: Fetcher, head: bytes, byte: bytes
) -> None:
    url = server.on("/a", lambda call: trickle(call, head, byte))
    with pytest.raises(DeadlineExceeded):
        get(fetcher, url, QUICK)


def test_a_download_below_the_minimum_speed_is_ended_long_before_its_deadline(
    server: RudeServer, fetcher: Fetcher
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    url = server.on("/a", lambda call: trickle(call, head, b"y"))
    limits = FetchLimits(max_bytes=200_000, total_s=600, min_bytes_per_s=10_000, speed_grace_s=0.1, speed_window_s=0.1)
    with pytest.raises(TooSlow, match="min_bytes_per_sec"):
        get(fetcher, url, limits)


def test_a_download_that_stalls_is_ended_by_the_minimum_speed(server: RudeServer, fetcher: Fetcher) -> None:
    url = server.on("/a", lambda call: stall(call, b"abc", length=1000))
    limits = FetchLimits(max_bytes=2000, total_s=600, min_bytes_per_s=10_000, speed_grace_s=0.1, speed_window_s=0.1)
    with pytest.raises(TooSlow):
        get(fetcher, url, limits)


def test_an_error_body_that_trickles_does_not_hide_the_error(
    server: RudeServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.net.http._ERROR_BODY_S", 0.1)
    head = b"HTTP/1.1 503 X\r\nContent-Length: 100000\r\n\r\n"
    url = server.on("/a", lambda call: trickle(call, head, b"y"))
    with pytest.raises(HostDown):
        get(fetcher, url)


def test_abort_ends_requests_that_wait_and_refuses_new_ones(server: RudeServer, fetcher: Fetcher) -> None:
    arrived = threading.Event()

    def handler(call: Call) -> None:
        arrived.set()
        call.wait_until_left()

    url = server.on("/a", handler)
    caught: list[NetError] = []

    def wait() -> None:
        try:
            get(fetcher, url)
        except NetError as exc:
            caught.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    assert arrived.wait(10)
    fetcher.abort()
    thread.join(10)
    assert [type(exc) for exc in caught] == [Stopped]
    with pytest.raises(Stopped):
        get(fetcher, url)


def test_abort_ends_a_connection_attempt_that_waits(fetcher: Fetcher) -> None:
    # A listener whose backlog is full answers no SYN.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        caught: list[BaseException] = []

        def wait() -> None:
            try:
                get(fetcher, f"http://127.0.0.1:{port}/", FetchLimits(max_bytes=1, total_s=60, connect_timeout_s=60))
            except NetError as exc:
                caught.append(exc)

        thread = threading.Thread(target=wait)
        thread.start()
        deadline = time.monotonic() + 10
        while not fetcher._pool._busy and time.monotonic() < deadline:
            thread.join(0.005)
        fetcher.abort()
        thread.join(10)
        for filler in fillers:
            filler.close()
    assert [type(exc) for exc in caught] == [Stopped]


# --- cut and refused ------------------------------------------------------------------------------------------------


def test_a_connection_refused_is_the_hosts_failure(fetcher: Fetcher) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(HostDown, match="refused"):
        get(fetcher, f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(BODY)[:-9],
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 200\r\n\r\n" + gzip.compress(b"x" * 50),
    ],
    ids=["length", "in-chunk", "between-chunks", "gzip", "gzip-length"],
)
def test_a_body_that_is_cut_is_truncated(server: RudeServer, fetcher: Fetcher, answer: bytes) -> None:
    url = server.on("/a", lambda call: call.send(answer))
    with pytest.raises(Truncated):
        get(fetcher, url)
    assert fetcher.idle_connections == 0


def test_a_reset_in_the_body_is_truncated(server: RudeServer, fetcher: Fetcher) -> None:
    def handler(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
        call.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with pytest.raises(Truncated):
        get(fetcher, server.on("/a", handler))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", HostDown),
        (b"SSH-2.0-OpenSSH_9.6\r\n", BadResponse),
        (b"\x00\x01\x02\x03\r\n\r\n", BadResponse),
        (b"HTTP/1.1 abc OK\r\n\r\n", BadResponse),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx", BadResponse),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 30\r\n\r\n" + b"x" * 30, BadResponse),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", (BadResponse, Truncated)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", BadResponse),
        (b"HTTP/1.1 302 Found\r\n\r\n", BadResponse),
        (b"HTTP/1.1 302 Found\r\nLocation: ftp://a.io/\r\n\r\n", BadResponse),
    ],
)
def test_garbage_is_a_typed_error(
    server: RudeServer, fetcher: Fetcher, answer: bytes, kind: type[NetError] | tuple[type[NetError], ...]
) -> None:
    with pytest.raises(kind):
        get(fetcher, server.on("/a", lambda call: call.send(answer)))


# --- refusals -------------------------------------------------------------------------------------------------------


def refusing(server: RudeServer, status: int, body: bytes = b"", **headers: str) -> str:
    return server.on("/a", lambda call: call.answer(status, body, keep=True, length=None, **headers))


def test_429_with_retry_after_tells_how_long(server: RudeServer, fetcher: Fetcher) -> None:
    with pytest.raises(RateLimited) as caught:
        get(fetcher, refusing(server, 429, b'{"error":"RateLimitExceeded"}', Retry_After="17"))
    assert caught.value.retry_after_s == 17
    assert caught.value.host == server.origin


def test_429_as_html_without_headers_is_a_rate_limit(server: RudeServer, fetcher: Fetcher) -> None:
    with pytest.raises(RateLimited) as caught:
        get(fetcher, refusing(server, 429, b"<html><h1>429</h1></html>", Content_Type="text/html"))
    assert caught.value.retry_after_s is None


def test_an_error_keeps_the_connection(server: RudeServer, fetcher: Fetcher) -> None:
    url = refusing(server, 400, b'{"error":"RepoNotFound","message":"no"}')
    for _ in range(3):
        with pytest.raises(RepoNotFound):
            get(fetcher, url)
    assert server.connections == 1


def test_a_packed_error_body_is_read(server: RudeServer, fetcher: Fetcher) -> None:
    body = gzip.compress(b'{"error":"RepoTakendown"}')
    with pytest.raises(RepoInactive) as caught:
        get(fetcher, refusing(server, 400, body, Content_Encoding="gzip"))
    assert caught.value.account_status == "takendown"


def test_a_huge_error_body_is_not_read_to_its_end(server: RudeServer, fetcher: Fetcher) -> None:
    url = server.on("/a", lambda call: endless(call, b"HTTP/1.0 502 X\r\n\r\n", b"<p>" * 10_000))
    with pytest.raises(HostDown):
        get(fetcher, url)
    assert fetcher.idle_connections == 0


def test_a_wrong_content_type_is_a_bad_response_that_is_no_answer(server: RudeServer, fetcher: Fetcher) -> None:
    url = server.on(
        "/a", lambda call: call.answer(body=b"<html>parked</html>", Content_Type="text/html; charset=utf-8")
    )
    with pytest.raises(BadResponse, match="text/html") as caught:
        fetcher.get(url, BytesSink(), limits=LIMITS, content_types=("application/vnd.ipld.car",))
    assert not caught.value.answered


# --- redirects and the guard ----------------------------------------------------------------------------------------


def test_redirects_are_followed_relative_and_absolute(server: RudeServer, fetcher: Fetcher) -> None:
    server.on("/c", lambda call: call.answer(body=b"there"))
    server.on("/b", lambda call: call.answer(308, Location=f"{server.origin}/c?x=1"))
    url = server.on("/a", lambda call: call.answer(302, b"moved", Location="/b"))
    answer, body = get(fetcher, url)
    assert body == b"there"
    assert answer.origin == server.origin
    assert [call.path for call in server.requests] == ["/a", "/b", "/c?x=1"]
    assert server.connections == 1


def test_a_redirect_loop_ends(server: RudeServer, fetcher: Fetcher) -> None:
    url = server.on("/a", lambda call: call.answer(302, Location="/a"))
    with pytest.raises(BadResponse, match="more than 3 redirects"):
        get(fetcher, url)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/b",
        "http://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/",
        "https://localhost/",
        "//[::1]/x",
    ],
)
def test_a_redirect_to_a_private_address_is_refused(server: RudeServer, location: str, opened: Opened) -> None:
    reached = server.on("/b", lambda call: call.answer(body=b"secret"))
    assert reached
    url = server.on("/a", lambda call: call.answer(302, Location=location.format(port=server.port)))
    with pytest.raises(PrivateAddress):
        get(opened(Guard(allow_private=False, exempt=[server.origin])), url)
    assert [call.path for call in server.requests] == ["/a"]


def test_a_redirect_to_a_name_that_resolves_to_loopback_is_refused(server: RudeServer, opened: Opened) -> None:
    def lookup(host: str, port: int) -> list[AddressInfo]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]

    url = server.on("/a", lambda call: call.answer(302, Location="https://evil.example.com/b"))
    with pytest.raises(PrivateAddress, match=r"resolves to 127\.0\.0\.1"):
        get(opened(Guard(allow_private=False, exempt=[server.origin], lookup=lookup)), url)


def test_the_connection_goes_to_the_address_that_was_checked_and_the_name_is_resolved_once(
    server: RudeServer, opened: Opened
) -> None:
    asked: list[str] = []

    def lookup(host: str, port: int) -> list[AddressInfo]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port))]

    fetcher = opened(Guard(allow_private=True, lookup=lookup))
    url = server.on("/a", lambda call: call.answer(body=b"x"))
    assert get(fetcher, url.replace("localhost", "pds.example.com"))[1] == b"x"
    assert asked == ["pds.example.com"]
    assert f"Host: pds.example.com:{server.port}\r\n" in server.requests[0].head


def test_the_next_address_is_tried_when_one_does_not_answer(server: RudeServer, opened: Opened) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]

    def lookup(host: str, port: int) -> list[AddressInfo]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", closed)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port)),
        ]

    fetcher = opened(Guard(allow_private=True, lookup=lookup))
    assert get(fetcher, server.on("/a", lambda call: call.answer(body=b"x")))[1] == b"x"


def test_private_hosts_are_refused_without_a_connection(server: RudeServer, opened: Opened) -> None:
    url = server.on("/a", lambda call: call.answer(body=b"x"))
    with pytest.raises(PrivateAddress):
        get(opened(Guard(allow_private=False)), url)
    assert server.connections == 0


def test_two_servers_do_not_share_connections(fetcher: Fetcher) -> None:
    with rude_server() as one, rude_server() as other:
        assert get(fetcher, one.on("/a", lambda call: call.answer(body=b"1")))[1] == b"1"
        assert get(fetcher, other.on("/a", lambda call: call.answer(body=b"2")))[1] == b"2"
        assert one.connections == other.connections == 1
