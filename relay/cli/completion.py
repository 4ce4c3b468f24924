"""`completion`: the script by which a shell completes commands, options and files of `tradr-relay`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import shtab

from relay.cli.exits import Exit
from relay.config.load import Loaded

PROGRAM = "tradr-relay"
SHELLS = ("bash", "zsh", "fish")
_COMPLETES = {"FILE": shtab.FILE, "F": shtab.FILE, "DIR": shtab.DIRECTORY}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="print a shell's completion script",
        description=f'Prints the completion script of a shell for the command {PROGRAM}. In bash: eval "$({PROGRAM} completion bash)".',
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Print the script; the configuration does not matter."""
    from relay.cli.main import make_parser  # not at the top: it imports the commands, this one too

    sys.stdout.write(script(make_parser(), args.shell))
    return Exit.OK


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a parser, which is changed on the way: do not parse with it afterwards."""
    from relay.cli.main import below

    parser.prog = PROGRAM
    for each in (parser, *below(parser)):
        for action in each._actions:
            if action.metavar in _COMPLETES:
                action.complete = _COMPLETES[action.metavar]  # type: ignore[attr-defined]  # where shtab looks for it
            if isinstance(action, argparse._SubParsersAction):
                for choice in action._choices_actions:
                    # A list of commands has room for a line each, not for the paragraph that --help shows.
                    action.choices[choice.dest].description = choice.help
    return shtab.complete(parser, shell)
