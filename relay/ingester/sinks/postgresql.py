"""`postgresql://...`: two tables, loaded in bulk, written by one connection; several ingesters may share one database.

A snapshot of a DID that the tables have never seen goes straight into `record` with COPY (3.9 us a row in the server); anything
else goes through a temporary table and INSERT ... ON CONFLICT (6.8 us). Both in one transaction for a group of batches.

`record` has the type json and not jsonb: jsonb cannot hold a \\u0000 in a string, and records may. It keeps the text as it came.
"""

from __future__ import annotations

import functools
import io
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from relay.config.secrets import scrub
from relay.ingester.errors import SinkAway, SinkFailed
from relay.ingester.operations import Change, Prepared, RefuseHook, prepare_changes
from relay.ingester.rules import Account, Changes, RepoChanges, split_patterns
from relay.observe.log import get_logger
from relay.pb import ingester_pb2 as pb

log = get_logger(__name__)

SCHEMA_MARK = "relay reference ingester, schema 1"

# Rows of one DID are written by whoever holds the lock on its account row: that keeps two ingesters on one database apart.
_SCHEMA = f"""
CREATE TABLE account (
    did text COLLATE "C" PRIMARY KEY,
    rev text COLLATE "C" NOT NULL DEFAULT '',
    active boolean NOT NULL DEFAULT true,
    status text NOT NULL DEFAULT '',
    status_time_us bigint,
    handle text NOT NULL DEFAULT '',
    pds text NOT NULL DEFAULT '',
    identity_time_us bigint
) WITH (fillfactor = 70);
CREATE TABLE record (
    did text COLLATE "C" NOT NULL,
    collection text COLLATE "C" NOT NULL,
    rkey text COLLATE "C" NOT NULL,
    cid text COLLATE "C" NOT NULL,
    rev text COLLATE "C" NOT NULL,
    record json,
    record_cbor bytea,
    time_us bigint NOT NULL,
    PRIMARY KEY (did, collection, rkey)
);
COMMENT ON TABLE account IS '{SCHEMA_MARK}';
"""
_ADVISORY_LOCK = 0x72656C6179  # "relay": two ingesters that start at once must not both create the tables

_COLUMNS = "did, collection, rev, time_us, rkey, cid, record, record_cbor"
_STAGING = "CREATE TEMPORARY TABLE record_staging (LIKE record) ON COMMIT DELETE ROWS"
_COPY_DIRECT = f"COPY record ({_COLUMNS}) FROM STDIN (FORMAT binary)"
_COPY_STAGING = f"COPY record_staging ({_COLUMNS}) FROM STDIN (FORMAT binary)"
_MERGE = f"""
INSERT INTO record ({_COLUMNS}) SELECT {_COLUMNS} FROM record_staging
ON CONFLICT (did, collection, rkey) DO UPDATE SET rev = excluded.rev, time_us = excluded.time_us, cid = excluded.cid,
    record = excluded.record, record_cbor = excluded.record_cbor
"""

_LOCK_ACCOUNTS = """
SELECT did, rev, active, status, status_time_us, handle, pds, identity_time_us
FROM account WHERE did = ANY(%s) ORDER BY did FOR UPDATE
"""
_NEW_ACCOUNTS = (
    "INSERT INTO account (did) SELECT did FROM unnest(%s) AS t(did) ORDER BY did ON CONFLICT DO NOTHING RETURNING did"
)
_STORE_ACCOUNTS = """
UPDATE account SET rev = t.rev, active = t.active, status = t.status, status_time_us = t.status_time_us,
    handle = t.handle, pds = t.pds, identity_time_us = t.identity_time_us
FROM unnest(%s::text[], %s::text[], %s::boolean[], %s::text[], %s::bigint[], %s::text[], %s::text[], %s::bigint[])
    AS t(did, rev, active, status, status_time_us, handle, pds, identity_time_us)
WHERE account.did = t.did
"""
_WIPE = "DELETE FROM record WHERE did = ANY(%s)"
_DELETE = """
DELETE FROM record USING unnest(%s::text[], %s::text[], %s::text[]) AS t(did, collection, rkey)
WHERE record.did = t.did AND record.collection = t.collection AND record.rkey = t.rkey
"""
_SWEEP_ALL = """
DELETE FROM record USING unnest(%s::text[], %s::text[]) AS t(did, rev)
WHERE record.did = t.did AND record.rev < t.rev COLLATE "C"
"""
_SWEEP_SOME = f"""{_SWEEP_ALL}
AND (record.collection = ANY(%s::text[])
    OR EXISTS (SELECT FROM unnest(%s::text[]) AS p(prefix) WHERE starts_with(record.collection, p.prefix)))
"""

