from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto.did_doc import DidDocument, parse_did_document, parse_origin
from relay.atproto.errors import InvalidDidDocument
from relay.atproto.limits import Limits

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
KEY = "zQ3shQo6TF2moaqMTrUZEM1jeuYRQXeHEx4evX9751y2qPqRA"
OTHER_KEY = "zQ3shqwJEJyMBsBXCWyCBpUBMqxcon9oHB7mCvx4sSpMdLJwc"
METHOD = {"id": f"{DID}#atproto", "type": "Multikey", "controller": DID, "publicKeyMultibase": KEY}
SERVICE = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://pds.example.com"}


def _document(**changes: Any) -> dict[str, Any]:
    return {
        "id": DID,
        "alsoKnownAs": ["at://Bsky.app"],
        "verificationMethod": [METHOD],
        "service": [SERVICE],
    } | changes


def _parse(**changes: Any) -> DidDocument:
    return parse_did_document(_document(**changes), DID)


def test_an_ordinary_document_from_bytes_or_parsed() -> None:
    want = DidDocument(did=DID, signing_key=KEY, pds="https://pds.example.com", handle="bsky.app")
    assert _parse() == want
    assert parse_did_document(json.dumps(_document()).encode(), DID) == want


@pytest.mark.parametrize("document_id", [None, 5, "did:plc:other", DID + " ", DID.upper()])
def test_a_document_of_another_did_is_refused(document_id: object) -> None:
    with pytest.raises(InvalidDidDocument):
        _parse(id=document_id)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"x"', b"{", b"\xff", b"{}", b"[" * 100_000, b'{"id": NaN}'])
def test_what_is_no_document_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidDidDocument):
        parse_did_document(body, DID)


def test_a_document_over_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidDidDocument, match="limit"):
        parse_did_document(b"{" * 101, DID, limits=Limits(did_document_bytes=100))


@pytest.mark.parametrize("key_id", ["#atproto", f"{DID}#atproto"])
def test_the_key_has_a_relative_or_absolute_id(key_id: str) -> None:
    assert _parse(verificationMethod=[METHOD | {"id": key_id}]).signing_key == KEY


@pytest.mark.parametrize(
    "change",
    [
        {"id": "#atproto2"},
        {"id": "did:plc:other#atproto"},
        {"id": "atproto"},
        {"id": ["#atproto"]},
        {"controller": "did:plc:other"},
        {"controller": None},
        {"type": "JsonWebKey2020"},
        {"type": ["Multikey"]},
        {"publicKeyMultibase": None},
        {"publicKeyMultibase": {"a": 1}},
        {"publicKeyMultibase": "zzz"},
        {"publicKeyMultibase": "z" * 10_000},
    ],
)
def test_a_method_that_is_not_the_accounts_key_gives_none(change: dict[str, Any]) -> None:
    assert _parse(verificationMethod=[METHOD | change]).signing_key is None


def test_the_first_method_that_fits_counts() -> None:
    other = METHOD | {"publicKeyMultibase": OTHER_KEY}
    foreign = METHOD | {"controller": "did:plc:other"}
    assert _parse(verificationMethod=[foreign, other, METHOD]).signing_key == OTHER_KEY


def test_a_malformed_key_does_not_give_way_to_a_later_one() -> None:
    assert _parse(verificationMethod=[METHOD | {"publicKeyMultibase": "zbad"}, METHOD]).signing_key is None


@pytest.mark.parametrize("point", ["z25z9DTpsiYYJKGsWmSPJK2NFN8PcJtZig12K59UgW7q5t"])
def test_a_key_type_of_2019_becomes_a_multikey(point: str) -> None:
    method = METHOD | {"type": "EcdsaSecp256k1VerificationKey2019", "publicKeyMultibase": point}
    assert _parse(verificationMethod=[method]).signing_key == OTHER_KEY
    wrong_curve = method | {"type": "EcdsaSecp256r1VerificationKey2019"}
    assert _parse(verificationMethod=[wrong_curve]).signing_key != OTHER_KEY


