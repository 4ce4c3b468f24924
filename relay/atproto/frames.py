"""Frames of the event stream `com.atproto.sync.subscribeRepos`: header and payload to frozen messages.

`parse_frame` checks framing and shape (PROTOCOL 5.2, step 1): fields, types, sizes, syntax. Nothing it returns has been
proved: signature, tree and chain are `verify`'s. Source: PROTOCOL 1.2, 1.3, 5.4.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from relay.atproto import cbor
from relay.atproto.cbor import FAST_BYTES, Link
from relay.atproto.cid import is_dag_cbor_cid
from relay.atproto.errors import InvalidCbor, InvalidFrame, InvalidMessage, InvalidSyntax, LimitExceeded
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.syntax import (
    Did,
    Handle,
    Nsid,
    Rev,
    Rkey,
    is_did,
    is_handle,
    is_tid,
    parse_datetime,
    parse_handle,
    parse_path,
)

SEQ_MAX: Final = (1 << 53) - 1


class Action(enum.StrEnum):
    """What a commit does to one record."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoOp:
    """One change of a commit. `cid`: the new value, None exactly for a delete; `prev`: the old one, None if not told."""

    action: Action
    collection: Nsid
    rkey: Rkey
    cid: bytes | None
    prev: bytes | None

    @property
    def path(self) -> str:
        return f"{self.collection}/{self.rkey}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitMessage:
    """`#commit`. Claims, but for what the signed commit in `blocks` (a CAR) says too. `time_us`: microseconds since 1970."""

    seq: int
    did: Did
    commit: bytes
    rev: Rev
    since: Rev | None
    prev_data: bytes | None
    blocks: bytes
    ops: tuple[RepoOp, ...]
    too_big: bool
    rebase: bool
    time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncMessage:
    """`#sync`: the repo's state now, without the changes that led to it. `blocks`: a CAR with the commit."""

    seq: int
    did: Did
    rev: Rev
    blocks: bytes
    time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityMessage:
    """`#identity`: something about the DID changed. The handle is a hint; None also when it is malformed."""

    seq: int
    did: Did
    handle: Handle | None
    time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountMessage:
    """`#account`: `active` alone governs; `status` explains, from an open set."""

    seq: int
    did: Did
    active: bool
    status: str | None
    time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoMessage:
    """`#info`, without seq: `OutdatedCursor` is the known name."""

    name: str
    message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFrame:
    """The last frame before the other side closes: `FutureCursor`, `ConsumerTooSlow`, ..."""

    error: str
    message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownMessage:
    """A frame of a kind, or with an `op`, that we do not know: to be skipped. `kind` is its `t`, empty without one."""

    kind: str
    seq: int | None


Message: TypeAlias = (
    CommitMessage | SyncMessage | IdentityMessage | AccountMessage | InfoMessage | ErrorFrame | UnknownMessage
)

_STATUS_CHARS = 128
_TEXT_CHARS = 4096
_HEADER_BYTES = 64  # enough for every header that means something to us
_BLOCKS_KEY = b"\x66blocks"
# Fields that a message of the kind may have. A frame with others is read by the strict reader as a whole.
_KNOWN_FIELDS: Final[dict[str, frozenset[str]]] = {
    "#commit": frozenset(
        ("seq", "repo", "commit", "rev", "since", "prevData", "blocks", "ops", "blobs", "tooBig", "rebase", "time")
    ),
    "#sync": frozenset(("seq", "did", "blocks", "rev", "time")),
    "#identity": frozenset(("seq", "did", "time", "handle")),
    "#account": frozenset(("seq", "did", "time", "active", "status")),
}
_OP_FIELDS: Final = frozenset(("action", "path", "cid", "prev"))
_PLAIN_TYPES: Final = frozenset((str, bytes, Link, bool, type(None)))


def parse_frame(frame: bytes, *, limits: Limits = DEFAULT_LIMITS) -> Message:
    """Return the message that one binary WebSocket message is.

    Raises InvalidFrame when it is not two canonical CBOR items with a usable header (the connection is at fault), and
    InvalidMessage when the payload of a known kind breaks a rule (its producer is; what could be read stands in the error).
    """
    if len(frame) > limits.frame_bytes:
        raise InvalidFrame(f"a frame of {len(frame):,} bytes: the limit is {limits.frame_bytes:,}")
    parts = _read_fast(frame)
    if parts is None:
        try:
            parts = cbor.decode_two(frame, limits=limits)
        except (InvalidCbor, LimitExceeded) as exc:
            raise InvalidFrame(exc.args[0], at=exc.at) from exc
    header, payload = parts
    if type(header) is not dict or type(header.get("op")) is not int:
        raise InvalidFrame("the header is not a map with an integer `op`", at=0)
    if type(payload) is not dict:
        raise InvalidFrame("the payload is not a map")
    kind = header.get("t", "")
    if header["op"] == -1:
        return _error_frame(payload)
    if header["op"] != 1:
        return UnknownMessage(kind=kind if type(kind) is str else "", seq=_seq_or_none(payload))
    if type(kind) is not str or not kind:
        raise InvalidFrame("the header of a message has no `t`", at=0)
    return _Fields(kind, payload, limits).message()


