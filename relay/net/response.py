"""One answer of a server: its head, which is read here, and its body, whose framing is http.client's.

http.client hands a head to the email package: 45 us for six headers, a quarter of what a small request costs; here it takes 10. A line that is no
header is refused, where mail would take it for the beginning of the text.
"""

from __future__ import annotations

import http.client
import io
import socket
from typing import Any, Final, cast

# As http.client has them; the size of a whole head is the reader's to limit.
MAX_HEADERS: Final = 100
MAX_LINE_BYTES: Final = 65_536
_LENGTH_DIGITS: Final = 18


class Headers:
    """The headers of an answer. Names compare without case; of several of one name the first one counts."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, str]) -> None:
        """`values`: by name in lower case."""
        self._values = values

    def get(self, name: str) -> str | None:
        return self._values.get(name.lower())


class Response(http.client.HTTPResponse):
    """Reads from `stream` and closes it in the end. After `begin`: `status`, `fields`, and all that http.client has but `headers`."""

    def __init__(self, stream: io.BufferedReader[Any]) -> None:
        super().__init__(cast(socket.socket, _Readable(stream)), method="GET")
        self._stream = stream
        self.fields = Headers({})

    def begin(self) -> None:
        """Read the head, after any number of provisional ones. Raises http.client.HTTPException for anything that is none.

        RemoteDisconnected: the connection ended before the head did. Framing: RFC 9112 section 6.3.
        """
        while True:
            self.version, self.status, self.reason = _parse_status_line(self._line())
            values = self._headers()
            if not 100 <= self.status < 200:
                break
        self.fields = Headers(values)
        self.code = self.status
        self.chunked = values.get("transfer-encoding", "").lower() == "chunked"
        self.chunk_left = None
        length = values.get("content-length", "")
        is_known = not self.chunked and length.isdecimal() and length.isascii() and len(length) <= _LENGTH_DIGITS
        self.length = int(length) if is_known else None
        if self.status in (http.client.NO_CONTENT, http.client.NOT_MODIFIED):
            self.length = 0
        connection = values.get("connection", "").lower()
        if self.version == 10:
            self.will_close = "keep-alive" not in connection
        else:
            self.will_close = "close" in connection
        if not self.chunked and self.length is None:
            self.will_close = True

    def _headers(self) -> dict[str, str]:
        """Read header lines up to the empty one."""
        fields: list[tuple[str, str]] = []
        for _ in range(MAX_HEADERS):
            line = self._line()
            if line == "\r\n" or line == "\n":
                return dict(reversed(fields))
            name, colon, value = line.partition(":")
            if line[0] in " \t" and fields:  # the line before goes on
                name, value = fields[-1]
                fields[-1] = (name, f"{value} {line.strip()}")
            elif colon and line[0] not in " \t:":
                fields.append((name.rstrip(" \t").lower(), value.strip(" \t\r\n")))
            else:
                raise http.client.HTTPException(f"a line that is no header: {line[:100]!r}")
        raise http.client.HTTPException(f"more than {MAX_HEADERS} headers")

    def _line(self) -> str:
        line = self._stream.readline(MAX_LINE_BYTES + 1)
        if line.endswith(b"\n"):
            return line.decode("iso-8859-1")
        if len(line) > MAX_LINE_BYTES:
            raise http.client.LineTooLong("head")
        raise http.client.RemoteDisconnected("the connection ended before the head of the answer did")


def _parse_status_line(line: str) -> tuple[int, int, str]:
    """Return (version as 10 or 11, status, reason)."""
    version, _, rest = line.partition(" ")
    status, _, reason = rest.strip().partition(" ")
    if len(status) != 3 or not (status.isdecimal() and status.isascii()) or status < "100":
        raise http.client.BadStatusLine(line[:100])
    if version == "HTTP/1.0":
        return 10, int(status), reason.strip()
    if version.startswith("HTTP/1."):
        return 11, int(status), reason.strip()
    raise http.client.UnknownProtocol(version[:100])


class _Readable:
    """What `http.client.HTTPResponse` needs of a socket."""

    def __init__(self, stream: io.BufferedReader[Any]) -> None:
        self._stream = stream

    def makefile(self, mode: str) -> io.BufferedReader[Any]:
        assert mode == "rb"
        return self._stream
