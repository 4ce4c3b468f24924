"""config/config.yaml: says what the schema says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.config.keys import KEYS, SECTIONS
from relay.config.load import load

SHIPPED = Path(__file__).parents[3] / "config" / "config.yaml"
# Depends on the machine, so it stands in the file as a comment.
COMMENTED_OUT = "backfiller.workers"


def _lines() -> dict[str, str]:
    """Return the line of each key in the file, also of one that is commented out."""
    found, section = {}, ""
    for line in SHIPPED.read_text().splitlines():
        if match := re.match(r"(  (?:# )?)?([a-z_]+): ?(.*)", line):
            indented, name, rest = match.groups()
            if indented:
                found[f"{section}.{name}"] = rest
            elif name in SECTIONS:
                section = name
            else:
                found[name] = rest
    return found


def test_it_equals_the_defaults() -> None:
    environ = {"HOME": "/home/ada"}
    shipped = load(SHIPPED, environ, is_root=False)
    assert shipped.settings == load(None, environ, usual_files=(), is_root=False).settings


def test_it_names_every_key_once_in_the_order_of_the_schema() -> None:
    assert list(_lines()) == list(KEYS)
    origins = load(SHIPPED, {"HOME": "/home/ada"}, is_root=False).origins
    in_file = [name for name, place in origins.items() if place.startswith(f"{SHIPPED}:")]
    assert in_file == [name for name in KEYS if name not in (COMMENTED_OUT, "relay.data_dir", "database.path")]


@pytest.mark.parametrize("name", KEYS)
def test_each_key_has_a_comment_and_its_short_variable(name: str) -> None:
    comment = _lines()[name].partition("# ")[2]
    assert len(comment) > 10
    text = SHIPPED.read_text()
    if KEYS[name].env:
        assert f"[{KEYS[name].env}]" in text


@pytest.mark.parametrize(
    ("ending", "word"), [("_bytes", "bytes"), ("_sec", "second"), ("_ms", "millisecond"), ("_h", "hour")]
)
def test_a_key_with_a_unit_in_its_name_has_it_in_its_comment(ending: str, word: str) -> None:
    for name, line in _lines().items():
        if name.endswith(ending):
            assert word in line.partition("# ")[2], name
