"""The judge is judged: every kind of difference is found, and agreement is not called one."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cbrrr import decode_dag_cbor, encode_dag_cbor

from relay.simnet.block import cid_of, cid_text
from relay.simnet.delivered import Delivered, UnknownSink, content_cid, is_wanted, read_sink
from relay.simnet.oracle import Difference, DifferenceKind, compare, compare_digests, records_digest, report
from relay.simnet.world import AccountTruth, World, WorldSpec

_DID, _OTHER = "did:plc:a", "did:plc:b"
_REV = "3kezmvygx5l22"
_RECORDS = {"app.bsky.feed.post/1": "cid1", "com.example.note/2": "cid2"}


def _truth(**changes: Any) -> AccountTruth:
    base = {
        "did": _DID,
        "handle": "a.test",
        "pds": "http://localhost:1",
        "status": "",
        "rev": _REV,
        "records": _RECORDS,
    }
    return AccountTruth(**{**base, **changes})


def _held(**changes: Any) -> dict[str, Delivered]:
    base = {"did": _DID, "rev": _REV, "records": dict(_RECORDS)}
    return {_DID: Delivered(**{**base, **changes})}


def _kinds(differences: Iterable[Difference]) -> list[tuple[str, str]]:
    return [(difference.kind.value, difference.path) for difference in differences]


def test_equal_sides_agree() -> None:
    assert compare([_truth()], _held()) == []
    assert compare([_truth(records={})], {}) == []
    assert report([]) == "network and database agree"


@pytest.mark.parametrize(
    ("truth", "held", "kind", "path"),
    [
        ({}, {"records": {"app.bsky.feed.post/1": "cid1"}}, "missing", "com.example.note/2"),
        ({}, {"records": {**_RECORDS, "x.y.z/3": "cid3"}}, "extra", "x.y.z/3"),
        ({}, {"records": {**_RECORDS, "com.example.note/2": "old"}}, "wrong_cid", "com.example.note/2"),
        ({}, {"altered": {"com.example.note/2"}}, "altered", "com.example.note/2"),
        ({"refused": frozenset({"com.example.note/2"})}, {}, "refused", "com.example.note/2"),
        ({"status": "takendown"}, {}, "status", ""),
        ({}, {"active": False, "status": "takendown"}, "status", ""),
        ({}, {"rev": "3kezmvygx5l23"}, "rev_ahead", ""),
        ({"status": "deleted", "records": {}}, {"records": {"x.y.z/3": "cid3"}}, "extra", "x.y.z/3"),
        ({"status": "deleted", "records": {}}, {"records": {}, "active": False, "status": "suspended"}, "status", ""),
    ],
)
def test_each_kind_of_difference_is_found(truth: dict[str, Any], held: dict[str, Any], kind: str, path: str) -> None:
    differences = compare([_truth(**truth)], _held(**held))
    assert _kinds(differences) == [(kind, path)]
    assert kind in report(differences)
    assert _DID in report(differences)


def test_a_did_that_the_network_does_not_know_is_a_stranger() -> None:
    assert _kinds(compare([], _held())) == [("stranger", "")]


def test_only_wanted_collections_are_expected() -> None:
    held = _held(records={"app.bsky.feed.post/1": "cid1"})
    assert compare([_truth()], held, patterns=["app.bsky."]) == []
    assert _kinds(compare([_truth()], _held(), patterns=["app.bsky."])) == [("extra", "com.example.note/2")]


def test_of_dids_that_nobody_asked_for_nothing_may_be_there() -> None:
    both = [_truth(), _truth(did=_OTHER)]
    assert compare(both, _held(), targets={_DID}) == []
    assert len(compare(both, _held(), targets={_OTHER})) == 4


def test_an_inactive_account_may_keep_what_it_was() -> None:
    told = {"active": False, "status": "deactivated"}
    assert compare([_truth(status="deactivated")], _held(**told, records={"x.y.z/3": "c"})) == []
    assert compare([_truth(status="deactivated")], _held(**told, records={})) == []


def test_a_deleted_account_may_be_unheard_of() -> None:
    assert compare([_truth(status="deleted", records={})], {}) == []
    assert compare([_truth(status="deleted", records={})], _held(records={}, active=False, status="deleted")) == []


@pytest.mark.parametrize(
    ("truth", "held", "kind"),
    [
        ({}, {"handle": "b.test", "pds": "http://localhost:1"}, "identity"),
        ({}, {"handle": "a.test", "pds": "http://localhost:2"}, "identity"),
        ({"status": "takendown"}, {"handle": "b.test", "active": False, "status": "takendown"}, "identity"),
        ({"status": "deleted", "records": {}}, {"records": {}}, "status"),
    ],
)
def test_who_followed_the_firehose_must_know_more(truth: dict[str, Any], held: dict[str, Any], kind: str) -> None:
    assert compare([_truth(**truth)], _held(**held)) == []
    assert _kinds(compare([_truth(**truth)], _held(**held), live=True)) == [(kind, "")]


def test_who_followed_the_firehose_need_not_know_what_was_never_told() -> None:
    gone = _truth(status="deleted", records={})
    assert compare([gone], {}, live=True) == []
    assert compare([gone], _held(records={}, active=False, status="deleted"), live=True) == []
    assert compare([_truth()], _held(), live=True) == []
    assert compare([_truth()], _held(handle="a.test", pds="http://localhost:1"), live=True) == []


def test_digests_find_what_differs() -> None:
    digest = records_digest(_RECORDS)
    assert compare_digests({_DID: digest}, _held()) == []
    assert compare_digests({_OTHER: records_digest({})}, {}) == []
    assert _kinds(compare_digests({_DID: records_digest({})}, _held())) == [("digest", "")]
    assert {kind for kind, _ in _kinds(compare_digests({}, _held()))} == {"extra"}
    assert _kinds(compare_digests({_DID: digest}, _held(altered={"com.example.note/2"})))[0][0] == "altered"


def test_a_long_report_is_cut_and_says_so() -> None:
    many = [Difference(kind=DifferenceKind.MISSING, did=_DID, path=f"a.b.c/{n}", expected="c") for n in range(30)]
    text = report(many, shown=5)
    assert "30 differences in 1 accounts: 30 missing" in text
    assert text.endswith("... and 25 more")


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ((), {"app.bsky.feed.post", "app.bskyish.x.y", "app.bsky"}),
        (("app.bsky.",), {"app.bsky.feed.post"}),
        (("app.bsky.*",), {"app.bsky.feed.post"}),
        (("app.bskyish.x.y", "nothing.at.all"), {"app.bskyish.x.y"}),
        (("app.bsky",), {"app.bsky"}),
    ],
)
def test_patterns(patterns: tuple[str, ...], wanted: set[str]) -> None:
    collections = ("app.bsky.feed.post", "app.bskyish.x.y", "app.bsky")
    assert {name for name in collections if is_wanted(name, patterns)} == wanted


def _json_of(block: bytes) -> str:
    """The JSON form by another library."""
    value: Any = decode_dag_cbor(block, atjson_mode=True)
    return json.dumps(value, ensure_ascii=False)


def test_every_record_of_a_world_hashes_to_its_cid_in_both_forms() -> None:
    repo = World(WorldSpec(accounts=1, sizes=(500,))).accounts[0].repo
    for record in repo.records.values():
        cid = cid_text(record.cid)
        assert content_cid(None, record.block) == cid
        assert content_cid(_json_of(record.block), None) == cid


@pytest.mark.parametrize("text", ['{"a":1.5}', "{", '{"a":{"$link":"x"}}', '{"a":{"$bytes":"*"}}', None])
def test_content_that_is_no_record_has_no_cid(text: str | None) -> None:
    assert content_cid(text, None) is None


def test_unknown_sinks_are_named() -> None:
    with pytest.raises(UnknownSink, match="null"):
        read_sink("null:")


def test_nothing_is_delivered_where_there_is_nothing(tmp_path: Path) -> None:
    assert read_sink(f"sqlite:///{tmp_path}/absent.db") == {}
    assert read_sink(f"jsonl:{tmp_path}") == {}
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "empty.db").touch()
    assert read_sink(f"sqlite:///{tmp_path}/empty.db") == {}


def test_sqlite_is_read_with_its_contents(tmp_path: Path) -> None:
    block = encode_dag_cbor({"$type": "a.b.c", "text": "x"})
    cid = cid_text(cid_of(block))
    with closing(sqlite3.connect(tmp_path / "sink.db")) as connection:
        connection.execute("CREATE TABLE account (did, rev, active, status, handle, pds)")
        connection.execute("CREATE TABLE record (did, collection, rkey, cid, rev, record, record_cbor)")
        connection.execute("INSERT INTO account VALUES (?, ?, 0, 'takendown', 'a.test', 'http://p')", (_DID, _REV))
        rows = [
            (_DID, "a.b.c", "cbor", cid, _REV, None, block),
            (_DID, "a.b.c", "json", cid, _REV, '{"text":"x","$type":"a.b.c"}', None),
            (_DID, "a.b.c", "altered", cid, _REV, '{"text":"y","$type":"a.b.c"}', None),
            (_DID, "a.b.c", "absent", cid, _REV, None, None),
        ]
        connection.executemany("INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
    found = read_sink(f"sqlite:///{tmp_path}/sink.db")[_DID]
    assert (found.active, found.status, found.rev, found.handle, found.pds) == (
        False,
        "takendown",
        _REV,
        "a.test",
        "http://p",
    )
    assert found.records == dict.fromkeys(("a.b.c/cbor", "a.b.c/json", "a.b.c/altered", "a.b.c/absent"), cid)
    assert found.altered == {"a.b.c/altered", "a.b.c/absent"}
    assert not read_sink(f"sqlite:///{tmp_path}/sink.db", contents=False)[_DID].altered - {"a.b.c/absent"}


def _write_log(folder: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps({"did": _DID, "time_us": 1, **line}) + "\n" for line in lines)
    (folder / "operations-00000001.jsonl").write_text(text + '{"did": "did:plc:a", "type": "DEL')


def test_a_log_is_replayed_by_the_rules(tmp_path: Path) -> None:
    block = encode_dag_cbor({"$type": "a.b.c"})
    cid = cid_text(cid_of(block))
    raw = {"cid": cid, "record_cbor": base64.b64encode(block).decode()}
    put = {"type": "CREATE", "collection": "a.b.c", "rev": "3", **raw}
    _write_log(
        tmp_path,
        [
            {"type": "REPO_BEGIN", "rev": "3"},
            {**put, "rkey": "1"},
            {**put, "rkey": "2"},
            {**put, "rkey": "3", "record": {"$type": "a.b.c"}},
            {**put, "rkey": "4", "collection": "x.y.z"},
            {"type": "REPO_END", "rev": "3", "nsid_filter": []},
            {"type": "DELETE", "collection": "a.b.c", "rkey": "1", "rev": "4"},
            {**put, "rkey": "1"},  # late: rev 3 after 4
            {**put, "rkey": "2", "rev": "5", "type": "UPDATE"},
            {"type": "REPO_END", "rev": "5", "nsid_filter": ["a.b."]},
        ],
    )
    found = read_sink(f"jsonl:{tmp_path}")[_DID]
    assert found.rev == "5"
    assert found.records == {"a.b.c/2": cid, "x.y.z/4": cid}
    assert not found.altered


def test_a_deleted_account_in_a_log_takes_no_records_until_it_is_back(tmp_path: Path) -> None:
    put = {"type": "CREATE", "collection": "a.b.c", "rev": "3", "cid": "c", "record": {"$type": "a.b.c"}}
    gone = {"type": "ACCOUNT", "account": {"active": False, "status": "deleted"}, "time_us": 10}
    back = {"type": "ACCOUNT", "account": {"active": True, "status": ""}}
    for last, expected in (([], []), ([{**back, "time_us": 9}], []), ([{**back, "time_us": 11}], ["a.b.c/3"])):
        _write_log(tmp_path, [{**put, "rkey": "1"}, gone, {**put, "rkey": "2"}, *last, {**put, "rkey": "3"}])
        found = read_sink(f"jsonl:{tmp_path}")[_DID]
        assert sorted(found.records) == expected
        assert found.altered == set(expected)  # the CID is none
