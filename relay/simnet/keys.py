"""Signing keys of accounts on both curves: K-256 through libsecp256k1, P-256 through OpenSSL. Signatures are repeatable."""

from __future__ import annotations

import enum
import hashlib
import random
from typing import Protocol

from coincurve import PrivateKey
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Curve(enum.StrEnum):
    K256 = "k256"
    P256 = "p256"


class SigningKey(Protocol):
    """What an account signs its commits with. `multikey` is the public half as a DID document has it (`z...`)."""

    curve: Curve
    multikey: str

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte low-S signature (r, s) over the SHA-256 of `message`; always the same one."""


class K256Key:
    """A secp256k1 key. libsecp256k1 gives low-S signatures, with the nonce of RFC 6979."""

    curve = Curve.K256

    def __init__(self, secret: bytes) -> None:
        self._key = PrivateKey(secret)
        self.multikey = _multikey(b"\xe7\x01", self._key.public_key.format())

    def sign(self, message: bytes) -> bytes:
        signature: bytes = self._key.sign_recoverable(message)
        return signature[:64]


class P256Key:
    """A P-256 key. OpenSSL gives either half of the S range: the high half is folded down."""

    curve = Curve.P256
    _algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)

    def __init__(self, secret: bytes) -> None:
        number = int.from_bytes(hashlib.sha256(secret).digest(), "big") % (P256_ORDER - 1) + 1
        self._key = ec.derive_private_key(number, ec.SECP256R1())
        point = self._key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )
        self.multikey = _multikey(b"\x80\x24", point)

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(self._key.sign(message, self._algorithm))
        return r.to_bytes(32, "big") + min(s, P256_ORDER - s).to_bytes(32, "big")


def make_key(rng: random.Random, curve: Curve) -> SigningKey:
    """Return the next key of a seeded source."""
    secret = rng.randbytes(32)
    return K256Key(secret) if curve is Curve.K256 else P256Key(secret)


def raised_s(signature: bytes, curve: Curve) -> bytes:
    """Return the other valid form of a low-S signature, with S in the upper half: what AT Protocol forbids."""
    order = K256_ORDER if curve is Curve.K256 else P256_ORDER
    return signature[:32] + (order - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")


def _multikey(codec: bytes, point: bytes) -> str:
    number = int.from_bytes(codec + point, "big")  # the codec's first byte is not zero: no leading "1"
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return "z" + text
