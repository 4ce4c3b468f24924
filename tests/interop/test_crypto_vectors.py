"""atproto-interop-tests/crypto and wycheproof: signatures and keys of other implementations."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.atproto.errors import InvalidKey
from relay.atproto.keys import Curve, PublicKey, parse_did_key, parse_legacy_key
from relay.atproto.keys import _base58_decode as base58_decode
from tests.support.data import data_json, needs_data

pytestmark = needs_data

FOLDER = "bluesky-social/atproto-interop-tests/crypto/"
WYCHEPROOF = "C2SP/wycheproof/testvectors_v1/ecdsa_secp256k1_sha256_p1363_test.json"
CURVES = {"ES256": Curve.P256, "ES256K": Curve.K256}
K256_HALF_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 // 2


def _base64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


def test_signature_fixtures() -> None:
    fixtures = data_json(FOLDER + "signature-fixtures.json")
    assert {fixture["validSignature"] for fixture in fixtures} == {True, False}
    for fixture in fixtures:
        key = parse_did_key(fixture["publicKeyDid"])
        assert key.curve is CURVES[fixture["algorithm"]]
        assert parse_legacy_key(key.curve, fixture["publicKeyMultibase"]) == key
        message, signature = _base64(fixture["messageBase64"]), _base64(fixture["signatureBase64"])
        assert key.verify(message, signature) is fixture["validSignature"], fixture["comment"]


@pytest.mark.parametrize("curve", Curve)
def test_did_keys_of_private_keys(curve: Curve) -> None:
    for fixture in data_json(f"{FOLDER}w3c_didkey_{'K256' if curve is Curve.K256 else 'P256'}.json"):
        if "privateKeyBytesHex" in fixture:
            secret = bytes.fromhex(fixture["privateKeyBytesHex"])
        else:
            secret = base58_decode("z" + fixture["privateKeyBytesBase58"])
        private = ec.derive_private_key(
            int.from_bytes(secret, "big"), ec.SECP256K1() if curve is Curve.K256 else ec.SECP256R1()
        )
        point = private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        assert PublicKey(curve, point).did_key == fixture["publicDidKey"]
        assert parse_did_key(fixture["publicDidKey"]).point == point


def test_wycheproof_with_the_low_s_rule_on_top() -> None:
    outcomes = {True: 0, False: 0}
    for group in data_json(WYCHEPROOF)["testGroups"]:
        try:
            key = PublicKey(Curve.K256, bytes.fromhex(group["publicKey"]["uncompressed"]))
        except InvalidKey:
            assert all(test["result"] == "invalid" for test in group["tests"])
            continue
        for test in group["tests"]:
            signature = bytes.fromhex(test["sig"])
            low = int.from_bytes(signature[32:], "big") <= K256_HALF_ORDER
            want = test["result"] == "valid" and low
            assert key.verify(bytes.fromhex(test["msg"]), signature) is want, test["comment"]
            outcomes[want] += 1
    assert outcomes[True] > 50
    assert outcomes[False] > 50
