"""The head of an answer: the same as http.client reads in what is valid, and a plain refusal of what is not."""

from __future__ import annotations

import http.client
import io
import socket
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.net.response import MAX_HEADERS, Response


def respond(head: bytes, body: bytes = b"") -> Response:
    response = Response(io.BufferedReader(io.BytesIO(head + body)))
    response.begin()
    return response


class _Socket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


NAMES = st.sampled_from(
    ["Content-Length", "content-type", "Transfer-Encoding", "CONNECTION", "Retry-After", "ratelimit-reset", "X-Any"]
)
VALUES = st.sampled_from(
    ["0", "5", "-1", "many", "close", "keep-alive", "Keep-Alive, Upgrade", "chunked", "Chunked", "a: b", "", "9" * 17]
)


@given(
    version=st.sampled_from(["HTTP/1.0", "HTTP/1.1"]),
    status=st.sampled_from([200, 204, 301, 304, 404, 429, 503]),
    reason=st.sampled_from(["", " OK", " Not the one"]),
    fields=st.lists(st.tuples(NAMES, VALUES, st.sampled_from(["", " ", "\t "])), max_size=8),
    newline=st.sampled_from(["\r\n", "\n"]),
    interim=st.booleans(),
)
def test_a_valid_head_means_what_http_client_reads_in_it(
    version: str, status: int, reason: str, fields: list[tuple[str, str, str]], newline: str, interim: bool
) -> None:
    lines = [f"{version} {status}{reason}", *(f"{name}:{blank}{value}" for name, value, blank in fields), "", ""]
    head = (f"HTTP/1.1 100 Continue{newline}{newline}" if interim else "") + newline.join(lines)
    theirs = http.client.HTTPResponse(cast(socket.socket, _Socket(head.encode())), method="GET")
    theirs.begin()
    ours = respond(head.encode())
    assert (ours.version, ours.status, ours.reason) == (theirs.version, theirs.status, theirs.reason)
    assert (ours.chunked, ours.length, ours.will_close) == (theirs.chunked, theirs.length, theirs.will_close)
    assert {name: ours.fields.get(name) for name, _, _ in fields} == {
        name: theirs.headers.get(name) for name, _, _ in fields
    }


def test_early_hints_are_passed_over() -> None:
    response = respond(
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok"
    )
    assert (response.status, response.fields.get("link"), response.read()) == (200, None, b"ok")


def test_a_header_that_goes_on_in_the_next_line_is_one() -> None:
    response = respond(b"HTTP/1.1 200 OK\r\nA: one\r\n  two\r\nB: x\r\n\r\n")
    assert (response.fields.get("a"), response.fields.get("b")) == ("one two", "x")


@pytest.mark.parametrize(
    "length",
    [b"+5", b"5_0", b"5, 5", b"\xb2", b"9" * 19, b"9" * 5000],
    ids=["sign", "underscore", "list", "latin", "19", "5000"],
)
def test_a_content_length_that_is_no_number_means_until_the_connection_ends(length: bytes) -> None:
    response = respond(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n", b"body")
    assert (response.length, response.will_close, response.read()) == (None, True, b"body")


@pytest.mark.parametrize(
    "head",
    [
        b"<html>\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: onto nothing\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_head_is_refused(head: bytes) -> None:
    with pytest.raises(http.client.HTTPException) as caught:
        respond(head)
    assert not isinstance(caught.value, OSError)


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10"]
)
def test_a_head_that_is_cut_off_is_a_lost_connection(head: bytes) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        respond(head)
