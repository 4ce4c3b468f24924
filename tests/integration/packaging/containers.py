"""Reads the files of `config/docker`, `config/kubernetes` and `config/swarm.md` as far as the checks need them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.config.keys import KEYS
from tests.support.processes import ROOT

DOCKER = ROOT / "config" / "docker"
KUBERNETES = ROOT / "config" / "kubernetes"
SETTINGS = {variable for key in KEYS.values() for variable in key.variables} | {"RELAY_CONFIG"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction of a Dockerfile; `stage` counts its FROM, from 0."""

    name: str
    text: str
    stage: int

    @property
    def words(self) -> list[str]:
        """The words of its exec form, or of its shell form."""
        return [str(word) for word in json.loads(self.text)] if self.text.startswith("[") else shlex.split(self.text)


def dockerfile() -> list[Instruction]:
    """Return the instructions in their order."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    found: list[Instruction] = []
    stage = -1
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            stage += name == "FROM"
            found.append(Instruction(name=name, text=rest.strip(), stage=stage))
    return found


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DOCKER / "docker-compose.yml").read_text("utf-8")))


def stack() -> str:
    """Return the stack file that config/swarm.md shows."""
    shown = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "config" / "swarm.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(shown) == 1
    return str(shown[0])


def manifests() -> list[dict[str, Any]]:
    """Return every object of config/kubernetes but the kustomization."""
    names = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))["resources"]
    return [each for name in names for each in yaml.safe_load_all((KUBERNETES / name).read_text("utf-8"))]


def tool(name: str) -> str:
    """Return a program of this environment or machine; skips the running test where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found