def _read_fast(frame: bytes) -> tuple[Any, Any] | None:
    """Read a frame with the fast decoder, or return None if that cannot be proved to give what the strict one gives.

    2 us instead of 20 for a #commit. `blocks`, nearly all of a frame, is cut out first, so that the rest is small enough; its
    place is certain if the shortened frame has the bytes of the key and an empty value once, and decodes to that. Known
    fields are checked by exact type later; a frame with unknown ones is not read here.
    """
    blocks = b""
    small = frame
    if len(frame) > FAST_BYTES or _BLOCKS_KEY in frame:
        at = frame.find(_BLOCKS_KEY) + len(_BLOCKS_KEY)
        cut = _byte_string(frame, at) if at >= len(_BLOCKS_KEY) else None
        if cut is None:
            return None
        start, end = cut
        blocks = frame[start:end]
        small = frame[:at] + b"\x40" + frame[end:]
        if len(small) > FAST_BYTES or small.count(_BLOCKS_KEY + b"\x40") != 1:
            return None
    try:
        header, size = cbor.decode_fast(small[:_HEADER_BYTES])
        payload, rest = cbor.decode_fast(small[size:])
    except InvalidCbor:
        return None
    if type(header) is not dict or type(payload) is not dict or size + rest != len(small) or len(header) > 2:
        return None
    kind = header.get("t")
    known = _KNOWN_FIELDS.get(kind) if type(kind) is str else None
    if known is None or header.get("op") != 1 or type(header["op"]) is not int or not payload.keys() <= known:
        return None
    if "blocks" in known:
        if payload.get("blocks") != b"" or small is frame:
            return None
        payload["blocks"] = blocks
    return (header, payload) if _is_plain(payload) else None


def _is_plain(payload: dict[str, Any]) -> bool:
    """Say whether no value can hide what only the strict reader refuses: a float, a huge integer, deep nesting."""
    for key, value in payload.items():
        kind = type(value)
        if key == "seq":
            if kind is not int or not 0 < value <= SEQ_MAX:
                return False
        elif key == "blobs" and kind is list:
            if value:
                return False
        elif key == "ops" and kind is list:
            for op in value:
                if type(op) is not dict or not op.keys() <= _OP_FIELDS:
                    return False
                if not _PLAIN_TYPES.issuperset(map(type, op.values())):
                    return False
        elif kind not in _PLAIN_TYPES:
            return False
    return True


def _byte_string(data: bytes, at: int) -> tuple[int, int] | None:
    """Return (start, end) of the content of the canonical byte string at `at`, or None if there is none."""
    head = data[at : at + 5]
    if len(head) < 5:
        return None
    if 0x40 <= head[0] <= 0x57:
        start, size = at + 1, head[0] - 0x40
    elif head[0] == 0x58 and head[1] >= 24:
        start, size = at + 2, head[1]
    elif head[0] == 0x59 and head[1]:
        start, size = at + 3, int.from_bytes(head[1:3], "big")
    elif head[0] == 0x5A and (head[1] or head[2]):
        start, size = at + 5, int.from_bytes(head[1:5], "big")
    else:
        return None
    return (start, start + size) if start + size <= len(data) else None


def _seq_or_none(payload: dict[str, Any]) -> int | None:
    seq = payload.get("seq")
    return seq if type(seq) is int and 0 < seq <= SEQ_MAX else None


def _error_frame(payload: dict[str, Any]) -> ErrorFrame:
    error, message = payload.get("error"), payload.get("message")
    if type(error) is not str or not error:
        raise InvalidFrame("an error frame without `error`")
    return ErrorFrame(error=error[:_STATUS_CHARS], message=message[:_TEXT_CHARS] if type(message) is str else None)


