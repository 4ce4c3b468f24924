"""Addresses as operators write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.addresses import format_host_port, http_form, http_url, is_loopback, parse_host_port, ws_form


@pytest.mark.parametrize(
    ("url", "ws", "http"),
    [
        ("wss://bsky.network", "wss://bsky.network", "https://bsky.network"),
        ("https://bsky.network/", "wss://bsky.network", "https://bsky.network"),
        ("http://127.0.0.1:2583", "ws://127.0.0.1:2583", "http://127.0.0.1:2583"),
        ("ws://[::1]:2583", "ws://[::1]:2583", "http://[::1]:2583"),
        ("bsky.network", "wss://bsky.network", "https://bsky.network"),
        ("bsky.network:8443", "wss://bsky.network:8443", "https://bsky.network:8443"),
        ("localhost:2583", "ws://localhost:2583", "http://localhost:2583"),
        ("WSS://Bsky.Network:443", "wss://bsky.network", "https://bsky.network"),
        ("wss://r.example/xrpc/com.atproto.sync.subscribeRepos", "wss://r.example", "https://r.example"),
        ("", "", ""),
    ],
)
def test_an_origin_has_a_websocket_and_an_http_form(url: str, ws: str, http: str) -> None:
    assert ws_form(url) == ws
    assert http_form(url) == http
    assert (ws_form(http), http_form(ws)) == (ws, http)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x", "https://", "https://u:p@x", "https://x/path", "https://x?q", "https://x#f", "https://x:0", "https://x:70000",
        "https://x:", "https://a b", "https://a\nb", "https://[::1", "https://[x]", "https://::1", "https://-x", "https://x..y",
    ],
)  # fmt: skip
def test_what_is_no_origin_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        ws_form(url)


def test_a_directory_may_live_under_a_path() -> None:
    assert http_url("https://mirror.example/plc/") == "https://mirror.example/plc"


@pytest.mark.parametrize(
    "text", ["a", "a:", ":1", "a:0", "a:65536", "a:x", "a:-1", "http://a:1", "a:1/", "::1:5", "a b:1", "a:\u0661", ""]
)
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_host_port(text)


@given(host=st.from_regex(r"[a-z0-9]{1,10}(\.[a-z0-9]{1,10}){0,3}", fullmatch=True), port=st.integers(1, 65535))
def test_host_and_port_survive_a_round_trip(host: str, port: int) -> None:
    assert parse_host_port(format_host_port(host, port)) == (host, port)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    for parse in (ws_form, http_form, http_url, parse_host_port):
        try:
            parse(text)
        except ValueError:
            pass


def test_loopback_addresses() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "127.example.com"))
