"""Connections: one transaction at a time for each thread, every failure as ours, and the private server when there is no DSN."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import psycopg2.extensions

from relay.config.schema import DatabaseSettings
from relay.errors import Blame, ConfigError, StoreAway, StoreError, StoreFenced
from relay.observe.log import get_logger
from relay.store import migrate
from relay.store.embedded import EmbeddedPostgres
from relay.store.statements import Cursor, load_statements
from relay.store.translate import StoreUnusable, translate

log = get_logger(__name__)

MINIMUM_VERSION = 150000
CONNECT_TIMEOUT_S = 10
CHECKOUT_TIMEOUT_S = 30.0
APPLICATION = "tradr-relay"

SESSION_SETTINGS = {
    "statement_timeout": "120s",
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "60s",
    "client_min_messages": "warning",
    "timezone": "UTC",
}
"""Of every connection: nothing waits for ever, neither we for the server nor other sessions for a transaction that we forgot."""

_SQL = load_statements("pool")


class Session:
    """One connection with a name of its own: the unit of the pool, and by itself what a session lock (a lease) needs."""

    def __init__(self, database: Database, label: str) -> None:
        self._database = database
        self.label = label
        self._connection = database._connect(label)
        self.backend_pid: int = self._connection.info.backend_pid  # the server's process for us

    @property
    def is_broken(self) -> bool:
        return bool(self._connection.closed)

    @contextmanager
    def transaction(self, what: str) -> Iterator[Cursor]:
        """Yield a cursor; commit at the end, roll back on any exception. psycopg2's exceptions leave it as StoreError."""
        connection = self._connection
        try:
            with connection.cursor() as cur:
                yield cur
            connection.commit()
        except psycopg2.Error as exc:
            error = translate(exc, what, self._database.place, self._database.secret)
            self._give_up(isinstance(error, StoreAway) and exc.pgcode is None)
            raise error from exc
        except BaseException:
            self._give_up(broken=False)
            raise

    @contextmanager
    def reading(self, what: str) -> Iterator[Cursor]:
        """Yield a cursor whose statements each stand by themselves; errors as of `transaction`."""
        connection = self._connection
        try:
            connection.autocommit = True
            with connection.cursor() as cur:
                yield cur
        except psycopg2.Error as exc:
            error = translate(exc, what, self._database.place, self._database.secret)
            if isinstance(error, StoreAway) and exc.pgcode is None:
                self.close()
            raise error from exc
        finally:
            if not self.is_broken:
                connection.autocommit = False

    def rename(self, label: str) -> None:
        """Carry `label` as application name from now on."""
        with self.transaction("name the session") as cur:
            cur.execute(_SQL["name_session"], {"name": f"{APPLICATION} {label}"})
        self.label = label

    def close(self) -> None:
        """End the connection, and with it everything that the session held."""
        try:
            self._connection.close()
        except psycopg2.Error as exc:  # the server end of it is gone already
            log.debug("store_close_failed", error=str(exc))

    def _give_up(self, broken: bool) -> None:
        if not broken:
            try:
                self._connection.rollback()
                return
            except psycopg2.Error as exc:
                log.debug("store_rollback_failed", error=str(exc))
        self.close()


