"""Real repositories instead of made-up ones: serves CAR files of a data folder as they are, with DID documents made from their keys.

The folder holds the CARs and an `expected.json` (the golden answers: DID, rev, commit, signature keys, digest of the records).
CARs that are no repo at all are served as the repo of a DID made from their name, so that a reader meets them as it would meet
them in the wild: as somebody's answer to getRepo.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.simnet.keys import K256Key
from relay.simnet.views import Document

_ABSENT_CID = "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticCar:
    """One CAR file. `acceptable`: a complete export, commit version 3, low-S: a relay must sync it, and refuse every other.

    `digest`: sha256 over the sorted lines `collection/rkey cid`, empty when it is not known. `keys`: Multikeys of which one
    made the signature (or all could have); empty when none is known.
    """

    name: str
    did: str
    path: Path
    rev: str
    head: str
    acceptable: bool
    keys: tuple[str, ...]
    digest: str
    records: int
    collections: frozenset[str]


@dataclass(slots=True, kw_only=True)
class StaticAccount:
    """An account of which one or more exports exist, in the order of their revs; `serving` chooses one."""

    did: str
    handle: str
    host: int
    multikey: str
    cars: tuple[StaticCar, ...]
    serving: int = 0
    status: str = ""
    tombstoned: bool = False
    pds_override: str | None = None
    past_documents: list[Document] = field(default_factory=list)

    @property
    def current(self) -> StaticCar:
        return self.cars[self.serving]

    @property
    def rev(self) -> str:
        return self.current.rev

    @property
    def head(self) -> str:
        return self.current.head

    def collections(self) -> frozenset[str]:
        return self.current.collections

    def car(self) -> bytes:
        return self.current.path.read_bytes()


class Corpus:
    """All CARs of a folder as accounts of `hosts` PDSes. Served like a world (`network.SimNetwork`)."""

    def __init__(self, data_dir: Path, *, hosts: int = 2) -> None:
        """Raise FileNotFoundError when the folder has no expected.json."""
        expected: dict[str, Any] = json.loads((data_dir / "expected.json").read_text())
        cars = [_from_repo(data_dir, name, facts) for name, facts in expected["cars"].items()]
        cars += [_from_other(data_dir, name) for name in (*expected["other_cars"], *expected["must_refuse"])]
        by_did: dict[str, list[StaticCar]] = {}
        for car in cars:
            by_did.setdefault(car.did, []).append(car)
        self.lock = threading.RLock()
        self.host_urls: list[str] = [f"http://localhost:{1 + host}" for host in range(hosts)]
        self.accounts: list[StaticAccount] = [
            _account(index, did, sorted(exports, key=lambda car: car.rev), index % hosts)
            for index, (did, exports) in enumerate(sorted(by_did.items()))
        ]
        self._by_did = {account.did: account for account in self.accounts}

    def find(self, did: str) -> StaticAccount | None:
        return self._by_did.get(did)

    def account(self, did: str) -> StaticAccount:
        """Raise KeyError for a DID without a CAR."""
        return self._by_did[did]

    def everyone(self) -> Sequence[StaticAccount]:
        return self.accounts

    def on_host(self, host: int) -> Sequence[StaticAccount]:
        return [account for account in self.accounts if account.host == host]

    def dids(self) -> list[str]:
        return [account.did for account in self.accounts]

    def serve(self, did: str, number: int) -> StaticCar:
        """Choose which of an account's exports is served, by its place in the order of revs."""
        with self.lock:
            account = self._by_did[did]
            if not 0 <= number < len(account.cars):
                raise IndexError(f"{did} has {len(account.cars)} exports")
            account.serving = number
            return account.current

    def use_key(self, did: str, multikey: str) -> None:
        """Let the DID document name another key, for instance the next candidate."""
        with self.lock:
            account = self._by_did[did]
            account.past_documents.append(Document(account.multikey, account.host, account.pds_override))
            account.multikey = multikey

    def digests(self) -> dict[str, str]:
        """Return the digest of what must be delivered of each DID that must end synced."""
        return {account.did: account.current.digest for account in self.accounts if account.current.acceptable}

    def refused(self) -> list[str]:
        """Return the DIDs that must not end synced."""
        return [account.did for account in self.accounts if not account.current.acceptable]


def _account(index: int, did: str, exports: list[StaticCar], host: int) -> StaticAccount:
    keys = next((car.keys for car in exports if car.keys), ())
    # A CAR of which nobody knows the key gets one that cannot have signed it.
    multikey = keys[0] if keys else K256Key(hashlib.sha256(did.encode()).digest()).multikey
    return StaticAccount(did=did, handle=f"corpus{index}.test", host=host, multikey=multikey, cars=tuple(exports))


def _from_repo(data_dir: Path, name: str, facts: Mapping[str, Any]) -> StaticCar:
    signature = facts["signature"]
    keys = (signature["key"],) if signature.get("key") else tuple(signature.get("key_candidates") or ())
    whole = not facts["mst_nodes_missing"] and not facts["records_missing"]
    return StaticCar(
        name=name,
        did=facts["did"],
        path=data_dir / name,
        rev=facts["rev"] or "",
        head=facts["commit_cid"],
        acceptable=whole and facts["commit_version"] == 3 and bool(signature["low_s"]),
        keys=keys,
        digest=facts["records_digest"],
        records=facts["records"],
        collections=frozenset(facts["collections"]),
    )


def _from_other(data_dir: Path, name: str) -> StaticCar:
    suffix = base64.b32encode(hashlib.sha256(name.encode()).digest()).decode().lower()[:24]
    return StaticCar(
        name=name,
        did=f"did:plc:{suffix}",
        path=data_dir / name,
        rev="",
        head=_ABSENT_CID,
        acceptable=False,
        keys=(),
        digest="",
        records=0,
        collections=frozenset(),
    )
