"""A consumer of the network as plain as can be: follows the firehose, checks all, fetches where the chain breaks.

No part of the product: it shows that the network can be followed through everything that goes wrong, and that the truth it
tells in the end is the one it told on the way.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import requests
import websocket

from relay.simnet.block import cid_text, tid_time_us
from relay.simnet.delivered import Delivered
from tests.unit.simnet.inverting import Invalid, Op, check_proof, read_commit, read_frame
from tests.unit.simnet.reading import read_export, signature_is_good

_FUTURE_US = 300_000_000
_TIMEOUT_S = 10.0
_FRAME_BYTES = 5_000_000


@dataclass(slots=True)
class Held:
    """What the follower knows of a DID. `rev` is empty until a whole repo was taken."""

    rev: str = ""
    data: bytes = b""
    records: dict[str, bytes] = field(default_factory=dict)
    status: str = ""


class Follower:
    """Call `follow` to take everything up to a seq. `seen` counts what happened on the way."""

    def __init__(self, *, plc_url: str, firehose_url: str, cursor: int) -> None:
        self.cursor = cursor
        self.held: dict[str, Held] = {}
        self.seen: Counter[str] = Counter()
        self._plc_url = plc_url
        self._firehose_url = f"{firehose_url}/xrpc/com.atproto.sync.subscribeRepos"
        self._session = requests.Session()
        self._session.trust_env = False
        self._documents: dict[str, tuple[str, str]] = {}  # DID -> key, PDS
        self._bad_after: int | None = None  # the cursor behind which a frame could not be read

    def close(self) -> None:
        self._session.close()

    def take_all(self, dids: list[str]) -> None:
        """Fetch every repo, as a backfill does; who is away is left out."""
        for did in dids:
            self._fetch(did)

    def follow(self, until_seq: int) -> None:
        """Read until this seq was taken, through as many connections as it needs."""
        while self.cursor < until_seq:
            try:
                self._read_once(until_seq)
            except (websocket.WebSocketException, OSError) as exc:
                self.seen[type(exc).__name__] += 1

    def delivered(self) -> dict[str, Delivered]:
        """Return what an ingester would hold."""
        return {
            did: Delivered(
                did=did,
                rev=held.rev,
                active=not held.status,
                status=held.status,
                records={path: cid_text(cid) for path, cid in held.records.items()},
            )
            for did, held in self.held.items()
        }

    def _read_once(self, until_seq: int) -> None:
        client = websocket.create_connection(f"{self._firehose_url}?cursor={self.cursor}", timeout=2)
        try:
            while self.cursor < until_seq:
                opcode, frame = client.recv_data()
                if opcode != websocket.ABNF.OPCODE_BINARY:
                    self.seen[f"opcode {opcode}"] += 1
                    return
                try:
                    is_at_end = self._take(frame)
                except (ValueError, KeyError, TypeError):
                    # Once more from before it; the second time it is skipped.
                    self.seen["unreadable"] += 1
                    if self._bad_after != self.cursor:
                        self._bad_after = self.cursor
                        return
                    continue
                if is_at_end:
                    return
        finally:
            client.shutdown()  # type: ignore[no-untyped-call]

    def _take(self, frame: bytes) -> bool:
        if len(frame) > _FRAME_BYTES:
            raise ValueError("oversize")
        header, body = read_frame(frame)
        if header["op"] == -1:
            self.seen[body["error"]] += 1
            return True
        if header["t"] == "#info":
            self.seen[body["name"]] += 1
            return False
        if body["seq"] <= self.cursor:
            self.seen["old seq"] += 1
            return False
        match header["t"]:
            case "#commit":
                self._take_commit(frame)
            case "#sync":
                self._take_sync(body)
            case "#account":
                self._take_account(body["did"], "" if body["active"] else body["status"])
            case "#identity":
                self._documents.pop(body["did"], None)
            case other:
                self.seen[other] += 1
        self.cursor = body["seq"]
        return False

    def _take_commit(self, frame: bytes) -> None:
        try:
            told = read_commit(frame)
            held = self.held.setdefault(told.did, Held())
            if told.rev <= held.rev:
                self.seen["known rev"] += 1
                return
            self._check_time(told.rev)
            self._check_signature(told.did, told.commit)
            if told.body["tooBig"]:
                raise Invalid("too big")
            if told.prev_data is None and told.since is not None:
                told = told._replace(prev_data=held.data)  # may be what old software leaves out
            check_proof(told)
        except (Invalid, ValueError) as exc:
            self.seen[f"invalid: {str(exc)[:20]}"] += 1
            return
        if held.status:
            self.seen["commit of somebody away"] += 1
        elif told.since is None or (told.since == held.rev and told.prev_data == held.data):
            held.rev, held.data = told.rev, told.commit["data"].cid_bytes
            for op in told.ops:
                _apply(held.records, op)
            self.seen["commit"] += 1
        else:
            self.seen["break"] += 1
            self._fetch(told.did)

    def _take_sync(self, body: dict[str, Any]) -> None:
        did = body["did"]
        held = self.held.setdefault(did, Held())
        commit = read_export(body["blocks"]).commit
        try:
            if commit is None or commit["did"] != did:
                raise Invalid("sync of another")
            self._check_time(commit["rev"])
            self._check_signature(did, commit)
        except Invalid as exc:
            self.seen[f"invalid: {exc}"] += 1
            return
        if commit["rev"] <= held.rev:
            self.seen["known rev"] += 1
        elif commit["data"].cid_bytes == held.data:
            held.rev = commit["rev"]
        elif not held.status:
            self.seen["sync"] += 1
            self._fetch(did)

    def _take_account(self, did: str, status: str) -> None:
        held = self.held.setdefault(did, Held())
        was_away, held.status = bool(held.status), status
        if status == "deleted":
            self.held[did] = Held(status=status)
        elif was_away and not status:
            self._fetch(did)

    def _fetch(self, did: str) -> None:
        """Take the whole repo; leave it for a later event when its host does not give it."""
        self._documents.pop(did, None)
        held = self.held.setdefault(did, Held())
        document = self._document(did)
        if document is None:
            return
        url = f"{document[1]}/xrpc/com.atproto.sync.getRepo"
        answer = self._session.get(url, params={"did": did}, timeout=_TIMEOUT_S)
        if answer.status_code != 200:
            self.seen[f"fetch: {answer.json()['error']}"] += 1
            return
        export = read_export(answer.content)
        assert export.commit is not None
        assert not export.missing
        assert not export.corrupt
        self._check_signature(did, export.commit)
        held.rev, held.data = export.commit["rev"], export.commit["data"].cid_bytes
        held.records = export.records
        self.seen["fetch"] += 1

    def _check_signature(self, did: str, commit: dict[str, Any]) -> None:
        for _ in range(2):
            document = self._document(did)
            if document is not None and signature_is_good(commit, document[0]):
                return
            self._documents.pop(did, None)
        raise Invalid("signature")

    @staticmethod
    def _check_time(rev: str) -> None:
        if tid_time_us(rev) > _now_us() + _FUTURE_US:
            raise Invalid("future")

    def _document(self, did: str) -> tuple[str, str] | None:
        if did not in self._documents:
            answer = self._session.get(f"{self._plc_url}/{did}", timeout=_TIMEOUT_S)
            if answer.status_code != 200:
                return None
            said = answer.json()
            self._documents[did] = (
                said["verificationMethod"][0]["publicKeyMultibase"],
                said["service"][0]["serviceEndpoint"],
            )
        return self._documents[did]


def _apply(records: dict[str, bytes], op: Op) -> None:
    path = op.path.decode()
    if op.cid is None:
        records.pop(path, None)
    else:
        records[path] = op.cid


def _now_us() -> int:
    return time.time_ns() // 1000
