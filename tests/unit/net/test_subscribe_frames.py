"""Websocket bytes: the same messages come out however they are cut, and nothing can make the reader grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.net.wsframes import (
    KEPT_BYTES,
    READ_BYTES,
    Close,
    Item,
    MessageReader,
    OversizeMessage,
    Ping,
    Pong,
    TextMessage,
    WebsocketBroken,
)

LIMIT = 1000


def raw(data: bytes, opcode: int = 2, *, fin: bool = True, size: int | None = None) -> bytes:
    length = len(data) if size is None else size
    head = bytes([(0x80 if fin else 0) | opcode])
    if length < 126:
        head += bytes([length])
    elif length < 65536:
        head += b"\x7e" + length.to_bytes(2, "big")
    else:
        head += b"\x7f" + length.to_bytes(8, "big")
    return head + data


def feed(reader: MessageReader, data: bytes, piece: int = 1 << 30) -> list[Item]:
    items: list[Item] = []
    while data:
        with reader.room() as room:
            count = min(len(room), len(data), piece)
            room[:count] = data[:count]
        data = data[count:]
        items += reader.wrote(count)
    return items


MESSAGES = st.lists(
    st.one_of(
        st.binary(max_size=LIMIT),
        st.builds(TextMessage, st.binary(max_size=300)),
        st.builds(Ping, st.binary(max_size=125)),
        st.builds(Pong, st.binary(max_size=125)),
    ),
    max_size=12,
)


def encode(message: Item, cuts: list[int]) -> bytes:
    match message:
        case Ping(data=data):
            return raw(data, 9)
        case Pong(data=data):
            return raw(data, 10)
        case TextMessage(data=data):
            opcode, body = 1, data
        case bytes():
            opcode, body = 2, message
        case _:
            raise AssertionError(message)
    parts: list[bytes] = []
    for cut in cuts:
        parts.append(body[:cut])
        body = body[cut:]
    parts.append(body)
    out = b""
    for number, part in enumerate(parts):
        out += raw(part, opcode if number == 0 else 0, fin=number == len(parts) - 1)
    return out


@given(messages=MESSAGES, cuts=st.lists(st.integers(0, 200), max_size=4), piece=st.integers(1, 600))
def test_messages_come_out_whole_however_they_are_cut(messages: list[Item], cuts: list[int], piece: int) -> None:
    data = b"".join(encode(message, cuts) for message in messages)
    assert feed(MessageReader(max_message_bytes=LIMIT), data, piece) == messages


def test_control_frames_may_stand_between_fragments() -> None:
    data = raw(b"ab", fin=False) + raw(b"p", 9) + raw(b"cd", 0)
    assert feed(MessageReader(max_message_bytes=LIMIT), data) == [Ping(b"p"), b"abcd"]


@pytest.mark.parametrize("fragment", [3 * LIMIT, LIMIT // 2 + 1])
def test_a_message_over_the_limit_is_told_once_and_read_past(fragment: int) -> None:
    big = raw(b"x" * fragment, fin=False) + raw(b"y" * fragment, 0, fin=False) + raw(b"z" * fragment, 0)
    items = feed(MessageReader(max_message_bytes=LIMIT), raw(b"a") + big + raw(b"b"), 777)
    assert [type(item) for item in items] == [bytes, OversizeMessage, bytes]
    assert isinstance(items[1], OversizeMessage)
    assert items[1].size > LIMIT
    assert items[1].head.startswith(b"x" * min(fragment, 100))
    assert items[2] == b"b"


def test_of_a_huge_message_only_its_beginning_is_kept() -> None:
    reader = MessageReader(max_message_bytes=LIMIT)
    (item,) = feed(reader, raw(b"x" * KEPT_BYTES, size=500_000_000))
    assert item == OversizeMessage(500_000_000, b"x" * KEPT_BYTES)
    for _ in range(100):
        assert feed(reader, b"x" * 100_000) == []
        with reader.room() as room:
            assert len(room) <= READ_BYTES


def test_a_message_at_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    reader = MessageReader(max_message_bytes=300_000)
    (exact,) = feed(reader, raw(b"x" * 300_000), 5000)
    assert exact == b"x" * 300_000
    (over,) = feed(reader, raw(b"x" * 300_001), 5000)
    assert over == OversizeMessage(300_001, b"x" * KEPT_BYTES)
    assert feed(reader, raw(b"next")) == [b"next"]


def test_many_empty_fragments_take_no_room() -> None:
    reader = MessageReader(max_message_bytes=LIMIT)
    assert feed(reader, raw(b"a", fin=False) + raw(b"", 0, fin=False) * 50_000 + raw(b"b", 0)) == [b"ab"]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x82\x81\0\0\0\0x", "masked"),
        (b"\xc2\x01x", "reserved"),
        (b"\x83\x01x", "opcode"),
        (b"\x8b\x00", "control"),
        (b"\x09\x00", "control"),
        (b"\x89\x7e\x00\x7e", "control"),
        (raw(b"a", 0), "fragment"),
        (raw(b"a", fin=False) + raw(b"b"), "fragment"),
        (b"\x82\x7f" + b"\x7f" + b"\xff" * 7, "bytes"),
    ],
)
def test_bytes_against_the_rules_break_it_and_what_came_before_is_there(data: bytes, what: str) -> None:
    with pytest.raises(WebsocketBroken, match=what) as caught:
        feed(MessageReader(max_message_bytes=LIMIT), raw(b"before") + data)
    assert caught.value.args[1] == [b"before"]


@pytest.mark.parametrize(
    ("payload", "close"),
    [(b"", Close(None, "")), (b"\x03\xe8", Close(1000, "")), (b"\x03\xf0FutureCursor", Close(1008, "FutureCursor"))],
)
def test_a_close_says_why_and_nothing_after_it_is_read(payload: bytes, close: Close) -> None:
    assert feed(MessageReader(max_message_bytes=LIMIT), raw(payload, 8) + raw(b"x")) == [close]


@given(st.binary(max_size=2000))
def test_no_bytes_do_more_than_break_it(data: bytes) -> None:
    reader = MessageReader(max_message_bytes=LIMIT)
    try:
        feed(reader, data)
    except WebsocketBroken:
        pass
