"""The entry of the command line: parses, loads the configuration, hands over to the command, turns errors into exit codes.

Only what every command needs is imported here; a command imports what it needs when it runs. In particular nothing that
loads gRPC: `backfill` starts its forkserver first.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence

from relay import __version__
from relay.cli.exits import Exit
from relay.config.load import load
from relay.errors import ConfigError, RelayError
from relay.observe.log import configure

# The others answer a question: what they do for it (start the private server) is no news unless it goes wrong.
LOGGING_COMMANDS = ("run", "tail", "backfill")
DEFAULT_COMMAND = "run"
COMMANDS = (
    "run", "tail", "backfill", "demo", "status", "health", "repos", "reconcile", "deadletter", "ingester", "config", "db",
    "doctor", "completion",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = make_parser()
    words = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(words)
    if args.command is None:
        args = parser.parse_args([*words, DEFAULT_COMMAND])
    command = importlib.import_module(f"relay.cli.{args.command}")
    if args.command == "ingester":
        configure(args.log_level or "info", args.log_format or "text")
        return int(command.run(args))
    overrides = {key: (value, flag) for key, value, flag in _overrides(args) if value is not None}
    try:
        loaded = load(args.config, os.environ, overrides)
    except ConfigError as exc:
        print(f"relay: {exc}", file=sys.stderr)
        return Exit.USAGE
    quiet = args.command not in LOGGING_COMMANDS and loaded.is_left_alone("log_level")
    configure("warning" if quiet else loaded.settings.log_level, loaded.settings.log_format)
    try:
        return int(command.run(args, loaded))
    except ConfigError as exc:
        print(f"relay: {exc}", file=sys.stderr)
        return Exit.USAGE
    except RelayError as exc:
        print(f"relay: {exc}", file=sys.stderr)
        return Exit.CANNOT_GO_ON
    except BrokenPipeError:
        # `relay repos list | head`: the reader has seen enough. Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def entry() -> None:
    """Console script."""
    sys.exit(main())


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; imports every command."""
    parser = argparse.ArgumentParser(
        prog="relay",
        description="Every record of the AT Protocol collections you want, verified, pushed to your ingesters.",
        epilog="To see it work: demo. One account into a SQLite file: backfill --did DID. Without a command: run. The rest: README.md.",
    )
    parser.add_argument("--version", action="version", version=f"tradr-relay {__version__}")
    _add_common(parser, default=None)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"relay.cli.{name}").add_parser(subparsers)
    for subparser in below(parser):
        # Common options may stand after a command and after its action; absent there, they leave alone what stood before it.
        _add_common(subparser, default=argparse.SUPPRESS)
    return parser


def below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of all commands, and of all their actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield each
                yield from below(each)


def _add_common(parser: argparse.ArgumentParser, default: str | None) -> None:
    group = parser.add_argument_group("common options")
    group.add_argument("--config", metavar="FILE", default=default, help="configuration file")
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default=default)
    group.add_argument("--log-format", choices=("text", "json"), default=default)
    group.add_argument(
        "--no-progress",
        action="store_true",
        default=False if default is None else default,
        help="no live view: lines, also on a terminal",
    )


def _overrides(args: argparse.Namespace) -> list[tuple[str, object, str]]:
    return [
        ("log_level", args.log_level, "--log-level"),
        ("log_format", args.log_format, "--log-format"),
        ("firehose.nsid_filter", getattr(args, "nsid_filter", None), "--nsid-filter"),
    ]


if __name__ == "__main__":
    entry()
