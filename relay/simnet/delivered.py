"""What an ingester holds, read from the reference ingester's sinks: `sqlite:///FILE`, `postgresql://...`, `jsonl:DIR`.

Reads only, and while the ingester runs. `jsonl` is a log of operations: the rules of the contract are applied to it here, naively.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg2

from relay.simnet.block import DAG_CBOR, cid_text, encode, link

_FETCH_ROWS = 5_000
_RECORDS = "SELECT did, collection, rkey, cid, {record}, record_cbor FROM record ORDER BY did"
_ACCOUNTS = "SELECT did, rev, active, status, handle, pds FROM account"


@dataclass(slots=True, kw_only=True)
class Delivered:
    """One DID in an ingester's database. `records` maps `collection/rkey` to the CID's text as it was told.

    `altered`: paths whose stored record, put back into DAG-CBOR, does not hash to that CID.
    """

    did: str
    rev: str = ""
    active: bool = True
    status: str = ""
    handle: str = ""
    pds: str = ""
    records: dict[str, str] = field(default_factory=dict)
    altered: set[str] = field(default_factory=set)


class UnknownSink(Exception):
    """The URL names no sink that can be read."""


def read_sink(url: str, *, contents: bool = True) -> dict[str, Delivered]:
    """Return everything that a sink holds, by DID. `contents`: hash every record too (15 us each).

    An empty result where nothing was stored yet. Raise UnknownSink; psycopg2.Error or sqlite3.Error when it cannot be read.
    """
    kind = url.partition(":")[0].lower()
    match kind:
        case "postgresql" | "postgres":
            return _read_postgresql(url, contents)
        case "sqlite":
            return _read_sqlite(_path_of(url), contents)
        case "jsonl":
            return _read_jsonl(_path_of(url), contents)
        case _:
            raise UnknownSink(f"cannot read back {kind!r}")


def _path_of(url: str) -> Path:
    """Return the path in a sink's URL; `sqlite:////var/x` and `sqlite:///var/x` are the same."""
    return Path(re.sub("^/+", "/", unquote(urlsplit(url).path)))


Row = tuple[str, str, str, str, str | None, Any]
AccountRow = tuple[str, str, Any, str, str, str]


def _collect(accounts: Iterable[AccountRow], records: Iterable[Row], contents: bool) -> dict[str, Delivered]:
    found: dict[str, Delivered] = {}
    for did, rev, active, status, handle, pds in accounts:
        found[did] = Delivered(did=did, rev=rev, active=bool(active), status=status, handle=handle, pds=pds)
    for did, collection, rkey, cid, text, raw in records:
        account = found.get(did)
        if account is None:
            account = found[did] = Delivered(did=did)
        path = f"{collection}/{rkey}"
        account.records[path] = cid
        if contents and content_cid(text, None if raw is None else bytes(raw)) != cid:
            account.altered.add(path)
    return found


def _read_postgresql(url: str, contents: bool) -> dict[str, Delivered]:
    with closing(psycopg2.connect(url)) as connection:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with connection.cursor() as cur:
            cur.execute("SELECT to_regclass('account') IS NOT NULL AND to_regclass('record') IS NOT NULL")
            if cur.fetchone() != (True,):
                return {}
            cur.execute(_ACCOUNTS)
            accounts = cur.fetchall()
        # As text: psycopg2 would parse JSON columns by itself, and lose what is wrong with them.
        columns = "record::text" if contents else "NULL"
        with connection.cursor(name="oracle") as rows:
            rows.itersize = _FETCH_ROWS
            rows.execute(_RECORDS.format(record=columns))
            return _collect(accounts, rows, contents)


def _read_sqlite(path: Path, contents: bool) -> dict[str, Delivered]:
    if not path.exists():
        return {}
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.execute("BEGIN")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"account", "record"} <= tables:
            return {}
        rows = connection.execute(_RECORDS.format(record="record" if contents else "NULL"))
        return _collect(connection.execute(_ACCOUNTS), rows, contents)


