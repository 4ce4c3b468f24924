"""`deadletter list`, `show`, `requeue` and `discard`: what was refused, why, and what an operator decides."""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import orjson

from relay.cli.exits import Exit
from relay.cli.reading import changing, reading
from relay.config.load import Loaded
from relay.errors import ConfigError
from relay.observe import words
from relay.observe.status import rfc3339
from relay.pb.encode import decode_operation
from relay.store import dead_letters
from relay.store.dead_letters import FRAME, DeadLetter
from relay.store.pool import Database

_PAGE = 1000
_LONGEST_RECORD_SHOWN = 4000  # characters, to people; --json has all of it


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "deadletter",
        help="operations and records that were refused, and why",
        description="A dead letter is an operation that an ingester refused (REJECT, or RETRY too often) or that could not be "
        "sent at all (too large). Everything else of its repo went on; nothing comes back by itself.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|requeue|discard")
    listing = actions.add_parser("list", help="one letter a line, newest first")
    _add_choice(listing)
    listing.add_argument("--limit", type=_number, help="stop after this many")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    show = actions.add_parser(
        "show", help="everything that is known of some letters, with the record where it was kept"
    )
    show.add_argument("ids", nargs="+", type=_number, metavar="ID", help="the first column of `list`")
    show.add_argument("--json", action="store_true", help="one JSON object a line")
    requeue = actions.add_parser(
        "requeue",
        help="have operations sent again",
        description="Has operations sent again, by the service that runs or the next one. One that is older than what its repo holds now would "
        "meet newer ones, so its whole repo is fetched and delivered again instead. What is refused again is a dead letter again.",
    )
    requeue.add_argument("ids", nargs="*", type=_number, metavar="ID", help="the first column of `list`")
    _add_choice(requeue)
    requeue.add_argument("--all", action="store_true", help="every letter")
    discard = actions.add_parser("discard", help="forget letters for good")
    discard.add_argument("ids", nargs="*", type=_number, metavar="ID", help="the first column of `list`")
    _add_choice(discard)
    discard.add_argument("--all", action="store_true", help="every letter")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--did", help="only letters of this repo")
    parser.add_argument("--reason", help="only letters with this reason")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run `deadletter ACTION`; an id without a letter: exit code 1. Raises StoreError when no state can be read."""
    if args.action in ("discard", "requeue"):
        _check_chosen(args)
    with changing(loaded.settings) if args.action == "requeue" else reading(loaded.settings) as database:
        match args.action:
            case "list":
                code = _list(database, args, sys.stdout)
            case "show":
                code = _show(database, args.ids, sys.stdout, as_json=args.json)
            case "requeue":
                code = _requeue(database, args, sys.stdout)
            case _:
                code = _discard(database, args, sys.stdout)
        sys.stdout.flush()
        return code


def list_entry(letter: DeadLetter) -> dict[str, object]:
    """Return the object of `deadletter list --json`."""
    return {
        "id": letter.id,
        "at": rfc3339(letter.at),
        "reason": letter.reason,
        "message": letter.message,
        "did": letter.did,
        "collection": letter.collection,
        "rkey": letter.rkey,
        "cid": letter.cid,
        "rev": letter.rev,
        "type": letter.type,
        "source": letter.source,
        "ingester": letter.ingester or None,
        "attempts": letter.attempts,
        "size": letter.size,
    }


def show_entry(letter: DeadLetter) -> dict[str, object]:
    """Return everything about a letter: with `record` (JSON text), `record_cbor` or `frame` (base64) where that was kept."""
    entry = {**list_entry(letter), "record": None, "record_cbor": None, "frame": None}
    if letter.operation is None:
        return entry
    if letter.type == FRAME:  # of the firehose: it never became an operation
        entry["frame"] = base64.b64encode(letter.operation).decode()
        return entry
    operation = decode_operation(letter.operation)
    if operation.record_json:
        entry["record"] = operation.record_json
    elif operation.record_cbor:
        entry["record_cbor"] = base64.b64encode(operation.record_cbor).decode()
    return entry


def _list(database: Database, args: argparse.Namespace, out: TextIO) -> int:
    for letter in _pages(database, args.did, args.reason, args.limit):
        if args.json:
            out.write(orjson.dumps(list_entry(letter)).decode() + "\n")
        else:
            out.write(
                f"{letter.id:>6}  {rfc3339(letter.at)[:19]}Z  {letter.reason:<14}  {letter.type or '-':<10}  {letter.did:<32}  "
                f"{_path(letter)}  {words.size(letter.size)}  {letter.message or '-'}\n"
            )
    return Exit.OK


def _show(database: Database, ids: list[int], out: TextIO, *, as_json: bool) -> int:
    with database.transaction("show dead letters") as cur:
        found = {letter.id: letter for letter in dead_letters.get(cur, ids)}
    for number in dict.fromkeys(ids):
        letter = found.get(number)
        if letter is None:
            print(f"{number}: there is no such dead letter", file=sys.stderr)
            continue
        entry = show_entry(letter)
        if as_json:
            if isinstance(record := entry["record"], str):
                # As the operation carries it: reading and writing it again could change a number.
                entry["record"] = orjson.Fragment(record)
            out.write(orjson.dumps(entry).decode() + "\n")
            continue
        out.writelines(f"{name:<12} {_text(value)}\n" for name, value in entry.items())
        out.write("\n" if number != ids[-1] else "")
    return Exit.OK if all(number in found for number in ids) else Exit.CANNOT_GO_ON


def _check_chosen(args: argparse.Namespace) -> None:
    ways = [bool(args.ids), bool(args.did or args.reason), args.all]
    if sum(ways) != 1:
        raise ConfigError(f"deadletter {args.action}: name the letters by ID, or by --did and --reason, or say --all")


def _requeue(database: Database, args: argparse.Namespace, out: TextIO) -> int:
    """What stays as it is, is named; exit code 1 then."""
    from relay.supervisor.commands import LetterCommands

    commands = LetterCommands(database)
    ids = list(dict.fromkeys(args.ids)) if args.ids else _chosen_ids(database, args)
    sent = letters = again = left = 0
    for start in range(0, len(ids), _PAGE):
        done = commands.requeue(ids[start : start + _PAGE])
        sent, letters, again, left = (
            sent + done.sent, letters + done.letters, again + done.repos, left + len(done.left) + len(done.missing)
        )  # fmt: skip
        for number in done.missing:
            print(f"{number}: there is no such dead letter", file=sys.stderr)
        for letter, why in done.left:
            print(f"{letter.id}: {why}", file=sys.stderr)
    out.write(f"{sent:,} to be sent again")
    if letters:
        out.write(f", {letters:,} with their {again:,} repo{'s' if again != 1 else ''}, which will be delivered again")
    out.write("\n")
    return Exit.OK if not left else Exit.CANNOT_GO_ON


def _chosen_ids(database: Database, args: argparse.Namespace) -> list[int]:
    """Return all that are there now: a requeued one that is refused again has a new id, and is not asked for twice."""
    return [letter.id for letter in _pages(database, args.did, args.reason, None) if letter.id is not None]


def _discard(database: Database, args: argparse.Namespace, out: TextIO) -> int:
    if args.ids:
        with database.transaction("discard dead letters") as cur:
            gone = dead_letters.delete(cur, args.ids)
        out.write(f"{gone:,} discarded\n")
        return Exit.OK if gone == len(set(args.ids)) else Exit.CANNOT_GO_ON
    gone = 0
    # A transaction a page, so that a million letters lock nobody out; those that arrive meanwhile are newer, and stay.
    ids: list[int] = []
    for letter in _pages(database, args.did, args.reason, None):
        assert letter.id is not None
        ids.append(letter.id)
        if len(ids) == _PAGE:
            gone, ids = gone + _delete(database, ids), []
    gone += _delete(database, ids)
    out.write(f"{gone:,} discarded\n")
    return Exit.OK


def _delete(database: Database, ids: list[int]) -> int:
    with database.transaction("discard dead letters") as cur:
        return dead_letters.delete(cur, ids)


def _pages(database: Database, did: str | None, reason: str | None, limit: int | None) -> Iterator[DeadLetter]:
    """Yield letters, newest first, in pages of a transaction each."""
    before, left = None, limit
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        with database.transaction("list dead letters") as cur:
            page = dead_letters.list_page(cur, did=did, reason=reason, before=before, limit=size)
        yield from page
        if len(page) < size:
            return
        before = page[-1].id
        left = None if left is None else left - len(page)


def _path(letter: DeadLetter) -> str:
    return f"{letter.collection}/{letter.rkey}" if letter.collection else "-"


def _text(value: object) -> str:
    if value is None or value == "":
        return words.UNKNOWN
    text = str(value)
    if len(text) > _LONGEST_RECORD_SHOWN:
        return f"{text[:_LONGEST_RECORD_SHOWN]}… ({len(text):,} characters; --json shows all)"
    return text


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return int(text)
