"""One document, read."""

from __future__ import annotations

import json

import pytest

from relay.errors import Blame
from relay.identity.lookup import DocumentLookup
from relay.model import Identity
from relay.net.errors import BadDocument, DidNotFound
from relay.runtime.clock import ManualClock

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
KEY = "zQ3shunBKsXixLxKtC5qeSG9E4J5RkGN57im31pcTzbNQnm5w"


def document(**changes: object) -> bytes:
    base: dict[str, object] = {
        "id": DID,
        "alsoKnownAs": ["at://Alice.example.com"],
        "verificationMethod": [
            {"id": f"{DID}#atproto", "type": "Multikey", "controller": DID, "publicKeyMultibase": KEY}
        ],
        "service": [
            {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://PDS.example.com/"}
        ],
    }
    return json.dumps({**base, **changes}).encode()


def lookup(body: bytes) -> Identity:
    return DocumentLookup(lambda did: body, ManualClock(now=123.0))(DID)


def test_a_document_becomes_an_identity_as_of_now() -> None:
    assert lookup(document()) == Identity(
        did=DID, signing_key=KEY, pds="https://pds.example.com", handle="alice.example.com", resolved_at=123.0
    )


def test_missing_parts_are_none_and_not_errors() -> None:
    found = lookup(document(verificationMethod=[], service={}, alsoKnownAs=None))
    assert (found.signing_key, found.pds, found.handle) == (None, None, None)


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", document(id="did:plc:44ybard66vv44zksje25o7dz")])
def test_what_is_not_this_dids_document_is_a_bad_document(body: bytes) -> None:
    with pytest.raises(BadDocument, match=DID) as caught:
        lookup(body)
    assert caught.value.blame is Blame.REPO
    assert caught.value.reason == "bad_did_document"


def test_a_failure_of_the_fetch_passes_through() -> None:
    def fetch(did: str) -> bytes:
        raise DidNotFound("no", did=did)

    with pytest.raises(DidNotFound):
        DocumentLookup(fetch, ManualClock())(DID)
