"""Public keys and signatures: ECDSA on secp256k1 (K-256) and P-256, over SHA-256, 64 bytes r || s, low S on both.

Keys come as Multikey (`z...`), as `did:key:z...`, or in the two key types of 2019 that old DID documents have.
Source: PROTOCOL 4; vectors: atproto-interop-tests/crypto, wycheproof.
"""

from __future__ import annotations

import enum
from typing import Final

import coincurve
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.atproto.errors import InvalidKey

SIGNATURE_BYTES: Final = 64
POINT_BYTES: Final = 33  # a compressed point; uncompressed it has 65
_KEY_CHARS: Final = 128  # a Multikey has 49, an uncompressed legacy key 88

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUE: Final = {char: value for value, char in enumerate(_BASE58)}


class Curve(enum.StrEnum):
    """The two curves of AT Protocol."""

    K256 = "k256"
    P256 = "p256"


_MULTICODEC: Final = {Curve.P256: b"\x80\x24", Curve.K256: b"\xe7\x01"}
_ORDER: Final = {
    Curve.P256: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    Curve.K256: 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
}
_ZERO: Final = bytes(32)
_ORDER_BYTES: Final = {curve: order.to_bytes(32, "big") for curve, order in _ORDER.items()}
_HALF_ORDER_BYTES: Final = {curve: (order // 2).to_bytes(32, "big") for curve, order in _ORDER.items()}
_ECDSA: Final = ec.ECDSA(SHA256())


class PublicKey:
    """A parsed public key. Made by `parse_multikey` and its like; parsing costs 5 us (K-256) to 20 us (P-256): keep it.

    Equal to another of the same curve and point. Not to be sent between processes: send `multikey`.
    """

    __slots__ = ("_key", "curve", "point")

    def __init__(self, curve: Curve, point: bytes) -> None:
        """`point`: 33 bytes compressed or 65 uncompressed. Raises InvalidKey unless it is a point of the curve."""
        compressed = len(point) == POINT_BYTES and point[0] in (2, 3)
        if not compressed and not (len(point) == 65 and point[0] == 4):
            raise InvalidKey(f"a {curve} key is a point of 33 or 65 bytes, not these {len(point)}")
        self.curve = curve
        self._key: coincurve.PublicKey | ec.EllipticCurvePublicKey
        try:
            if curve is Curve.K256:
                self._key = coincurve.PublicKey(point)
                self.point = point if compressed else self._key.format(compressed=True)
            else:
                self._key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
                self.point = point
                if not compressed:
                    self.point = self._key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        except ValueError as exc:
            raise InvalidKey(f"not a point of {curve}") from exc

    @property
    def multikey(self) -> str:
        """The key as Multikey, `z...`: the one form in which keys are stored and travel."""
        return "z" + _base58_encode(_MULTICODEC[self.curve] + self.point)

    @property
    def did_key(self) -> str:
        """The key as `did:key:z...`."""
        return "did:key:" + self.multikey

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Say whether `signature` (64 bytes r || s, low S) is this key's over SHA-256 of `message`.

        27 us for K-256, 50 us for P-256. False for anything malformed: wrong length, DER, zero, r or s not below the order,
        high S. Raises nothing.
        """
        r, s = signature[:32], signature[32:]
        curve = self.curve
        if len(signature) != SIGNATURE_BYTES or not (
            # As bytes of equal length compare like the numbers that they are.
            _ZERO < r < _ORDER_BYTES[curve] and _ZERO < s <= _HALF_ORDER_BYTES[curve]
        ):
            return False
        der = _der(r, s)
        if isinstance(self._key, coincurve.PublicKey):
            return bool(self._key.verify(der, message))
        try:
            self._key.verify(der, message, _ECDSA)
        except InvalidSignature:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.curve is other.curve and self.point == other.point

    def __hash__(self) -> int:
        return hash((self.curve, self.point))

    def __repr__(self) -> str:
        return f"PublicKey({self.did_key})"


def parse_multikey(text: str) -> PublicKey:
    """Return the key of a Multikey (`z` + base58btc of multicodec prefix and compressed point). Raises InvalidKey."""
    raw = _base58_decode(text)
    for curve, prefix in _MULTICODEC.items():
        if raw.startswith(prefix) and len(raw) == len(prefix) + POINT_BYTES:
            return PublicKey(curve, raw[len(prefix) :])
    raise InvalidKey(f"not a Multikey of a supported curve: {text[:60]!r}")


def parse_did_key(text: str) -> PublicKey:
    """Return the key of a `did:key:z...`. Raises InvalidKey."""
    if not text.startswith("did:key:"):
        raise InvalidKey(f"not a did:key: {text[:60]!r}")
    return parse_multikey(text.removeprefix("did:key:"))


def parse_legacy_key(curve: Curve, text: str) -> PublicKey:
    """Return the key of a verification method of 2019: `z` + base58btc of the bare point, 33 or 65 bytes; the type names the curve."""
    return PublicKey(curve, _base58_decode(text))


def _der(r: bytes, s: bytes) -> bytes:
    """Return the DER form of r and s, which both curves' libraries want: shortest integers with a clear sign bit."""
    r, s = r.lstrip(b"\0"), s.lstrip(b"\0")
    if r[0] & 0x80:
        r = b"\0" + r
    if s[0] & 0x80:
        s = b"\0" + s
    return b"\x30%c\x02%c%b\x02%c%b" % (len(r) + len(s) + 4, len(r), r, len(s), s)


def _base58_decode(text: str) -> bytes:
    if not text.startswith("z") or len(text) > _KEY_CHARS:
        raise InvalidKey(f"a key begins with z and has at most {_KEY_CHARS} characters: {text[:60]!r}")
    digits = text[1:]
    value = 0
    try:
        for char in digits:
            value = value * 58 + _BASE58_VALUE[char]
    except KeyError as exc:
        raise InvalidKey(f"{exc.args[0]!r} is not base58: {text[:60]!r}") from None
    zeros = len(digits) - len(digits.lstrip("1"))
    return bytes(zeros) + value.to_bytes((value.bit_length() + 7) // 8, "big")


def _base58_encode(raw: bytes) -> str:
    value = int.from_bytes(raw, "big")
    digits: list[str] = []
    while value:
        value, digit = divmod(value, 58)
        digits.append(_BASE58[digit])
    zeros = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))