# For what the URL does not say itself. Seconds, but tcp_user_timeout: milliseconds until a silent server counts as gone.
_CONNECTION = {
    "application_name": "relay-ingester",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
_LOCK_TIMEOUT_MS = 60_000
_IDLE_TIMEOUT_MS = 60_000
_CONFLICT_ATTEMPTS = 5
# DIDs in the middle of their first snapshot, at most: a relay works on a few hundred at a time.
_FRESH_REPOS = 20_000

# Wrong in what was sent, and not in the server: class 22 (data exception) and 54 (limit exceeded).
_DATA_ERRORS = (psycopg2.DataError, psycopg2.errors.ProgramLimitExceeded, psycopg2.errors.StatementTooComplex)


@dataclass(frozen=True, slots=True)
class _Fresh:
    """All rows of a DID have this rev and paths up to `last_path`: later paths cannot collide, and no row is older."""

    rev: str
    last_path: str


class PostgresqlSink:
    """Applies the rules of `relay.ingester.rules`, set-based: a handful of statements for a whole group of batches."""

    name = "postgresql"
    reads_operations = True

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg2.extensions.connection | None = None
        self._fresh: OrderedDict[str, _Fresh] = OrderedDict()
        self._late = self._direct_rows = self._merged_rows = 0

    def open(self) -> None:
        self.close()
        try:
            parameters = {**_CONNECTION, **psycopg2.extensions.parse_dsn(self._dsn), "client_encoding": "UTF8"}
        except psycopg2.ProgrammingError as exc:
            raise SinkFailed(f"PostgreSQL: the URL cannot be used: {scrub(_one_line(exc))}") from exc
        try:
            connection = psycopg2.connect(**parameters)
        except psycopg2.Error as exc:
            raise SinkAway(f"PostgreSQL does not answer: {_one_line(exc)}") from exc
        try:
            with connection.cursor() as cursor:
                _set_up(cursor)
            connection.commit()
        except psycopg2.Error as exc:
            _raise_translated(exc, connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def prepare(self, operations: Iterable[pb.Operation | None], count: int, refuse: RefuseHook | None) -> Prepared:
        changes, refusals = prepare_changes(operations, encode_row, refuse)
        return Prepared(operations=count, items=changes, refusals=refusals)

    def prepare_raw(self, raw: bytes) -> tuple[int, Prepared]:
        raise AssertionError("this sink reads operations")

    def store(self, batches: Sequence[Prepared]) -> None:
        direct = True
        attempts = 0
        while True:
            try:
                self._store_once([batch.items for batch in batches], direct=direct)
                return
            except psycopg2.errors.UniqueViolation as exc:
                if not direct:
                    raise SinkFailed(f"PostgreSQL: {_one_line(exc)}") from exc
                # Another ingester wrote rows of a DID that we took for fresh, or somebody deleted rows of `account`.
                direct = False
            except (psycopg2.errors.DeadlockDetected, psycopg2.errors.SerializationFailure) as exc:
                attempts += 1
                if attempts == _CONFLICT_ATTEMPTS:
                    raise SinkAway(f"PostgreSQL: {_one_line(exc)}") from exc
            except _DATA_ERRORS as exc:
                self._refuse_culprit(batches, exc)
            except psycopg2.Error as exc:
                self._give_up(exc)

    def _store_once(self, runs: Sequence[Sequence[Change]], *, direct: bool, keep: bool = True) -> None:
        """One transaction; `keep` False rolls it back at the end. Raises psycopg2.Error, and then nothing is stored."""
        connection = self._connection
        if connection is None:
            raise SinkAway("PostgreSQL is not connected")
        try:
            with connection.cursor() as cursor:
                accounts, new = _load_accounts(cursor, sorted({change.did for run in runs for change in run}))
                changes = Changes(accounts)
                for run in runs:
                    changes.apply(run)
                plan = _Plan(changes.repos, new, self._fresh if direct else {}, direct=direct)
                plan.execute(cursor)
            if not keep:
                connection.rollback()
                return
            connection.commit()
        except BaseException:
            # Whether a commit that failed was carried out is not known: forget what we thought we knew.
            self._fresh.clear()
            if not connection.closed:
                try:
                    connection.rollback()
                except psycopg2.Error as exc:
                    log.debug("rollback_failed", error=_one_line(exc))
            raise
        for did, fresh in plan.fresh.items():
            if fresh is None:
                self._fresh.pop(did, None)
            else:
                self._fresh[did] = fresh
                self._fresh.move_to_end(did)
        while len(self._fresh) > _FRESH_REPOS:
            self._fresh.popitem(last=False)
        self._late += changes.late
        self._direct_rows += len(plan.direct_rows)
        self._merged_rows += len(plan.merged_rows)

    def _refuse_culprit(self, batches: Sequence[Prepared], exc: psycopg2.Error) -> None:
        """Find the first operation that PostgreSQL does not take, by trial, and refuse it.

        Never seen: what `operations.py` lets through, the columns take. But without this, one operation that they do not
        take would hold its relay for ever.
        """
        items = [item for batch in batches for item in batch.items]
        good, bad = 0, len(items)  # a prefix of `good` items can be stored, one of `bad` items cannot
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                self._store_once([items[:middle]], direct=False, keep=False)
                good = middle
            except _DATA_ERRORS as error:
                bad, exc = middle, error
            except psycopg2.Error as error:
                self._give_up(error)
        place = bad - 1
        for batch in batches:
            if place < len(batch.items):
                batch.refuse_item(place, f"PostgreSQL does not take it: {_one_line(exc)}")
                return
            place -= len(batch.items)

    def _give_up(self, exc: psycopg2.Error) -> NoReturn:
        connection, self._connection = self._connection, None
        _raise_translated(exc, connection)

    def details(self) -> dict[str, str]:
        return {
            "late_operations": str(self._late),
            "rows_copied": str(self._direct_rows),
            "rows_merged": str(self._merged_rows),
        }

    def close(self) -> None:
        self._fresh.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Plan:
    """What to write for a group of batches, sorted by statement.

    `fresh` holds what is known of each DID after the commit; None: no longer fresh.
    """

    def __init__(self, repos: dict[str, RepoChanges], new: set[str], known: dict[str, _Fresh], *, direct: bool) -> None:
        self.accounts = [repo.account for repo in repos.values()]
        self.wipes: list[str] = []
        self.sweeps: defaultdict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
        self.deletes: list[tuple[str, str, str]] = []
        self.direct_rows: list[Any] = []
        self.merged_rows: list[Any] = []
        self.fresh: dict[str, _Fresh | None] = {}
        for did, repo in repos.items():
            fresh = _Fresh("", "") if did in new else known.get(did)
            after = _fresh_after(repo, fresh) if fresh is not None and direct else None
            if after is not None:
                # No row is older than this snapshot, so its end has nothing to sweep.
                self.direct_rows += [row for _, row in repo.rows.values()]
                self.fresh[did] = None if repo.sweeps else after
            else:
                self.fresh[did] = None
                self._add_any(did, repo)

    def _add_any(self, did: str, repo: RepoChanges) -> None:
        if repo.wipe:
            self.wipes.append(did)
        else:
            for sweep in repo.sweeps:
                self.sweeps[sweep.patterns].append((did, sweep.rev))
        for path, (_, row) in repo.rows.items():
            if row is None:
                collection, _, rkey = path.partition("/")
                self.deletes.append((did, collection, rkey))
            else:
                self.merged_rows.append(row)

    def execute(self, cursor: psycopg2.extensions.cursor) -> None:
        """In the order that `RepoChanges` asks for."""
        if self.wipes:
            cursor.execute(_WIPE, (self.wipes,))
        for patterns, swept in self.sweeps.items():
            dids, revs = [did for did, _ in swept], [rev for _, rev in swept]
            if patterns:
                exact, prefixes = split_patterns(patterns)
                cursor.execute(_SWEEP_SOME, (dids, revs, list(exact), list(prefixes)))
            else:
                cursor.execute(_SWEEP_ALL, (dids, revs))
        if self.deletes:
            cursor.execute(_DELETE, tuple(list(column) for column in zip(*self.deletes, strict=True)))
        if self.direct_rows:
            _copy(cursor, _COPY_DIRECT, self.direct_rows)
        if self.merged_rows:
            _copy(cursor, _COPY_STAGING, self.merged_rows)
            cursor.execute(_MERGE)
        if self.accounts:
            cursor.execute(
                _STORE_ACCOUNTS,
                (
                    [a.did for a in self.accounts],
                    [a.rev for a in self.accounts],
                    [a.active for a in self.accounts],
                    [a.status for a in self.accounts],
                    [a.status_time_us for a in self.accounts],
                    [a.handle for a in self.accounts],
                    [a.pds for a in self.accounts],
                    [a.identity_time_us for a in self.accounts],
                ),
            )


def _fresh_after(repo: RepoChanges, fresh: _Fresh) -> _Fresh | None:
    """Return what will be known of a fresh DID when `repo` was copied in; None: it cannot be copied."""
    rev = repo.account.rev
    if repo.wipe or repo.has_deletes or (fresh.last_path and fresh.rev != rev):
        return None
    if not repo.rows:
        return _Fresh(rev, fresh.last_path)
    # Snapshots come in the order of their paths; comparing with the sorted list costs 20 ns a row.
    paths = list(repo.rows)
    if repo.lowest_rev != rev or paths[0] <= fresh.last_path or paths != sorted(paths):
        return None
    return _Fresh(rev, paths[-1])


def _load_accounts(cursor: psycopg2.extensions.cursor, dids: list[str]) -> tuple[dict[str, Account], set[str]]:
    """Lock the rows of these accounts, making those that are missing. Return them, and the DIDs that are new."""
    accounts = _locked(cursor, dids)
    new: set[str] = set()
    missing = [did for did in dids if did not in accounts]
    if missing:
        cursor.execute(_NEW_ACCOUNTS, (missing,))
        new = {did for (did,) in cursor.fetchall()}
        raced = [did for did in missing if did not in new]
        if raced:
            accounts.update(_locked(cursor, raced))
    return accounts, new


def _locked(cursor: psycopg2.extensions.cursor, dids: list[str]) -> dict[str, Account]:
    cursor.execute(_LOCK_ACCOUNTS, (dids,))
    return {
        row[0]: Account(
            did=row[0],
            rev=row[1],
            active=row[2],
            status=row[3],
            status_time_us=row[4],
            handle=row[5],
            pds=row[6],
            identity_time_us=row[7],
        )
        for row in cursor.fetchall()
    }


def _set_up(cursor: psycopg2.extensions.cursor) -> None:
    """Check the database and create the tables where they are missing. Raises SinkFailed."""
    cursor.execute("SHOW server_encoding")
    encoding = _value(cursor)
    if encoding != "UTF8":
        raise SinkFailed(f"PostgreSQL: the database's encoding is {encoding}; records need a database with UTF8")
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_ADVISORY_LOCK,))
    cursor.execute("SELECT to_regclass('account'), to_regclass('record'), obj_description(to_regclass('account'))")
    row = cursor.fetchone()
    assert row is not None
    account, record, mark = row
    if account is None and record is None:
        cursor.execute(_SCHEMA)
    elif mark != SCHEMA_MARK or record is None:
        raise SinkFailed(
            f"PostgreSQL: table {'account' if account else 'record'} exists and is not ours (comment {mark!r},"
            f" expected {SCHEMA_MARK!r}): use another database, or a schema of its own with ?options=-csearch_path%3DNAME"
        )
    cursor.execute(_STAGING)
    cursor.execute(f"SET lock_timeout = {_LOCK_TIMEOUT_MS}")
    cursor.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_TIMEOUT_MS}")


