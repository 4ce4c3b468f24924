from __future__ import annotations

import hashlib
import random

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from relay.simnet.keys import K256_ORDER, P256_ORDER, Curve, SigningKey, make_key, raised_s

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_CODEC = {Curve.K256: (b"\xe7\x01", ec.SECP256K1(), K256_ORDER), Curve.P256: (b"\x80\x24", ec.SECP256R1(), P256_ORDER)}


def _public(key: SigningKey) -> ec.EllipticCurvePublicKey:
    """Read the Multikey back with another library than the one that signs K-256."""
    number = 0
    for char in key.multikey[1:]:
        number = number * 58 + _BASE58.index(char)
    codec, curve, _ = _CODEC[key.curve]
    raw = number.to_bytes(35, "big")
    assert raw[:2] == codec
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, raw[2:])


def _verify(key: SigningKey, signature: bytes, message: bytes) -> None:
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    _public(key).verify(der, message, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("curve", list(Curve))
def test_signatures_verify_are_low_s_and_repeat(curve: Curve) -> None:
    for seed in range(40):
        key, again = make_key(random.Random(seed), curve), make_key(random.Random(seed), curve)
        message = hashlib.sha256(b"%d" % seed).digest()
        signature = key.sign(message)
        assert len(signature) == 64
        assert int.from_bytes(signature[32:], "big") <= _CODEC[curve][2] // 2
        assert again.multikey == key.multikey
        assert again.sign(message) == signature
        _verify(key, signature, message)


@pytest.mark.parametrize("curve", list(Curve))
def test_raised_s_is_the_other_valid_form(curve: Curve) -> None:
    key = make_key(random.Random(3), curve)
    raised = raised_s(key.sign(b"message"), curve)
    assert int.from_bytes(raised[32:], "big") > _CODEC[curve][2] // 2
    _verify(key, raised, b"message")
    with pytest.raises(InvalidSignature):
        _verify(key, raised, b"another message")


def test_multikeys_start_as_their_curve_does() -> None:
    assert make_key(random.Random(1), Curve.K256).multikey.startswith("zQ3s")
    assert make_key(random.Random(1), Curve.P256).multikey.startswith("zDn")
