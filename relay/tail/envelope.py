"""The least that must be known of a frame before it is proved: kind, seq, DID and time (pure).

`atproto.frames` reads frames whole and strictly, in the verify workers. Here a frame costs some microseconds, of the one thread
that reads the stream; canonical form and everything else is the workers' to check.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import libipld

from relay.atproto.errors import InvalidSyntax
from relay.atproto.frames import SEQ_MAX
from relay.atproto.syntax import is_did, is_tid, parse_datetime

# A #commit of 200 operations with the longest paths has less than this besides its blocks. Without the bound 5 MB of empty
# arrays are decoded for 4.6 s, into 300 MB.
SMALL_BYTES: Final = 256 * 1024
# Where `blocks` is looked for: a path in `ops`, which stand before it, may contain the same bytes.
_PLACES_TRIED: Final = 8
_BLOCKS_KEY: Final = b"\x66blocks"
_TEXT_CHARS: Final = 1024
_SECONDS_KEPT: Final = 4096

KINDS: Final[dict[str, str]] = {
    "#commit": "commit",
    "#sync": "sync",
    "#identity": "identity",
    "#account": "account",
}


class Undecodable(Exception):
    """The frame has no meaning, or no seq where it must have one."""


class EventHead(NamedTuple):
    """An event. `kind`: commit, sync, identity, account. `did` None: it names none, and is of no use to anybody.

    `time_us`: microseconds since 1970, None when it is unreadable. Of a commit or sync also `rev` ('' when it is no TID), of a
    commit `is_first` (its `since` is null) and how many `operations` it names. All of it is claimed by the producer.
    """

    seq: int
    kind: str
    did: str | None
    time_us: int | None
    rev: str = ""
    is_first: bool = False
    operations: int = 0


@dataclass(frozen=True, slots=True)
class ErrorHead:
    """An error frame: the last one of a connection."""

    error: str
    message: str | None


@dataclass(frozen=True, slots=True)
class InfoHead:
    """`#info`."""

    name: str
    message: str | None


@dataclass(frozen=True, slots=True)
class UnknownHead:
    """A kind or an `op` that we do not know: to be skipped, but its seq counts."""

    kind: str
    seq: int | None


Head: TypeAlias = EventHead | ErrorHead | InfoHead | UnknownHead


def parse_head(frame: bytes) -> Head:
    """Return what a binary message of the stream is, by its header and a few fields. Raises Undecodable.

    Nothing is proved, and only what is returned was checked: types, `seq` from 1 to 2^53-1, the DID's syntax. Source: PROTOCOL 1.2, 1.3.
    """
    header, payload = _decode(frame)
    op, kind = header.get("op"), header.get("t", "")
    if type(op) is not int:
        raise Undecodable("the header has no integer `op`")
    if op == 1:
        if type(kind) is not str or not kind:
            raise Undecodable("the header of a message has no `t`")
        known = KINDS.get(kind)
        if known is not None:
            return _event(known, payload)
        if kind == "#info":
            name = payload.get("name")
            if type(name) is not str:
                raise Undecodable("an #info without `name`")
            return InfoHead(_clean(name), _text(payload.get("message")))
    elif op == -1:
        error = payload.get("error")
        if type(error) is not str or not error:
            raise Undecodable("an error frame without `error`")
        return ErrorHead(_clean(error), _text(payload.get("message")))
    return UnknownHead(_clean(kind) if type(kind) is str else "", _seq(payload))


def _event(kind: str, payload: dict[str, Any]) -> EventHead:
    seq = _seq(payload)
    if seq is None:
        raise Undecodable(f"a #{kind} without a usable `seq`")
    time = payload.get("time")
    time_us = _time_us(time) if type(time) is str else None
    if kind == "commit":
        did, rev, ops = payload.get("repo"), payload.get("rev"), payload.get("ops")
        return EventHead(
            seq,
            kind,
            did if type(did) is str and is_did(did) else None,
            time_us,
            rev if type(rev) is str and is_tid(rev) else "",
            payload.get("since", "") is None,
            len(ops) if type(ops) is list else 0,
        )
    did = payload.get("did")
    if type(did) is not str or not is_did(did):
        did = None
    if kind == "sync":
        rev = payload.get("rev")
        return EventHead(seq, kind, did, time_us, rev if type(rev) is str and is_tid(rev) else "")
    return EventHead(seq, kind, did, time_us)


def _decode(frame: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Decode header and payload; `blocks`, nearly all of most frames, is left out where that can be proved to be it."""
    at = -1
    for _ in range(_PLACES_TRIED):
        at = frame.find(_BLOCKS_KEY, at + 1)
        if at < 0:
            break
        cut = _byte_string(frame, at + len(_BLOCKS_KEY))
        if cut is None:
            continue
        start, end = cut
        if len(frame) - (end - start) > SMALL_BYTES:
            continue
        try:
            parts = _two_maps(frame[: at + len(_BLOCKS_KEY)] + b"\x40" + frame[end:])
        except Undecodable:
            continue  # it was not the place
        if parts[1].get("blocks") == b"":
            return parts
    if len(frame) > SMALL_BYTES:
        raise Undecodable(f"{len(frame):,} bytes, and too many of them are not `blocks`")
    return _two_maps(frame)


def _two_maps(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        parts = libipld.decode_dag_cbor_multi(data)
    except (ValueError, RecursionError) as exc:
        raise Undecodable(f"not CBOR ({str(exc)[:200]})") from None
    if len(parts) != 2 or type(parts[0]) is not dict or type(parts[1]) is not dict:
        raise Undecodable("not two maps")
    return parts[0], parts[1]


def _byte_string(data: bytes, at: int) -> tuple[int, int] | None:
    """Return (start, end) of the content of the byte string at `at`, or None if there is none."""
    head = data[at : at + 5]
    if len(head) < 5:
        return None
    if 0x40 <= head[0] <= 0x57:
        start, size = at + 1, head[0] - 0x40
    elif head[0] == 0x58:
        start, size = at + 2, head[1]
    elif head[0] == 0x59:
        start, size = at + 3, int.from_bytes(head[1:3], "big")
    elif head[0] == 0x5A:
        start, size = at + 5, int.from_bytes(head[1:5], "big")
    else:
        return None
    return (start, start + size) if start + size <= len(data) else None


def _seq(payload: dict[str, Any]) -> int | None:
    seq = payload.get("seq")
    return seq if type(seq) is int and 0 < seq <= SEQ_MAX else None


_seconds: dict[str, int] = {}  # the same second comes again and again: 0.4 us instead of 5.5


def _time_us(text: str) -> int | None:
    fraction = text[20:-1]
    if text[19:20] == "." and text[-1] == "Z" and fraction.isdigit() and fraction.isascii() and len(text) <= 40:
        base = _seconds.get(text[:19])
        if base is not None:
            return base + int(fraction[:6].ljust(6, "0"))
    else:
        fraction = ""
    try:
        time_us = parse_datetime(text)
    except InvalidSyntax:
        return None
    if fraction:
        if len(_seconds) >= _SECONDS_KEPT:
            _seconds.clear()
        _seconds[text[:19]] = time_us - int(fraction[:6].ljust(6, "0"))
    return time_us


def _text(value: object) -> str | None:
    return _clean(value) if isinstance(value, str) else None


def _clean(text: str) -> str:
    """Other people's text goes into logs and rows: printable, and short."""
    return "".join(char if char.isprintable() else " " for char in text[:_TEXT_CHARS])
