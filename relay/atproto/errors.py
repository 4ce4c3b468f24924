"""What can be wrong with bytes and texts of the AT Protocol, as one tree.

AtprotoError (.reason, .at)
├── InvalidSyntax         an identifier (DID, handle, NSID, record key, TID, AT-URI, datetime, CID text, filter pattern)
├── InvalidKey            a public key that is no point of a supported curve, or not in a supported form
├── InvalidDidDocument    not a DID document of the DID that was asked for
├── InvalidCbor           not canonical DAG-CBOR
├── NotJson               valid or not, JSON cannot carry this record exactly
├── InvalidCar            not a CARv1
│   ├── MissingBlock      a node or record that is needed is not in the CAR (cut in transport, or partial on purpose)
│   └── WrongHash         a block is not what its CID says
├── InvalidMst            a tree that breaks a rule of the specification
├── InvalidProof          operations of a live commit that its tree does not bear out
│   ├── PartialTree       a node that the operations need did not come along
│   └── WrongPrevData     undone, the operations do not lead to the tree that the message names
├── InvalidCommit         a commit object that breaks a rule
│   ├── CommitMismatch    a message says something else than the signed commit in it
│   ├── FutureRev         a rev from too far in the future
│   ├── OldCommitVersion  version 2 or older: nothing that today's network can check
│   └── WrongDid          a valid commit, but of another account
├── BadSignature          well-formed, but not signed by this key (or with a high S)
├── InvalidFrame          bytes of the event stream that cannot be read: the connection is at fault
├── InvalidMessage        a frame that can be read, but whose content breaks a rule: its producer is at fault
└── LimitExceeded         over a limit of `Limits`
    └── RecordTooLarge    one record over `record_bytes`

`reason` is a short word from this closed set: metric label, and what `status` shows for a repo. `at` is the place: a byte
offset, a path, or a CID as text.
"""

from __future__ import annotations


class AtprotoError(Exception):
    """Base of everything that this room raises on purpose. `at`: byte offset (int), path or CID (str), or None."""

    reason: str = "atproto"

    def __init__(self, message: str, *, at: int | str | None = None) -> None:
        super().__init__(message)
        self.at = at

    def __str__(self) -> str:
        text = super().__str__()
        if self.at is None:
            return text
        return f"{text} (at byte {self.at:,})" if isinstance(self.at, int) else f"{text} (at {self.at})"


class InvalidSyntax(AtprotoError):
    """A text that does not follow the grammar of the identifier that it should be."""

    reason = "invalid_syntax"


class InvalidKey(AtprotoError):
    """A public key that cannot be used."""

    reason = "invalid_key"


class InvalidDidDocument(AtprotoError):
    """A DID document that cannot be read, or that is another DID's."""

    reason = "invalid_did_document"


class InvalidCbor(AtprotoError):
    """Bytes that are not canonical DAG-CBOR as AT Protocol allows it."""

    reason = "invalid_cbor"


class NotJson(AtprotoError):
    """A record that AT Protocol JSON cannot carry so that the same bytes come back."""

    reason = "not_json"


class InvalidCar(AtprotoError):
    """Bytes that are not a CARv1 with one commit as root."""

    reason = "invalid_car"


class MissingBlock(InvalidCar):
    """A block that the tree needs is not in the CAR; `at` is its CID. A transport fault: fetching again may help."""

    reason = "missing_block"


class WrongHash(InvalidCar):
    """A block whose bytes do not hash to its CID."""

    reason = "wrong_hash"


class InvalidMst(AtprotoError):
    """A Merkle search tree that breaks a rule of the repository specification."""

    reason = "invalid_mst"


class InvalidProof(AtprotoError):
    """Operations that contradict the tree which should be their result; `at` is a path, or a CID."""

    reason = "invalid_proof"


class PartialTree(InvalidProof):
    """A tree node that undoing the operations needs is not among the blocks; `at` is its CID."""

    reason = "partial_tree"


class WrongPrevData(InvalidProof):
    """The operations, undone, lead to another tree than the one that the message says was before."""

    reason = "wrong_prev_data"


class InvalidCommit(AtprotoError):
    """A commit object that breaks a rule of the repository specification."""

    reason = "invalid_commit"


class CommitMismatch(InvalidCommit):
    """A message whose claims (rev, CID of the commit) are not those of the commit that it carries."""

    reason = "commit_mismatch"


class FutureRev(InvalidCommit):
    """A rev whose time is more than some minutes ahead of ours."""

    reason = "future_rev"


class OldCommitVersion(InvalidCommit):
    """A commit of a version before 3."""

    reason = "old_commit_version"


class WrongDid(InvalidCommit):
    """A commit that names another account than the one asked for."""

    reason = "wrong_did"


class BadSignature(AtprotoError):
    """A signature that the account's key did not make, or one with a high S."""

    reason = "bad_signature"


class InvalidFrame(AtprotoError):
    """A message of the event stream that is not two canonical CBOR items, or has no usable header."""

    reason = "invalid_frame"


class InvalidMessage(AtprotoError):
    """A readable frame whose payload breaks a rule. What could be read of it: `kind`, `seq`, `did`, `rev` (else None)."""

    reason = "invalid_message"

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        seq: int | None = None,
        did: str | None = None,
        rev: str | None = None,
        at: int | str | None = None,
    ) -> None:
        super().__init__(message, at=at)
        self.kind, self.seq, self.did, self.rev = kind, seq, did, rev

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_invalid_message, (self.args[0], self.kind, self.seq, self.did, self.rev, self.at)


def _rebuild_invalid_message(
    message: str, kind: str, seq: int | None, did: str | None, rev: str | None, at: int | str | None
) -> InvalidMessage:
    return InvalidMessage(message, kind=kind, seq=seq, did=did, rev=rev, at=at)


class LimitExceeded(AtprotoError):
    """Input over a limit; the message names the limit and its value."""

    reason = "limit_exceeded"


class RecordTooLarge(LimitExceeded):
    """One record block over `Limits.record_bytes`."""

    reason = "record_too_large"