def _value(cursor: psycopg2.extensions.cursor) -> Any:
    row = cursor.fetchone()
    assert row is not None
    return row[0]


# COPY's binary format: a header, then for each row the number of fields, and each field with its length; -1 is NULL.
_COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_COPY_END = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_LENGTHS = tuple(struct.pack(">i", length) for length in range(4096))  # a look-up costs a quarter of packing
_INT8: Callable[[int, int], bytes] = struct.Struct(">iq").pack


def encode_row(
    did: str,
    collection: str,
    rkey: str,
    cid: str,
    rev: str,
    time_us: int,
    record_json: str | None,
    record_cbor: bytes | None,
) -> object:
    """Return a row of _COLUMNS in COPY's binary format. All texts but the record are ASCII."""
    head = _row_head(did, collection, rev, time_us)
    rkey_length, cid_length = _LENGTHS[len(rkey)], _LENGTHS[len(cid)]
    if record_json is not None:
        record = record_json.encode()
        return b"%b%b%b%b%b%b%b%b" % (
            head,
            rkey_length,
            rkey.encode(),
            cid_length,
            cid.encode(),
            _length(len(record)),
            record,
            _NULL,
        )
    assert record_cbor is not None
    return b"%b%b%b%b%b%b%b%b" % (
        head,
        rkey_length,
        rkey.encode(),
        cid_length,
        cid.encode(),
        _NULL,
        _length(len(record_cbor)),
        record_cbor,
    )


