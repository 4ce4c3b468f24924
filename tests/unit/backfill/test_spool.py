"""Where a body goes: the slot while it fits, a file beyond, and no file where it is not wanted."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.backfill.spool import CarSink, SpoolFull
from relay.errors import Blame


def pour(sink: CarSink, body: bytes, most: int = 1 << 20) -> None:
    while body:
        buffer = sink.buffer()
        count = min(len(buffer), len(body), most)
        buffer[:count] = body[:count]
        sink.wrote(count)
        body = body[count:]


@settings(max_examples=60)
@given(size=st.integers(0, 300), slot_bytes=st.integers(1, 200), most=st.integers(1, 70))
def test_a_body_arrives_whole_wherever_it_goes(
    tmp_path_factory: pytest.TempPathFactory, size: int, slot_bytes: int, most: int
) -> None:
    path = tmp_path_factory.mktemp("spool") / "1.car"
    body = os.urandom(size)
    slot = memoryview(bytearray(slot_bytes))
    sink = CarSink(slot, path)
    pour(sink, body, most)
    spool = sink.spool
    sink.close(keep=True)
    assert sink.size == size
    assert (spool is not None) == (size > slot_bytes)
    assert (bytes(slot[:size]) if spool is None else path.read_bytes()) == body


@pytest.mark.parametrize("again", [False, True])
def test_nothing_is_left_of_a_body_that_is_not_kept(tmp_path: Path, again: bool) -> None:
    slot = memoryview(bytearray(4))
    sink = CarSink(slot, tmp_path / "1.car")
    pour(sink, b"more than four")
    if again:
        sink.reset()
        pour(sink, b"four")
        assert sink.spool is None
        assert bytes(slot) == b"four"
    sink.close(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_our_fault_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("relay.backfill.spool.os.write", full)
    sink = CarSink(memoryview(bytearray(4)), tmp_path / "1.car")
    with pytest.raises(SpoolFull) as caught:
        pour(sink, b"more than four")
    assert caught.value.blame is Blame.US
    assert str(tmp_path) in str(caught.value)
    sink.close(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    sink = CarSink(memoryview(bytearray(4)), tmp_path / "gone" / "1.car")
    with pytest.raises(SpoolFull, match="gone"):
        pour(sink, b"more than four")
