"""`repos add`, `remove` and `resync`: the tracked set changed straight in the database; a service that runs follows within a second."""

from __future__ import annotations

import argparse
import datetime as dt
import re
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from relay.atproto.syntax import is_nsid
from relay.cli.exits import Exit
from relay.cli.reading import changing
from relay.config.load import Loaded
from relay.config.schema import Settings
from relay.discovery.targets import parse_dids
from relay.errors import ConfigError
from relay.model import RepoState
from relay.observe import words
from relay.store.pool import Database
from relay.supervisor.commands import RepoCommands, Resynced

CHANGING = ("add", "remove", "resync")
_LINE_EVERY_S = 5.0
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_parsers(actions: argparse._SubParsersAction[Any], host: Any) -> None:
    """`host`: the type of a --host argument."""
    add = actions.add_parser("add", help="track repos: they are fetched, and followed from then on")
    add.add_argument("dids", nargs="+", metavar="DID", help="such as did:plc:…")
    remove = actions.add_parser(
        "remove",
        help="stop tracking repos; what the ingesters have of them stays",
        description="Stops tracking repos. The ingesters' rows stay. Only `repos add`, or a `backfill` that names the DID, tracks one again.",
    )
    remove.add_argument("dids", nargs="+", metavar="DID", help="such as did:plc:…")
    resync = actions.add_parser(
        "resync",
        help="fetch and deliver repos again: for a new or restored ingester",
        description="Has tracked repos fetched and delivered again: their status, then every wanted record. At the end of each the "
        "ingester deletes what it has and the repo has not.",
    )
    resync.add_argument("dids", nargs="*", metavar="DID", help="these repos")
    resync.add_argument("--all", action="store_true", help="every tracked repo")
    resync.add_argument("--host", type=host, metavar="URL", help="those of this PDS, as https://pds.example")
    resync.add_argument(
        "--collection",
        action="append",
        default=[],
        metavar="NSID",
        help="those that hold this collection, as listReposByCollection of discovery.collection_host says; may be repeated",
    )
    resync.add_argument(
        "--changed-since",
        type=_since,
        metavar="TIME",
        help="those whose row here was changed since: 2026-07-04T12:00:00Z, or how long ago: 90m, 6h, 2d; may go with --host",
    )


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Raises ConfigError for what cannot be meant, StoreError when no state can be reached."""
    dids = parse_dids(args.dids, "DID")
    if args.action == "resync":
        _check_chosen(args)
    if args.action == "add":
        from relay.cli.working import check_data_dir

        check_data_dir(Path(loaded.settings.relay.data_dir))
    with changing(loaded.settings, creates=args.action == "add") as database:
        commands = RepoCommands(database, partitions=loaded.settings.relay.partitions)
        match args.action:
            case "add":
                return _add(commands, dids, sys.stdout)
            case "remove":
                return _remove(commands, dids, sys.stdout)
            case _:
                return _resync(loaded.settings, database, commands, args, dids)


def _add(commands: RepoCommands, dids: list[str], out: TextIO) -> int:
    added = commands.add(dids)
    out.write(f"{added.new:,} added, {added.again:,} tracked or tried again, {added.known:,} tracked already\n")
    return Exit.OK


def _remove(commands: RepoCommands, dids: list[str], out: TextIO) -> int:
    unknown = commands.remove(dids)
    out.write(f"{len(dids) - len(unknown):,} removed\n")
    return _end(unknown)


def _resync(
    settings: Settings, database: Database, commands: RepoCommands, args: argparse.Namespace, dids: list[str]
) -> int:
    failed: list[str] = []
    if dids:
        done = commands.resync(dids)
    elif args.collection:
        done, failed = _of_collections(settings, commands, tuple(args.collection))
    else:
        line = _Line()
        done = commands.resync_selected(host=args.host, changed_since=args.changed_since, on_page=line.show)
    inactive = done.states[RepoState.INACTIVE]
    note = f" ({inactive:,} inactive: their status only)" if inactive else ""
    sys.stdout.write(f"{done.repos:,} will be delivered again{note}\n")
    for each in failed:
        print(f"not all of them are known: {each}", file=sys.stderr)
    return Exit.CANNOT_GO_ON if failed else _end(done.unknown)


def _of_collections(
    settings: Settings, commands: RepoCommands, collections: tuple[str, ...]
) -> tuple[Resynced, list[str]]:
    from relay.supervisor.resyncing import resync_collections

    return resync_collections(settings, commands, collections)


def _check_chosen(args: argparse.Namespace) -> None:
    by_row = args.host is not None or args.changed_since is not None
    if sum((bool(args.dids), args.all, by_row, bool(args.collection))) != 1:
        raise ConfigError(
            "repos resync: name the repos by DID, or by --host and --changed-since, or by --collection, or say --all"
        )
    bad = [nsid for nsid in args.collection if not is_nsid(nsid)]
    if bad:
        raise ConfigError("--collection: not an NSID: " + ", ".join(bad))


def _end(unknown: list[str]) -> int:
    for did in unknown:
        print(f"{did}: not tracked here", file=sys.stderr)
    return Exit.CANNOT_GO_ON if unknown else Exit.OK


class _Line:
    """How far it is, now and then: millions of repos take minutes."""

    def __init__(self) -> None:
        self._next_at = time.monotonic() + _LINE_EVERY_S

    def show(self, done: int) -> None:
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + _LINE_EVERY_S
            print(f"{words.count(done)} so far", file=sys.stderr, flush=True)


def _since(text: str) -> float:
    """Return the wall time that `text` names, or so long ago."""
    if (ago := re.fullmatch(r"([0-9]{1,9})([smhdw])", text)) is not None:
        return time.time() - int(ago[1]) * _UNITS_S[ago[2]]
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is neither a time as 2026-07-04T12:00:00Z nor a time ago as 90m, 6h, 2d"
        ) from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=dt.UTC)).timestamp()
