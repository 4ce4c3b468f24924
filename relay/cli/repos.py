"""`repos`: the tracked set, straight from the database; `list` and `show` are here, what changes it in `tracking`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import orjson

from relay.cli import tracking
from relay.cli.exits import Exit
from relay.cli.reading import reading
from relay.config.addresses import http_form
from relay.config.load import Loaded
from relay.model import RepoState
from relay.observe import words
from relay.repos.shown import list_entry
from relay.repos.story import story_entry, story_lines
from relay.store import repos
from relay.store.pool import Database
from relay.store.repos import RepoRow
from relay.store.stories import load_story

_PAGE = 1000


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser("repos", help="the tracked repos")
    actions = parser.add_subparsers(dest="action", required=True, metavar="add|remove|resync|show|list")
    tracking.add_parsers(actions, _host)
    listing = actions.add_parser("list", help="one repo a line, in the order of DIDs")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.add_argument(
        "--state", action="append", default=[], choices=[state.value for state in RepoState], help="may be repeated"
    )
    listing.add_argument("--host", type=_host, help="only repos of this PDS, as https://pds.example")
    listing.add_argument("--limit", type=_limit, help="stop after this many")
    show = actions.add_parser("show", help="the whole story of some repos: what each is now, and how it came to be so")
    show.add_argument("dids", nargs="+", metavar="DID", help="such as did:plc:…")
    show.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run `repos ACTION`; a named DID without a row: exit code 1. Raises StoreError when no state can be read."""
    if args.action in tracking.CHANGING:
        return tracking.run(args, loaded)
    with reading(loaded.settings) as database:
        if args.action == "show":
            code = _show(database, args.dids, sys.stdout, as_json=args.json)
        else:
            states = [RepoState(each) for each in args.state]
            code = _list(database, states, args.host, args.limit, sys.stdout, as_json=args.json)
        sys.stdout.flush()
        return code


def _list(
    database: Database, states: list[RepoState], host: str | None, limit: int | None, out: TextIO, *, as_json: bool
) -> int:
    for row in _pages(database, states, host, limit):
        if as_json:
            out.write(orjson.dumps(list_entry(row)).decode() + "\n")
        else:
            out.write(
                f"{row.did:<32}  {row.state.value:<11}  {row.reason or '-':<16}  {row.rev or '-':<13}  {row.attempts:>3}  "
                f"{words.count(row.records):>9}  {row.host or '-'}\n"
            )
    return Exit.OK


def _pages(database: Database, states: list[RepoState], host: str | None, limit: int | None) -> Iterator[RepoRow]:
    """Yield the repos in pages of a transaction each: however long the reader takes, no transaction stays open."""
    after, left = "", limit
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        with database.transaction("list repos") as cur:
            rows = repos.list_repos(cur, states=states, host=host, after=after, limit=size)
        yield from rows
        if len(rows) < size:
            return
        after = rows[-1].did
        left = None if left is None else left - len(rows)


def _show(database: Database, dids: list[str], out: TextIO, *, as_json: bool) -> int:
    is_complete = True
    for did in dict.fromkeys(dids):
        with database.transaction("show a repo") as cur:
            story = load_story(cur, did)
        if story is None:
            print(f"{did}: not known here", file=sys.stderr)
            is_complete = False
        elif as_json:
            out.write(orjson.dumps(story_entry(story)).decode() + "\n")
        else:
            out.writelines(f"{line}\n" for line in story_lines(story))
    return Exit.OK if is_complete else Exit.CANNOT_GO_ON


def _host(text: str) -> str:
    try:
        return http_form(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text}: {exc}") from exc


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return int(text)
