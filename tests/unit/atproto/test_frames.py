from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto import cbor, frames
from relay.atproto.cbor import Link, Value
from relay.atproto.cid import DAG_CBOR_PREFIX, RAW_PREFIX
from relay.atproto.errors import AtprotoError, InvalidFrame, InvalidMessage
from relay.atproto.frames import (
    AccountMessage,
    Action,
    CommitMessage,
    ErrorFrame,
    IdentityMessage,
    InfoMessage,
    SyncMessage,
    UnknownMessage,
    parse_frame,
)
from relay.atproto.limits import Limits
from relay.atproto.syntax import Did, Rev
from tests.unit.atproto.values import VALUES, damaged, for_cbor2

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
TIME = "2023-06-30T15:03:01.887007Z"
TIME_US = 1_688_137_381_887_007
REV, SINCE = "3jzfcijpj2z2a", "3jzfcijpj2z22"
A, B, C = (DAG_CBOR_PREFIX + bytes([n]) * 32 for n in (1, 2, 3))

COMMIT: dict[str, Value] = {
    "seq": 5,
    "repo": DID,
    "commit": Link(A),
    "rev": REV,
    "since": SINCE,
    "prevData": Link(B),
    "blocks": b"x" * 300,
    "ops": [
        {"action": "create", "path": "app.bsky.feed.post/a", "cid": Link(C)},
        {"action": "update", "path": "app.bsky.feed.post/b", "cid": Link(C), "prev": Link(B)},
        {"action": "delete", "path": "app.bsky.feed.post/c", "cid": None, "prev": Link(B)},
    ],
    "blobs": [],
    "tooBig": False,
    "rebase": False,
    "time": TIME,
}
SYNC: dict[str, Value] = {"seq": 5, "did": DID, "rev": REV, "blocks": b"x" * 300, "time": TIME}
IDENTITY: dict[str, Value] = {"seq": 5, "did": DID, "time": TIME, "handle": "Alice.test"}
ACCOUNT: dict[str, Value] = {"seq": 5, "did": DID, "time": TIME, "active": False, "status": "deleted"}
BODIES = {"#commit": COMMIT, "#sync": SYNC, "#identity": IDENTITY, "#account": ACCOUNT}


def _frame(kind: str, body: Value) -> bytes:
    return cbor.encode({"op": 1, "t": kind}) + cbor.encode(body)


def test_a_commit() -> None:
    message = parse_frame(_frame("#commit", COMMIT))
    assert isinstance(message, CommitMessage)
    assert (message.seq, message.did, message.rev, message.since) == (5, DID, REV, SINCE)
    assert (message.commit, message.prev_data, message.blocks) == (A, B, b"x" * 300)
    assert (message.too_big, message.rebase, message.time_us) == (False, False, TIME_US)
    assert [(op.action, op.path, op.cid, op.prev) for op in message.ops] == [
        (Action.CREATE, "app.bsky.feed.post/a", C, None),
        (Action.UPDATE, "app.bsky.feed.post/b", C, B),
        (Action.DELETE, "app.bsky.feed.post/c", None, B),
    ]


def test_a_first_commit_and_one_without_optional_fields() -> None:
    body = {key: COMMIT[key] for key in ("seq", "repo", "commit", "rev", "blocks", "ops", "time")}
    message = parse_frame(_frame("#commit", body | {"since": None}))
    assert isinstance(message, CommitMessage)
    assert (message.since, message.prev_data) == (None, None)


def test_a_sync() -> None:
    want = SyncMessage(seq=5, did=Did(DID), rev=Rev(Did(REV)), blocks=b"x" * 300, time_us=TIME_US)
    assert parse_frame(_frame("#sync", SYNC)) == want


def test_an_identity_with_and_without_a_usable_handle() -> None:
    for handle, want in (("Alice.test", "alice.test"), ("not a handle", None), (5, None), (None, None)):
        message = parse_frame(_frame("#identity", IDENTITY | {"handle": handle}))
        assert isinstance(message, IdentityMessage)
        assert (message.seq, message.did, message.handle, message.time_us) == (5, DID, want, TIME_US)
    absent = parse_frame(_frame("#identity", {key: IDENTITY[key] for key in ("seq", "did", "time")}))
    assert isinstance(absent, IdentityMessage)
    assert absent.handle is None


def test_an_account_with_a_status_of_an_open_set() -> None:
    for status in ("deleted", "something new", None):
        message = parse_frame(_frame("#account", ACCOUNT | {"status": status}))
        assert isinstance(message, AccountMessage)
        assert (message.active, message.status) == (False, status)


@pytest.mark.parametrize("status", ["dele\0ted", "\x1b[31mdeleted", "two\nlines", ""])
def test_a_status_that_is_no_word_is_none_and_the_account_is_inactive_all_the_same(status: str) -> None:
    message = parse_frame(_frame("#account", ACCOUNT | {"status": status}))
    assert isinstance(message, AccountMessage)
    assert (message.active, message.status) == (False, None)


