"""The judge: does an ingester's database equal the network, record by record?

`compare` for a made-up world, `compare_digests` for a corpus with golden answers. Neither knows what the relay thinks of itself.
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from relay.simnet.delivered import Delivered, is_wanted
from relay.simnet.world import AccountTruth

_SHOWN = 20


class DifferenceKind(enum.StrEnum):
    MISSING = "missing"  # a record of the network that the ingester lacks
    EXTRA = "extra"  # a record that the network does not have (any more)
    WRONG_CID = "wrong_cid"  # another version of it
    ALTERED = "altered"  # what is stored does not hash to its CID
    REFUSED = "refused"  # over the protocol's size, and delivered nevertheless
    STATUS = "status"  # the account's status
    IDENTITY = "identity"  # its handle or PDS
    REV_AHEAD = "rev_ahead"  # a rev that the network never had
    STRANGER = "stranger"  # a DID that the network does not know
    DIGEST = "digest"  # the records as a whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing in which database and network differ. `path` is empty when it concerns the whole account."""

    kind: DifferenceKind
    did: str
    path: str = ""
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        place = f"{self.did}/{self.path}" if self.path else self.did
        return f"{self.kind:9} {place}: expected {self.expected or 'nothing'}, found {self.found or 'nothing'}"


def compare(
    truth: Iterable[AccountTruth],
    delivered: Mapping[str, Delivered],
    *,
    patterns: Sequence[str] = (),
    targets: Collection[str] | None = None,
    live: bool = False,
) -> list[Difference]:
    """Return every difference, in the order of the accounts; an empty list: they agree.

    `patterns`: the collections that were wanted (none: all). `targets`: the DIDs that were asked for (None: all); of others
    nothing may be there. Of an account that is inactive, but not deleted, an ingester may hold what it was before: only its
    status is compared. A deleted one that the ingester never heard of is right as well.

    `live`: the firehose was followed to its end. Then a deletion must have been told of every DID of which anything was ever
    delivered, and a handle and a PDS that were told are the present ones.
    """
    differences: list[Difference] = []
    known: set[str] = set()
    for account in truth:
        known.add(account.did)
        found = delivered.get(account.did) or Delivered(did=account.did)
        if targets is not None and account.did not in targets:
            differences += _records(account.did, {}, found, frozenset())
            continue
        differences += _account(account, found, patterns)
        if live and account.did in delivered:
            differences += _live(account, found)
    for did in delivered.keys() - known:
        differences.append(
            Difference(kind=DifferenceKind.STRANGER, did=did, found=f"{len(delivered[did].records)} records")
        )
    return differences


def _account(account: AccountTruth, found: Delivered, patterns: Sequence[str]) -> list[Difference]:
    differences: list[Difference] = []
    told = "" if found.active else found.status or "inactive"
    if account.status == "deleted":
        if told not in ("", "deleted"):
            differences.append(Difference(kind=DifferenceKind.STATUS, did=account.did, expected="deleted", found=told))
        return differences + _records(account.did, {}, found, frozenset())
    if told != account.status:
        expected = account.status or "active"
        differences.append(
            Difference(kind=DifferenceKind.STATUS, did=account.did, expected=expected, found=told or "active")
        )
    if found.rev > account.rev:
        differences.append(
            Difference(kind=DifferenceKind.REV_AHEAD, did=account.did, expected=account.rev, found=found.rev)
        )
    if account.status:
        return differences
    verdicts: dict[str, bool] = {}
    wanted: dict[str, str] = {}
    for path, cid in account.records.items():
        collection = path.partition("/")[0]
        if collection not in verdicts:
            verdicts[collection] = is_wanted(collection, patterns)
        if verdicts[collection]:
            wanted[path] = cid
    return differences + _records(account.did, wanted, found, account.refused)


def _live(account: AccountTruth, found: Delivered) -> list[Difference]:
    differences: list[Difference] = []
    if account.status == "deleted":
        if found.active and found.rev:
            differences.append(
                Difference(kind=DifferenceKind.STATUS, did=account.did, expected="deleted", found="active")
            )
        return differences
    for expected, held in ((account.handle, found.handle), (account.pds, found.pds)):
        if held and held != expected:
            differences.append(Difference(kind=DifferenceKind.IDENTITY, did=account.did, expected=expected, found=held))
    return differences


def _records(did: str, wanted: Mapping[str, str], found: Delivered, refused: frozenset[str]) -> list[Difference]:
    differences: list[Difference] = []
    if wanted.keys() != found.records.keys() or refused:
        for path in sorted(wanted.keys() - found.records.keys() - refused):
            differences.append(Difference(kind=DifferenceKind.MISSING, did=did, path=path, expected=wanted[path]))
        for path in sorted(found.records.keys() - wanted.keys()):
            differences.append(Difference(kind=DifferenceKind.EXTRA, did=did, path=path, found=found.records[path]))
        for path in sorted(found.records.keys() & refused & wanted.keys()):
            differences.append(Difference(kind=DifferenceKind.REFUSED, did=did, path=path, found=found.records[path]))
    for path, cid in wanted.items():
        held = found.records.get(path)
        if held is not None and held != cid:
            differences.append(Difference(kind=DifferenceKind.WRONG_CID, did=did, path=path, expected=cid, found=held))
    for path in sorted(found.altered):
        told = found.records[path]
        differences.append(
            Difference(kind=DifferenceKind.ALTERED, did=did, path=path, expected=told, found="other content")
        )
    return differences


def compare_digests(expected: Mapping[str, str], delivered: Mapping[str, Delivered]) -> list[Difference]:
    """Compare by digest: every DID of `expected` has just its records, and no other DID has any.

    A DID whose digest is that of nothing may be absent.
    """
    differences: list[Difference] = []
    for did in sorted(expected.keys() | delivered.keys()):
        found = delivered.get(did) or Delivered(did=did)
        digest = records_digest(found.records)
        if did not in expected:
            if found.records:
                differences += _records(did, {}, found, frozenset())
            continue
        if digest != expected[did]:
            text = f"{digest} of {len(found.records)} records"
            differences.append(Difference(kind=DifferenceKind.DIGEST, did=did, expected=expected[did], found=text))
        differences += [
            Difference(
                kind=DifferenceKind.ALTERED, did=did, path=path, expected=found.records[path], found="other content"
            )
            for path in sorted(found.altered)
        ]
    return differences


def records_digest(records: Mapping[str, str]) -> str:
    """Return the sha256 over the lines `collection/rkey cid\\n`, sorted by bytes."""
    lines = sorted(f"{path} {cid}\n".encode() for path, cid in records.items())
    return hashlib.sha256(b"".join(lines)).hexdigest()


def report(differences: Sequence[Difference], *, shown: int = _SHOWN) -> str:
    """Return the verdict for people: counts by kind, accounts concerned, and the first few differences."""
    if not differences:
        return "network and database agree"
    counts = Counter(difference.kind.value for difference in differences)
    accounts = len({difference.did for difference in differences})
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    lines = [f"{len(differences)} differences in {accounts} accounts: {summary}"]
    lines += [f"  {difference}" for difference in differences[:shown]]
    if len(differences) > shown:
        lines.append(f"  ... and {len(differences) - shown} more")
    return "\n".join(lines)
