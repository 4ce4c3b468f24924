"""What `doctor` asks others: database, upstream, PLC, ingesters. Each check is bounded in time and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from relay.cli.doctor_machine import Finding, ok, problem, warning
from relay.cli.reading import reading
from relay.config.addresses import http_form
from relay.config.schema import Settings
from relay.errors import ConfigError, RelayError, StoreError, StreamError
from relay.net.errors import DidNotFound, DidTombstoned, NetError, RateLimited
from relay.net.guard import Guard
from relay.net.http import Fetcher, FetchLimits, user_agent
from relay.net.subscribe import Subscription
from relay.net.xrpc import DidDirectory, Xrpc
from relay.observe import words
from relay.store import doctor, instances, migrate, partitions
from relay.store.pool import Database
from relay.store.statements import Cursor
from relay.supervisor.wiring import operator_origins
from relay.tail.envelope import ErrorHead, EventHead, InfoHead, Undecodable, parse_head

ASK_S = 5.0
FIRST_EVENT_S = 3.0
SILENT_S = 15.0  # an instance that has not shown itself for so long is gone
SKEW_SEEN_S = 5.0
SKEW_HARMS_S = 60.0  # revs and event times are compared with this clock
NOBODY = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the database told, for the checks that follow: the stored cursor of this upstream, and where instances listen."""

    cursor: int | None = None
    listening: tuple[str, ...] = ()


def check_database(settings: Settings) -> tuple[list[Finding], Known]:
    """Reachable, new enough, with room for our connections, and with the schema that this program has."""
    check = "database"
    database = Database(settings.database, Path(settings.relay.data_dir))
    if database.embedded is not None:
        advice = (
            "fine for trying out and small sets; set database.dsn (DATABASE_DSN) to a PostgreSQL of yours in production"
        )
        if not (database.embedded.data / "PG_VERSION").exists():
            text = f"embedded, in {database.embedded.folder}: not there yet, made at the first start"
            return [warning(check, text, advice)], Known()
        findings = [warning(check, f"embedded, in {database.embedded.folder}", advice)]
    else:
        findings = []
    try:
        with reading(settings) as database, database.transaction("doctor") as cur:
            findings += _server(cur, database, settings)
            missing = migrate.pending(cur)
            if missing:
                names = ", ".join(f"{step.number:04} {step.name}" for step in missing)
                findings.append(
                    warning("schema", f"migrations pending: {names}", "`db migrate`, or start: it applies them")
                )
                if not doctor.may_create(cur):
                    findings.append(
                        problem("schema", "the account may not create tables", "GRANT CREATE ON SCHEMA public")
                    )
                return findings, Known()
            findings.append(ok("schema", "up to date"))
            return findings, _known(cur, settings, findings)
    except StoreError as exc:
        advice = "is PostgreSQL up, and are host, name and password in database.dsn right?"
        return [*findings, problem(check, str(exc), advice)], Known()


def _server(cur: Cursor, database: Database, settings: Settings) -> Iterator[Finding]:
    server = doctor.server(cur)
    yield ok("database", f"PostgreSQL {server.version} at {database.place}")
    if server.is_read_only:
        yield problem("database", "it is read only (a replica?)", "name the primary in database.dsn")
    room, others = server.connections_allowed, server.connections_of_others
    wanted = settings.database.max_open_conns + 2  # the lease's session, and a command beside the service
    text = f"{words.count(room)} connections allowed, {others} used by others, up to {wanted} by us"
    if others + wanted > room:
        advice = "raise max_connections (or the account's limit), or lower database.max_open_conns"
        yield warning("connections", text, advice)
    else:
        yield ok("connections", text)


def _known(cur: Cursor, settings: Settings, findings: list[Finding]) -> Known:
    stored = partitions.read(cur)
    running = [each for each in instances.list_instances(cur) if each.silent_s < SILENT_S]
    for each in running:
        findings.append(ok("instance", f"{each.command} runs as process {each.pid} on {each.host}: {each.phase}"))
    listening = [address for each in running for address in (each.metrics_address, each.grpc_address) if address]
    is_ours = stored.upstream == settings.firehose.relay_host
    return Known(cursor=stored.cursor if is_ours else None, listening=tuple(listening))


def check_upstream(settings: Settings) -> Iterator[Finding]:
    """It lists repos."""
    if not settings.firehose.relay_host:
        yield ok("upstream", "none: this relay passes on what others send")
        return
    origin = http_form(settings.firehose.relay_host)
    try:
        with _fetcher(settings) as fetcher:
            page = Xrpc(fetcher, json_limits=_limits(settings)).list_repos(origin, limit=1)
    except RateLimited as exc:
        yield warning("upstream", str(exc), "it limits us: nothing to do but wait, and to start less often")
    except NetError as exc:
        yield problem("upstream", str(exc), "check firehose.relay_host (FIREHOSE_HOST), DNS, and the firewall")
    else:
        yield ok("upstream", f"{origin} lists repos{'' if page.repos else ' (it has none)'}")


def check_firehose(settings: Settings, cursor: int | None) -> Iterator[Finding]:
    """The websocket opens, and upstream still has what follows the stored cursor."""
    if not settings.firehose.relay_host:
        return
    check = "firehose"
    stream = Subscription(
        settings.firehose.relay_host,
        cursor=cursor,
        guard=_guard(settings),
        user_agent=user_agent(settings.http.contact),
        idle_timeout_s=10 * FIRST_EVENT_S,
        connect_timeout_s=3.0,
    )
    try:
        stream.open()
        yield _first_answer(stream, cursor)
    except (NetError, StreamError) as exc:
        yield problem(check, str(exc), "check firehose.relay_host, and that websockets pass the firewall or proxy")
    finally:
        stream.release()