@pytest.mark.parametrize(
    ("endpoint", "origin"),
    [
        ("https://pds.example.com", "https://pds.example.com"),
        ("https://pds.example.com/", "https://pds.example.com"),
        ("HTTPS://PDS.Example.COM:443", "https://pds.example.com"),
        ("https://pds.example.com:8443", "https://pds.example.com:8443"),
        ("http://localhost:2583", "http://localhost:2583"),
        ("http://localhost:80", "http://localhost"),
        ("https://localhost:80", "https://localhost:80"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://[::1]:2583", "http://[::1]:2583"),
    ],
)
def test_an_endpoint_becomes_an_origin(endpoint: str, origin: str) -> None:
    assert parse_origin(endpoint) == origin
    assert _parse(service=[SERVICE | {"serviceEndpoint": endpoint}]).pds == origin


@pytest.mark.parametrize(
    "endpoint",
    [
        None,
        5,
        {"uri": "https://pds.example.com"},
        ["https://pds.example.com"],
        "",
        "pds.example.com",
        "ftp://pds.example.com",
        "wss://pds.example.com",
        "https://",
        "https://pds.example.com/path",
        "https://pds.example.com//",
        "https://pds.example.com?x=1",
        "https://pds.example.com#f",
        "https://user@pds.example.com",
        "https://user:password@pds.example.com",
        "https://pds.example.com\\@evil.example",
        "https://pds.example.com:0",
        "https://pds.example.com:65536",
        "https://pds.example.com:",
        "https://pds.example.com:4٣",
        "https://pds..example.com",
        "https://.example.com",
        "https://pds.example.com.",
        "https://-pds.example.com",
        "https://pds.example.com ",
        "https://pds.example.com\n",
        "https://pds.exa\tmple.com",
        "https://bücher.example",
        "https://pds_1.example.com",
        "https://" + "a" * 600,
    ],
)
def test_what_is_no_origin_is_no_pds(endpoint: object) -> None:
    assert parse_origin(endpoint) is None
    assert _parse(service=[SERVICE | {"serviceEndpoint": endpoint}]).pds is None


@pytest.mark.parametrize(
    "change", [{"id": "#other"}, {"id": None}, {"type": "Other"}, {"type": None}, {"id": "did:plc:other#atproto_pds"}]
)
def test_another_service_is_no_pds(change: dict[str, Any]) -> None:
    assert _parse(service=[SERVICE | change]).pds is None
    assert _parse(service=[SERVICE | change, SERVICE]).pds == "https://pds.example.com"


def test_the_handle_is_the_first_that_is_well_formed() -> None:
    names = [
        "https://x.example",
        5,
        "at://not a handle",
        "at://",
        "at://Alice.Test/x",
        "at://Alice.Test",
        "at://b.test",
    ]
    assert _parse(alsoKnownAs=names).handle == "alice.test"


@pytest.mark.parametrize("junk", [None, 5, "x", {}, {"a": METHOD}, [], [None, 5, "x", [METHOD], {}]])
def test_parts_of_any_type_count_as_absent(junk: object) -> None:
    document = _parse(verificationMethod=junk, service=junk, alsoKnownAs=junk)
    assert document == DidDocument(did=DID, signing_key=None, pds=None, handle=None)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from([DID, KEY])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from([*METHOD, *SERVICE, "x"]), inner, max_size=5),
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["alsoKnownAs", "verificationMethod", "service", "@context"]), JSON))
def test_no_document_of_the_did_raises(parts: dict[str, Any]) -> None:
    parse_did_document({"id": DID} | parts, DID)


@given(st.binary(max_size=50))
def test_any_bytes_are_a_document_or_a_typed_error(body: bytes) -> None:
    with pytest.raises(InvalidDidDocument):
        parse_did_document(body, DID)
