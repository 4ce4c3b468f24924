"""`deadletter`: what was refused is listed, shown with its record, and forgotten only when it is named."""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from relay.cli import deadletter
from relay.cli.exits import Exit
from relay.config.load import Loaded, load
from relay.errors import ConfigError, StoreError
from relay.pb import ingester_pb2 as pb
from relay.store import dead_letters
from relay.store.dead_letters import DeadLetter
from relay.store.pool import Database

AT = 1_790_000_000.0
RECORD = '{"$type":"a.b.c","n":1.0,"text":"ü"}'


def _letter(did: str, reason: str, operation: pb.Operation | None) -> DeadLetter:
    kept = operation is not None
    return DeadLetter(
        at=AT, did=did, collection="a.b.c" if kept else None, rkey="k" if kept else None, cid="bafy", rev="3kaaaaaaaaa2a",
        type="CREATE", source="BACKFILL", reason=reason, message="because", ingester="one:1", attempts=2, size=77,
        operation=operation.SerializeToString() if operation is not None else None,
    )  # fmt: skip


@pytest.fixture
def loaded(database: Database, migrated_dsn: str) -> Loaded:
    """Three letters: a JSON record, a CBOR record, and one that was never made."""
    letters = [
        _letter("did:plc:a", "rejected", pb.Operation(type=pb.CREATE, did="did:plc:a", record_json=RECORD)),
        _letter("did:plc:a", "retries", pb.Operation(type=pb.CREATE, did="did:plc:a", record_cbor=b"\xa0")),
        _letter("did:plc:b", "record_too_large", None),
    ]
    with database.transaction("fill") as cur:
        dead_letters.add_many(cur, letters)
    return load(None, {"HOME": "/nonexistent", "DATABASE_DSN": migrated_dsn}, usual_files=())


def _run(loaded: Loaded, *words: str) -> int:
    parser = argparse.ArgumentParser()
    deadletter.add_parser(parser.add_subparsers(dest="command", required=True))
    return deadletter.run(parser.parse_args(["deadletter", *words]), loaded)


def _listed(loaded: Loaded, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert _run(loaded, "list", "--json", *words) == Exit.OK
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_frame_of_the_firehose_is_shown_as_it_came() -> None:
    letter = DeadLetter(
        at=AT, did="did:plc:a", collection=None, rkey="77", cid=None, rev=None, type=dead_letters.FRAME, source="FIREHOSE",
        reason="worker_died", message="", ingester="", attempts=3, size=3, operation=b"\xff\x00\x01",
    )  # fmt: skip
    shown = deadletter.show_entry(letter)
    assert shown["frame"] == base64.b64encode(b"\xff\x00\x01").decode()
    assert (shown["record"], shown["record_cbor"]) == (None, None)


def test_list_is_newest_first_and_can_be_narrowed(loaded: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    everything = _listed(loaded, capsys)
    assert [each["reason"] for each in everything] == ["record_too_large", "retries", "rejected"]
    assert everything[0] == {
        "id": 3, "at": "2026-09-21T14:13:20.000Z", "reason": "record_too_large", "message": "because", "did": "did:plc:b",
        "collection": None, "rkey": None, "cid": "bafy", "rev": "3kaaaaaaaaa2a", "type": "CREATE", "source": "BACKFILL",
        "ingester": "one:1", "attempts": 2, "size": 77,
    }  # fmt: skip
    assert [each["id"] for each in _listed(loaded, capsys, "--did", "did:plc:a")] == [2, 1]
    assert [each["id"] for each in _listed(loaded, capsys, "--reason", "rejected")] == [1]
    assert [each["id"] for each in _listed(loaded, capsys, "--limit", "2")] == [3, 2]


def test_lists_and_discards_over_many_pages(
    loaded: Loaded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletter, "_PAGE", 2)
    assert [each["id"] for each in _listed(loaded, capsys)] == [3, 2, 1]
    assert _run(loaded, "discard", "--all") == Exit.OK
    assert capsys.readouterr().out == "3 discarded\n"
    assert _listed(loaded, capsys) == []


def test_show_gives_the_record_as_it_would_have_been_sent(loaded: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(loaded, "show", "1", "2", "3", "--json") == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert f'"record":{RECORD}' in lines[0]
    shown = [json.loads(line) for line in lines]
    assert base64.b64decode(shown[1]["record_cbor"]) == b"\xa0"
    assert (shown[2]["record"], shown[2]["record_cbor"]) == (None, None)
    assert _run(loaded, "show", "1") == Exit.OK
    assert "reason       rejected\n" in (out := capsys.readouterr().out)
    assert RECORD in out


def test_an_id_without_a_letter_is_exit_code_1(loaded: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(loaded, "show", "99", "1") == Exit.CANNOT_GO_ON
    out, err = capsys.readouterr()
    assert "rejected" in out
    assert err == "99: there is no such dead letter\n"
    assert _run(loaded, "discard", "1", "99") == Exit.CANNOT_GO_ON
    assert [each["id"] for each in _listed(loaded, capsys)] == [3, 2]


def test_discard_takes_what_was_named_and_nothing_else(loaded: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(loaded, "discard", "--did", "did:plc:a", "--reason", "retries") == Exit.OK
    assert [each["id"] for each in _listed(loaded, capsys)] == [3, 1]
    assert _run(loaded, "discard", "3") == Exit.OK
    assert [each["id"] for each in _listed(loaded, capsys)] == [1]


@pytest.mark.parametrize("words", [[], ["1", "--all"], ["--all", "--did", "x"], ["1", "--reason", "x"]], ids=" ".join)
def test_discard_of_nothing_or_of_two_things_is_refused(loaded: Loaded, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="--all"):
        _run(loaded, "discard", *words)


def test_without_state_it_says_so(tmp_path: Path) -> None:
    empty = load(None, {"HOME": "/nonexistent", "DATA_DIR": str(tmp_path)}, usual_files=())
    with pytest.raises(StoreError, match="no state yet"):
        _run(empty, "list")
