"""Every record of every CAR: through JSON and back to the same bytes, hence to the same CID."""

from __future__ import annotations

import json

import pytest

from relay.atproto import cbor
from relay.atproto.cid import cid_of, parse_cid_text
from relay.atproto.commit import parse_commit
from relay.atproto.errors import OldCommitVersion
from relay.atproto.jsonform import json_to_record, record_to_json
from relay.atproto.keys import parse_multikey
from tests.support.data import data_bytes, expected, expected_names, needs_data, plain_sections

pytestmark = needs_data

CARS = expected_names("cars")


def test_there_are_cars() -> None:
    assert len(CARS) >= 19


@pytest.mark.parametrize("name", CARS)
def test_every_block_comes_back_from_json_with_its_cid(name: str) -> None:
    blocks = list(plain_sections(data_bytes(name)))
    assert blocks
    for cid, block in blocks:
        text = record_to_json(block)
        again = json_to_record(text)
        assert again == block
        assert cid_of(again) == cid
        json.loads(text)  # as another reader sees it


@pytest.mark.parametrize("name", CARS)
def test_every_block_has_one_encoding(name: str) -> None:
    for _, block in plain_sections(data_bytes(name)):
        assert cbor.encode(cbor.decode(block)) == block


@pytest.mark.parametrize("name", CARS)
def test_commits_verify_with_their_keys_and_no_others(name: str) -> None:
    answer = expected()["cars"][name]
    blocks = dict(plain_sections(data_bytes(name)))
    root = parse_cid_text(answer["commit_cid"])
    if answer["commit_version"] != 3:
        with pytest.raises(OldCommitVersion):
            parse_commit(blocks[root])
        return
    commit = parse_commit(blocks[root])
    assert (commit.did, commit.rev) == (answer["did"], answer["rev"])
    assert commit.data == parse_cid_text(answer["data_cid"])
    signature = answer["signature"]
    keys = [signature["key"]] if signature["key"] else signature["key_candidates"]
    for text in keys:
        assert parse_multikey(text).verify(commit.unsigned, commit.sig) is signature["low_s"]
    stranger = parse_multikey("zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme")
    assert not stranger.verify(commit.unsigned, commit.sig)
