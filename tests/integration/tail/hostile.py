"""A websocket server that does exactly what a test says, connection by connection; and a tailer that is watched."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import cbor2

from relay.ipc.arena import Arena
from relay.net.guard import Guard
from relay.net.subscribe import MAX_MESSAGE_BYTES, SUBSCRIBE_REPOS, Subscription
from relay.tail.reader import IncidentFound
from relay.tail.tailer import Envelope, FrameBatch, Tailer, Told, make_reader
from tests.integration.net.rude import Call, RudeServer
from tests.support.waiting import wait_until

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
GUARD = Guard(allow_private=True)


def event(seq: int, *, time: str = "2024-01-02T03:04:05.678Z", did: str = DID, padding: int = 0) -> bytes:
    """Return an #account frame; `padding` bytes of an unknown field make it larger."""
    payload: dict[str, object] = {"seq": seq, "did": did, "active": True, "time": time}
    if padding:
        payload["padding"] = b"p" * padding
    return message({"op": 1, "t": "#account"}, payload)


def message(header: object, payload: object) -> bytes:
    return cbor2.dumps(header, canonical=True) + cbor2.dumps(payload, canonical=True)


def raw(data: bytes, opcode: int = 2) -> bytes:
    """Return one unmasked websocket frame."""
    length = len(data)
    if length < 126:
        head = bytes([length])
    elif length < 65536:
        head = b"\x7e" + length.to_bytes(2, "big")
    else:
        head = b"\x7f" + length.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + head + data


def upgrade(call: Call) -> None:
    match = re.search(r"(?i)sec-websocket-key: (\S+)", call.head)
    assert match is not None
    digest = hashlib.sha1((match[1] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    accept = base64.b64encode(digest)
    call.send(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + accept
        + b"\r\n\r\n"
    )


Scene = Callable[[Call, int | None], None]


def cursor_of(call: Call) -> int | None:
    values = parse_qs(urlsplit(call.path).query).get("cursor")
    return int(values[0]) if values else None


class Upstream:
    """Plays one scene a connection, the last one again and again. A scene gets the call and its cursor."""

    def __init__(self, server: RudeServer, *scenes: Scene) -> None:
        self.cursors: list[int | None] = []
        self.address = server.origin.replace("http", "ws")
        self._scenes = scenes
        self._lock = threading.Lock()  # guards cursors
        server.on(SUBSCRIBE_REPOS, self._play)

    def _play(self, call: Call) -> None:
        with self._lock:
            number = len(self.cursors)
            self.cursors.append(cursor_of(call))
        upgrade(call)
        self._scenes[min(number, len(self._scenes) - 1)](call, self.cursors[number])


def sends(*frames: bytes, then_holds: bool = True) -> Scene:
    """A scene that sends raw websocket frames, then holds the connection, or ends it."""

    def scene(call: Call, _cursor: int | None) -> None:
        for each in frames:
            call.send(each)
        if then_holds:
            call.wait_until_left()

    return scene


class Watched:
    """A tailer, and everything that it delivered and told. Slots are freed at once unless `hold` is set."""

    def __init__(
        self,
        address: str,
        *,
        cursor: int | None = None,
        time_us: int | None = None,
        slots: int = 4,
        hold: bool = False,
        idle_timeout_s: float = 30.0,
        delay_ms: int = 1,
        attempts: int = -1,
        batch_bytes: int = 256 * 1024,
    ) -> None:
        self.frames = Arena("frames", slots, MAX_MESSAGE_BYTES)
        self.batches: list[FrameBatch] = []
        self.events: list[tuple[Envelope, bytes]] = []
        self.told: list[Told] = []
        self.order: list[str] = []
        self.deaths: list[BaseException] = []
        self.hold = hold
        self.tailer = Tailer(
            subscribe=lambda at: Subscription(
                address, cursor=at, guard=GUARD, user_agent="test/1", idle_timeout_s=idle_timeout_s, connect_timeout_s=5
            ),
            reader=make_reader(
                cursor=cursor, time_us=time_us, reconnect_delay_ms=delay_ms, max_reconnect_attempts=attempts
            ),
            frames=self.frames,
            deliver=self._deliver,
            tell=self._tell,
            batch_bytes=batch_bytes,
            on_death=lambda _name, exc: self.deaths.append(exc),
        )

    def _deliver(self, batch: FrameBatch) -> None:
        with self.frames.view(batch.slot, batch.size) as view:
            for each in batch.envelopes:
                self.events.append((each, bytes(view[each.offset : each.offset + each.size])))
                self.order.append(str(each.seq))
        self.batches.append(batch)
        if not self.hold:
            self.tailer.free(batch.slot)

    def _tell(self, told: Told) -> None:
        self.told.append(told)
        self.order.append(type(told).__name__)

    @property
    def seqs(self) -> list[int]:
        return [each.seq for each, _ in self.events]

    def incidents(self) -> list[str]:
        return [str(told.kind) for told in self.told if isinstance(told, IncidentFound)]

    def wait_for(self, *seqs: int) -> None:
        wait_until(lambda: set(seqs) <= set(self.seqs), f"events {seqs}; there are {self.seqs[-20:]}", deadline_s=15)


@contextmanager
def watched(upstream: Upstream | str, **options: object) -> Iterator[Watched]:
    """Run a tailer for the body; it must stop at once, and must not have died."""
    address = upstream if isinstance(upstream, str) else upstream.address
    each = Watched(address, **options)  # type: ignore[arg-type]
    each.tailer.start()
    try:
        yield each
    finally:
        stop(each.tailer)
        each.frames.close()
    assert each.deaths == []


def stop(tailer: Tailer) -> None:
    tailer.request_stop()
    wait_until(lambda: not tailer.is_alive(), "the tailer's end", deadline_s=5)
