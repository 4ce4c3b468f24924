"""The units of systemd: understood, hardened, and about commands and paths that are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from relay.cli.main import make_parser
from relay.config.keys import KEYS
from relay.config.schema import Settings
from relay.supervisor.session import ALIVE_EVERY_S
from tests.integration.packaging.containers import tool
from tests.support.processes import ROOT

FOLDER = ROOT / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
MOST_EXPOSURE = 20  # tenths, of systemd-analyze's scale from 0 (none) to 10
_IDS = [unit.name for unit in UNITS]


def _value(unit: Path, key: str) -> str:
    """The last value of a key."""
    values: list[str] = re.findall(rf"^{key}=(.*)$", unit.read_text("utf-8"), re.MULTILINE)
    return values[-1]


def test_there_are_all_three() -> None:
    assert _IDS == ["tradr-relay-ingester.service", "tradr-relay.service", "tradr-relay@.service"]


@pytest.mark.parametrize("unit", UNITS, ids=_IDS)
def test_systemd_understands_it(unit: Path, tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    # The one thing that it may miss is the command, which is not installed here.
    there = tmp_path / unit.name
    there.write_text(unit.read_text("utf-8").replace("/usr/local/bin/tradr-relay", "/bin/true"))
    said = subprocess.run(
        [analyze, "verify", "--man=no", str(there)], capture_output=True, text=True, timeout=60, check=False
    )
    assert unit.name.partition(".")[0].rstrip("@") not in said.stderr, said.stderr


@pytest.mark.parametrize("unit", UNITS, ids=_IDS)
def test_it_is_hardened(unit: Path) -> None:
    judged = subprocess.run(
        [tool("systemd-analyze"), "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "unrecognized option" in judged.stderr:
        pytest.skip("this systemd-analyze cannot judge a file")
    assert judged.returncode == 0, judged.stdout[-200:] + judged.stderr


@pytest.mark.parametrize("unit", UNITS, ids=_IDS)
def test_its_command_is_a_command(unit: Path) -> None:
    program, *words = _value(unit, "ExecStart").split()
    assert program == "/usr/local/bin/tradr-relay"
    make_parser().parse_args(words)


def test_the_template_differs_in_names_only() -> None:
    def body(name: str) -> str:
        text = (FOLDER / name).read_text("utf-8")
        return text[text.index("[Unit]") :]

    plain = (
        body("tradr-relay@.service").replace("tradr-relay %i:", "tradr-relay:").replace("tradr-relay@%i", "tradr-relay")
    )
    plain = plain.replace("/etc/tradr-relay/%i.yaml", "/etc/tradr-relay/config.yaml").replace(
        "%i.environment", "environment"
    )
    plain = plain.replace("tradr-relay/%i", "tradr-relay").replace("tradr-relay-%i", "tradr-relay")
    assert plain == body("tradr-relay.service")


def test_its_patience_is_longer_than_ours() -> None:
    for unit in UNITS[1:]:
        assert float(_value(unit, "TimeoutStopSec")) > Settings().relay.shutdown_timeout_sec
        assert float(_value(unit, "WatchdogSec")) > 10 * ALIVE_EVERY_S


@pytest.mark.parametrize("name", ["environment", "tradr-relay.service", "tradr-relay@.service"])
def test_variables_are_settings(name: str) -> None:
    text = (FOLDER / name).read_text("utf-8")
    named = re.findall(r"^(?:Environment=|#)([A-Z_]+)=", text, re.MULTILINE)
    assert named
    assert set(named) <= {variable for key in KEYS.values() for variable in key.variables}