def test_info_error_and_unknown_frames() -> None:
    assert parse_frame(_frame("#info", {"name": "OutdatedCursor"})) == InfoMessage(name="OutdatedCursor", message=None)
    error = cbor.encode({"op": -1}) + cbor.encode({"error": "FutureCursor", "message": "too far"})
    assert parse_frame(error) == ErrorFrame(error="FutureCursor", message="too far")
    assert parse_frame(_frame("#handle", {"seq": 9, "x": []})) == UnknownMessage(kind="#handle", seq=9)
    assert parse_frame(cbor.encode({"op": 2, "t": "#commit"}) + b"\xa0") == UnknownMessage(kind="#commit", seq=None)


def test_unknown_fields_are_ignored_if_they_are_canonical() -> None:
    message = parse_frame(_frame("#commit", COMMIT | {"new": {"deep": [1]}}))
    assert isinstance(message, CommitMessage)
    with_float = cbor2.dumps({"op": 1, "t": "#account"}, canonical=True) + cbor2.dumps(
        ACCOUNT | {"new": 1.5}, canonical=True
    )
    with pytest.raises(InvalidFrame, match="float"):
        parse_frame(with_float)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00",
        b"\xa0",
        b"\xa0\xa0",
        b"\xa1\x62op\x01\xa0",
        b"\xa1\x62op\x20\xa0",
        b"\xa2\x61t\x67#commit\x62op\x01",
        b"\xa2\x61t\x67#commit\x62op\x01\x80",
        b"\xa2\x61t\x67#commit\x62op\x01\xa0\xa0",
        b"\xa2\x61t\x01\x62op\x01\xa0",
        b"\xa2\x61t\x60\x62op\x01\xa0",
        b"\xa2\x62op\x01\x61t\x67#commit\xa0",
        b"\xa1\x62op\xf5\xa0",
        b"\x81\x01\xa0",
        cbor.encode({"op": -1}) + cbor.encode({"message": "x"}),
    ],
)
def test_broken_framing_is_the_connections_fault(frame: bytes) -> None:
    with pytest.raises(InvalidFrame):
        parse_frame(frame)


def test_a_frame_over_the_limit_is_refused() -> None:
    with pytest.raises(InvalidFrame, match="limit"):
        parse_frame(bytes(101), limits=Limits(frame_bytes=100))


NO_BLOCKS: tuple[Value, ...] = ("x", None, [], b"x" * 2_000_001)
BAD_FIELDS: list[tuple[str, str, Value]] = [
    *[(kind, "seq", junk) for kind in BODIES for junk in (0, -1, 2**53, "5", None, True)],
    *[(kind, "time", junk) for kind in BODIES for junk in ("yesterday", 5, None)],
    *[(kind, "did", junk) for kind in ("#sync", "#identity", "#account") for junk in ("alice.test", None, 5)],
    *[(kind, "rev", junk) for kind in ("#commit", "#sync") for junk in ("3jz", None, 5, b"3jzfcijpj2z2a")],
    *[(kind, "blocks", junk) for kind in ("#commit", "#sync") for junk in NO_BLOCKS],
    ("#sync", "blocks", b"x" * 10_001),
    ("#commit", "repo", "alice.test"),
    ("#commit", "since", "3jz"),
    ("#commit", "since", 5),
    ("#commit", "commit", None),
    ("#commit", "commit", A),
    ("#commit", "commit", Link(RAW_PREFIX + bytes(32))),
    ("#commit", "prevData", "x"),
    ("#commit", "tooBig", 1),
    ("#commit", "rebase", "no"),
    ("#commit", "ops", None),
    ("#commit", "ops", {}),
    ("#commit", "ops", 5),
    ("#commit", "ops", [5]),
    ("#commit", "ops", [{}]),
    ("#commit", "ops", [{"action": "create", "path": "app.bsky.feed.post/a", "cid": Link(C)}] * 201),
    ("#account", "active", None),
    ("#account", "active", 1),
    ("#account", "status", 5),
    ("#account", "status", "x" * 1000),
]


@pytest.mark.parametrize(("kind", "field", "value"), BAD_FIELDS)
def test_a_bad_field_is_the_producers_fault_and_is_named(kind: str, field: str, value: Value) -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse_frame(_frame(kind, BODIES[kind] | {field: value}))
    error = caught.value
    assert str(error.at).startswith(field)
    assert error.kind == kind
    assert error.seq == (None if field == "seq" else 5)
    assert error.did == (None if field in ("repo", "did") else DID)
    if kind in ("#commit", "#sync"):
        assert error.rev == (None if field == "rev" else REV)


REQUIRED = [
    *[("#commit", field) for field in ("seq", "repo", "commit", "rev", "since", "blocks", "ops", "time")],
    *[("#sync", field) for field in SYNC],
    *[("#identity", field) for field in ("seq", "did", "time")],
    *[("#account", field) for field in ("seq", "did", "time", "active")],
]


@pytest.mark.parametrize(("kind", "field"), REQUIRED)
def test_a_required_field_is_required(kind: str, field: str) -> None:
    with pytest.raises(InvalidMessage):
        parse_frame(_frame(kind, {key: value for key, value in BODIES[kind].items() if key != field}))


