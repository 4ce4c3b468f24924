from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto.errors import InvalidCar
from relay.atproto.varint import read_varint, write_varint


@given(st.integers(0, 2**64 - 1), st.binary(max_size=4), st.binary(max_size=4))
def test_what_is_written_is_read_at_any_place(value: int, before: bytes, behind: bytes) -> None:
    data = before + write_varint(value) + behind
    assert read_varint(data, len(before)) == (value, len(data) - len(behind))
    assert read_varint(memoryview(data), len(before)) == (value, len(data) - len(behind))


@given(st.binary(max_size=12))
def test_a_value_has_one_form_only(data: bytes) -> None:
    try:
        value, end = read_varint(data, 0)
    except InvalidCar:
        return
    assert write_varint(value) == data[:end]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x80\x00",
        b"\xff\x00",
        b"\xff" * 9 + b"\x02",  # 2**64 and more
        b"\xff" * 10 + b"\x01",
        b"\x80" * 1000,
    ],
)
def test_bad_varints_are_refused_with_their_offset(data: bytes) -> None:
    with pytest.raises(InvalidCar) as caught:
        read_varint(b"ab" + data, 2)
    assert caught.value.at == 2


@pytest.mark.parametrize("value", [-1, 2**64])
def test_what_does_not_fit_is_not_written(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        write_varint(value)
