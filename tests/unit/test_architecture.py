"""ARCHITECTURE.md is about this tree: what it names is there, and no room is missing."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
ROOMS = sorted(folder.parent.name for folder in (ROOT / "relay").glob("*/__init__.py"))


@cache
def _tests() -> frozenset[str]:
    files = (path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return frozenset(name for text in files for name in re.findall(r"def (test_\w+)", text))


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_on_the_map(room: str) -> None:
    assert re.search(rf"^\| .*`{room}`", TEXT, re.MULTILINE)


def test_every_path_leads_somewhere() -> None:
    named = set(re.findall(r"`((?:relay|tests|bin|docs|config)/[\w/.]*)`", TEXT))
    assert len(named) > 40
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_test_that_is_named_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 15
    assert sorted(named - _tests()) == []


def test_every_function_named_beside_a_file_is_in_it() -> None:
    missing = []
    for path, names in re.findall(r"`(relay/[\w/]+\.(?:py|sql))`((?:,? `\w+`)+)", TEXT):
        text = (ROOT / path).read_text("utf-8")
        missing += [f"{path} {name}" for name in re.findall(r"`(\w+)`", names) if not re.search(rf"\b{name}\b", text)]
    assert missing == []


def test_invariants_are_numbered_without_holes() -> None:
    section = re.split(r"^## \d+\. Invariants$", TEXT, flags=re.MULTILINE)[1].split("\n## ")[0]
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 15
