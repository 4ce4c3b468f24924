"""A firehose made beforehand, and a process of its own that sends it at a rate: what it costs is reading a file and a socket.

    python -m tests.bench.stream FOLDER      prints its address; then lines on stdin: `RATE COUNT` (events/s, 0: as fast as they go)

A set is made once with the simulated network's world (signed commits, operations of 70 % creates, 15 % updates, 15 % deletes) and
kept in var/bench/stream: `frames` (websocket messages one after the other), `index` (seq and end of each), `repos` (where each
account stands before the first of them).
"""

from __future__ import annotations

import argparse
import base64
import gc
import hashlib
import mmap
import shutil
import socket
import subprocess
import sys
import threading
import time
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import orjson

from relay.simnet.world import World, WorldSpec
from tests.bench.mkcars import FOLDER as CARS

FOLDER = CARS.parent / "stream"
VERSION = 1  # raise it when what is generated changes
MEDIAN_RECORDS = 60
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TICK_S = 0.002
_SLICE = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where an account stands before its first event. `data`: root CID, 36 bytes; `key`: Multikey."""

    did: str
    key: str
    pds: str
    rev: str
    data: bytes


def load(accounts: int, events: int) -> Path:
    """Return the folder of a set of so many events or more, made now if there is none (0.4 ms an event, 3 ms an account)."""
    parent = FOLDER / f"v{VERSION}"
    made = sorted(int(path.parent.name.partition("-")[2]) for path in parent.glob(f"{accounts}-*/index"))
    folder = parent / f"{accounts}-{next((size for size in made if size >= events), events)}"
    if not (folder / "index").exists():
        print(f"making {events:,} frames of {accounts:,} accounts, once", flush=True)
        fresh = folder.with_suffix(".fresh")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        _make(fresh, accounts, events)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    return folder


def starts(folder: Path) -> list[Start]:
    """Return where the accounts of a set stand."""
    rows = orjson.loads((folder / "repos").read_bytes())
    return [Start(did=did, key=key, pds=pds, rev=rev, data=bytes.fromhex(data)) for did, key, pds, rev, data in rows]


def first_seq(folder: Path) -> int:
    return _read_index(folder)[0][0]


def _make(folder: Path, accounts: int, events: int) -> None:
    gc.disable()  # millions of objects without cycles
    try:
        spec = WorldSpec(
            accounts=accounts, hosts=40, seed=11, median_records=MEDIAN_RECORDS, inactive_share=0.0, replay_window=2000
        )
        world = World(spec)
        world.build_all()
        rows = [
            (each.did, each.multikey, world.pds_of(each), each.rev, each.repo.data.hex()) for each in world.accounts
        ]
        (folder / "repos").write_bytes(orjson.dumps(rows))
        seqs, ends = array("Q"), array("Q")
        size = done = 0
        with (folder / "frames").open("wb") as file:
            while done < events:
                world.write_some(min(1000, events - done))
                for event in world.log.after(seqs[-1] if seqs else 0, limit=1000):
                    message = _message(event.frame)
                    size += len(message)
                    file.write(message)
                    seqs.append(event.seq)
                    ends.append(size)
                    done += 1
        (folder / "index").write_bytes(seqs.tobytes() + ends.tobytes())
    finally:
        gc.enable()


def _read_index(folder: Path) -> tuple[array[int], array[int]]:
    both = array("Q", (folder / "index").read_bytes())
    half = len(both) // 2
    return both[:half], both[half:]


def _message(frame: bytes) -> bytes:
    """Return a websocket message of a server. Source: RFC 6455, section 5.2."""
    size = len(frame)
    if size < 126:
        return bytes((0x82, size)) + frame
    if size < 65536:
        return b"\x82\x7e" + size.to_bytes(2, "big") + frame
    return b"\x82\x7f" + size.to_bytes(8, "big") + frame


class StreamProcess:
    """`python -m tests.bench.stream` as a child."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.stream", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self.url = self._process.stdout.readline().strip()

    def send(self, rate: float, count: int) -> None:
        """Have the next `count` events sent, `rate` a second (0: as fast as they go)."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{rate} {count}\n")

    def __enter__(self) -> StreamProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class _Sender:
    """The events of a set to one subscriber at a time, as far as was allowed, at the rate that was said last."""

    def __init__(self, folder: Path) -> None:
        self._seqs, self._ends = _read_index(folder)
        with (folder / "frames").open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._changed = threading.Condition()  # guards: _rate, _allowed
        self._rate = 0.0
        self._allowed = 0

    def allow(self, rate: float, count: int) -> None:
        with self._changed:
            self._rate, self._allowed = rate, min(len(self._seqs), self._allowed + count)
            self._changed.notify_all()

    def serve(self, connection: socket.socket, cursor: int | None) -> None:
        """Send until the subscriber goes away."""
        at = 0 if cursor is None else bisect_right(self._seqs, cursor)
        view = memoryview(self._bytes)
        while True:
            with self._changed:
                while at >= self._allowed:
                    self._changed.wait()
                rate, allowed = self._rate, self._allowed
            began, first = time.monotonic(), at
            while at < allowed:
                due = allowed
                if rate:
                    due = min(allowed, first + int((time.monotonic() - began) * rate) + 1)
                start, end = self._ends[at - 1] if at else 0, self._ends[due - 1]
                for offset in range(start, end, _SLICE):
                    connection.sendall(view[offset : min(end, offset + _SLICE)])
                at = due
                if rate and at < allowed:
                    time.sleep(_TICK_S)


def _answer(connection: socket.socket, sender: _Sender) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(4096)
            if not data:
                return
            head += data
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        key = headers.get("sec-websocket-key")
        if key is None:
            body = b'{"error":"NotFound","message":"a stream and nothing else"}'
            head = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "
            connection.sendall(head + b"%d\r\n\r\n%b" % (len(body), body))
            return
        accept = base64.b64encode(hashlib.sha1(key.encode() + _MAGIC).digest())
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        _, _, cursor = lines[0].split(" ")[1].partition("cursor=")
        try:
            sender.serve(connection, int(cursor) if cursor else None)
        except OSError:  # it has gone
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    sender = _Sender(parser.parse_args().folder)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                connection, _ = server.accept()
                threading.Thread(target=_answer, args=(connection, sender), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        print(f"ws://127.0.0.1:{server.getsockname()[1]}", flush=True)
        for line in sys.stdin:
            rate, count = line.split()
            sender.allow(float(rate), int(count))


if __name__ == "__main__":
    main()
