"""A real PostgreSQL for tests: one private server a session, a database of its own for each test that asks for one.

`database` is open and migrated; `database_dsn` names an empty one, for programs that bring their own schema; `installations` are the
PostgreSQL binaries of this machine: the wheel's, and others (15 or later) that are installed beside it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest

from relay.config.schema import DatabaseSettings
from relay.store.embedded import EmbeddedPostgres
from relay.store.pool import Database
from relay.store.wheel import BinFolder, bin_folders, version_of

TEMPLATE = "relay_template"
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""A test that kills the server starts one of its own, with every safety on."""

_numbers = itertools.count(1)


def installations() -> list[BinFolder]:
    """Return the wheel's newest PostgreSQL and every system one of version 15 or later."""
    found = [bin_folders()[0]]
    for program in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        version = version_of(program.parent)
        if version >= 15:
            found.append(BinFolder(path=program.parent, version=version))
    return found


class Server:
    """A running server, and databases on it by name."""

    def __init__(self, embedded: EmbeddedPostgres) -> None:
        self.embedded = embedded

    def dsn(self, name: str) -> str:
        return psycopg2.extensions.make_dsn(self.embedded.dsn, dbname=name)

    def run(self, statement: str) -> None:
        connection = psycopg2.connect(self.dsn("postgres"))
        try:
            connection.autocommit = True
            with connection.cursor() as cur:
                cur.execute(statement)
        finally:
            connection.close()

    def create(self, template: str = "template0") -> str:
        name = f"test_{next(_numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def database_of(dsn: str, *, max_open_conns: int = 50, max_idle_conns: int = 10) -> Database:
    """Return a Database, not opened, for a connection string."""
    settings = DatabaseSettings(dsn=dsn, max_open_conns=max_open_conns, max_idle_conns=max_idle_conns)
    return Database(settings, Path("/nonexistent"))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short name (unix sockets have little room), mode 0700, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    embedded = EmbeddedPostgres(folder / "s", settings=NOT_DURABLE)
    embedded.open()
    try:
        yield _with_template(Server(embedded))
    finally:
        embedded.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", params=installations(), ids=lambda binaries: f"pg{binaries.version}")
def each_postgres_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """As `postgres_server`, once for every installed version."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    embedded = EmbeddedPostgres(folder / "s", bin_folder=request.param.path, settings=NOT_DURABLE)
    embedded.open()
    try:
        yield _with_template(Server(embedded))
    finally:
        embedded.close()
        shutil.rmtree(folder, ignore_errors=True)


def _with_template(server: Server) -> Server:
    server.run(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")
    template = database_of(server.dsn(TEMPLATE))
    template.open()
    template.close()
    return server


@pytest.fixture
def database_dsn(postgres_server: Server) -> Iterator[str]:
    """The connection string of an empty database."""
    name = postgres_server.create()
    yield postgres_server.dsn(name)
    postgres_server.drop(name)


@pytest.fixture
def migrated_dsn(postgres_server: Server) -> Iterator[str]:
    """The connection string of a database with the schema in it and no rows."""
    name = postgres_server.create(TEMPLATE)
    yield postgres_server.dsn(name)
    postgres_server.drop(name)


@pytest.fixture
def database(migrated_dsn: str) -> Iterator[Database]:
    """An open database with the schema in it and no rows."""
    opened = database_of(migrated_dsn)
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def each_database(each_postgres_server: Server) -> Iterator[Database]:
    """As `database`, on every installed version."""
    name = each_postgres_server.create(TEMPLATE)
    opened = database_of(each_postgres_server.dsn(name))
    opened.open()
    yield opened
    opened.close()
    each_postgres_server.drop(name)


def is_root() -> bool:
    return os.geteuid() == 0