class _Fields:
    """Takes the fields of one payload, each of its type, or raises InvalidMessage that names the field."""

    __slots__ = ("kind", "limits", "payload")

    def __init__(self, kind: str, payload: dict[str, Any], limits: Limits) -> None:
        self.kind = kind
        self.payload = payload
        self.limits = limits

    def message(self) -> Message:
        match self.kind:
            case "#commit":
                return self._commit()
            case "#sync":
                return SyncMessage(
                    seq=self._seq(),
                    did=self._did("did"),
                    rev=self._rev("rev"),
                    blocks=self._blocks(self.limits.sync_blocks_bytes),
                    time_us=self._time_us(),
                )
            case "#identity":
                handle = self.payload.get("handle")
                return IdentityMessage(
                    seq=self._seq(),
                    did=self._did("did"),
                    handle=parse_handle(handle) if type(handle) is str and is_handle(handle) else None,
                    time_us=self._time_us(),
                )
            case "#account":
                return self._account()
            case "#info":
                name, text = self.payload.get("name"), self.payload.get("message")
                if type(name) is not str or not name:
                    raise self._refuse("name", "is not text")
                return InfoMessage(name=name[:_STATUS_CHARS], message=text[:_TEXT_CHARS] if type(text) is str else None)
        return UnknownMessage(kind=self.kind[:_STATUS_CHARS], seq=_seq_or_none(self.payload))

    def _refuse(self, field: str, why: str) -> InvalidMessage:
        did = self.payload.get("repo" if self.kind == "#commit" else "did")
        rev = self.payload.get("rev")
        return InvalidMessage(
            f"{self.kind}: {field} {why}",
            kind=self.kind,
            seq=_seq_or_none(self.payload),
            did=did if is_did(did) else None,
            rev=rev if is_tid(rev) else None,
            at=field,
        )

    def _seq(self) -> int:
        seq = _seq_or_none(self.payload)
        if seq is None:
            raise self._refuse("seq", f"is not an integer from 1 to {SEQ_MAX}")
        return seq

    def _did(self, field: str) -> Did:
        did = self.payload.get(field)
        if type(did) is not str or not is_did(did):
            raise self._refuse(field, "is not a DID")
        return Did(did)

    def _rev(self, field: str) -> Rev:
        rev = self.payload.get(field)
        if type(rev) is not str or not is_tid(rev):
            raise self._refuse(field, "is not a TID")
        return Rev(rev)

    def _time_us(self) -> int:
        time = self.payload.get("time")
        if type(time) is not str:
            raise self._refuse("time", "is not text")
        try:
            return parse_datetime(time)
        except InvalidSyntax as exc:
            raise self._refuse("time", "is not a datetime") from exc

    def _blocks(self, limit: int) -> bytes:
        blocks = self.payload.get("blocks")
        if type(blocks) is not bytes:
            raise self._refuse("blocks", "is not a byte string")
        if len(blocks) > limit:
            raise self._refuse("blocks", f"has {len(blocks):,} bytes: the limit is {limit:,}")
        return blocks

    def _link(self, field: str) -> bytes:
        link = self.payload.get(field)
        if type(link) is not Link or not is_dag_cbor_cid(link.cid):
            raise self._refuse(field, "is not a dag-cbor link")
        return link.cid

    def _flag(self, field: str) -> bool:
        flag = self.payload.get(field, False)
        if type(flag) is not bool:
            raise self._refuse(field, "is not a bool")
        return flag

    def _commit(self) -> CommitMessage:
        if "since" not in self.payload:
            raise self._refuse("since", "is missing")
        return CommitMessage(
            seq=self._seq(),
            did=self._did("repo"),
            commit=self._link("commit"),
            rev=self._rev("rev"),
            since=None if self.payload["since"] is None else self._rev("since"),
            prev_data=None if self.payload.get("prevData") is None else self._link("prevData"),
            blocks=self._blocks(self.limits.commit_blocks_bytes),
            ops=self._ops(),
            too_big=self._flag("tooBig"),
            rebase=self._flag("rebase"),
            time_us=self._time_us(),
        )

    def _ops(self) -> tuple[RepoOp, ...]:
        ops = self.payload.get("ops")
        if type(ops) is not list:
            raise self._refuse("ops", "is not an array")
        if len(ops) > self.limits.commit_ops:
            raise self._refuse("ops", f"has {len(ops):,} entries: the limit is {self.limits.commit_ops:,}")
        return tuple(self._op(index, op) for index, op in enumerate(ops))

    def _op(self, index: int, op: Any) -> RepoOp:
        field = f"ops[{index}]"
        if type(op) is not dict:
            raise self._refuse(field, "is not a map")
        action, path, cid, prev = op.get("action"), op.get("path"), op.get("cid"), op.get("prev")
        if type(action) is not str or action not in ("create", "update", "delete"):
            raise self._refuse(field, "has no action that we know")
        if type(path) is not str:
            raise self._refuse(field, "has no path")
        try:
            collection, rkey = parse_path(path)
        except InvalidSyntax as exc:
            raise self._refuse(field, "has a path that is not collection/rkey") from exc
        for link in (cid, prev):
            if link is not None and (type(link) is not Link or not is_dag_cbor_cid(link.cid)):
                raise self._refuse(field, "has a cid or prev that is not a dag-cbor link")
        if (cid is None) != (action == "delete"):
            raise self._refuse(field, "has a cid exactly if it is no delete")
        if prev is not None and action == "create":
            raise self._refuse(field, "is a create with prev")
        return RepoOp(
            action=Action(action),
            collection=collection,
            rkey=rkey,
            cid=None if cid is None else cid.cid,
            prev=None if prev is None else prev.cid,
        )

    def _account(self) -> AccountMessage:
        active, status = self.payload.get("active"), self.payload.get("status")
        if type(active) is not bool:
            raise self._refuse("active", "is not a bool")
        if status is not None and (type(status) is not str or len(status) > _STATUS_CHARS):
            raise self._refuse("status", "is not a short text")
        # Only `active` governs. What is no word explains nothing, and goes no further: no database takes a NUL.
        word = status if status and status.isprintable() else None
        return AccountMessage(
            seq=self._seq(), did=self._did("did"), active=active, status=word, time_us=self._time_us()
        )
