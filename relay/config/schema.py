"""Every setting, declared once: default, range, environment name and help. Loading is in `load.py`, printing in `show.py`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def setting(
    default: Any,
    *,
    help: str,
    env: str | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
    empty_env: bool = False,
) -> Any:
    """Declare one key of a section.

    `env` is the key's short environment name (SECTION_KEY always works as well); `empty_env`: an empty variable is a value
    and not "unset"; `secret`: masked wherever settings are shown.
    """
    metadata = {
        "help": help,
        "env": env,
        "at_least": at_least,
        "at_most": at_most,
        "choices": choices,
        "secret": secret,
        "empty_env": empty_env,
    }
    if isinstance(default, list | tuple):
        value = tuple(default)
        return field(default=value, metadata=metadata)
    return field(default=default, metadata=metadata)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    name: str = setting(
        "tradr-relay", env="RELAY_NAME", help="this relay's name, told to ingesters and shown in status"
    )
    data_dir: str = setting("", env="DATA_DIR", help="embedded database, spool, default sink; empty: chosen at start")
    max_retries: int = setting(5, at_least=0, help="attempts after the first before a repo or operation is given up")
    retry_backoff_ms: int = setting(2000, at_least=1, help="first back-off, milliseconds; doubles")
    partitions: int = setting(64, at_least=1, at_most=4096, help="partitions that DIDs are hashed into")
    shutdown_timeout_sec: float = setting(30.0, at_least=0, help="how long a stop waits for acknowledgements, seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class FirehoseSettings:
    relay_host: str = setting(
        "wss://bsky.network", env="FIREHOSE_HOST", empty_env=True, help="upstream relay or PDS; empty: no firehose"
    )
    nsid_filter: tuple[str, ...] = setting(
        ("app.bsky.",), env="NSID_FILTER", empty_env=True, help="wanted collections: NSIDs or prefixes; empty: all"
    )
    max_reconnect_attempts: int = setting(
        -1, at_least=-1, help="failed connections in a row before giving up; -1: never"
    )
    reconnect_delay_ms: int = setting(5000, at_least=1, help="first delay before connecting again, milliseconds")
    idle_timeout_sec: float = setting(60.0, at_least=1, help="a silent connection is dropped after this, seconds")
    max_open_frames: int = setting(
        200_000, at_least=1, help="distance from the oldest open frame to the newest one read"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverySettings:
    mode: str = setting("all", env="DISCOVERY_MODE", choices=("all", "collection", "tracked"), help="what to track")
    collections: tuple[str, ...] = setting((), help="mode collection: repos that hold one of these NSIDs")
    collection_host: str = setting("", help="serves listReposByCollection; empty: the upstream")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillerSettings:
    parallel_backfills: int = setting(
        10, env="PARALLEL_BACKFILLS", at_least=1, at_most=1024, help="downloads at a time"
    )
    parallel_record_creates: int = setting(1000, at_least=1, help="operations of one repo in one batch, at most")
    workers: int = setting(
        _cores(), env="WORKERS", at_least=1, at_most=256, help="verifying processes (default: cores)"
    )
    buffer_size: int = setting(50_000, env="BUFFER_SIZE", at_least=1, help="live operations buffered during backfills")
    checkpoint_interval: int = setting(5000, at_least=1, help="operations between checkpoints (or 1 s)")
    max_repo_bytes: int = setting(2 * GIB, at_least=1 * KIB, help="largest CAR that is taken, bytes")
    fetch_timeout_sec: float = setting(600.0, at_least=1, help="longest time for one download, seconds")
    min_bytes_per_sec: int = setting(10 * KIB, at_least=0, help="slowest download that is tolerated, bytes/s")
    host_requests_per_sec: float = setting(10.0, at_least=0.01, help="requests to one host (burst at most 30), 1/s")
    host_connections: int = setting(4, at_least=1, help="connections to one host at a time")
    host_breaker_sec: float = setting(10.0, at_least=0, help="pause after a host stopped answering, seconds")
    slot_bytes: int = setting(4 * MIB, at_least=64 * KIB, help="a CAR above this goes to a spool file, bytes")
    slots: int = setting(24, at_least=2, help="CARs in shared memory at a time")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileSettings:
    interval_h: float = setting(168.0, at_least=0, help="hours between reconciles; 0: only after incidents")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentitySettings:
    plc_url: str = setting("https://plc.directory", env="PLC_URL", help="the PLC directory")
    requests_per_sec: float = setting(100.0, at_least=0.01, help="requests to the PLC directory, 1/s")
    cache_entries: int = setting(200_000, at_least=1, help="DID documents kept in memory")
    fresh_sec: float = setting(86_400.0, at_least=0, help="a document older than this is resolved again, seconds")
    timeout_sec: float = setting(10.0, at_least=0.1, help="one DID document request, seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    contact: str = setting("", env="HTTP_CONTACT", help="mail address or URL in the User-Agent, for other operators")
    connect_timeout_sec: float = setting(10.0, at_least=0.1, help="one connection attempt, seconds")
    max_redirects: int = setting(3, at_least=0, help="redirects followed for one request")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    workers: int = setting(1, env="VERIFY_WORKERS", at_least=1, at_most=64, help="processes that verify live commits")
    signatures: bool = setting(True, help="check commit signatures")
    proofs: bool = setting(True, help="check live commits by operation inversion")
    max_record_bytes: int = setting(1 * MIB, at_least=1, help="largest record block, bytes")
    max_block_bytes: int = setting(2 * MIB, at_least=1, help="largest block of a CAR, bytes")
    max_blocks: int = setting(20_000_000, at_least=1, help="blocks in one CAR")
    max_cbor_depth: int = setting(32, at_least=1, help="nesting of one CBOR item")
    max_cbor_items: int = setting(131_072, at_least=1, help="items in one CBOR container")
    max_tree_depth: int = setting(32, at_least=1, at_most=128, help="layers of a repo's tree")
    max_node_entries: int = setting(1024, at_least=4, help="entries of one tree node")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    record_encoding: str = setting(
        "json", env="RECORD_ENCODING", choices=("json", "dag-cbor"), help="how records travel"
    )
    batch_bytes: int = setting(256 * KIB, at_least=1 * KIB, help="size of one batch, bytes")
    max_in_flight_batches: int = setting(32, at_least=1, help="unacknowledged batches of one stream, at most")
    failover_after_sec: float = setting(30.0, at_least=0, help="an ingester away for this loses its DIDs; 0: never, s")
    ack_timeout_sec: float = setting(60.0, at_least=0.1, help="without an acknowledgement for this it is away, seconds")
    queue_operations: int = setting(50_000, at_least=1, help="operations queued for one ingester")
    backfill_share: float = setting(0.2, at_least=0, at_most=1, help="share of a stream kept for backfill")
    tls_ca: str = setting("", help="CA file: speak TLS to ingesters")
    tls_cert: str = setting("", help="our certificate file, for mutual TLS")
    tls_key: str = setting("", help="our key file, for mutual TLS")
    token_file: str = setting("", help="file with the token that ingesters ask for: another relay's grpc.token_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcSettings:
    port: int = setting(50051, env="GRPC_PORT", at_least=0, at_most=65535, help="management and ingest port; 0: any")
    host: str = setting("127.0.0.1", help="address that the management API listens on")
    max_message_size: int = setting(20_971_520, at_least=64 * KIB, help="largest message, bytes")
    keepalive_time_sec: float = setting(30.0, at_least=1, help="pings on idle streams, seconds")
    tls_cert: str = setting("", help="server certificate file")
    tls_key: str = setting("", help="server key file")
    tls_client_ca: str = setting("", help="CA of client certificates: asks for mutual TLS")
    token_file: str = setting("", help="file with the token that calls off loopback need")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings:
    dsn: str = setting("", env="DATABASE_DSN", secret=True, help="PostgreSQL 15 or later; empty: an embedded one")
    path: str = setting("", env="DATABASE_PATH", help="folder of the embedded one; empty: pg under relay.data_dir")
    max_open_conns: int = setting(50, at_least=4, help="connections, at most")
    max_idle_conns: int = setting(10, at_least=0, help="idle connections that are kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    port: int = setting(
        9090, env="METRICS_PORT", at_least=0, at_most=65535, help="metrics, health, status page; 0: any"
    )
    host: str = setting("127.0.0.1", help="address that metrics and health listen on")
    enable_runtime_metrics: bool = setting(True, help="metrics of the Python runtime too")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecuritySettings:
    allow_private_hosts: bool = setting(
        False, env="ALLOW_PRIVATE_HOSTS", help="connect to private addresses named by DID documents (development)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of it. `ingesters`, `log_level` and `log_format` stand at the top level of the file."""

    relay: RelaySettings = field(default_factory=RelaySettings)
    firehose: FirehoseSettings = field(default_factory=FirehoseSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    backfiller: BackfillerSettings = field(default_factory=BackfillerSettings)
    reconcile: ReconcileSettings = field(default_factory=ReconcileSettings)
    identity: IdentitySettings = field(default_factory=IdentitySettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)
    ingesters: tuple[str, ...] = setting(
        (), env="INGESTER_ADDRESSES", help="host:port of each ingester; empty: the reference ingester is started"
    )
    delivery: DeliverySettings = field(default_factory=DeliverySettings)
    grpc: GrpcSettings = field(default_factory=GrpcSettings)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    log_level: str = setting(
        "info", env="LOG_LEVEL", choices=("debug", "info", "warning", "error"), help="how much is logged"
    )
    log_format: str = setting("text", env="LOG_FORMAT", choices=("text", "json"), help="how a log line looks")
