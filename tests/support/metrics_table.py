"""The generated table of docs/metrics.md.

python -m tests.support.metrics_table --write      brings it up to date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from relay.observe.declared import Declared
from relay.observe.metrics import Metrics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
_TABLE = re.compile(r"(<!-- metrics: .*? -->\n).*(?=<!-- /metrics -->)", re.DOTALL)


def table() -> str:
    """Return the table of every metric of ours, as Markdown."""
    rows = ["| metric | type | labels | unit | what it tells |", "| --- | --- | --- | --- | --- |"]
    rows += map(_row, Metrics(version="", runtime=True).declared)
    return "\n".join(rows) + "\n"


def _row(metric: Declared) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.unit} | {metric.text} |"


def written() -> str:
    """Return the page as it would be with the table of now."""
    text, count = _TABLE.subn(lambda found: found[1] + table(), PAGE.read_text("utf-8"))
    assert count == 1, "docs/metrics.md has lost the marks around its table"
    return text


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(__doc__)
    PAGE.write_text(written(), "utf-8")
