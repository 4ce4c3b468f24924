"""A local server without manners: each path has a handler that gets the raw socket after the request's head."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

Handler = Callable[["Call"], None]


class Call:
    """One request: its path, its head, and the socket to answer on (or not)."""

    def __init__(self, server: RudeServer, sock: socket.socket, head: bytes) -> None:
        self.server = server
        self.sock = sock
        self.head = head.decode("latin-1")
        self.path = self.head.split(" ", 2)[1]
        self.keep = False  # keep the connection for another request

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(
        self, status: int = 200, body: bytes = b"", *, keep: bool = True, length: int | None = None, **headers: str
    ) -> None:
        """Send a whole answer; `length` lies about its size. Header names are written with underscores."""
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        self.keep = keep

    def wait_until_left(self) -> None:
        """Hold the connection until the client closes it, or the test is over."""
        while not self.server.closing.is_set():
            ready, _, _ = select.select([self.sock], [], [], 0.05)
            if ready:
                with contextlib.suppress(OSError):
                    if not self.sock.recv(65536):
                        return


class RudeServer:
    """Listens on a free port of loopback; `handlers` by path without query. Counts connections and requests."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.handlers: dict[str, Handler] = {}
        self.requests: list[Call] = []
        self.connections = 0
        self.closing = threading.Event()
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def origin(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    def on(self, path: str, handler: Handler) -> str:
        """Serve `path` with `handler`; return its URL."""
        self.handlers[path] = handler
        return self.origin + path

    def close(self) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.settimeout(10)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            while (head := self._read_head(sock)) is not None:
                call = Call(self, sock, head)
                self.requests.append(call)
                self.handlers[call.path.partition("?")[0]](call)
                if not call.keep:
                    break
        sock.close()

    def _read_head(self, sock: socket.socket) -> bytes | None:
        head = b""
        while b"\r\n\r\n" not in head:
            while not select.select([sock], [], [], 0.05)[0] and not (
                isinstance(sock, ssl.SSLSocket) and sock.pending()
            ):
                if self.closing.is_set():
                    return None
            data = sock.recv(65536)
            if not data:
                return None
            head += data
        return head


@contextlib.contextmanager
def rude_server(tls: ssl.SSLContext | None = None) -> Iterator[RudeServer]:
    server = RudeServer(tls)
    try:
        yield server
    finally:
        server.close()
