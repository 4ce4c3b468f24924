"""A fuzz target for each reader of the protocol: `fuzz_one(data)` returns, or raises because a promise is broken.

The promises: any bytes give a value or an `AtprotoError`, nothing else; what is accepted has one encoding; JSON is exact; fast
and plain readers agree. `tests/fuzz/run.py` runs them for long; a unit test runs each for some hundred inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relay.atproto import cbor, syntax
from relay.atproto.cbor import Link, Value
from relay.atproto.cid import cid_of
from relay.atproto.commit import parse_commit
from relay.atproto.did_doc import parse_did_document
from relay.atproto.errors import AtprotoError
from relay.atproto.frames import parse_frame
from relay.atproto.jsonform import json_to_record, record_to_json
from relay.atproto.keys import parse_did_key, parse_multikey
from relay.atproto.limits import Limits
from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.varint import read_varint, write_varint
from relay.atproto.verify import verify_repo

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
REV = "3jzfcijpj2z2a"
TIME = "2023-06-30T15:03:01.887007Z"
KEY = "zQ3shXjHeiBuRCKmM36cuYnm7YEMzhGnCmCyW92sRJ9pribSF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One reader: what to call, and valid inputs to start from."""

    fuzz_one: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def fuzz_cbor(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except AtprotoError:
        return
    if cbor.encode(value) != data:
        raise AssertionError("accepted CBOR has another encoding")
    if len(data) <= cbor.FAST_BYTES and cbor.decode_fast(data) != (value, len(data)):
        raise AssertionError("the fast reader disagrees")


def fuzz_record_to_json(data: bytes) -> None:
    try:
        text = record_to_json(data)
    except AtprotoError:
        return
    if json_to_record(text) != data:
        raise AssertionError("JSON is not exact")


def fuzz_json_to_record(data: bytes) -> None:
    try:
        block = json_to_record(data)
    except AtprotoError:
        return
    if json_to_record(record_to_json(block)) != block:
        raise AssertionError("JSON is not exact")


def fuzz_frame(data: bytes) -> None:
    try:
        parse_frame(data)
    except AtprotoError:
        return
    cbor.decode_two(data)  # whatever is accepted is strict


def fuzz_commit(data: bytes) -> None:
    try:
        commit = parse_commit(data)
    except AtprotoError:
        return
    fields = cbor.decode(data)
    if not isinstance(fields, dict):
        raise AssertionError("a commit that is no map")
    del fields["sig"]
    if cbor.encode(fields) != commit.unsigned:
        raise AssertionError("not the bytes that were signed")


def fuzz_did_document(data: bytes) -> None:
    try:
        parse_did_document(data, DID)
    except AtprotoError:
        return


def fuzz_texts(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (
        syntax.parse_did,
        syntax.parse_handle,
        syntax.parse_nsid,
        syntax.parse_rkey,
        syntax.parse_tid,
        syntax.parse_path,
        syntax.parse_at_uri,
        syntax.parse_datetime,
        parse_multikey,
        parse_did_key,
        lambda patterns: NsidFilter.parse(patterns.split(",")),
    ):
        try:
            parse(text)
        except AtprotoError:
            continue


def fuzz_varint(data: bytes) -> None:
    try:
        value, end = read_varint(data, 0)
    except AtprotoError:
        return
    if write_varint(value) != data[:end]:
        raise AssertionError("a varint with two forms")


def fuzz_repo(data: bytes) -> None:
    """A whole CAR, without a key: mutations would not get past the signature."""
    for wanted in (NsidFilter.parse([]), NsidFilter.parse(["app.bsky."])):
        try:
            verify_repo(data, did=DID, key=None, wanted=wanted, limits=Limits())
        except AtprotoError:
            continue


def _record(text: str) -> dict[str, Value]:
    return {"$type": "app.bsky.feed.post", "text": text, "createdAt": TIME, "embed": Link(cid_of(b"x")), "raw": b"abc"}


def _commit_of(root: bytes) -> bytes:
    return cbor.encode({"did": DID, "rev": REV, "sig": bytes(64), "data": Link(root), "prev": None, "version": 3})


def _small_car() -> bytes:
    """A repo with one record, whose tree has one node whatever the key's depth."""
    record = cbor.encode(_record("hello"))
    key = b"app.bsky.feed.post/3jzfcijpj2z2a"
    node = cbor.encode({"l": None, "e": [{"p": 0, "k": key, "v": Link(cid_of(record)), "t": None}]})
    commit = _commit_of(cid_of(node))
    header = cbor.encode({"roots": [Link(cid_of(commit))], "version": 1})
    sections = [cid_of(block) + block for block in (commit, node, record)]
    return b"".join(write_varint(len(part)) + part for part in [header, *sections])


def _frame(kind: str, body: dict[str, Value]) -> bytes:
    return cbor.encode({"op": 1, "t": kind}) + cbor.encode(body)


_FRAMES = (
    _frame(
        "#commit",
        {
            "seq": 5,
            "repo": DID,
            "commit": Link(cid_of(b"a")),
            "rev": REV,
            "since": None,
            "blocks": b"x" * 100,
            "ops": [{"action": "create", "path": "app.bsky.feed.post/a", "cid": Link(cid_of(b"b"))}],
            "blobs": [],
            "tooBig": False,
            "rebase": False,
            "time": TIME,
        },
    ),
    _frame("#sync", {"seq": 5, "did": DID, "rev": REV, "blocks": b"x" * 30, "time": TIME}),
    _frame("#account", {"seq": 5, "did": DID, "active": True, "time": TIME}),
    _frame("#identity", {"seq": 5, "did": DID, "handle": "a.test", "time": TIME}),
    cbor.encode({"op": -1}) + cbor.encode({"error": "FutureCursor"}),
)
_RECORDS = (cbor.encode(_record("hello")), cbor.encode(_record("ü" * 3000)), cbor.encode([_record(""), [[]], -1, True]))
_DOCUMENT = (
    b'{"id":"%(did)s","alsoKnownAs":["at://a.test"],"verificationMethod":[{"id":"#atproto","type":"Multikey",'
    b'"controller":"%(did)s","publicKeyMultibase":"%(key)s"}],"service":[{"id":"#atproto_pds",'
    b'"type":"AtprotoPersonalDataServer","serviceEndpoint":"https://pds.example.com"}]}'
    % {b"did": DID.encode(), b"key": KEY.encode()}
)

TARGETS: dict[str, Target] = {
    "cbor": Target(fuzz_one=fuzz_cbor, seeds=_RECORDS),
    "record_to_json": Target(fuzz_one=fuzz_record_to_json, seeds=_RECORDS),
    "json_to_record": Target(fuzz_one=fuzz_json_to_record, seeds=tuple(record_to_json(record) for record in _RECORDS)),
    "frame": Target(fuzz_one=fuzz_frame, seeds=_FRAMES),
    "commit": Target(fuzz_one=fuzz_commit, seeds=(_commit_of(cid_of(b"root")),)),
    "did_document": Target(fuzz_one=fuzz_did_document, seeds=(_DOCUMENT,)),
    "texts": Target(
        fuzz_one=fuzz_texts,
        seeds=tuple(
            text.encode()
            for text in (
                DID,
                REV,
                TIME,
                KEY,
                f"at://{DID}/app.bsky.feed.post/{REV}",
                "app.bsky.,com.example.*",
                "did:key:z",
            )
        ),
    ),
    "varint": Target(fuzz_one=fuzz_varint, seeds=(b"\x00", b"\x80\x01", b"\xff" * 9 + b"\x01")),
    "repo": Target(fuzz_one=fuzz_repo, seeds=(_small_car(),)),
}


def check_seeds() -> None:
    """Raise unless the seeds are what they claim to be: a seed that is refused tests nothing."""
    for record in _RECORDS:
        cbor.decode(record)
    for frame in _FRAMES:
        parse_frame(frame)
    parse_commit(TARGETS["commit"].seeds[0])
    if parse_did_document(_DOCUMENT, DID).signing_key != KEY:
        raise AssertionError("the seed document is not read")
    repo = verify_repo(_small_car(), did=DID, key=None, wanted=NsidFilter.parse([]), limits=Limits())
    if repo.records_total != 1:
        raise AssertionError("the seed repo is not read")