@functools.lru_cache(maxsize=1024)
def _row_head(did: str, collection: str, rev: str, time_us: int) -> bytes:
    """The part that the records of a snapshot share."""
    fields = b"".join(_length(len(text)) + text.encode() for text in (did, collection, rev))
    return b"\x00\x08" + fields + _INT8(8, time_us)


def _length(length: int) -> bytes:
    return _LENGTHS[length] if length < len(_LENGTHS) else struct.pack(">i", length)


def _copy(cursor: psycopg2.extensions.cursor, statement: str, rows: list[bytes]) -> None:
    cursor.copy_expert(statement, io.BytesIO(b"".join((_COPY_HEADER, *rows, _COPY_END))), 1 << 18)


def _raise_translated(exc: psycopg2.Error, connection: psycopg2.extensions.connection | None) -> NoReturn:
    """Close the connection. Away or full passes by itself; a missing table or permission does not."""
    text = f"PostgreSQL: {_one_line(exc)}"
    # A connection that breaks inside of a COPY is a plain DatabaseError; what tells it from others is that it is closed.
    is_lost = connection is None or connection.closed != 0
    if connection is not None:
        connection.close()
    if is_lost or isinstance(
        exc, psycopg2.OperationalError | psycopg2.InterfaceError | psycopg2.errors.ReadOnlySqlTransaction
    ):
        raise SinkAway(text) from exc
    raise SinkFailed(text) from exc


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__
