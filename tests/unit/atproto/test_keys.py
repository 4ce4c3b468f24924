from __future__ import annotations

import functools

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto.errors import InvalidKey
from relay.atproto.keys import Curve, PublicKey, parse_did_key, parse_legacy_key, parse_multikey
from relay.atproto.keys import _base58_decode as base58_decode
from relay.atproto.keys import _base58_encode as base58_encode

ORDERS = {
    Curve.K256: 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
    Curve.P256: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
}
CURVES = st.sampled_from(list(Curve))


@functools.cache
def _private(curve: Curve, number: int = 7) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(number, ec.SECP256K1() if curve is Curve.K256 else ec.SECP256R1())


def _point(curve: Curve, number: int = 7, form: PublicFormat = PublicFormat.CompressedPoint) -> bytes:
    return _private(curve, number).public_key().public_bytes(Encoding.X962, form)


def _sign(curve: Curve, message: bytes, number: int = 7) -> tuple[int, int]:
    """Sign with another implementation; s is low."""
    r, s = decode_dss_signature(_private(curve, number).sign(message, ec.ECDSA(hashes.SHA256())))
    return r, min(s, ORDERS[curve] - s)


def _raw(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@given(CURVES, st.integers(1, 2**200), st.binary(max_size=100))
def test_a_signature_of_another_implementation_verifies(curve: Curve, number: int, message: bytes) -> None:
    key = PublicKey(curve, _point(curve, number))
    signature = _raw(*_sign(curve, message, number))
    assert key.verify(message, signature)
    assert not key.verify(message + b"x", signature)
    assert not PublicKey(curve, _point(curve, number + 1)).verify(message, signature)


@pytest.mark.parametrize("curve", Curve)
def test_a_high_s_is_refused_on_both_curves(curve: Curve) -> None:
    key, order = PublicKey(curve, _point(curve)), ORDERS[curve]
    for message in (b"a", b"b", b"c", b"d"):
        r, s = _sign(curve, message)
        assert key.verify(message, _raw(r, s))
        assert not key.verify(message, _raw(r, order - s))


@pytest.mark.parametrize("curve", Curve)
def test_malformed_signatures_are_false_and_no_error(curve: Curve) -> None:
    key, order = PublicKey(curve, _point(curve)), ORDERS[curve]
    r, s = _sign(curve, b"m")
    der = _private(curve).sign(b"m", ec.ECDSA(hashes.SHA256()))
    for signature in (
        b"",
        der,
        _raw(r, s)[:-1],
        _raw(r, s) + b"\0",
        bytes(64),
        _raw(0, s),
        _raw(r, 0),
        _raw(order, s),
        _raw(r, order),
        _raw(2**256 - 1, s),
        _raw(r, 2**256 - 1),
    ):
        assert not key.verify(b"m", signature)


@given(CURVES, st.integers(1, 2**200))
def test_every_form_of_a_key_gives_the_same_key(curve: Curve, number: int) -> None:
    key = PublicKey(curve, _point(curve, number))
    uncompressed = _point(curve, number, PublicFormat.UncompressedPoint)
    assert parse_multikey(key.multikey) == key
    assert parse_did_key(key.did_key) == key
    assert parse_legacy_key(curve, "z" + base58_encode(uncompressed)) == key
    assert parse_legacy_key(curve, "z" + base58_encode(key.point)) == key
    assert key.did_key.startswith("did:key:zQ3s" if curve is Curve.K256 else "did:key:zDn")
    assert len({key, PublicKey(curve, uncompressed)}) == 1


def test_the_same_point_bytes_on_two_curves_are_two_keys() -> None:
    point = _point(Curve.K256)
    try:
        other = PublicKey(Curve.P256, point)
    except InvalidKey:
        return
    assert other != PublicKey(Curve.K256, point)


@given(st.binary(max_size=70))
def test_base58_comes_back(raw: bytes) -> None:
    assert base58_decode("z" + base58_encode(raw)) == raw


@pytest.mark.parametrize("curve", Curve)
@pytest.mark.parametrize(
    "point",
    [
        b"",
        b"\x02" + b"\xff" * 32,  # no x of a point
        b"\x05" + bytes(32),
        b"\x00" * 33,
        b"\x04" + bytes(64),
        b"\x04" + b"\x01" * 64,  # not on the curve
    ],
)
def test_what_is_no_point_is_refused(curve: Curve, point: bytes) -> None:
    with pytest.raises(InvalidKey):
        PublicKey(curve, point)


def test_hybrid_points_are_refused() -> None:
    uncompressed = _point(Curve.K256, form=PublicFormat.UncompressedPoint)
    hybrid = bytes([6 + (uncompressed[-1] & 1)]) + uncompressed[1:]
    with pytest.raises(InvalidKey):
        PublicKey(Curve.K256, hybrid)


def test_keys_of_other_kinds_are_refused() -> None:
    ed25519 = "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"
    private = "z" + base58_encode(b"\x81\x26" + bytes(31) + b"\x01")
    two_points = "z" + base58_encode(b"\xe7\x01" + _point(Curve.K256) + b"\0")
    for text in ("", "z", "Q3s", "z0", "zO", "zé", "z" + "1" * 500, ed25519, private, two_points):
        with pytest.raises(InvalidKey):
            parse_multikey(text)
    with pytest.raises(InvalidKey):
        parse_did_key(PublicKey(Curve.K256, _point(Curve.K256)).multikey)


@given(st.one_of(st.text(max_size=60), st.text("zQ3shDn123456789abc", max_size=60).map(lambda text: "z" + text)))
def test_any_text_is_a_key_or_a_typed_error(text: str) -> None:
    for parse in (parse_multikey, parse_did_key, lambda t: parse_legacy_key(Curve.P256, t)):
        try:
            parse(text)
        except InvalidKey:
            continue


@pytest.mark.parametrize("curve", Curve)
@pytest.mark.parametrize("number", range(1, 20))
def test_a_key_has_one_multikey(curve: Curve, number: int) -> None:
    """So a text that parses may be kept as it is."""
    text = PublicKey(curve, _point(curve, number)).multikey
    assert parse_multikey(text).multikey == text
    for other in ("z1" + text[1:], "z" + text, text + "1", text + " ", " " + text, text.upper()):
        with pytest.raises(InvalidKey):
            parse_multikey(other)
