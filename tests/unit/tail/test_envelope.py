"""The head of a frame: what the strict reader says of good frames, and a typed answer to everything else."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto.errors import AtprotoError
from relay.atproto.frames import CommitMessage, SyncMessage, parse_frame
from relay.tail.envelope import SMALL_BYTES, ErrorHead, EventHead, InfoHead, Undecodable, UnknownHead, parse_head

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
TIME = "2024-01-02T03:04:05.678Z"
TIME_US = 1704164645678000
REV = "3l3qo2vuowo2b"
CID = cbor2.CBORTag(42, b"\0\x01\x71\x12\x20" + bytes(32))


def frame(header: object, payload: object) -> bytes:
    return cbor2.dumps(header, canonical=True) + cbor2.dumps(payload, canonical=True)


def commit(*, blocks: bytes = b"x" * 5000, path: str = "app.bsky.feed.post/3k", **more: Any) -> bytes:
    payload = {
        "seq": 7,
        "repo": DID,
        "commit": CID,
        "rev": "3l3qo2vuowo2b",
        "since": None,
        "blocks": blocks,
        "ops": [{"action": "create", "path": path, "cid": CID}],
        "blobs": [],
        "tooBig": False,
        "rebase": False,
        "time": TIME,
    }
    return frame({"op": 1, "t": "#commit"}, payload | more)


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65535, 65536, 2_000_000])
def test_a_commit_of_any_size_has_the_head_that_the_strict_reader_sees(size: int) -> None:
    data = commit(blocks=b"\x66blocks"[:size].ljust(size, b"\x40"))
    message = parse_frame(data)
    assert isinstance(message, CommitMessage)
    assert parse_head(data) == EventHead(message.seq, "commit", message.did, message.time_us, message.rev, True, 1)


@pytest.mark.parametrize("path", ["app.bsky.feed.post/fblocksZ", "com.example.fblocksA/x", "a.b.c/fblocksXXXX"])
def test_a_path_that_looks_like_the_blocks_deceives_nobody(path: str) -> None:
    data = commit(path=path, blocks=b"y" * 300_000)
    assert isinstance(parse_frame(data), CommitMessage)
    assert parse_head(data) == EventHead(7, "commit", DID, TIME_US, REV, True, 1)


@pytest.mark.parametrize("rev", [None, 7, "", "3l3qo2vuowo2", "3l3qo2vuowo2b\n", "zzzzzzzzzzzzz"])
def test_a_rev_that_is_none_is_empty(rev: object) -> None:
    head = parse_head(commit(rev=rev, since="3l3qo2vuowo2a", ops=[{}, {}, {}]))
    assert head == EventHead(7, "commit", DID, TIME_US, "", False, 3)


def test_a_sync_and_the_small_kinds() -> None:
    payload = {"seq": 8, "did": DID, "blocks": b"x" * 200, "rev": "3l3qo2vuowo2b", "time": TIME}
    data = frame({"op": 1, "t": "#sync"}, payload)
    assert isinstance(parse_frame(data), SyncMessage)
    assert parse_head(data) == EventHead(8, "sync", DID, TIME_US, REV)
    for kind in ("identity", "account"):
        data = frame({"op": 1, "t": f"#{kind}"}, {"seq": 9, "did": DID, "time": TIME, "active": True})
        assert parse_head(data) == EventHead(9, kind, DID, TIME_US)


def test_what_is_no_event() -> None:
    assert parse_head(frame({"op": -1}, {"error": "FutureCursor"})) == ErrorHead("FutureCursor", None)
    info = frame({"op": 1, "t": "#info"}, {"name": "OutdatedCursor", "message": "a\nb"})
    assert parse_head(info) == InfoHead("OutdatedCursor", "a b")
    assert parse_head(frame({"op": 1, "t": "#novel"}, {"seq": 4})) == UnknownHead("#novel", 4)
    assert parse_head(frame({"op": 2, "t": "#commit"}, {"seq": 4})) == UnknownHead("#commit", 4)


@pytest.mark.parametrize(
    ("time", "time_us"),
    [
        ("2024-01-02T03:04:05.678Z", TIME_US),
        ("2024-01-02T03:04:05.6789999Z", TIME_US + 999),
        ("2024-01-02T03:04:05Z", TIME_US - 678000),
        ("2024-01-02T04:04:05.678+01:00", TIME_US),
        ("2024-01-02T03:04:05.6x8Z", None),
        ("2024-13-02T03:04:05.678Z", None),
        ("2024-01-02T03:04:05.٣Z", None),
        ("", None),
        ("Z", None),
        (5, None),
    ],
)
def test_times_are_read_as_the_strict_reader_reads_them(time: object, time_us: int | None) -> None:
    for _ in range(2):  # the second time from memory
        head = parse_head(commit(time=time))
        assert isinstance(head, EventHead)
        assert head.time_us == time_us


def test_an_event_of_nobody_has_no_did() -> None:
    head = parse_head(commit(repo="did:plc"))
    assert isinstance(head, EventHead)
    assert head.did is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        b"\xa0",
        b"\xa0\xa0",
        b"\xa0\xa0\xa0",
        b"\x81" * 100_000,
        commit()[:-1],
        commit() + b"\0",
        commit(seq=0),
        commit(seq="7"),
        commit(seq=True),
        commit(seq=1 << 53),
        frame({"op": 1}, {"seq": 1}),
        frame({"op": "1", "t": "#commit"}, {"seq": 1}),
        frame({"op": -1}, {}),
        frame({"op": 1, "t": "#info"}, {}),
    ],
)
def test_a_frame_without_meaning_is_undecodable(data: bytes) -> None:
    with pytest.raises(Undecodable):
        parse_head(data)


def test_too_much_besides_the_blocks_is_not_even_decoded() -> None:
    with pytest.raises(Undecodable, match="not `blocks`"):
        parse_head(commit(blobs=[[]] * (SMALL_BYTES + 1)))


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_raise_anything_else(junk: bytes, place: int, value: int) -> None:
    data = bytearray(commit(blocks=b"z" * 40))
    data[place % len(data)] = value
    for each in (junk, bytes(data), bytes(data) + junk):
        try:
            head = parse_head(each)
        except Undecodable:
            continue
        # What the strict reader takes it takes too, and says the same.
        try:
            message = parse_frame(each)
        except AtprotoError:
            continue
        if isinstance(message, CommitMessage):
            is_first = message.since is None
            told = (message.seq, "commit", message.did, message.time_us, message.rev, is_first, len(message.ops))
            assert head == EventHead(*told)
