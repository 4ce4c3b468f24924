"""`backfill`: everything that the targets hold now, delivered once, with progress, and an end."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.syntax import is_nsid
from relay.cli.exits import Exit
from relay.cli.working import check_data_dir
from relay.config.addresses import http_form
from relay.config.load import Loaded
from relay.discovery.targets import load_dids_file, parse_dids
from relay.errors import ConfigError
from relay.model import RepoState
from relay.supervisor.launch import launch
from relay.tui.report import TerminalReporter

if TYPE_CHECKING:
    from relay.supervisor.books import Summary
    from relay.supervisor.discovery import Targets


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "backfill",
        help="fetch, verify and deliver everything that the targets hold now, then end",
        description="Discovers the targets' repos, downloads and verifies each, delivers every wanted record, then ends. "
        "Run again it continues, and fetches what has changed. Beside a running `run` or `tail` that does the work, with its own filter, and "
        "this shows how far it is.",
        epilog="Exit codes: 0 all targets synced or inactive; 3 some were given up (listed); 2 usage or configuration; "
        "1 cannot go on; 130 interrupted: run it again to continue.",
    )
    targets = parser.add_mutually_exclusive_group(required=True)
    targets.add_argument("--all", action="store_true", help="every repo of the network that the upstream knows of")
    targets.add_argument("--collection", nargs="+", metavar="NSID", help="repos that hold one of these collections")
    targets.add_argument("--did", nargs="+", metavar="DID", help="these repos")
    targets.add_argument("--dids-file", type=Path, metavar="F", help="the repos of a file: one DID a line, # comments")
    targets.add_argument("--host", nargs="+", metavar="URL", help="every repo of these PDSes")
    parser.add_argument("--nsid-filter", metavar="PATTERNS", help="wanted collections (firehose.nsid_filter)")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run it to its end and print what came of it."""
    settings = loaded.settings
    if args.all and not settings.firehose.relay_host:
        raise ConfigError("--all: firehose.relay_host is empty, so there is nobody to ask which hosts there are")
    patterns: tuple[str, ...] = settings.firehose.nsid_filter
    origin = loaded.origins["firehose.nsid_filter"]
    if args.collection and not origin.startswith(("environment", "--")):
        # Whoever asks for a collection wants its records, not what the file says for the service.
        patterns = tuple(args.collection)
    check_data_dir(Path(settings.relay.data_dir))
    # The reporter first: a live view takes stderr, and children must inherit what it put there. Nothing with threads or gRPC
    # is imported before the forkserver runs.
    reporter = TerminalReporter(sys.stderr, live=not args.no_progress)
    try:
        launch()
        from relay.supervisor.backfill import BackfillRun

        targets = _targets(args)
        summary = BackfillRun(settings, targets, NsidFilter.parse(patterns), reporter).run()
    finally:
        reporter.ended()
    reporter.summary(summary)
    return exit_code(summary)


def exit_code(summary: Summary) -> Exit:
    if summary.interrupted:
        return Exit.INTERRUPTED
    if summary.why is not None:
        return Exit.CANNOT_GO_ON
    return Exit.QUARANTINED if summary.counts.get(RepoState.QUARANTINED) else Exit.OK


def _targets(args: argparse.Namespace) -> Targets:
    from relay.supervisor.discovery import Targets

    if args.dids_file is not None:
        return Targets(dids=tuple(load_dids_file(args.dids_file)))
    if args.did:
        return Targets(dids=tuple(parse_dids(args.did)))
    if args.collection:
        bad = [nsid for nsid in args.collection if not is_nsid(nsid)]
        if bad:
            raise ConfigError("--collection: not an NSID: " + ", ".join(bad))
        return Targets(collections=tuple(args.collection))
    if args.host:
        return Targets(hosts=tuple(_host(host) for host in args.host))
    return Targets(everything=True)


def _host(text: str) -> str:
    try:
        return http_form(text)
    except ValueError as exc:
        raise ConfigError(f"--host {text}: {exc}") from exc
