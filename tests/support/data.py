"""The shared test data: real repositories, frames and conformance vectors of others (its README says what is there).

The folder is RELAY_TEST_DATA, else `../shared/data` beside the repository. Where it is absent the tests that need it are
skipped, and say so.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).resolve().parents[2]


def data_root() -> Path | None:
    """Return the data folder, or None when there is none."""
    named = os.environ.get("RELAY_TEST_DATA")
    root = Path(named) if named else _ROOT.parent / "shared" / "data"
    return root if (root / "expected.json").is_file() else None


needs_data = pytest.mark.skipif(
    data_root() is None,
    reason="no test data: set RELAY_TEST_DATA, or put the folder at ../shared/data beside the repository",
)


def data_path(path: str) -> Path:
    """Return a file of the data folder; skips the running test where the folder is absent."""
    root = data_root()
    if root is None:
        pytest.skip("no test data (RELAY_TEST_DATA)")
    return root / path


def data_bytes(path: str) -> bytes:
    return data_path(path).read_bytes()


def data_json(path: str) -> Any:
    return json.loads(data_bytes(path))


def data_lines(path: str) -> list[str]:
    """Return the vectors of a text file: its lines without comments and empty ones; blanks around a vector count."""
    lines = data_path(path).read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line and not line.startswith("#")]


@functools.cache
def expected() -> dict[str, Any]:
    """Return expected.json, the golden answers."""
    answers: dict[str, Any] = data_json("expected.json")
    return answers


def expected_names(section: str) -> list[str]:
    """Return the files that a section of expected.json speaks of; empty without data, so that it can parametrise."""
    return list(expected()[section]) if data_root() is not None else []


def frames_of(path: str) -> list[bytes]:
    """Return the raw frames of a file: `frames-*.bin` holds [u32 little-endian length][frame]..., other .bin files hold one."""
    data = data_bytes(path)
    if not Path(path).name.startswith("frames-"):
        return [data]
    frames, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        frames.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return frames


def plain_sections(car: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (CID, block) of each section of a CARv1 whose CIDs have 36 bytes: a reader of its own, without any check."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (car[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if car[at - 1] < 0x80:
                return value, at

    size, at = varint(0)
    at += size
    while at < len(car):
        size, at = varint(at)
        yield car[at : at + 36], car[at + 36 : at + size]
        at += size
