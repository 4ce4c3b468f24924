"""The settings in force and where each came from, for people: passwords masked, named files never opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TextIO

from relay.config.keys import KEYS
from relay.config.load import Loaded
from relay.config.schema import Settings
from relay.config.values import show_value


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One line of `config show`."""

    key: str
    value: str
    origin: str


def value_of(settings: Settings, key: str) -> object:
    """Return the value of `section.key`."""
    section, _, name = key.rpartition(".")
    return getattr(getattr(settings, section) if section else settings, name)


def effective(loaded: Loaded) -> list[Shown]:
    """Return every key in the order of the schema."""
    return [
        Shown(key=name, value=show_value(key, value_of(loaded.settings, name)), origin=loaded.origins[name])
        for name, key in KEYS.items()
    ]


def print_effective(loaded: Loaded, out: TextIO) -> None:
    """Print `key = value` in columns, with a comment that names the origin."""
    lines = effective(loaded)
    key_width = max(len(line.key) for line in lines)
    value_width = min(40, max(len(line.value) for line in lines))
    for line in lines:
        print(f"{line.key:<{key_width}} = {line.value:<{value_width}}  # {line.origin}", file=out)
