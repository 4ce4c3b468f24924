"""DID documents as directories and sites gave them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.atproto.did_doc import DidDocument, parse_did_document
from relay.atproto.errors import InvalidDidDocument
from relay.atproto.keys import parse_multikey
from tests.support.data import data_bytes, data_json, expected, needs_data

pytestmark = needs_data

INDIGO = "bluesky-social/indigo/"
ATPROTO_COM_KEY = "zQ3shXjHeiBuRCKmM36cuYnm7YEMzhGnCmCyW92sRJ9pribSF"
CASES = {
    INDIGO + "atproto/identity/testdata/did_plc_doc.json": DidDocument(
        did="did:plc:ewvi7nxzyoun6zhxrhs64oiz",
        signing_key=ATPROTO_COM_KEY,
        pds="https://bsky.social",
        handle="atproto.com",
    ),
    # The same key, as uncompressed point of the type of 2019.
    INDIGO + "atproto/identity/testdata/did_plc_doc_legacy.json": DidDocument(
        did="did:plc:ewvi7nxzyoun6zhxrhs64oiz",
        signing_key=ATPROTO_COM_KEY,
        pds="https://bsky.social",
        handle="atproto.com",
    ),
    INDIGO + "atproto/identity/testdata/did_web_doc.json": DidDocument(
        did="did:web:discover.bsky.social", signing_key=None, pds=None, handle=None
    ),
    "invokable/laravel-bluesky/tests/Feature/Core/fixture/bsky-app-did.json": DidDocument(
        did="did:plc:z72i7hdynmk6r22z27h6tvur",
        signing_key="zQ3shQo6TF2moaqMTrUZEM1jeuYRQXeHEx4evX9751y2qPqRA",
        pds="https://puffball.us-east.host.bsky.network",
        handle="bsky.app",
    ),
}


@pytest.mark.parametrize("path", CASES)
def test_single_documents(path: str) -> None:
    assert parse_did_document(data_bytes(path), CASES[path].did) == CASES[path]


@pytest.mark.parametrize("name", ["fakermaker", "greenground", "paul_staging"])
def test_documents_beside_old_repos_name_the_key_that_signed_them(name: str) -> None:
    folder = INDIGO + "testing/testdata/"
    body = data_bytes(f"{folder}{name}.didDoc.json")
    parsed = parse_did_document(body, json.loads(body)["id"])
    assert parsed.signing_key == expected()["cars"][f"{folder}{name}.repo.car"]["signature"]["key"]


def test_the_document_of_another_account_is_refused() -> None:
    folder = INDIGO + "testing/testdata/"
    did = expected()["cars"][folder + "greenground.repo.car"]["did"]
    with pytest.raises(InvalidDidDocument):
        parse_did_document(data_bytes(folder + "greenground.didDoc.json"), did)


def test_the_directorys_documents_of_the_frames() -> None:
    documents: dict[str, Any] = data_json("bluesky-social/jetstream/internal/corpus/testdata/did_docs-000-074.json")
    assert len(documents) > 50
    for did, document in documents.items():
        parsed = parse_did_document(json.dumps(document).encode(), did)
        assert parsed.signing_key is not None
        assert parse_multikey(parsed.signing_key).multikey == document["verificationMethod"][0]["publicKeyMultibase"]
        assert parsed.pds == document["service"][0]["serviceEndpoint"]
        assert parsed.handle == document["alsoKnownAs"][0].removeprefix("at://").lower()
