"""A stage for `bin/relay backfill`: a network, a database of its own, an ingester, and what came of it.

The network runs in the test's process, everything else as a user would start it. The judge is `relay.simnet.oracle`; repo rows
are read with SQL of our own, so that no code of the relay's vouches for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from relay.simnet.delivered import Delivered, read_sink
from relay.simnet.network import SimNetwork
from relay.simnet.oracle import compare, report
from tests.support.processes import Program, RunRelay

FAST = {
    "NSID_FILTER": "",
    "RELAY_MAX_RETRIES": "1",
    "RELAY_RETRY_BACKOFF_MS": "100",
    "BACKFILLER_HOST_BREAKER_SEC": "0.5",
    "BACKFILLER_HOST_REQUESTS_PER_SEC": "1000",
    "IDENTITY_REQUESTS_PER_SEC": "10000",
}
"""One retry and short pauses. Everything else stands at its default."""

_ROWS = "SELECT did, state, reason, rev, host, attempts, records, last_error, touched, told_status FROM repo"
_LETTERS = "SELECT did, collection, rkey, type, reason, message, size FROM dead_letter ORDER BY id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A repo's row in the relay's database."""

    state: str
    reason: str | None
    rev: str | None
    host: str | None
    attempts: int
    records: int | None
    error: str | None
    touched: bool
    told: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter."""

    did: str
    path: str
    type: str
    reason: str
    message: str
    size: int


class Scene:
    """See the module. `sink`: what the default ingester, started by the relay itself, writes to."""

    def __init__(self, run_relay: RunRelay, network: SimNetwork, dsn: str, folder: Path) -> None:
        self._run_relay = run_relay
        self.network, self.dsn, self.folder = network, dsn, folder
        self.data_dir = folder / "data"
        self.sink = f"sqlite://{self.data_dir / 'records.sqlite'}"
        self.env = {
            **FAST,
            "DATABASE_DSN": dsn,
            "PLC_URL": network.plc_url,
            "FIREHOSE_HOST": network.relay_url,
        }

    # What is started

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> Program:
        """Start `bin/relay` with these arguments."""
        return self._run_relay(*arguments, env={**self.env, **dict(env or {})})

    def backfill(
        self, *arguments: str, code: int = 0, deadline_s: float = 60.0, env: Mapping[str, str] | None = None
    ) -> str:
        """Run `backfill` to its end, which must be `code`; return what it wrote to stderr."""
        program = self.start("backfill", *arguments, env=env)
        assert program.wait(deadline_s) == code, str(program)
        text = "\n".join(program.err)
        assert "Traceback" not in text, text
        return text

    def ingester(
        self, sink: str | None = None, *faults: str, listen: str = "127.0.0.1:0", options: Sequence[str] = ()
    ) -> str:
        """Start a reference ingester, and let it be the one that is delivered to; return its address."""
        self.sink = sink or f"sqlite://{self.folder / 'ingester.sqlite'}"
        wanted = [argument for fault in faults for argument in ("--fault", fault)]
        program = self.start("ingester", "--listen", listen, "--sink", self.sink, *wanted, *options)
        address = program.wait_for_line(r"^listening on (\S+)")[1]
        self.env["INGESTER_ADDRESSES"] = address
        return address

    # What came of it

    def rows(self) -> dict[str, Row]:
        """Return every repo's row, by DID."""
        return {
            did: Row(
                state=state,
                reason=reason,
                rev=rev,
                host=host,
                attempts=attempts,
                records=records,
                error=error,
                touched=touched,
                told=told,
            )
            for did, state, reason, rev, host, attempts, records, error, touched, told in self.select(_ROWS)
        }

    def letters(self) -> list[Letter]:
        return [
            Letter(did=did, path=f"{collection}/{rkey}", type=kind, reason=reason, message=message, size=size)
            for did, collection, rkey, kind, reason, message, size in self.select(_LETTERS)
        ]

    def select(self, query: str) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cur:
            cur.execute(query)
            return cur.fetchall()

    def change(self, statement: str) -> None:
        """Change the relay's database behind its back, as time would."""
        with closing(psycopg2.connect(self.dsn)) as connection, connection, connection.cursor() as cur:
            cur.execute(statement)

    def delivered(self) -> dict[str, Delivered]:
        return read_sink(self.sink)

    def differences(self, *, patterns: Sequence[str] = (), leaving_out: Sequence[str] = ()) -> str:
        """Compare the ingester with the network; empty: they agree. `leaving_out`: DIDs of which nothing may be there."""
        targets = set(self.network.dids()) - set(leaving_out)
        found = compare(self.network.truth(), self.delivered(), patterns=patterns, targets=targets)
        return report(found) if found else ""

    def counts(self) -> dict[str, int]:
        """Return how many repos are in each state."""
        counted: dict[str, int] = {}
        for row in self.rows().values():
            counted[row.state] = counted.get(row.state, 0) + 1
        return counted
