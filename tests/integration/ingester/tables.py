"""Reading what a sink stored, in the shape of the naive ingester."""

from __future__ import annotations

import base64
import json
import sqlite3
from pathlib import Path
from typing import Any

import psycopg2

from relay.ingester.operations import Prepared, parse_batch
from relay.ingester.sinks.base import Sink
from relay.pb import ingester_pb2 as pb
from tests.unit.ingester.naive import Accounts, NaiveIngester, Rows

_RECORDS = "SELECT did, collection, rkey, cid, rev, time_us, record{as_text}, record_cbor FROM record"
_ACCOUNTS = "SELECT did, rev, active, status, status_time_us, handle, pds, identity_time_us FROM account"


def sqlite_tables(path: Path) -> tuple[Rows, Accounts]:
    connection = sqlite3.connect(path)
    try:
        records = connection.execute(_RECORDS.format(as_text="")).fetchall()
        accounts = connection.execute(_ACCOUNTS).fetchall()
    finally:
        connection.close()
    return _as_rows(records), _as_accounts(accounts)


def postgresql_tables(dsn: str) -> tuple[Rows, Accounts]:
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute(_RECORDS.format(as_text="::text"))
            records = cursor.fetchall()
            cursor.execute(_ACCOUNTS)
            accounts = cursor.fetchall()
    finally:
        connection.close()
    return _as_rows(records), _as_accounts(accounts)


def jsonl_operations(folder: Path) -> list[pb.Operation]:
    """Read the log back, as a program that follows the guide would."""
    operations: list[pb.Operation] = []
    for path in sorted(folder.glob("operations-*.jsonl")):
        for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
            operations.append(_operation(json.loads(text), text))
    return operations


def jsonl_tables(folder: Path) -> tuple[Rows, Accounts]:
    naive = NaiveIngester()
    for op in jsonl_operations(folder):
        naive.apply(op)
    return naive.rows, naive.accounts()


def _operation(line: dict[str, Any], text: str) -> pb.Operation:
    record_cbor = line.pop("record_cbor", None)
    record = line.pop("record", None)
    kind, source = line.pop("type"), line.pop("source", "SOURCE_UNSPECIFIED")
    account, identity = line.pop("account", None), line.pop("identity", None)
    op = pb.Operation(type=kind, source=source, **line)
    if account is not None:
        op.account.CopyFrom(pb.AccountStatus(**account))
    if identity is not None:
        op.identity.CopyFrom(pb.Identity(**identity))
    if record is not None:
        # The record is the last member of the line, as it came.
        op.record_json = text[text.index('"record":') + len('"record":') : -1]
    if record_cbor is not None:
        op.record_cbor = base64.b64decode(record_cbor)
    return op


def _as_rows(records: list[tuple[Any, ...]]) -> Rows:
    return {
        (did, collection, rkey): (cid, rev, time_us, record, None if cbor is None else bytes(cbor))
        for did, collection, rkey, cid, rev, time_us, record, cbor in records
    }


def _as_accounts(accounts: list[tuple[Any, ...]]) -> Accounts:
    return {row[0]: (row[1], bool(row[2]), *row[3:]) for row in accounts}


def prepared(sink: Sink, operations: list[pb.Operation]) -> Prepared:
    """What a stream makes of a batch."""
    raw = pb.OperationRequest(batch_id=1, operations=operations).SerializeToString()
    _, parsed, count = parse_batch(raw)
    return sink.prepare(parsed, count, None)
