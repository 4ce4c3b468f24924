"""The README's generated table, and its shell blocks.

    python -m tests.support.readme --write      brings the table of configuration keys up to date

A block is marked by a comment before it: `runs` (a test executes it), `exports` (its variables are set for the blocks that
follow), `serves` and `works` (an ingester, a service: started, and left running for the blocks that follow).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from relay.config.keys import KEYS, Key
from relay.config.values import show_value

README = Path(__file__).resolve().parents[2] / "README.md"
_BEGIN, _END = re.compile(r"<!-- keys: .*? -->\n"), "<!-- /keys -->"
_DEPENDS_ON_THE_MACHINE = {"backfiller.workers": "number of cores"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A marked shell block; `kind` is runs, exports, serves or works."""

    kind: str
    text: str


def blocks() -> list[Block]:
    """Return the README's marked blocks in their order."""
    found = re.findall(
        r"^<!-- (runs|exports|serves|works) -->\n```sh\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S
    )
    return [Block(kind=kind, text=text) for kind, text in found]


def key_table() -> str:
    """Return the table of every configuration key, as Markdown."""
    rows = ["| key | variable | default | |", "| --- | --- | --- | --- |"]
    rows += [f"| `{key.name}` | {_variable(key)} | {_default(key)} | {_help(key)} |" for key in KEYS.values()]
    return "\n".join(rows) + "\n"


def table_in_readme() -> str:
    """Return the table as it stands in the README."""
    text = README.read_text("utf-8")
    begin = _BEGIN.search(text)
    assert begin is not None, "the README has lost the mark before its table of keys"
    return text[begin.end() : text.index(_END)]


def _variable(key: Key) -> str:
    return f"`{key.env}`" if key.env else ""


def _default(key: Key) -> str:
    if key.name in _DEPENDS_ON_THE_MACHINE:
        return _DEPENDS_ON_THE_MACHINE[key.name]
    if key.default in ("", ()):
        return ""
    return f"`{show_value(key, key.default)}`"


def _help(key: Key) -> str:
    # What the angle brackets and bars of a help text mean to Markdown is not what they mean.
    text = key.help.replace("|", "\\|").replace("<", "&lt;")
    if key.choices:
        text += f" ({', '.join(key.choices)})"
    return text


def main() -> None:
    if "--write" not in sys.argv[1:]:
        sys.stdout.write(key_table())
        return
    text = README.read_text("utf-8")
    README.write_text(
        text.replace(table_in_readme(), key_table(), 1) if table_in_readme() else _inserted(text), "utf-8"
    )


def _inserted(text: str) -> str:
    return text.replace(_END, key_table() + _END, 1)


if __name__ == "__main__":
    main()