@pytest.mark.parametrize(
    "change",
    [
        {"action": "upsert"},
        {"action": None},
        {"path": "app.bsky.feed.post"},
        {"path": "app.bsky.feed.post/a/b"},
        {"path": b"app.bsky.feed.post/a"},
        {"cid": None},
        {"cid": C},
        {"cid": Link(RAW_PREFIX + bytes(32))},
        {"prev": Link(B)},
        {"prev": "x"},
        {"action": "delete"},
    ],
)
def test_a_bad_op_makes_the_message_invalid(change: dict[str, Any]) -> None:
    op: dict[str, Value] = {"action": "create", "path": "app.bsky.feed.post/a", "cid": Link(C), **change}
    with pytest.raises(InvalidMessage):
        parse_frame(_frame("#commit", COMMIT | {"ops": [op]}))


def _both_ways(frame: bytes) -> tuple[object, object]:
    def outcome() -> object:
        try:
            return parse_frame(frame)
        except AtprotoError as exc:
            return type(exc), [getattr(exc, name, None) for name in ("kind", "seq", "did", "rev")]

    fast = outcome()
    original = frames._read_fast
    frames._read_fast = lambda frame: None
    try:
        return fast, outcome()
    finally:
        frames._read_fast = original


BLOCKS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"x" * 23, b"x" * 24, b"x" * 255, b"x" * 256, b"x" * 65_536, b"\x66blocks\x40", b"fblocks"]),
)
FRAMES = st.builds(
    lambda kind, changes: _frame(kind, BODIES[kind] | changes),
    st.sampled_from(list(BODIES)),
    st.dictionaries(
        st.sampled_from(["seq", "time", "handle", "status", "prevData", "ops", "blobs", "x"]), VALUES, max_size=2
    ),
)
COMMITS = st.builds(
    lambda blocks, time: _frame("#commit", COMMIT | {"blocks": blocks, "time": time}),
    BLOCKS,
    st.sampled_from([TIME, "\x66blocks\x40", "fblocksX" + "y" * 100]),
)


@given(st.one_of(FRAMES, COMMITS, damaged(FRAMES), damaged(COMMITS)))
def test_the_fast_reader_gives_what_the_strict_one_gives(frame: bytes) -> None:
    fast, strict = _both_ways(frame)
    assert fast == strict


def test_a_text_that_looks_like_the_blocks_does_not_move_them() -> None:
    """The first `blocks` key in the bytes stands inside a text here: cutting there would give another message."""
    for trap in ("\x66blocks\x41", "\x66blocks\x40", "\x66blocks\x57"):
        frame = _frame("#sync", SYNC | {"did": trap})
        fast, strict = _both_ways(frame)
        assert fast == strict == (InvalidMessage, ["#sync", 5, None, REV])


def test_a_text_that_looks_like_the_blocks_does_not_change_what_comes_after() -> None:
    """Cut at the trap, the DID would swallow the start of the next entry, and a hidden `rev` would come to light."""
    hidden = "crevm" + REV  # a key and a text in CBOR
    frame = _frame("#sync", SYNC | {"did": "\x66blocks\x57" + "z" * 23, "rev": "j" * 17 + hidden, "blocks": b""})
    fast, strict = _both_ways(frame)
    assert fast == strict == (InvalidMessage, ["#sync", 5, None, None])


@pytest.mark.parametrize(
    "head", [b"\x58\x05", b"\x58\x17", b"\x59\x00\xff", b"\x5a\x00\x00\xff\xff", b"\x5b" + bytes(7) + b"\x05"]
)
def test_blocks_whose_length_is_not_in_its_shortest_form_are_refused(head: bytes) -> None:
    size = int.from_bytes(head[1:], "big")
    frame = _frame("#sync", SYNC | {"blocks": b""})
    assert frame.endswith(b"\x66blocks\x40")
    fast, strict = _both_ways(frame[:-1] + head + bytes(size))
    assert fast == strict
    assert isinstance(strict, tuple)
    assert strict[0] is InvalidFrame


@pytest.mark.parametrize("junk", [1.5, [1.5], {"a": 1.5}, 2**64 - 1, [[2**63]]], ids=repr)
@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, body in BODIES.items() for field in body])
def test_what_only_the_strict_reader_refuses_does_not_slip_through(kind: str, field: str, junk: object) -> None:
    body: dict[str, Any] = {key: for_cbor2(value) for key, value in BODIES[kind].items()} | {field: junk}
    frame = cbor2.dumps({"op": 1, "t": kind}, canonical=True) + cbor2.dumps(body, canonical=True)
    fast, strict = _both_ways(frame)
    assert fast == strict
    assert isinstance(strict, tuple)
    assert strict[0] is InvalidFrame


@pytest.mark.parametrize("kind", ["#commit", "#sync", "#account", "#identity"])
def test_ordinary_frames_are_read_fast(kind: str) -> None:
    assert frames._read_fast(_frame(kind, BODIES[kind])) is not None


@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_or_a_typed_error(frame: bytes) -> None:
    _both_ways(frame)
