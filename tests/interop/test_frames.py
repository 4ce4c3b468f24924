"""Frames of production relays, and commits that indigo captured as JSON, against expected.json."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest

from relay.atproto import cbor
from relay.atproto.cid import cid_of, cid_text
from relay.atproto.commit import parse_commit
from relay.atproto.did_doc import parse_did_document
from relay.atproto.frames import CommitMessage, IdentityMessage, InfoMessage, Message, SyncMessage, parse_frame
from relay.atproto.jsonform import json_to_record, record_to_json
from relay.atproto.keys import parse_multikey
from tests.support.data import data_bytes, data_json, expected, expected_names, frames_of, needs_data, plain_sections

pytestmark = needs_data

CORPUS = "bluesky-social/jetstream/internal/corpus/testdata/"
NAMES = expected_names("frames")


def _messages(name: str) -> list[Message]:
    if name.endswith(".bin"):
        return [parse_frame(frame) for frame in frames_of(name)]
    captured = data_json(name)
    if "messages" not in captured:  # one payload of a #commit
        return [parse_frame(_frame({"op": 1, "t": "#commit"}, captured))]
    return [parse_frame(_frame(m["frame"]["header"], m["frame"]["body"])) for m in captured["messages"]]


def _frame(header: Any, body: Any) -> bytes:
    return json_to_record(json.dumps(header)) + json_to_record(json.dumps(body))


def _digest_of_ops(message: CommitMessage) -> str:
    lines = (
        f"{op.action} {op.path} {cid_text(op.cid) if op.cid else '-'} {cid_text(op.prev) if op.prev else '-'}\n"
        for op in message.ops
    )
    return sha256("".join(lines).encode()).hexdigest()


def _text(cid: bytes | None) -> str | None:
    return None if cid is None else cid_text(cid)


def test_there_are_frames() -> None:
    assert len(NAMES) >= 14


@pytest.mark.parametrize("name", NAMES)
def test_frames_have_the_expected_content(name: str) -> None:
    messages, answers = _messages(name), expected()["frames"][name]
    assert len(messages) == len(answers)
    for message, answer in zip(messages, answers, strict=True):
        assert not isinstance(message, InfoMessage)
        assert message.seq == answer["seq"]  # type: ignore[union-attr]
        assert message.did == answer["did"]  # type: ignore[union-attr]
        if "time" in answer:
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=message.time_us)  # type: ignore[union-attr]
            assert moment == datetime.fromisoformat(answer["time"])
        if isinstance(message, CommitMessage):
            assert (message.rev, message.since) == (answer["rev"], answer["since"])
            assert (_text(message.commit), _text(message.prev_data)) == (answer["commit"], answer["prevData"])
            assert (message.too_big, message.rebase) == (answer["tooBig"], answer["rebase"])
            assert len(message.ops) == answer["ops"]
            assert _digest_of_ops(message) == answer["ops_digest"]
        elif isinstance(message, IdentityMessage) and "handle" in answer:
            assert message.handle == answer["handle"]


@pytest.mark.parametrize("name", NAMES)
def test_the_commits_in_frames_are_what_the_frames_claim(name: str) -> None:
    for message, answer in zip(_messages(name), expected()["frames"][name], strict=True):
        if not isinstance(message, CommitMessage | SyncMessage):
            continue
        blocks = dict(plain_sections(message.blocks))
        assert all(cid_of(block) == cid for cid, block in blocks.items())
        if isinstance(message, CommitMessage):
            commit = parse_commit(blocks[message.commit])
            assert cid_text(commit.data) == answer["data"]
        else:
            (block,) = blocks.values()
            commit = parse_commit(block)
        assert (commit.did, commit.rev) == (message.did, message.rev)


def _keys(name: str) -> dict[str, str | None]:
    """Return DID -> Multikey of the documents that came with a file."""
    if name.startswith(CORPUS):
        documents = data_json(CORPUS + "did_docs-000-074.json")
        return {did: parse_did_document(document, did).signing_key for did, document in documents.items()}
    if name.endswith(".bin") or "accounts" not in data_json(name):
        return {}
    identities = [account["identity"] for account in data_json(name)["accounts"]]
    return {each["did"]: each["keys"]["atproto"]["publicKeyMultibase"] for each in identities}


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_valid_where_they_should_be(name: str) -> None:
    keys = _keys(name)
    for message, answer in zip(_messages(name), expected()["frames"][name], strict=True):
        if not isinstance(message, CommitMessage) or answer.get("signature_valid") is None:
            continue
        text = keys[message.did]
        assert text is not None
        commit = parse_commit(dict(plain_sections(message.blocks))[message.commit])
        key = parse_multikey(text)
        assert key.verify(commit.unsigned, commit.sig) is answer["signature_valid"]
        damaged = bytes([commit.unsigned[0], commit.unsigned[1] ^ 1]) + commit.unsigned[2:]
        assert not key.verify(damaged, commit.sig)


def test_frames_encode_to_the_same_bytes() -> None:
    for frame in frames_of(CORPUS + "frames-000-074.bin"):
        header, payload = cbor.decode_two(frame)
        assert cbor.encode(header) + cbor.encode(payload) == frame


def test_records_have_the_json_that_jetstream_served() -> None:
    served = [json.loads(line) for line in data_bytes(CORPUS + "expected_v1-000-074.jsonl").splitlines()]
    wanted = {
        (event["did"], event["commit"]["rev"], event["commit"]["collection"], event["commit"]["rkey"]): event["commit"]
        for event in served
        if event["kind"] == "commit"
    }
    seen = 0
    for frame in frames_of(CORPUS + "frames-000-074.bin"):
        message = parse_frame(frame)
        assert isinstance(message, CommitMessage)
        blocks = dict(plain_sections(message.blocks))
        for op in message.ops:
            event = wanted[message.did, message.rev, op.collection, op.rkey]
            assert event["operation"] == op.action
            if op.cid is not None:
                assert event["cid"] == cid_text(op.cid)
                assert json.loads(record_to_json(blocks[op.cid])) == event["record"]
                seen += 1
    assert seen > 60