class Database:
    """The database of one process: `open()`, then `transaction(...)` from any thread, then `close()`.

    At most `max_open_conns` connections; a thread gets the one that it used last, if that is idle. After a broken connection
    every idle one is dropped, and the next use connects again (and starts the private server again if it died).
    """

    def __init__(self, settings: DatabaseSettings, data_dir: Path) -> None:
        self._settings = settings
        self.secret = ""
        self.place = "?"
        self.embedded: EmbeddedPostgres | None = None
        if settings.dsn:
            self._dsn = self._checked(settings.dsn)
        else:
            folder = Path(settings.path) if settings.path else data_dir / "pg"
            self.embedded = EmbeddedPostgres(folder)
            self._dsn = ""
            self.place = f"{self.embedded.folder} (embedded)"
        self._changed = threading.Condition()  # guards _idle, _open_count, _closed
        self._idle: list[Session] = []
        self._open_count = 0
        self._closed = True
        self._starting = threading.Lock()  # one thread at a time looks after the private server
        self._busy = threading.local()  # .what: the transaction that this thread is in

    @property
    def dsn(self) -> str:
        """The connection string, password included: for libpq only, never for a log."""
        return self.embedded.dsn if self.embedded is not None else self._dsn

    def open(self, *, migrated: bool = True) -> None:
        """Connect, check the server, and bring the schema up to date (`migrated` False: leave the schema alone).

        Raises StoreAway when the server does not answer, StoreUnusable when it cannot be used as it is (its version, the
        account, the schema's version), both with what to do.
        """
        with self._changed:
            self._closed = False
        try:
            if self.embedded is not None:
                with self._starting:
                    self.embedded.open()
            with self.transaction("check the server") as cur:
                self._check_server(cur)
            if migrated:
                migrate.migrate(self.transaction)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close what is idle (connections in use: when they come back), and stop using the private server."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._open_count -= len(idle)
            self._changed.notify_all()
        for session in idle:
            session.close()
        if self.embedded is not None:
            with self._starting:
                self.embedded.close()

    @contextmanager
    def transaction(self, name: str, *, epoch: int | None = None) -> Iterator[Cursor]:
        """Yield a cursor in a transaction of its own: committed at the end, rolled back on any exception.

        `name` (a few words) stands in error messages. With `epoch` the transaction first checks that the lease still has it, in a
        way that a take-over waits for the transaction's end. Raises StoreFenced if not, StoreAway when waiting and trying again helps
        (after a failed commit it may have taken place), StoreError else. Never one inside another in the same thread.
        """
        with self._used(name) as session, session.transaction(name) as cur:
            if epoch is not None:
                _check_epoch(cur, epoch)
            yield cur

    @contextmanager
    def reading(self, name: str) -> Iterator[Cursor]:
        """Yield a cursor for a statement that writes nothing: one round trip, where a fenced transaction takes four.

        Each statement sees what is committed when it begins. Raises as `transaction` does.
        """
        with self._used(name) as session, session.reading(name) as cur:
            yield cur

    def session(self, label: str) -> Session:
        """Return a connection outside of the pool (not counted in `max_open_conns`); the caller closes it."""
        return Session(self, label)

    def counts(self) -> tuple[int, int]:
        """Return how many pooled connections are open, and how many of them idle."""
        with self._changed:
            return self._open_count, len(self._idle)

    # --- the pool -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _used(self, name: str) -> Iterator[Session]:
        if getattr(self._busy, "what", None) is not None:
            raise StoreError(
                f"transaction {name!r} inside transaction {self._busy.what!r}: one at a time for each thread"
            )
        session = self._checkout()
        self._busy.what = name
        try:
            yield session
        finally:
            self._busy.what = None
            self._give_back(session)

    def _checkout(self) -> Session:
        label = threading.current_thread().name
        deadline = time.monotonic() + CHECKOUT_TIMEOUT_S
        session: Session | None = None
        with self._changed:
            while session is None:
                if self._closed:
                    raise StoreAway(f"PostgreSQL at {self.place}: the database is closed here")
                session = self._take_idle(label)
                if session is None:
                    if self._open_count < self._settings.max_open_conns:
                        self._open_count += 1
                        break
                    left_s = deadline - time.monotonic()
                    if left_s <= 0:
                        raise StoreAway(
                            f"all {self._settings.max_open_conns} connections to PostgreSQL at {self.place} have been in use "
                            f"for {CHECKOUT_TIMEOUT_S:.0f} s (database.max_open_conns)"
                        )
                    self._changed.wait(left_s)
        try:
            if session is None:
                return Session(self, label)
            if session.label != label:
                session.rename(label)
            return session
        except BaseException:
            self._forget(session)
            raise

    def _take_idle(self, label: str) -> Session | None:
        for session in self._idle:
            if session.label == label:
                self._idle.remove(session)
                return session
        # A connection that belongs to another thread is taken only when no new one may be opened.
        return self._idle.pop(0) if self._idle and self._open_count >= self._settings.max_open_conns else None

    def _give_back(self, session: Session) -> None:
        if session.is_broken:
            self._forget(session)
            return
        # The one used longest ago goes, and not this one: threads that have ended (a listing's) would otherwise keep their idle
        # connections for ever, and those that work would connect anew for each transaction.
        extra: Session | None = session
        with self._changed:
            if not self._closed and self._settings.max_idle_conns > 0:
                self._idle.append(session)
                extra = self._idle.pop(0) if len(self._idle) > self._settings.max_idle_conns else None
            if extra is not None:
                self._open_count -= 1
            self._changed.notify()
        if extra is not None:
            extra.close()

    def _forget(self, broken: Session | None) -> None:
        """A connection is gone, and with it probably the others: the idle ones would only fail one after the other."""
        with self._changed:
            idle, self._idle = self._idle, []
            self._open_count -= len(idle) + 1
            self._changed.notify_all()
        for session in [*idle, *([broken] if broken is not None else [])]:
            session.close()

    def _connect(self, label: str) -> psycopg2.extensions.connection:
        try:
            return self._connect_once(label)
        except StoreAway:
            if self.embedded is None:
                raise
        with self._starting:
            if self._closed:
                raise StoreAway(f"PostgreSQL at {self.place}: the database is closed here")
            self.embedded.ensure_running()
        return self._connect_once(label)

    def _connect_once(self, label: str) -> psycopg2.extensions.connection:
        try:
            connection = psycopg2.connect(
                self.dsn,
                connect_timeout=CONNECT_TIMEOUT_S,
                application_name=f"{APPLICATION} {label}",
                client_encoding="UTF8",
                keepalives_idle=15,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=30_000,
            )
            with connection.cursor() as cur:
                cur.execute("; ".join(f"SET {key} = '{value}'" for key, value in SESSION_SETTINGS.items()))
            connection.commit()
        except psycopg2.Error as exc:
            raise translate(exc, "connect", self.place, self.secret) from exc
        return connection

    def _checked(self, dsn: str) -> str:
        """Return `dsn` if libpq understands it; remember where it leads, and what must never be shown."""
        try:
            parts = psycopg2.extensions.parse_dsn(dsn)
        except psycopg2.ProgrammingError:
            raise ConfigError(
                "database.dsn: not a connection string that libpq understands; use postgresql://user:password@host:5432/name "
                "or host=... dbname=..."
            ) from None  # libpq's text quotes the string, and so perhaps the password
        self.secret = str(parts.get("password", ""))
        self.place = f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
        return dsn

    def _check_server(self, cur: Cursor) -> None:
        version = cur.connection.server_version
        if version < MINIMUM_VERSION:
            raise TooOldServer(f"PostgreSQL at {self.place} is version {version // 10000}: 15 or later is needed")
        cur.execute(_SQL["encoding"])
        row = cur.fetchone()
        if row is None or row[0] != "UTF8":
            raise TooOldServer(
                f"PostgreSQL at {self.place}: the database's encoding is {row[0] if row else '?'}, and UTF8 is needed: "
                "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
            )


class TooOldServer(StoreUnusable):
    """The server or database lacks what the schema needs."""

    blame = Blame.OPERATOR


def limit_time(cur: Cursor, ms: int) -> None:
    """Have each further statement of this transaction fail (StoreError) that takes longer than `ms` milliseconds."""
    cur.execute(_SQL["limit_time"], {"ms": ms})


def _check_epoch(cur: Cursor, epoch: int) -> None:
    cur.execute(_SQL["check_epoch"])
    row = cur.fetchone()
    found = row[0] if row else None
    if found != epoch:
        raise StoreFenced(f"the lease has epoch {found}, ours was {epoch}: another instance has taken over")
