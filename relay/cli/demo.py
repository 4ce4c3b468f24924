"""`demo`: a simulated network on loopback, the relay, a reference ingester, and at the end a judge that trusts none of them."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from relay.atproto.nsid_filter import NsidFilter
from relay.cli.exits import Exit
from relay.config.load import Loaded, load
from relay.supervisor.launch import launch
from relay.tui.report import TerminalReporter

ACCOUNTS = 300
HOSTS = 5


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="a whole network on this machine: simulated PDSes, relay, ingester, and a check that nothing is missing",
        description="Simulates an AT Protocol network on loopback, backfills all of it into a reference ingester, and compares the "
        "ingester's database with the network, record by record. Needs nothing, leaves nothing.",
    )
    parser.add_argument("--accounts", type=int, default=ACCOUNTS, metavar="N", help="accounts (default %(default)s)")
    parser.add_argument("--hosts", type=int, default=HOSTS, metavar="N", help="PDSes (default %(default)s)")
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="another world (default %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this folder and keep it")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Simulate, backfill, compare, and say what came of it."""
    from relay.simnet.delivered import read_sink
    from relay.simnet.oracle import compare, report
    from relay.simnet.process import SimProcess
    from relay.simnet.world import WorldSpec

    with tempfile.TemporaryDirectory(prefix="relay-demo-") as temporary:
        folder = (args.keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        _say(f"1. A network of {args.accounts} accounts on {args.hosts} PDSes: built and served on loopback")
        began = time.monotonic()
        with SimProcess(WorldSpec(accounts=args.accounts, hosts=args.hosts, seed=args.seed)) as network:
            _say(f"   {network.records:,} records, ready after {time.monotonic() - began:.1f} s")
            _say("2. The relay backfills it: embedded PostgreSQL, workers, and a reference ingester with SQLite")
            settings = _settings(loaded, network.plc_url, network.relay_url, folder)
            reporter = TerminalReporter(sys.stderr, live=not args.no_progress)
            try:
                launch()
                from relay.supervisor.backfill import BackfillRun
                from relay.supervisor.discovery import Targets

                summary = BackfillRun(settings, Targets(everything=True), NsidFilter.parse(()), reporter).run()
            finally:
                reporter.ended()
            reporter.summary(summary)
            if summary.interrupted:
                return Exit.INTERRUPTED
            _say("3. The judge compares the ingester's database with the network, record by record")
            delivered = read_sink(f"sqlite://{folder / 'records.sqlite'}")
            differences = compare(network.truth(), delivered)
        _say("   " + report(differences).replace("\n", "\n   "))
        records = sum(len(each.records) for each in delivered.values())
        took_s = max(summary.took_s, 0.001)
        _say(
            f"   {records:,} records of {len(delivered):,} accounts in the database; {summary.repos_synced / took_s:,.0f} "
            f"repos/s, {summary.records / took_s:,.0f} records/s end to end"
        )
        if differences or summary.why is not None:
            _say("VERDICT: the database differs from the network. This should never happen: please report it.")
            return Exit.CANNOT_GO_ON
        _say("VERDICT: the database equals the network.")
    return Exit.OK


def _settings(loaded: Loaded, plc_url: str, relay_url: str, folder: Path) -> Any:
    """The defaults, but for what a network on loopback needs; nothing of the operator's own set-up is touched."""
    overrides = {
        "identity.plc_url": plc_url,
        "identity.requests_per_sec": 10_000,
        "firehose.relay_host": relay_url,
        "backfiller.host_requests_per_sec": 10_000,
        "backfiller.parallel_backfills": 16,
        "backfiller.host_connections": 8,
        "security.allow_private_hosts": True,
        "relay.name": "demo",
        "relay.data_dir": str(folder),
        "metrics.port": 0,
        "log_level": "warning" if loaded.is_left_alone("log_level") else loaded.settings.log_level,
        "log_format": loaded.settings.log_format,
    }
    environ = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    return load(None, environ, {key: (value, "demo") for key, value in overrides.items()}, usual_files=()).settings


def _say(text: str) -> None:
    print(text, flush=True)
