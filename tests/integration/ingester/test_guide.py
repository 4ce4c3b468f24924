"""docs/ingester-guide.md says what there is. What its examples do is tried in test_examples."""

from __future__ import annotations

import re

from relay.ingester.faults import _READERS
from tests.support.examples import LANGUAGES
from tests.support.processes import ROOT

GUIDE = (ROOT / "docs" / "ingester-guide.md").read_text(encoding="utf-8")


def test_the_guide_names_every_fault() -> None:
    assert [name for name in _READERS if f"`{name}=" not in GUIDE] == []


def test_the_commands_of_the_guide_name_what_is_there() -> None:
    commands = re.findall(r"^<!-- example -->\n```sh\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(commands) == len(LANGUAGES)
    for language, command in zip(LANGUAGES, commands, strict=True):
        folder = f"docs/examples/{language}"
        assert folder in command
        assert (ROOT / folder).is_dir()
        assert "127.0.0.1:50052" in command
