"""`tail`: the service without its enumeration."""

from __future__ import annotations

import argparse
from typing import Any

from relay.cli.working import serve
from relay.config.load import Loaded
from relay.errors import ConfigError

# Seqs are JSON numbers to many: upstream's stay below this.
_SEQ_MAX = 2**53 - 1


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "tail",
        help="follow the firehose for tracked repos, and fetch whatever is pending",
        description="Follows the firehose from the stored cursor for the tracked repos, and for new ones as discovery.mode says, and fetches "
        "whatever is pending; it enumerates nothing. Where no cursor of this upstream is stored it starts live, and compares all repos "
        "(reconcile).",
        epilog="Exit codes: 0 stopped as asked; 2 usage or configuration; 1 cannot go on.",
    )
    parser.add_argument("--nsid-filter", metavar="PATTERNS", help="wanted collections (firehose.nsid_filter)")
    places = parser.add_mutually_exclusive_group()
    places.add_argument(
        "--cursor",
        type=_seq,
        metavar="N",
        help="start behind this event; below the stored cursor, what was delivered is skipped (`repos resync` delivers again)",
    )
    places.add_argument("--live", action="store_true", help="start with what happens now, and compare all repos")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Work until SIGTERM or SIGINT."""
    settings = loaded.settings
    if (args.live or args.cursor is not None) and not settings.firehose.relay_host:
        raise ConfigError(
            "firehose.relay_host is empty, so there is nothing to follow: --cursor and --live mean nothing"
        )
    return serve(loaded, command="tail", cursor=args.cursor, live=args.live, no_progress=args.no_progress)


def _seq(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= _SEQ_MAX):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to {_SEQ_MAX}")
    return int(text)
