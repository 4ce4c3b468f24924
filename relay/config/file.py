"""The YAML file: which keys it has, on which line, and everything that is wrong with it.

The nodes are read as written, not as YAML would like to understand them: `10:30` is no number here, and `off` no boolean where a
text is expected. Every mistake is reported; the rest of the file is read all the same.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from relay.config.keys import KEYS, SECTIONS, Key
from relay.config.values import IllTyped, from_text, show_value

_LARGEST_BYTES = 1024 * 1024
_STR, _BOOL, _INT, _FLOAT, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("str", "bool", "int", "float", "null"))
_FLOAT_TEXT = re.compile(r"[+-]?([0-9][0-9_]*)?(\.[0-9_]*)?([eE][+-]?[0-9]{1,3})?\Z")

MistakeParts = tuple[str, str, str]  # place, key, text


@dataclass(frozen=True, slots=True, kw_only=True)
class FileValue:
    """A value as the file has it, not typed yet. `place` is `FILE:LINE`."""

    node: yaml.Node
    place: str

    def typed_as(self, key: Key) -> Any:
        """Return the value in the type of `key`; raises IllTyped."""
        return _typed(key, self.node)


def read_file(path: Path) -> tuple[dict[str, FileValue], list[MistakeParts]]:
    """Return what the file sets, by `section.key`, and its mistakes as (place, key, text); raises nothing.

    The file is at most 1 MiB of UTF-8.
    """
    place = str(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_BYTES + 1)
    except OSError as exc:
        return {}, [(place, "", f"cannot be read: {exc.strerror or exc}")]
    if len(data) > _LARGEST_BYTES:
        return {}, [(place, "", f"larger than {_LARGEST_BYTES:,} bytes: is this the right file?")]
    try:
        root = yaml.compose(data.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as exc:
        return {}, [(f"{place}:{data.count(10, 0, exc.start) + 1}", "", "is not UTF-8")]
    except yaml.MarkedYAMLError as exc:
        line = f":{exc.problem_mark.line + 1}" if exc.problem_mark else ""
        return {}, [(place + line, "", f"is not YAML: {exc.problem or exc.context}")]
    except (yaml.YAMLError, RecursionError) as exc:
        return {}, [(place, "", f"is not YAML: {exc}")]
    return _Reader(place).read(root)


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.values: dict[str, FileValue] = {}
        self.mistakes: list[tuple[int, str, str]] = []

    def read(self, root: yaml.Node | None) -> tuple[dict[str, FileValue], list[MistakeParts]]:
        if root is not None and not _is_null(root):
            for name, node in self._entries(root, "", "sections"):
                if name in SECTIONS:
                    self._read_section(name, node)
                elif name in KEYS:
                    self.values[name] = FileValue(node=node, place=self._place(node))
        return self.values, [(f"{self.file}:{line}", key, text) for line, key, text in sorted(self.mistakes)]

    def _read_section(self, section: str, node: yaml.Node) -> None:
        if _is_null(node):
            return  # A section whose keys are all commented out.
        for name, value in self._entries(node, f"{section}.", "keys"):
            self.values[f"{section}.{name}"] = FileValue(node=value, place=self._place(value))

    def _entries(self, node: yaml.Node, prefix: str, expected: str) -> list[tuple[str, yaml.Node]]:
        """Return the known names of a mapping, each once; anything else becomes a mistake."""
        if not isinstance(node, yaml.MappingNode):
            self._mistake(node, prefix.rstrip("."), f"expected {expected}, as in `name: value`")
            return []
        found: dict[str, yaml.Node] = {}
        lines: dict[str, int] = {}
        for name_node, value in node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "?"
            if prefix + name not in KEYS and not (not prefix and name in SECTIONS):
                self._mistake(name_node, prefix + name, _no_such_key(prefix, name))
            elif name in lines:
                self._mistake(name_node, prefix + name, f"is set twice, first on line {lines[name]}")
            else:
                lines[name] = name_node.start_mark.line + 1
                found[name] = value
        return list(found.items())

    def _place(self, node: yaml.Node) -> str:
        return f"{self.file}:{node.start_mark.line + 1}"

    def _mistake(self, node: yaml.Node, key: str, text: str) -> None:
        self.mistakes.append((node.start_mark.line + 1, key, text))


def _no_such_key(prefix: str, name: str) -> str:
    """Say that a key is unknown, and which one may have been meant: of this section first, then of any other."""
    here = [known[len(prefix) :] for known in KEYS if known.startswith(prefix)]
    if not prefix:
        here += SECTIONS
    close = difflib.get_close_matches(name, here, n=1, cutoff=0.7)
    if not close:
        elsewhere = {known.rpartition(".")[2]: known for known in KEYS}
        close = [elsewhere[each] for each in difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.8)]
    return f"no such key (did you mean {close[0]}?)" if close else "no such key"


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def _typed(key: Key, node: yaml.Node) -> Any:
    if _is_null(node):
        raise IllTyped("has no value; remove the line, or write '' for an empty text")
    if key.type is tuple and isinstance(node, yaml.SequenceNode):
        return tuple(_text(key, item) for item in node.value)
    if not isinstance(node, yaml.ScalarNode):
        raise IllTyped(
            f"expected {key.expects}, got {'a list' if isinstance(node, yaml.SequenceNode) else 'a mapping'}"
        )
    if key.type is tuple:
        return from_text(key, _text(key, node))
    if key.type is str:
        return _text(key, node)
    is_plain = node.style is None
    if (
        (key.type is bool and node.tag == _BOOL)
        or (key.type is int and is_plain)
        or (key.type is float and is_plain and _FLOAT_TEXT.match(node.value))
    ):
        return from_text(key, node.value)
    raise IllTyped(f"expected {key.expects}, got {_shown(key, node)}")


def _text(key: Key, node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode) and node.tag == _STR:
        return str(node.value)
    if isinstance(node, yaml.ScalarNode) and node.tag in (_BOOL, _INT, _FLOAT, _NULL):
        raise IllTyped(f"expected text, got {_shown(key, node)}; put it in quotes if it is meant")
    raise IllTyped(f"expected {key.expects}")


def _shown(key: Key, node: yaml.ScalarNode) -> str:
    shown = show_value(key, node.value)
    return shown if node.style is None else f"the text '{shown}'"
