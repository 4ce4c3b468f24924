"""Makes repos for tests and benchmarks, valid and otherwise, with cbrrr's writer: shares no code with the reader it feeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cbrrr import CID, encode_dag_cbor
from coincurve import PrivateKey
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CID_PREFIX = b"\x01\x71\x12\x20"
DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
REV = "3kabcdefghi2k"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_ORDERS = {
    False: 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
    True: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
}

Block = tuple[bytes, bytes]  # CID, data


def cid_of(block: bytes) -> bytes:
    return CID_PREFIX + hashlib.sha256(block).digest()


def layer_of(key: bytes) -> int:
    return (256 - int.from_bytes(hashlib.sha256(key).digest(), "big").bit_length()) // 2


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def section(cid: bytes, data: bytes) -> bytes:
    return varint(len(cid) + len(data)) + cid + data


def write_car(roots: bytes | list[bytes], blocks: Iterable[Block]) -> bytes:
    """Return a CARv1 of these blocks, in this order."""
    listed = [roots] if isinstance(roots, bytes) else roots
    header = encode_dag_cbor({"version": 1, "roots": [CID(root) for root in listed]})
    return b"".join([varint(len(header)), header, *(section(cid, data) for cid, data in blocks)])


def node_block(left: bytes | None, entries: list[tuple[int, bytes, bytes, bytes | None]]) -> bytes:
    """Return a tree node: CID of the left subtree, and (prefix, suffix, CID of the record, CID of the subtree) of each entry."""
    return encode_dag_cbor(
        {
            "l": None if left is None else CID(left),
            "e": [
                {"p": prefix, "k": suffix, "v": CID(value), "t": None if tree is None else CID(tree)}
                for prefix, suffix, value, tree in entries
            ],
        }
    )


def build_tree(records: Mapping[bytes, bytes]) -> tuple[bytes, list[Block]]:
    """Return (root CID, tree nodes) of the tree over `records`: path -> CID."""
    keys = sorted(records)
    layers = [layer_of(key) for key in keys]
    nodes: list[Block] = []

    def add(left: bytes | None, entries: list[tuple[int, bytes, bytes, bytes | None]]) -> bytes:
        block = node_block(left, entries)
        nodes.append((cid_of(block), block))
        return nodes[-1][0]

    def subtree(start: int, stop: int, layer: int) -> bytes | None:
        """Return the CID of the node at `layer` over these keys, all of which lie at it or below."""
        if start == stop:
            return None
        places = [place for place in range(start, stop) if layers[place] == layer]
        if not places:
            return add(subtree(start, stop, layer - 1), [])
        left = subtree(start, places[0], layer - 1)
        entries: list[tuple[int, bytes, bytes, bytes | None]] = []
        before = b""
        for place, following in zip(places, [*places[1:], stop], strict=True):
            key = keys[place]
            prefix = 0
            while prefix < min(len(before), len(key)) and before[prefix] == key[prefix]:
                prefix += 1
            entries.append((prefix, key[prefix:], records[key], subtree(place + 1, following, layer - 1)))
            before = key
        return add(left, entries)

    root = subtree(0, len(keys), max(layers)) if keys else add(None, [])
    assert root is not None
    return root, nodes


def multikey(raw: bytes) -> str:
    value, digits = int.from_bytes(raw, "big"), ""
    while value:
        value, digit = divmod(value, 58)
        digits = _BASE58[digit] + digits
    return "z" + digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A key pair from a seed, on either curve."""

    seed: int = 1
    p256: bool = False

    @property
    def _secret(self) -> bytes:
        return hashlib.sha256(b"%d" % self.seed).digest()

    @property
    def multikey(self) -> str:
        if not self.p256:
            return multikey(b"\xe7\x01" + PrivateKey(self._secret).public_key.format())
        point = self._p256().public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        return multikey(b"\x80\x24" + point)

    def _p256(self) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(int.from_bytes(self._secret, "big") % _ORDERS[True], ec.SECP256R1())

    def sign(self, message: bytes, *, high_s: bool = False) -> bytes:
        """Return 64 bytes of r and s, s in the lower half unless `high_s`."""
        if self.p256:
            r, s = utils.decode_dss_signature(self._p256().sign(message, ec.ECDSA(hashes.SHA256())))
        else:
            signature = PrivateKey(self._secret).sign_recoverable(message)[:64]
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        order = _ORDERS[self.p256]
        s = max(s, order - s) if high_s else min(s, order - s)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def commit_block(
    data: bytes, *, did: str = DID, rev: str = REV, signer: Signer | None = None, high_s: bool = False, version: int = 3
) -> bytes:
    """Return a signed commit of the tree under `data`."""
    unsigned: dict[str, Any] = {"did": did, "version": version, "data": CID(data), "rev": rev, "prev": None}
    sig = (signer or Signer()).sign(encode_dag_cbor(unsigned), high_s=high_s)
    return encode_dag_cbor({**unsigned, "sig": sig})


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeRepo:
    """A repo's blocks, to be put into a CAR in any order: commit, tree nodes, records."""

    key: str
    commit: Block
    data: bytes
    nodes: list[Block]
    records: dict[bytes, bytes] = field(repr=False)  # path -> DAG-CBOR

    @property
    def blocks(self) -> list[Block]:
        return [self.commit, *self.nodes, *((cid_of(block), block) for block in self.records.values())]

    @property
    def car(self) -> bytes:
        return write_car(self.commit[0], self.blocks)


def make_repo(
    records: Mapping[bytes, bytes], *, signer: Signer | None = None, did: str = DID, rev: str = REV
) -> MadeRepo:
    """Return the repo of these records: path -> DAG-CBOR."""
    signer = signer or Signer()
    data, nodes = build_tree({path: cid_of(block) for path, block in records.items()})
    commit = commit_block(data, did=did, rev=rev, signer=signer)
    return MadeRepo(key=signer.multikey, commit=(cid_of(commit), commit), data=data, nodes=nodes, records=dict(records))


def make_records(paths: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return a small record for each path, no two alike."""
    return {path: encode_dag_cbor({"$type": path.decode().split("/")[0], "text": path.decode()}) for path in paths}
