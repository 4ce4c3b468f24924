"""atproto-interop-tests/data-model, and records of indigo: JSON, CBOR and CID of the same record."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from relay.atproto import cbor
from relay.atproto.cid import cid_of, cid_text
from relay.atproto.errors import InvalidSyntax, NotJson
from relay.atproto.jsonform import check_record_json, json_to_record, record_to_json
from tests.support.data import data_bytes, data_json, needs_data

pytestmark = needs_data

FOLDER = "bluesky-social/atproto-interop-tests/data-model/"


def _normal(value: Any) -> Any:
    """JSON as parsed, without the padding that base64 may have."""
    if isinstance(value, list):
        return [_normal(item) for item in value]
    if isinstance(value, dict):
        return {key: item.rstrip("=") if key == "$bytes" else _normal(item) for key, item in value.items()}
    return value


def test_fixtures_in_both_directions() -> None:
    fixtures = data_json(FOLDER + "data-model-fixtures.json")
    assert fixtures
    for fixture in fixtures:
        text = fixture["cbor_base64"]
        block = base64.b64decode(text + "=" * (-len(text) % 4))
        assert json_to_record(json.dumps(fixture["json"])) == block
        assert json.loads(record_to_json(block)) == _normal(fixture["json"])
        assert cbor.encode(cbor.decode(block)) == block
        assert cid_text(cid_of(block)) == fixture["cid"]


def test_valid_records_are_taken() -> None:
    fixtures = data_json(FOLDER + "data-model-valid.json")
    assert fixtures
    for fixture in fixtures:
        block = check_record_json(json.dumps(fixture["json"]))
        assert json.loads(record_to_json(block)) == _normal(fixture["json"]), fixture["note"]


def test_invalid_records_are_refused() -> None:
    fixtures = data_json(FOLDER + "data-model-invalid.json")
    assert fixtures
    for fixture in fixtures:
        with pytest.raises((NotJson, InvalidSyntax)):
            check_record_json(json.dumps(fixture["json"]))


@pytest.mark.parametrize(
    "path",
    [
        "bluesky-social/indigo/atproto/atdata/testdata/feedpost_record.cbor",
        "bluesky-social/indigo/testing/testdata/post_richtext_link.cbor",
    ],
)
def test_single_records_come_back(path: str) -> None:
    block = data_bytes(path)
    assert cbor.encode(cbor.decode(block)) == block
    assert json_to_record(record_to_json(block)) == block
