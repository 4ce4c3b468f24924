"""What `doctor` finds out about this machine: files, memory, disk, ports. Looks only; each check takes the settings and returns findings."""

from __future__ import annotations

import enum
import errno
import os
import resource
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from relay.cli.config import file_mistakes
from relay.config.addresses import format_host_port, is_loopback
from relay.config.load import Loaded
from relay.config.schema import GIB, KIB, MIB, Settings
from relay.observe import words
from relay.supervisor.arenas import plan

OTHER_FILES = 256  # libraries, logs, pipes to children, idle connections
CHILD_BYTES = 150 * MIB  # of one worker, fetch or verify process, as measured on large repos
SUPERVISOR_BYTES = 500 * MIB
EMBEDDED_BYTES = 300 * MIB
LITTLE_DISK_BYTES = 1 * GIB


class Level(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, and an operator should know
    PROBLEM = "problem"  # it does not work, or will not for long


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: what was looked at, what was found, and what to do (empty where nothing is)."""

    check: str
    level: Level
    text: str
    advice: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check=check, level=Level.OK, text=text)


def warning(check: str, text: str, advice: str) -> Finding:
    return Finding(check=check, level=Level.WARNING, text=text, advice=advice)


def problem(check: str, text: str, advice: str) -> Finding:
    return Finding(check=check, level=Level.PROBLEM, text=text, advice=advice)


def check_configuration(loaded: Loaded) -> Iterator[Finding]:
    """The files that it names can be read, nothing looks misspelt, and what other operators would ask for is there."""
    check, settings = "configuration", loaded.settings
    for mistake in file_mistakes(loaded):
        yield problem(check, mistake, "correct the path or its permissions; see `config show`")
    for text in loaded.warnings:
        yield warning(check, text, "correct or remove the variable: it has no effect")
    if not settings.http.contact:
        yield warning(
            check,
            "http.contact is empty: nobody whose server we ask knows whom to write to",
            "set http.contact (HTTP_CONTACT) to a mail address or URL",
        )
    if settings.security.allow_private_hosts:
        yield warning(
            check,
            "security.allow_private_hosts is set: anybody's DID document may lead us into this network",
            "unset it outside of development",
        )
    if not is_loopback(settings.grpc.host) and not settings.grpc.tls_cert:
        yield warning(
            check, f"grpc.host {settings.grpc.host}: tokens travel in plain text", "set grpc.tls_cert, tls_key"
        )
    yield ok(check, f"read from {loaded.file or 'defaults, environment and flags alone'}")


def check_files(settings: Settings, soft_limit: int | None = None) -> Iterator[Finding]:
    """RLIMIT_NOFILE holds for each process: the supervisor's connections, and a fetch process's downloads, fit into it."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if soft_limit is None else soft_limit
    downloads = plan(settings).downloads
    need = OTHER_FILES + max(settings.database.max_open_conns + 4 * len(settings.ingesters), 3 * downloads)
    text = f"{'no limit' if limit == resource.RLIM_INFINITY else words.count(limit)} open files a process, about {need:,} needed"
    if limit != resource.RLIM_INFINITY and limit < need:
        yield problem("open files", text, f"`ulimit -n {2 * need}`, or LimitNOFILE={2 * need} in the systemd unit")
    else:
        yield ok("open files", text)


def check_memory(settings: Settings, available: int | None = None) -> Iterator[Finding]:
    """Slots of shared memory and processes, as configured, fit into what this machine (or its container) has."""
    sizes = plan(settings)
    slots = sizes.car_slots * sizes.car_slot_bytes + sizes.operation_slots * sizes.operation_slot_bytes
    children = sizes.workers + sizes.fetchers + settings.verify.workers
    need = slots + children * CHILD_BYTES + SUPERVISOR_BYTES + (0 if settings.database.dsn else EMBEDDED_BYTES)
    have = memory_bytes() if available is None else available
    yield from _check_slots(slots, have)
    text = f"{words.size(need)} for {children} child processes and all slots when full, {words.size(have)} here"
    advice = "lower backfiller.workers, backfiller.slots or backfiller.slot_bytes, or give it more memory"
    if need > have:
        yield problem("memory", text, advice)
    elif need > 0.7 * have:
        yield warning("memory", f"{text}: little is left for the database's cache", advice)
    else:
        yield ok("memory", text)


def _check_slots(slots: int, have: int) -> Iterator[Finding]:
    """Slots are memfds: they take memory, and no room in /dev/shm."""
    check = "shared memory"
    try:
        os.close(os.memfd_create("relay-doctor"))
    except OSError as exc:
        yield problem(
            check, f"memfd_create: {exc.strerror}", "allow memfd_create(2) in the container's seccomp profile"
        )
        return
    text = f"{words.size(slots)} of slots (memfd; /dev/shm is not used)"
    if slots > have // 2:
        advice = "lower backfiller.slots or backfiller.slot_bytes"
        yield warning(check, f"{text}, more than half of the memory", advice)
    else:
        yield ok(check, text)


def memory_bytes(root: Path = Path("/")) -> int:
    """Return what this process may use at most: the machine's memory, or its control group's limit where that is lower."""
    have = 0
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            have = int(line.split()[1]) * KIB
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < have:
            have = int(text)
    return have


def check_disk(settings: Settings, free_bytes: int | None = None) -> Iterator[Finding]:
    """The data folder (spool files, the private database, the default sink) can be written and has room."""
    check, folder = "disk", Path(settings.relay.data_dir)
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        user = os.geteuid()
        yield problem(
            check, f"{place}: not a folder that user {user} may write to", f"chown it, or set DATA_DIR (now {folder})"
        )
        return
    if free_bytes is None:
        stat = os.statvfs(place)
        free_bytes = stat.f_bavail * stat.f_frsize
    text = f"{words.size(free_bytes)} free for {folder}"
    if free_bytes < LITTLE_DISK_BYTES:
        yield problem(check, text, "make room: spool files and the database need it, and a full disk stops both")
    elif free_bytes < 2 * settings.backfiller.max_repo_bytes:
        limit = words.size(settings.backfiller.max_repo_bytes)
        yield warning(check, f"{text}; a repo may take {limit}", "make room, or lower backfiller.max_repo_bytes")
    else:
        yield ok(check, text)


def check_ports(settings: Settings, ours: Collection[str] = ()) -> Iterator[Finding]:
    """The ports to listen on are free, or taken by an instance of this database (`ours`: the addresses that instances told)."""
    taken_by_us = {address.rpartition(":")[2] for address in ours}
    for name, host, port in (
        ("metrics", settings.metrics.host, settings.metrics.port),
        ("grpc", settings.grpc.host, settings.grpc.port),
    ):
        check, shown = f"{name} port", format_host_port(host, port)
        if port == 0:
            yield ok(check, f"{host}, any free port")
        elif str(port) in taken_by_us:
            yield ok(check, f"{shown}: a running instance listens here")
        elif (error := _why_not_bound(host, port)) is None:
            yield ok(check, f"{shown} is free")
        else:
            advice = f"end what listens there (`ss -ltnp`), or set {name}.host and {name}.port"
            yield problem(check, f"{shown}: {error}", advice)


def _why_not_bound(host: str, port: int) -> str | None:
    """Bind and let go again, without listening: nobody sees it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as exc:
        return "somebody else listens there" if exc.errno == errno.EADDRINUSE else exc.strerror or str(exc)
    return None
