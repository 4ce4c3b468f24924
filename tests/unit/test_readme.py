"""The README says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.cli.exits import Exit
from relay.cli.main import COMMANDS
from relay.model import RepoState
from relay.observe.metrics import Metrics
from relay.observe.status import Phase, Rates, StatusSnapshot
from relay.repos.shown import list_entry
from relay.store.repos import RepoRow
from relay.supervisor.resume import StartKind
from relay.tail.reader import IncidentKind
from tests.support.readme import README, key_table, table_in_readme

TEXT = README.read_text("utf-8")
DOCUMENTS = [
    README,
    *(
        README.parent / name
        for name in ("ARCHITECTURE.md", "CHANGELOG.md", "docs/ingester-guide.md", "docs/operations.md")
    ),
]


def test_it_has_every_configuration_key_as_the_schema_declares_it() -> None:
    assert table_in_readme() == key_table(), "run: python -m tests.support.readme --write"


def test_it_names_every_exit_code() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)] == sorted(Exit)


def test_it_shows_no_command_that_is_not_there() -> None:
    shown = set(re.findall(r"bin/relay ([a-z]+)", TEXT))
    assert shown - set(COMMANDS) == set()
    assert set(COMMANDS) - shown == set()


@pytest.mark.parametrize("word", [*RepoState, *Phase])
def test_it_names_every_state_and_phase(word: str) -> None:
    assert f"`{word}`" in TEXT


@pytest.mark.parametrize("kind", [*IncidentKind, *StartKind])
def test_it_says_what_each_incident_means(kind: str) -> None:
    assert re.search(rf"^\| `{kind}` \|", TEXT, re.MULTILINE)


def test_it_names_every_key_of_the_contracts() -> None:
    contract = [
        "instance",
        "phase",
        "repos",
        "records_delivered",
        "bytes_fetched",
        "rates",
        "firehose",
        "ingesters",
        "incidents",
    ]
    assert set(contract) <= set(StatusSnapshot.__dataclass_fields__)
    for key in [*contract, *Rates.__dataclass_fields__, *list_entry(RepoRow(did="did:plc:a", partition=0))]:
        assert f"`{key}`" in TEXT


def test_every_metric_that_it_names_is_there() -> None:
    rendered = Metrics(version="0").render().decode()
    operations = (README.parent / "docs" / "operations.md").read_text("utf-8")
    for name in set(re.findall(r"`(relay_[a-z_]+)", TEXT + operations)):
        assert f"# HELP {name} " in rendered, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8")):
        assert target.startswith("https://") or (document.parent / target).exists(), target
