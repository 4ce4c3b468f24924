"""URLs and origins, hostile ones too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.net.address import (
    InvalidAddress,
    Target,
    did_web_url,
    http_origin,
    join_target,
    listed_host_origin,
    parse_target,
    target_below,
)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://pds.example.com", "https://pds.example.com/"),
        ("HTTPS://PDS.Example.com:443/a?b=c", "https://pds.example.com/a?b=c"),
        ("http://localhost:2583/x", "http://localhost:2583/x"),
        ("http://[::1]:2583/x", "http://[::1]:2583/x"),
        ("https://h.io/é?q=ü#frag", "https://h.io/%C3%A9?q=%C3%BC"),
    ],
)
def test_urls_are_split_into_origin_and_ascii_path(url: str, expected: str) -> None:
    assert str(parse_target(url)) == expected


@pytest.mark.parametrize(
    "url",
    [
        "", "pds", "ftp://a.b/", "file:///etc/passwd", "https://", "https:///x", "https://user@host.io/", "https://u:p@h.io", "https://h.io:0/",
        "https://h.io:99999/", "https://h.io:x/", "https://[::1/", "https://h.io/a b", "https://h.io/\r\nX: y", "https://h.io/\x00", "gopher://x",
        "https://h\u2028.io/", "https://ho st/", "https://h.io\\@evil/",
    ],
)  # fmt: skip
def test_what_is_no_plain_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidAddress):
        parse_target(url)


@given(st.text(max_size=60))
def test_a_parsed_url_can_never_break_out_of_its_request_line(text: str) -> None:
    try:
        target = join_target(parse_target("https://a.io/x"), text)
    except InvalidAddress:
        return
    assert isinstance(target, Target)
    line = f"GET {target.path} HTTP/1.1\r\nHost: {target.origin.netloc}"
    assert line.isascii()
    assert line.count("\r") == line.count("\n") == 1
    assert target.path.startswith("/")
    assert " " not in target.path


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/y", "https://a.io/y"),
        ("y?z=1", "https://a.io/b/y?z=1"),
        ("//c.io/d", "https://c.io/d"),
        ("http://169.254.169.254/latest", "http://169.254.169.254/latest"),
    ],
)
def test_a_location_is_relative_to_its_url(location: str, expected: str) -> None:
    assert str(join_target(parse_target("https://a.io/b/x"), location)) == expected


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("wss://bsky.network", "https://bsky.network"),
        ("ws://localhost:2470", "http://localhost:2470"),
        ("https://bsky.network:443/", "https://bsky.network"),
        ("bsky.network", "https://bsky.network"),
        ("localhost:2583", "http://localhost:2583"),
    ],
)
def test_an_operators_address_has_one_http_origin(written: str, origin: str) -> None:
    assert http_origin(written) == origin


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("pds.example.com", "https://pds.example.com"),
        ("PDS.Example.com", "https://pds.example.com"),
        ("localhost:2583", "http://localhost:2583"),
        ("pds.example.com:8443", "https://pds.example.com:8443"),
    ],
)
def test_a_listed_host_is_https_but_localhost_with_a_port(entry: str, origin: str) -> None:
    assert listed_host_origin(entry) == origin


@pytest.mark.parametrize(
    "entry", ["", "https://a.io", "a.io/path", "a b", "a.io:0", "a.io:70000", "u@a.io", "a.io?x", "[::1]:80"]
)
def test_listed_hosts_with_more_than_a_name_are_refused(entry: str) -> None:
    with pytest.raises(InvalidAddress):
        listed_host_origin(entry)


def test_did_web_is_asked_at_its_well_known_place() -> None:
    assert did_web_url("did:web:alice.example.com") == "https://alice.example.com/.well-known/did.json"
    assert did_web_url("did:web:localhost%3A2583") == "http://localhost:2583/.well-known/did.json"
    for did in ("did:web:a.io:path", "did:web:a.io%2Fpath", "did:web:", "did:web:a.io%40b"):
        with pytest.raises(InvalidAddress):
            did_web_url(did)


@pytest.mark.parametrize(
    "base", ["https://pds.example.com", "https://h.io/", "http://localhost:2583/under/a/path/", "https://h.io/é"]
)
def test_a_target_below_a_base_is_that_of_the_whole_url(base: str) -> None:
    path = "/xrpc/com.atproto.sync.getRepo?did=did:plc:ewvi7nxzyoun6zhxrhs64oiz"
    assert target_below(base, path) == parse_target(base.rstrip("/") + path)


@pytest.mark.parametrize("path", ["", "x", "/a b", "/a\r\nHost: x", "/\x00", "/é"])
def test_a_path_that_may_not_stand_in_a_request_line_is_refused(path: str) -> None:
    with pytest.raises(InvalidAddress):
        target_below("https://h.io", path)
