"""`run`, and `relay` without a command: the service. Follows the firehose, enumerates what there is, and fetches it beside."""

from __future__ import annotations

import argparse
from typing import Any

from relay.cli.working import serve
from relay.config.load import Loaded


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "run",
        help="the service: follow the firehose, and backfill what it does not bring (the default command)",
        description="Stores where the firehose is, follows it from there, enumerates the repos that discovery.mode wants, and fetches them "
        "beside it. Started again it goes on where it was, and enumerates only what it had not finished. Beside another one it "
        "stands by, and takes over when that ends.",
        epilog="Exit codes: 0 stopped as asked; 2 usage or configuration; 1 cannot go on.",
    )
    parser.add_argument("--nsid-filter", metavar="PATTERNS", help="wanted collections (firehose.nsid_filter)")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Work until SIGTERM or SIGINT."""
    return serve(loaded, command="run", no_progress=args.no_progress)
