"""The completion scripts: their shells can read them, and they complete commands, actions, options and choices."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from relay.cli.completion import SHELLS, script
from relay.cli.main import COMMANDS, make_parser

BASH = """
source /dev/stdin
complete() { local line="$1"; COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _shtab_tradr_relay; }
[[ $1 == *" " ]] && line="$1''" || line="$1"
COMP_WORDS=($line); [[ $1 == *" " ]] && COMP_WORDS[-1]=""
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_shtab_tradr_relay
printf '%s\\n' "${COMPREPLY[@]}"
"""


def _needs(shell: str) -> str:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} on this machine")
    return program


def _completed(shell: str, line: str) -> set[str]:
    """What a shell offers for the end of a line."""
    text = script(make_parser(), shell)
    command = {
        "bash": ["-c", BASH, "bash", line],
        "fish": ["-c", 'source - ; complete -C "$argv"', line],
    }[shell]
    ended = subprocess.run(
        [_needs(shell), *command], input=text, capture_output=True, text=True, timeout=60, check=True
    )
    return {each.split("\t")[0].strip() for each in ended.stdout.splitlines() if each}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_it(shell: str) -> None:
    flag = "--no-execute" if shell == "fish" else "-n"
    subprocess.run(
        [_needs(shell), flag, "/dev/stdin"], input=script(make_parser(), shell), text=True, timeout=60, check=True
    )


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_it_completes_commands_actions_and_choices(shell: str) -> None:
    assert _completed(shell, "tradr-relay ") >= set(COMMANDS)
    assert _completed(shell, "tradr-relay ba") == {"backfill"}
    assert _completed(shell, "tradr-relay repos sh") == {"show"}
    assert "--dids-file" in _completed(shell, "tradr-relay backfill --d")
    assert _completed(shell, "tradr-relay status --log-format j") == {"json"}


def test_a_command_is_described_in_one_line() -> None:
    """What --help says in a paragraph would fill the screen."""
    for line in script(make_parser(), "fish").splitlines():
        if " -a backfill " in line or " -a 'backfill" in line:
            assert len(line) < 200, line