def _first_answer(stream: Subscription, cursor: int | None) -> Finding:
    check, asked = "firehose", "live" if cursor is None else f"from cursor {cursor}"
    deadline = time.monotonic() + FIRST_EVENT_S
    while (left_s := deadline - time.monotonic()) > 0:
        for message in stream.receive(left_s):
            try:
                head = parse_head(message) if isinstance(message, bytes) else None
            except Undecodable:
                continue
            if isinstance(head, ErrorHead):
                advice = "a start goes on live and reconciles; `tail --live` says so at once"
                return problem(check, f"{asked}: {head.error} {head.message or ''}".rstrip(), advice)
            if isinstance(head, InfoHead) and head.name == "OutdatedCursor":
                advice = "events between were missed: a start opens an incident and reconciles"
                return warning(check, f"cursor {cursor} is older than what upstream keeps", advice)
            if isinstance(head, EventHead):
                return ok(check, f"{asked}: event {head.seq} came")
    return ok(check, f"{asked}: open, and quiet for {FIRST_EVENT_S:g} s")


def check_plc(settings: Settings) -> Iterator[Finding]:
    """The directory answers; that it does not know a DID is an answer."""
    url = settings.identity.plc_url
    try:
        with _fetcher(settings) as fetcher:
            DidDirectory(fetcher, plc_url=url, limits=_limits(settings)).fetch_did_document(NOBODY)
    except (DidNotFound, DidTombstoned):
        pass
    except RelayError as exc:
        advice = "check identity.plc_url (PLC_URL), DNS, and the firewall; known identities serve meanwhile"
        yield problem("plc", str(exc), advice)
        return
    yield ok("plc", f"{url} answers")


def check_clock(settings: Settings) -> Iterator[Finding]:
    """This machine's clock agrees with upstream's `Date` to some seconds."""
    base = settings.firehose.relay_host or settings.identity.plc_url
    asked_at = time.time()
    try:
        with _fetcher(settings) as fetcher:
            theirs = fetcher.server_time(http_form(base) + "/", limits=_limits(settings))
    except (NetError, ValueError) as exc:
        yield warning("clock", f"could not be compared: {exc}", "see the lines about upstream and PLC")
        return
    if theirs is None:
        yield ok("clock", "not compared: upstream tells no time")
        return
    yield skew_finding(asked_at, time.time(), theirs)


def skew_finding(before: float, after: float, theirs: float) -> Finding:
    """Judge a server's time, which is cut to whole seconds, against ours before and after the question."""
    skew_s = max(before - (theirs + 1.0), theirs - after, 0.0)
    text = f"within {skew_s:.0f} s of upstream's" if skew_s < SKEW_SEEN_S else f"{skew_s:.0f} s off upstream's"
    advice = "let a time service run (`timedatectl set-ntp true`)"
    if skew_s >= SKEW_HARMS_S:
        return problem("clock", text, advice + ": revs from the future are refused by this clock")
    return warning("clock", text, advice) if skew_s >= SKEW_SEEN_S else ok("clock", text)


def check_ingester(settings: Settings, address: str) -> Iterator[Finding]:
    """It takes a connection, and says that it is serving: asked by ingester.v1's own call, else by the standard one."""
    import grpc  # not before: a command that only parses its line loads no gRPC

    from relay.deliver.channel import NOBODY_TO_ASK, Connector, HealthWay, ask_health, code_of, refuses, words_of

    check = f"ingester {address}"
    advice = "is it running, is the address right (ingesters), and does TLS fit (delivery.tls_ca)?"
    try:
        channel = Connector(settings.delivery, settings.grpc, settings.relay).open(address)
    except ConfigError as exc:
        yield problem(check, str(exc), "correct the file or its permissions")
        return
    try:
        for way in HealthWay:
            started = time.monotonic()
            try:
                answer = ask_health(channel, way, ASK_S).result()
            except grpc.RpcError as exc:
                if code_of(exc) in NOBODY_TO_ASK:
                    continue
                yield problem(check, words_of(exc), advice)
                return
            if refuses(answer):
                text = f"says that it is not serving {getattr(answer, 'message', '')}".rstrip()
                yield problem(check, text, "see the ingester's own log")
            else:
                yield ok(check, f"serving, answered in {words.duration(time.monotonic() - started)}")
            return
        text = "answers gRPC, but has no HealthCheck: is it an ingester?"
        yield warning(check, text, "implement HealthCheck of proto/ingester.proto")
    finally:
        channel.close()


def check_no_ingester(settings: Settings) -> Iterator[Finding]:
    advice = "set ingesters (INGESTER_ADDRESSES) to yours when you have one"
    yield warning("ingesters", "none is named: the reference ingester is started, into a SQLite file", advice)


def _guard(settings: Settings) -> Guard:
    return Guard(allow_private=settings.security.allow_private_hosts, exempt=operator_origins(settings))


@contextmanager
def _fetcher(settings: Settings) -> Iterator[Fetcher]:
    fetcher = Fetcher(_guard(settings), user_agent=user_agent(settings.http.contact))
    try:
        yield fetcher
    finally:
        fetcher.abort()  # closes what is kept alive


def _limits(settings: Settings) -> FetchLimits:
    return FetchLimits(
        max_bytes=1 << 20,
        total_s=ASK_S,
        connect_timeout_s=min(ASK_S, settings.http.connect_timeout_sec),
        head_timeout_s=ASK_S,
        max_redirects=settings.http.max_redirects,
    )
