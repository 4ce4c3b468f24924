"""The command line's own rules: common options anywhere, and one module for each command."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from relay.cli import main as entry
from relay.cli.exits import Exit

_PARSER = entry.make_parser()
_COMPLETE = [
    ["run"],
    ["tail", "--cursor", "12"],
    ["backfill", "--all"],
    ["demo"],
    ["status"],
    ["health"],
    ["health", "--ready"],
    ["reconcile"],
    ["repos", "list"],
    ["repos", "show", "did:plc:a"],
    ["deadletter", "list"],
    ["deadletter", "show", "1"],
    ["deadletter", "discard", "--all"],
    ["ingester", "--sink", "null:"],
    ["config", "check"],
    ["config", "show"],
    ["db", "migrate"],
    ["doctor", "--json"],
    ["completion", "bash"],
]


def test_every_command_is_tried_here() -> None:
    assert {words[0] for words in _COMPLETE} == set(entry.COMMANDS)


@pytest.mark.parametrize("words", _COMPLETE, ids=" ".join)
def test_common_options_may_stand_before_and_after_every_word(words: list[str]) -> None:
    options = ["--config", "F", "--log-level", "debug", "--log-format", "json", "--no-progress"]
    actions = 2 if words[0] in ("repos", "deadletter", "config", "db") else 1
    for place in range(actions + 1):
        args = _PARSER.parse_args([*words[:place], *options, *words[place:]])
        assert (args.config, args.log_level, args.log_format, args.no_progress) == ("F", "debug", "json", True)
        assert args.command == words[0]


@pytest.mark.parametrize("words", _COMPLETE, ids=" ".join)
def test_without_them_nothing_is_set(words: list[str]) -> None:
    args = _PARSER.parse_args(words)
    assert (args.config, args.log_level, args.log_format, args.no_progress) == (None, None, None, False)


@pytest.mark.parametrize(
    "words",
    [
        ["--al"],
        ["nonsense"],
        ["tail", "--cursor", "-1"],
        ["tail", "--live", "--cursor", "1"],
        ["repos"],
        ["backfill"],
        ["backfill", "--all", "--did", "x"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        entry.main(words)
    assert ended.value.code == Exit.USAGE
    assert "usage: relay" in capsys.readouterr().err


def test_without_a_command_it_is_the_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from relay.cli import run

    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    started: list[argparse.Namespace] = []

    def note(args: argparse.Namespace, loaded: object) -> int:
        started.append(args)
        return Exit.OK

    monkeypatch.setattr(run, "run", note)
    for words in ([], ["--log-level", "error", "--no-progress"], ["run"]):
        assert entry.main(words) == Exit.OK
    assert [each.command for each in started] == ["run", "run", "run"]
    assert [each.no_progress for each in started] == [False, True, False]


def test_every_option_says_what_it_is_for() -> None:
    for parser in [_PARSER, *entry.below(_PARSER)]:
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction) and not action.help:
                assert action.choices, f"{parser.prog} {action.option_strings or action.dest}: no help"
