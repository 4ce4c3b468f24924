"""DID documents: signing key, PDS and handle of an account. Every part may be hostile or missing.

Source: PROTOCOL 4 (which key), 8 (parse rules).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from relay.atproto.errors import InvalidDidDocument, InvalidKey
from relay.atproto.keys import Curve, parse_legacy_key, parse_multikey
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.syntax import is_handle, parse_handle

_LEGACY_TYPES = {
    "EcdsaSecp256r1VerificationKey2019": Curve.P256,
    "EcdsaSecp256k1VerificationKey2019": Curve.K256,
}
_ENTRIES = 1000  # entries of one list that are looked at
_ENDPOINT_CHARS = 512
_ENDPOINT = re.compile(
    r"(https?)://([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::([0-9]{1,5}))?/?",
    re.ASCII | re.IGNORECASE,
)
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class DidDocument:
    """What a DID document says. None: it says nothing usable.

    `signing_key`: Multikey (`z...`) of a key that parses; `pds`: origin `http(s)://host[:port]`, lower case, without default
    port (http and odd hosts are the network guard's to judge); `handle`: lower case, claimed only, not resolved.
    """

    did: str
    signing_key: str | None
    pds: str | None
    handle: str | None


def parse_did_document(body: bytes | Mapping[str, Any], did: str, *, limits: Limits = DEFAULT_LIMITS) -> DidDocument:
    """Return what the document of `did` says. `body`: JSON, or what was parsed from it.

    Raises InvalidDidDocument when it is no JSON object, over `limits.did_document_bytes`, or another DID's. Anything else
    that is malformed counts as absent: an account without key or PDS is the caller's to judge.
    """
    document = _load(body, limits) if isinstance(body, bytes | bytearray | memoryview) else body
    if not isinstance(document, Mapping):
        raise InvalidDidDocument("the DID document is not a JSON object", at=did)
    if document.get("id") != did:
        raise InvalidDidDocument(
            f"the DID document is not of this DID but of {str(document.get('id'))[:100]!r}", at=did
        )
    return DidDocument(
        did=did,
        signing_key=_signing_key(document, did),
        pds=_pds(document, did),
        handle=_handle(document),
    )


def parse_origin(endpoint: object) -> str | None:
    """Return a service endpoint as origin, `http(s)://host[:port]`, or None if it is anything else.

    No path (one final slash is let through), userinfo, query or fragment. The host's name is not judged here.
    """
    if not isinstance(endpoint, str) or len(endpoint) > _ENDPOINT_CHARS:
        return None
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        return None
    scheme, host = match[1].lower(), match[2].lower()
    if ".." in host or match[3] is None:
        return None if ".." in host else f"{scheme}://{host}"
    port = int(match[3])
    if not 0 < port < 65_536:
        return None
    return f"{scheme}://{host}" if port == _DEFAULT_PORTS[scheme] else f"{scheme}://{host}:{port}"


def _load(body: bytes | bytearray | memoryview, limits: Limits) -> Any:
    if len(body) > limits.did_document_bytes:
        raise InvalidDidDocument(f"a DID document of {len(body):,} bytes: the limit is {limits.did_document_bytes:,}")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidDidDocument(f"the DID document is not JSON: {exc}") from exc


def _entries(document: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    entries = document.get(name)
    if isinstance(entries, list):
        yield from (entry for entry in entries[:_ENTRIES] if isinstance(entry, Mapping))


def _signing_key(document: Mapping[str, Any], did: str) -> str | None:
    """Return the first `#atproto` key of this controller and a known type; a malformed one is no key, and hides later ones."""
    for entry in _entries(document, "verificationMethod"):
        if entry.get("id") not in ("#atproto", f"{did}#atproto") or entry.get("controller") != did:
            continue
        kind, text = entry.get("type"), entry.get("publicKeyMultibase")
        if not isinstance(kind, str) or not isinstance(text, str):
            continue
        try:
            if kind == "Multikey":
                parse_multikey(text)
                return text  # a point has one Multikey only: its first byte is not zero, so base58 spells it in one way
            if kind in _LEGACY_TYPES:
                return parse_legacy_key(_LEGACY_TYPES[kind], text).multikey
        except InvalidKey:
            return None
    return None


def _pds(document: Mapping[str, Any], did: str) -> str | None:
    for entry in _entries(document, "service"):
        if (
            entry.get("id") in ("#atproto_pds", f"{did}#atproto_pds")
            and entry.get("type") == "AtprotoPersonalDataServer"
        ):
            return parse_origin(entry.get("serviceEndpoint"))
    return None


def _handle(document: Mapping[str, Any]) -> str | None:
    names = document.get("alsoKnownAs")
    for name in names[:_ENTRIES] if isinstance(names, list) else ():
        if isinstance(name, str) and name.startswith("at://") and is_handle(name[5:]):
            return parse_handle(name[5:])
    return None
