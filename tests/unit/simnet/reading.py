"""A reader of exports for these tests, of libipld and cbrrr alone: hashes every block and walks the tree by the book."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import cbrrr
import libipld
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from relay.simnet.keys import K256_ORDER, P256_ORDER
from tests.support.data import plain_sections

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What a CAR says. `missing`: CIDs that the tree names and the CAR lacks; `corrupt`: blocks that are not their CID."""

    commit: dict[str, Any] | None
    records: dict[str, bytes]
    missing: set[bytes]
    corrupt: set[bytes]
    order: list[bytes]


def read_export(car: bytes) -> Export:
    header_size = car[0]
    root = libipld.decode_dag_cbor(car[1 : 1 + header_size])["roots"][0]
    pairs = list(plain_sections(car))
    blocks = dict(pairs)
    corrupt = {cid for cid, block in pairs if hashlib.sha256(block).digest() != cid[4:]}
    if root not in blocks:
        return Export(commit=None, records={}, missing={root}, corrupt=corrupt, order=[cid for cid, _ in pairs])
    commit: Any = cbrrr.decode_dag_cbor(blocks[root])
    records: dict[str, bytes] = {}
    missing: set[bytes] = set()

    def walk(cid: bytes) -> None:
        if cid not in blocks:
            missing.add(cid)
            return
        node, key = libipld.decode_dag_cbor(blocks[cid]), b""
        if node["l"] is not None:
            walk(node["l"])
        for entry in node["e"]:
            key = key[: entry["p"]] + entry["k"]
            records[key.decode()] = entry["v"]
            if entry["v"] not in blocks:
                missing.add(entry["v"])
            if entry["t"] is not None:
                walk(entry["t"])

    walk(commit["data"].cid_bytes)
    return Export(commit=commit, records=records, missing=missing, corrupt=corrupt, order=[cid for cid, _ in pairs])


def signature_is_good(commit: dict[str, Any], multikey: str) -> bool:
    """Whether the key signed this commit, with a low S."""
    number = 0
    for char in multikey[1:]:
        number = number * 58 + _BASE58.index(char)
    raw = number.to_bytes(35, "big")
    curve, order = (ec.SECP256K1(), K256_ORDER) if raw[0] == 0xE7 else (ec.SECP256R1(), P256_ORDER)
    unsigned = cbrrr.encode_dag_cbor({key: value for key, value in commit.items() if key != "sig"})
    r, s = int.from_bytes(commit["sig"][:32], "big"), int.from_bytes(commit["sig"][32:], "big")
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(curve, raw[2:])
        public.verify(encode_dss_signature(r, s), unsigned, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return s <= order // 2