def _read_jsonl(folder: Path, contents: bool) -> dict[str, Delivered]:
    accounts: dict[str, _Replayed] = {}
    for line in _lines(folder):
        did = line["did"]
        if did not in accounts:
            accounts[did] = _Replayed(did)
        accounts[did].apply(line, contents)
    return {did: account.state for did, account in accounts.items()}


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):  # else cut by a crash, and never acknowledged
                    yield json.loads(line)


class _Replayed:
    """One DID's operations applied one by one, by the letter of "What an ingester must do"."""

    def __init__(self, did: str) -> None:
        self.state = Delivered(did=did)
        self._revs: dict[str, str] = {}
        self._status_time_us: int | None = None

    def apply(self, line: dict[str, Any], contents: bool) -> None:
        kind, rev = line["type"].removeprefix("OPERATION_TYPE_"), line.get("rev", "")
        match kind:
            case "ACCOUNT":
                self._apply_account(line)
            case "IDENTITY":
                told = line.get("identity", {})
                self.state.handle, self.state.pds = told.get("handle", ""), told.get("pds", "")
            case "CREATE" | "UPDATE" | "DELETE" | "REPO_END" if rev >= self.state.rev:
                self.state.rev = rev
                if not self._is_deleted():
                    self._apply_records(kind, line, contents)

    def _apply_account(self, line: dict[str, Any]) -> None:
        time_us = line.get("time_us", 0)
        if self._status_time_us is not None and time_us < self._status_time_us:
            return
        self._status_time_us = time_us
        told = line.get("account", {})
        self.state.active, self.state.status = told.get("active", False), told.get("status", "")
        if self._is_deleted():
            self.state.records.clear()
            self.state.altered.clear()
            self._revs.clear()

    def _apply_records(self, kind: str, line: dict[str, Any], contents: bool) -> None:
        if kind == "REPO_END":
            for path in [path for path, rev in self._revs.items() if rev < line["rev"]]:
                if is_wanted(path.partition("/")[0], line.get("nsid_filter", ())):
                    self._forget(path)
            return
        path = f"{line['collection']}/{line['rkey']}"
        self._forget(path)
        if kind == "DELETE":
            return
        self._revs[path] = line["rev"]
        self.state.records[path] = line["cid"]
        if contents:
            raw = base64.b64decode(line["record_cbor"]) if "record_cbor" in line else None
            text = json.dumps(line["record"]) if "record" in line else None
            if content_cid(text, raw) != line["cid"]:
                self.state.altered.add(path)

    def _forget(self, path: str) -> None:
        self._revs.pop(path, None)
        self.state.records.pop(path, None)
        self.state.altered.discard(path)

    def _is_deleted(self) -> bool:
        return not self.state.active and self.state.status == "deleted"


def is_wanted(collection: str, patterns: Iterable[str]) -> bool:
    """Whether a collection matches one of the patterns: a prefix ends in `.` or `.*`, else an exact NSID; none: everything."""
    patterns = tuple(patterns)
    for pattern in patterns:
        prefix = pattern.removesuffix("*")
        if prefix.endswith(".") and collection.startswith(prefix):
            return True
        if collection == pattern:
            return True
    return not patterns


def content_cid(text: str | None, raw: bytes | None) -> str | None:
    """Return the CID of a stored record, from its JSON or its DAG-CBOR; None when it is neither, or cannot be put back."""
    if raw is not None:
        block = raw
    elif text is not None:
        try:
            block = encode(_from_json(json.loads(text)))
        except (ValueError, TypeError, OverflowError):
            return None
    else:
        return None
    return cid_text(DAG_CBOR + hashlib.sha256(block).digest())


def _from_json(value: Any) -> Any:
    """Put AT Protocol JSON back into the data model. Raise ValueError for what no record can hold (a float)."""
    match value:
        case {"$link": str() as text, **rest} if not rest:
            return link(_cid_bytes(text))
        case {"$bytes": str() as text, **rest} if not rest:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        case dict():
            return {key: _from_json(item) for key, item in value.items()}
        case list():
            return [_from_json(item) for item in value]
        case float():
            raise ValueError("a float")
        case _:
            return value


def _cid_bytes(text: str) -> bytes:
    if not text.startswith("b"):
        raise ValueError("a CID in another base than 32")
    body = text[1:].upper()
    return base64.b32decode(body + "=" * (-len(body) % 8))
