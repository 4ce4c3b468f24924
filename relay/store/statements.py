"""Load `sql/<name>.sql`: one named statement a block, each introduced by `-- name(parameters) -> result  called by ...`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any, TypeAlias

import psycopg2.extensions

Cursor: TypeAlias = psycopg2.extensions.cursor

_HEADER = re.compile(r"^-- ([a-z_]+)\(", re.MULTILINE)


def load_statements(table: str) -> Mapping[str, str]:
    """Return the statements of `sql/<table>.sql` by name, comments included. Raises ValueError for a name given twice."""
    text = resources.files("relay.store").joinpath("sql", f"{table}.sql").read_text("utf-8")
    headers = list(_HEADER.finditer(text))
    found: dict[str, str] = {}
    for header, following in zip(headers, [*headers[1:], None], strict=True):
        name = header.group(1)
        if name in found:
            raise ValueError(f"sql/{table}.sql: statement {name} is there twice")
        found[name] = _without_comments(text[header.start() : following.start() if following else len(text)])
    return MappingProxyType(found)


def _without_comments(block: str) -> str:
    # Whole-line comments only: a percent sign or a brace in prose must not reach psycopg2's parameter parser.
    return "\n".join(line for line in block.splitlines() if line.strip() and not line.lstrip().startswith("--"))


def one(cur: Cursor) -> tuple[Any, ...]:
    """Return the single row of a statement that always has one."""
    row = cur.fetchone()
    if row is None:
        raise LookupError("a statement that always returns a row returned none")
    return row
