# ruff: noqa: N802 (the names are gRPC's)
"""A complete ingester in one file: stores JSON records in SQLite.

python ingester.py 127.0.0.1:50052 records.db
"""

import json
import signal
import sqlite3
import sys
import threading
from concurrent import futures

import grpc

from relay.pb import ingester_pb2 as pb
from relay.pb import ingester_pb2_grpc as pb_grpc

SCHEMA = """
CREATE TABLE IF NOT EXISTS account (did TEXT PRIMARY KEY, rev TEXT NOT NULL DEFAULT '',
    active INTEGER NOT NULL DEFAULT 1, status TEXT NOT NULL DEFAULT '', status_time_us INTEGER NOT NULL DEFAULT -1,
    handle TEXT NOT NULL DEFAULT '', pds TEXT NOT NULL DEFAULT '', identity_time_us INTEGER NOT NULL DEFAULT -1);
CREATE TABLE IF NOT EXISTS record (did TEXT, collection TEXT, rkey TEXT, cid TEXT, rev TEXT, record TEXT,
    record_cbor BLOB, PRIMARY KEY (did, collection, rkey));
"""


class Ingester(pb_grpc.IngesterServiceServicer):
    def __init__(self, path):
        self.lock = threading.Lock()  # one transaction at a time, whatever the number of streams
        self.db = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
        self.db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + SCHEMA)

    def StreamOperations(self, requests, context):
        for expected, request in enumerate(requests, 1):
            if request.batch_id != expected:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"batch_id {request.batch_id}, expected {expected}")
            response = self.Ingest(request, context)
            yield response
            if any(error.code == pb.OperationError.RETRY for error in response.errors):
                return

    def Ingest(self, request, context):
        response = pb.OperationResponse(batch_id=request.batch_id)
        with self.lock:
            try:
                self.db.execute("BEGIN IMMEDIATE")
                for index, op in enumerate(request.operations):
                    problem = malformed(op)  # rule 3
                    if problem:
                        response.errors.add(index=index, code=pb.OperationError.REJECT, message=problem)
                    else:
                        self.apply(op)
                self.db.execute("COMMIT")  # rule 1
            except sqlite3.OperationalError as exc:  # locked, disk full
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                del response.errors[:]
                response.errors.add(index=0, code=pb.OperationError.RETRY, message=str(exc))
        return response

    def HealthCheck(self, request, context):
        return pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING)

    def apply(self, op):
        run = self.db.execute
        run("INSERT INTO account (did) VALUES (?) ON CONFLICT DO NOTHING", (op.did,))
        query = "SELECT rev, status, status_time_us, identity_time_us FROM account WHERE did = ?"
        highest_rev, status, status_time_us, identity_time_us = run(query, (op.did,)).fetchone()
        if op.type == pb.ACCOUNT:  # rule 7
            if op.time_us >= status_time_us:
                values = (op.account.active, op.account.status, op.time_us, op.did)
                run("UPDATE account SET active = ?, status = ?, status_time_us = ? WHERE did = ?", values)
                if op.account.status == "deleted":
                    run("DELETE FROM record WHERE did = ?", (op.did,))
            return
        if op.type == pb.IDENTITY:
            if op.time_us >= identity_time_us:
                values = (op.identity.handle, op.identity.pds, op.time_us, op.did)
                run("UPDATE account SET handle = ?, pds = ?, identity_time_us = ? WHERE did = ?", values)
            return
        if op.rev < highest_rev:  # rule 2
            return
        run("UPDATE account SET rev = ? WHERE did = ?", (op.rev, op.did))
        if op.type == pb.REPO_BEGIN and op.HasField("identity") and identity_time_us < 0:
            values = (op.identity.handle, op.identity.pds, op.did)  # until an IDENTITY says more
            run("UPDATE account SET handle = ?, pds = ? WHERE did = ?", values)
        if status == "deleted":
            return
        key = (op.did, op.collection, op.rkey)
        if op.type in (pb.CREATE, pb.UPDATE):  # rule 4
            row = (*key, op.cid, op.rev, op.record_json or None, op.record_cbor or None)
            run("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        elif op.type == pb.DELETE:
            run("DELETE FROM record WHERE did = ? AND collection = ? AND rkey = ?", key)
        elif op.type == pb.REPO_END:  # rule 5
            query = "SELECT DISTINCT collection FROM record WHERE did = ? AND rev < ?"
            for (collection,) in run(query, (op.did, op.rev)).fetchall():
                if covers(op.nsid_filter, collection):
                    delete = "DELETE FROM record WHERE did = ? AND collection = ? AND rev < ?"
                    run(delete, (op.did, collection, op.rev))


def covers(patterns, collection):
    exact = {pattern for pattern in patterns if not pattern.endswith((".", ".*"))}
    prefixes = tuple(pattern.removesuffix("*") for pattern in patterns if pattern.endswith((".", ".*")))
    return not patterns or collection in exact or collection.startswith(prefixes)


def malformed(op):
    if not op.did:
        return "no did"
    if op.type not in range(pb.CREATE, pb.REPO_END + 1):
        return f"unknown type {op.type}"
    if op.type in (pb.CREATE, pb.UPDATE, pb.DELETE) and not (op.collection and op.rkey and op.rev):
        return "no collection, rkey or rev"
    if op.type in (pb.CREATE, pb.UPDATE) and not op.record_cbor:
        try:
            json.loads(op.record_json)
        except ValueError as exc:
            return f"no record: {exc}"
    return None


def main():
    options = [
        ("grpc.max_receive_message_length", 32 << 20),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
    ]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
    pb_grpc.add_IngesterServiceServicer_to_server(Ingester(sys.argv[2]), server)
    print("listening on port", server.add_insecure_port(sys.argv[1]), flush=True)
    server.start()
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    stopping.wait()
    server.stop(grace=5).wait()


if __name__ == "__main__":
    main()
