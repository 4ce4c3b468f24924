"""docs/ says what the code says: every reason and kind is explained, every quoted message is one, every command is understood."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from relay.atproto.verify_live import UNPROVABLE_REASONS
from relay.cli.main import make_parser
from relay.config.load import load
from relay.deliver.health import Away
from relay.observe.metrics import Metrics
from relay.store.migrate import load_migrations
from relay.supervisor.resume import StartKind
from relay.tail.reader import IncidentKind
from tests.support.readme import README

ROOT = README.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")
UPGRADING = (ROOT / "docs" / "upgrading.md").read_text("utf-8")
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
_STRANGERS = {"simnet", "ingester", "pb"}
_REASON = re.compile(
    r"\breason(?:: str)?(?:, \w+)*\s*=\s*\"([a-z_]+)\"|_(?:desync|fetch_again|pending_again)\(\"([a-z_]+)\"|_again = \"([a-z_]+)\""
)
_HOLE = "…"
_CALL = re.compile(r"(?:sudo (?:-u tradr-relay )?)?(?:bin/relay|tradr-relay) (.*)")


def sources() -> list[Path]:
    return [
        path for path in sorted((ROOT / "relay").rglob("*.py")) if path.relative_to(ROOT).parts[1] not in _STRANGERS
    ]


def reasons() -> set[str]:
    """Return every reason that the code gives by a literal."""
    found = {word for path in sources() for match in _REASON.findall(path.read_text("utf-8")) for word in match if word}
    return found - {"atproto"}  # the base class's, which nothing raises


@cache
def texts() -> tuple[str, ...]:
    """Return every text of the program, `…` where something is put in; and the names of its events."""
    found: list[str] = []
    for path in (*sources(), *sorted((ROOT / "relay" / "ingester").rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Constant(value=str() as text):
                    found.append(text)
                case ast.JoinedStr(values=parts):
                    found.append(
                        "".join(str(part.value) if isinstance(part, ast.Constant) else _HOLE for part in parts)
                    )
                case _:
                    pass
    return tuple(found)


def quoted_messages() -> list[str]:
    """Return what stands in the first column of the tables marked `messages`."""
    tables = re.findall(r"^<!-- messages -->\n((?:\|.*\n)+)", TROUBLESHOOTING, re.MULTILINE)
    cells = [row.split(" | ")[0] for table in tables for row in table.splitlines()[2:]]
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


def is_said(message: str) -> bool:
    """Whether some text of the program has every piece of it, in this order."""
    pattern = re.compile(".*".join(re.escape(piece.strip()) for piece in message.split(_HOLE)), re.DOTALL)
    return any(pattern.search(text) for text in texts())


def shell_lines() -> list[tuple[str, str]]:
    """Return (document, line) of every line in a shell block."""
    found = []
    for path in (README, *DOCS):
        for block in re.findall(r"^```sh\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            found += [(path.name, line.strip()) for line in block.splitlines() if line.strip()]
    return found


def commands() -> list[tuple[str, str]]:
    """Return (document, arguments) of those that call the program, in the tree or installed."""
    return [(document, match[1]) for document, line in shell_lines() if (match := _CALL.match(line))]


@pytest.mark.parametrize("word", sorted(reasons() | set(UNPROVABLE_REASONS)))
def test_every_reason_is_explained(word: str) -> None:
    assert re.search(rf"^\|? ?.*`{word}`", OPERATIONS, re.MULTILINE)


@pytest.mark.parametrize("kind", [*IncidentKind, *StartKind])
def test_for_every_incident_it_is_said_what_to_do(kind: str) -> None:
    assert re.search(rf"^\| .*`{kind}`.* \| .+ \| .+ \|$", OPERATIONS, re.MULTILINE)


@pytest.mark.parametrize("why", Away)
def test_every_reason_of_an_ingester_that_is_away_is_explained(why: str) -> None:
    assert re.search(rf"^\| .*`{why}`.* \|", OPERATIONS.split("**An ingester is away**")[1], re.MULTILINE)


def test_messages_are_quoted() -> None:
    assert len(quoted_messages()) > 50


@pytest.mark.parametrize("message", quoted_messages())
def test_a_quoted_message_is_one_that_the_program_says(message: str) -> None:
    assert is_said(message)


@pytest.mark.parametrize(("document", "arguments"), commands(), ids=lambda text: text)
def test_a_command_is_understood(document: str, arguments: str) -> None:
    make_parser().parse_args(shlex.split(arguments, comments=True))


def test_every_target_of_make_that_is_named_is_there() -> None:
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = "\n".join(path.read_text("utf-8") for path in (README, *DOCS))
    named = set(re.findall(r"^(?: {4}|sudo )?make ([a-z][a-z-]+)", text, re.MULTILINE))
    named |= set(re.findall(r"`(?:sudo )?make ([a-z][a-z-]+)", text))
    assert {"demo", "install"} <= named
    assert named <= there


def test_units_that_are_named_are_there() -> None:
    units = {
        word for _, line in shell_lines() if "systemctl" in line for word in line.split() if word.startswith("tradr-")
    }
    assert units
    for unit in units:
        assert (ROOT / "systemd" / f"{unit}.service").exists()


def test_the_configuration_of_the_readme_is_in_order(tmp_path: Path) -> None:
    shown = re.findall(
        r"^<!-- configuration -->\n```yaml\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert shown
    for text in shown:
        path = tmp_path / "config.yaml"
        path.write_text(text, "utf-8")
        assert load(path, {}).settings.ingesters


def test_every_migration_is_told_of() -> None:
    for step in load_migrations():
        assert f"| {step.number:04} {step.name} |" in UPGRADING


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_metrics_and_links_of_the_documents_are_there(document: Path) -> None:
    text = document.read_text("utf-8")
    rendered = Metrics(version="0").render().decode()
    # metrics.md is held against the registry by a test of its own, which also knows those that come from the children.
    for name in set(re.findall(r"`(relay_[a-z_]+)", text)) if document.name != "metrics.md" else ():
        assert f"# HELP {name.removesuffix('_bucket')} " in rendered, name
    for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([\w?-]+))?\)", text):
        if target.startswith("https://"):
            continue
        other = document if not target else document.parent / target
        assert other.exists(), target
        if anchor:
            assert anchor in _anchors(other), f"{target}#{anchor}"


def _anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_anchors_that_alerts_name_are_there() -> None:
    alerts = (ROOT / "config" / "prometheus" / "alerts.yml").read_text("utf-8")
    named = set(re.findall(r"docs/operations\.md#([\w-]+)", alerts))
    assert named
    assert named <= _anchors(ROOT / "docs" / "operations.md")
