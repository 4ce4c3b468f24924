"""Requests as apps see them, and answers with how badly they are given: what `http` and the apps have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Request:
    """A request; `head` is everything before the body, for the few who need a header."""

    method: str
    path: str
    query: str
    head: bytes
    body: bytes

    def param(self, name: str) -> str | None:
        """Return a query parameter, the first if it is repeated; None when absent."""
        values = parse_qs(self.query, keep_blank_values=True).get(name)
        return values[0] if values else None

    def header(self, name: str) -> str:
        """Return a header's value, empty when absent."""
        wanted = name.lower().encode() + b":"
        for line in self.head.split(b"\r\n")[1:]:
            if line.lower().startswith(wanted):
                return line[len(wanted) :].strip().decode("latin-1")
        return ""


class Feed(Protocol):
    """The server's half of an upgraded connection (a websocket). All calls come from the loop's thread."""

    handshake: tuple[tuple[str, str], ...]
    finished: bool  # after sending what is left: close
    reset: bool  # ... with a TCP reset

    def received(self, data: bytes) -> bytes:
        """Take bytes of the client; return what to answer at once."""

    def pull(self) -> bytes:
        """Return the next bytes to send, empty when there are none now. Called again after each `HttpServer.wake_feeds`."""

    def keepalive(self) -> bytes:
        """Return what to send now and then, for a client that wants to see that somebody is there."""

    def closed(self) -> None:
        """The connection is gone."""


@dataclass(slots=True, kw_only=True)
class Response:
    """An answer, and how badly it is given. `body` may be an iterator: then it is sent chunked, as it comes."""

    status: int = 200
    body: bytes | Iterator[bytes] = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    chunked: bool = False  # also for bytes
    delay_s: float = 0.0  # before the first byte; NEVER: no answer at all
    bytes_per_s: float | None = None  # of the body
    cut_at: int | None = None  # close after so many bytes of the body, whatever the header promised
    reset: bool = False  # close without an answer, with a TCP reset
    feed: Feed | None = None


App = Callable[[Request], Response]


def json_response(value: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return Response(status=status, body=json.dumps(value, ensure_ascii=False).encode(), headers=headers)
