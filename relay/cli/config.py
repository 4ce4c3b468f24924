"""`config check` and `config show`: is the configuration right, and what is in force."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from relay.cli.exits import Exit
from relay.config.keys import KEYS
from relay.config.load import Loaded
from relay.config.show import print_effective, value_of

# Folders, which are made when they are needed.
_FOLDERS = ("relay.data_dir", "database.path")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser("config", help="check the configuration, or show what is in force")
    actions = parser.add_subparsers(dest="action", required=True, metavar="check|show")
    actions.add_parser("check", help="name every mistake with its place; exit code 2 if there is one")
    actions.add_parser("show", help="print every key with its value and where it came from, secrets masked")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run `config ACTION`; a configuration with mistakes never gets here, whoever loaded it has printed them."""
    return run_check(loaded, sys.stdout) if args.action == "check" else run_show(loaded, sys.stdout)


def run_check(loaded: Loaded, out: TextIO) -> int:
    """Tell that the configuration is right, or what is wrong with the files that it names."""
    mistakes = list(file_mistakes(loaded))
    for mistake in mistakes:
        print(mistake, file=out)
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=out)
    source = loaded.file or "no configuration file; defaults, environment and flags"
    print(f"{source}: {'not in order' if mistakes else 'in order'}", file=out)
    return Exit.USAGE if mistakes else Exit.OK


def file_mistakes(loaded: Loaded) -> Iterator[str]:
    """Yield `place: key: path: why` for each file that is named and cannot be read."""
    for name, key in KEYS.items():
        path = value_of(loaded.settings, name)
        if key.is_path and name not in _FOLDERS and path and not os.access(str(path), os.R_OK):
            why = "cannot be read" if os.path.lexists(str(path)) else "there is no such file"
            yield f"{loaded.origins[name]}: {name}: {path}: {why}"


def run_show(loaded: Loaded, out: TextIO) -> int:
    """Print what is in force."""
    print_effective(loaded, out)
    return Exit.OK
