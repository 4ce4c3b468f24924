"""The commit object, version 3: parse it, and restore the bytes that were signed. Source: PROTOCOL 2.2."""

from __future__ import annotations

from dataclasses import dataclass

from relay.atproto import cbor
from relay.atproto.cbor import Link
from relay.atproto.cid import is_dag_cbor_cid
from relay.atproto.errors import InvalidCbor, InvalidCommit, LimitExceeded, OldCommitVersion
from relay.atproto.keys import SIGNATURE_BYTES
from relay.atproto.limits import DEFAULT_LIMITS, Limits
from relay.atproto.syntax import Did, Rev, is_did, is_tid

_KEYS = ["did", "rev", "sig", "data", "prev", "version"]  # in canonical order, so as a decoded map lists them
# In the canonical map the signature is the third of six keys: this head stands before it, in this place alone.
_SIG_HEAD = b"\x63sig\x58\x40"
_MAP_OF_5 = b"\xa5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A signed commit. `data` and `prev` are CIDs (36 bytes); `unsigned` is what `sig` (64 bytes) signs."""

    did: Did
    rev: Rev
    data: bytes
    prev: bytes | None
    sig: bytes
    unsigned: bytes


def parse_commit(block: bytes | memoryview, *, limits: Limits = DEFAULT_LIMITS) -> Commit:
    """Return the commit that `block` is: exactly six keys, version 3, canonical, every field of its type and syntax.

    Whose commit it is, and whether the signature is right, is the caller's to check. Raises InvalidCommit, OldCommitVersion
    for versions 1 and 2, InvalidCbor or LimitExceeded.
    """
    raw = bytes(block)
    if len(raw) > cbor.FAST_BYTES:
        raise LimitExceeded(f"a commit of {len(raw):,} bytes: the limit is {cbor.FAST_BYTES:,}")
    try:
        fields, size = cbor.decode_fast(raw)
    except InvalidCbor:
        cbor.decode(raw, limits=limits)  # for the place
        raise
    if size != len(raw):
        raise InvalidCbor(f"{len(raw) - size:,} bytes behind the commit", at=size)
    if type(fields) is not dict:
        raise InvalidCommit("the commit is not a map")
    version = fields.get("version")
    if type(version) is int and version in (1, 2):
        raise OldCommitVersion(f"commit version {version}: only version 3 can be checked", at="version")
    if list(fields) != _KEYS:
        raise InvalidCommit(f"a commit has the keys {', '.join(sorted(_KEYS))}; here: {_shown(fields)}")
    did, rev, sig, data, prev = (fields[key] for key in _KEYS[:5])
    if type(version) is not int or version != 3:
        raise InvalidCommit("the version is not 3", at="version")
    if not is_did(did):
        raise InvalidCommit("did is not a DID", at="did")
    if not is_tid(rev):
        raise InvalidCommit("rev is not a TID", at="rev")
    if type(sig) is not bytes or len(sig) != SIGNATURE_BYTES:
        raise InvalidCommit(f"sig is not {SIGNATURE_BYTES} bytes", at="sig")
    if type(data) is not Link or not is_dag_cbor_cid(data.cid):
        raise InvalidCommit("data is not the link of a tree node", at="data")
    if prev is not None and type(prev) is not Link:
        raise InvalidCommit("prev is neither null nor a link", at="prev")
    return Commit(
        did=did,
        rev=rev,
        data=data.cid,
        prev=None if prev is None else prev.cid,
        sig=sig,
        unsigned=_without_sig(raw, did, rev),
    )


def _without_sig(raw: bytes, did: str, rev: str) -> bytes:
    """Cut the `sig` entry out of a canonical commit: the signed bytes, without decoding and encoding again.

    The entry begins where `did` and `rev` end, which are the first two: 1 byte of map head, then each key of 4 bytes and its
    text with head.
    """
    start = 1 + 4 + _text_size(did) + 4 + _text_size(rev)
    end = start + len(_SIG_HEAD) + SIGNATURE_BYTES
    return _MAP_OF_5 + raw[1:start] + raw[end:]


def _text_size(text: str) -> int:
    size = len(text)  # a DID and a TID are ASCII
    return size + (1 if size < 24 else 2 if size < 256 else 3)


def _shown(fields: dict[str, object]) -> str:
    shown = ", ".join(sorted(fields))
    return shown if len(shown) <= 100 else shown[:97] + "..."
