"""`doctor`: looks at everything that a run needs, says what is wrong and what to do. Changes nothing; works beside a running service."""

from __future__ import annotations

import argparse
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

import orjson

from relay.cli.exits import Exit
from relay.config.load import Loaded

LONGEST_S = 20.0  # of one check; they run side by side, after that of the database


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "doctor", help="check configuration, database, network and machine; say what to do; exit code 1 for a problem"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run `doctor`. Exit 0: no problem (warnings are none), 1: a problem; a configuration with mistakes never gets here."""
    from relay.cli.doctor_machine import Level

    findings = examine(loaded)
    (_print_json if args.json else _print_lines)(findings, sys.stdout)
    sys.stdout.flush()
    return Exit.CANNOT_GO_ON if any(each.level is Level.PROBLEM for each in findings) else Exit.OK


def examine(loaded: Loaded, longest_s: float = LONGEST_S) -> list[Any]:
    """Return the findings of all checks, in a fixed order. Takes at most twice `longest_s`."""
    from relay.cli import doctor_machine as machine
    from relay.cli import doctor_services as services

    settings = loaded.settings
    ((found, known),) = side_by_side(
        [("database", lambda: services.check_database(settings))],
        longest_s,
        lambda name, text: ([machine.problem(name, text, "see the log of PostgreSQL")], services.Known()),
    )
    checks: list[tuple[str, Callable[[], Iterable[machine.Finding]]]] = [
        ("configuration", lambda: machine.check_configuration(loaded)),
        ("upstream", lambda: services.check_upstream(settings)),
        ("firehose", lambda: services.check_firehose(settings, known.cursor)),
        ("plc", lambda: services.check_plc(settings)),
        ("clock", lambda: services.check_clock(settings)),
    ]
    for address in settings.ingesters:
        ask = functools.partial(services.check_ingester, settings, address)
        checks.append((f"ingester {address}", ask))
    if not settings.ingesters:
        checks.append(("ingesters", lambda: services.check_no_ingester(settings)))
    checks += [
        ("ports", lambda: machine.check_ports(settings, known.listening)),
        ("open files", lambda: machine.check_files(settings)),
        ("memory", lambda: machine.check_memory(settings)),
        ("disk", lambda: machine.check_disk(settings)),
    ]
    answers = side_by_side(
        [(name, functools.partial(lambda look: list(look()), look)) for name, look in checks],
        longest_s,
        lambda name, text: [
            machine.problem(name, text, "this is a fault of the check or of what it looks at: report it")
        ],
    )
    return [*answers[0], *found, *(each for answer in answers[1:] for each in answer)]


def side_by_side(
    checks: Sequence[tuple[str, Callable[[], Any]]], longest_s: float, failed: Callable[[str, str], Any]
) -> list[Any]:
    """Run all checks at once; return their answers in order, `failed(name, text)` for one that raised or took too long.

    One that hangs is left behind in its thread, which keeps nobody from ending.
    """
    done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def work(number: int, name: str, check: Callable[[], Any]) -> None:
        try:
            answer = check()
        except Exception as exc:  # noqa: BLE001 - the top of a thread: a check that breaks is a finding
            answer = failed(name, f"{type(exc).__name__}: {exc}")
        done.put((number, answer))

    answers = [failed(name, f"no answer within {longest_s:g} s") for name, _ in checks]
    for number, (name, check) in enumerate(checks):
        threading.Thread(target=work, args=(number, name, check), name=f"doctor-{name}", daemon=True).start()
    deadline = time.monotonic() + longest_s
    for _ in checks:
        try:
            number, answer = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        answers[number] = answer
    return answers


def _print_lines(findings: Sequence[Any], out: TextIO) -> None:
    width = max(len(each.check) for each in findings)
    for each in findings:
        print(f"{each.level:<7}  {each.check:<{width}}  {each.text}", file=out)
        if each.advice:
            print(f"{'':<7}  {'':<{width}}  -> {each.advice}", file=out)
    counts = {level: sum(each.level == level for each in findings) for level in ("problem", "warning")}
    print(
        ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items()),
        file=out,
    )


def _print_json(findings: Sequence[Any], out: TextIO) -> None:
    entries = [
        {"check": each.check, "level": each.level.value, "text": each.text, "advice": each.advice or None}
        for each in findings
    ]
    out.write(
        orjson.dumps({"ok": all(e["level"] != "problem" for e in entries), "findings": entries}).decode() + os.linesep
    )
