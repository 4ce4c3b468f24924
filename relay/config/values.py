"""One value of one key: from text, into its range, and back into text (pure)."""

from __future__ import annotations

import math
import re
from typing import Any

from relay.config.keys import Key
from relay.config.secrets import MASK, mask_dsn

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(_[0-9]{1,18})*\Z")
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_LONGEST_TEXT = 4096
_MOST_ITEMS = 10_000


class IllTyped(ValueError):
    """A value that its key cannot have; the message says what is expected, and shows the value unless it is a secret."""


def from_text(key: Key, text: str) -> Any:
    """Return what `text`, of a variable or a flag, means for `key`: lists are comma-separated, numbers decimal."""
    stripped = text.strip()
    if key.type is str:
        return text
    if key.type is bool:
        if stripped.lower() in _BOOLEANS:
            return _BOOLEANS[stripped.lower()]
    elif key.type is int:
        if _WHOLE.match(stripped):
            return int(stripped)
    elif key.type is float:
        try:
            return float(stripped)
        except ValueError:
            pass
    else:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    raise IllTyped(f"expected {key.expects}, got {show_value(key, text)}")


def in_range(key: Key, value: Any) -> Any:
    """Return `value` if it is one that `key` may have; raises IllTyped otherwise."""
    if isinstance(value, tuple):
        if len(value) > _MOST_ITEMS:
            raise IllTyped(f"{len(value):,} items; the limit is {_MOST_ITEMS:,}")
        for item in value:
            _check_text(key, item)
    elif isinstance(value, str):
        _check_text(key, value)
        if key.choices and value not in key.choices:
            raise IllTyped(f"expected {key.expects}, got {show_value(key, value)}")
    elif not isinstance(value, bool):
        if not math.isfinite(value):
            raise IllTyped(f"expected a finite number, got {value}")
        if key.at_least is not None and value < key.at_least:
            raise IllTyped(f"{show_value(key, value)} is too small; at least {show_number(key.at_least)}")
        if key.at_most is not None and value > key.at_most:
            raise IllTyped(f"{show_value(key, value)} is too large; at most {show_number(key.at_most)}")
    return value


def _check_text(key: Key, text: str) -> None:
    if len(text) > _LONGEST_TEXT:
        raise IllTyped(f"{len(text):,} characters; the limit is {_LONGEST_TEXT:,}")
    # A line break that reaches a header, a log line or a connection string becomes somebody else's instruction.
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise IllTyped(f"contains a line break or another control character: {show_value(key, text)}")


def show_value(key: Key, value: Any) -> str:
    """Return `value` as an operator would write it, passwords masked: for messages and `config show`."""
    if key.secret:
        return mask_dsn(value) if isinstance(value, str) else MASK
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    if isinstance(value, float):
        return show_number(value)
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def show_number(value: float) -> str:
    """Return a number without a needless `.0`."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(value)
