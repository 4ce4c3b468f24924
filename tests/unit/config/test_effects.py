"""Every key has an effect: another value makes another machine, or a test that is named here shows what it does.

The first proof needs no list of attributes: the real machine is built with each value, and everything that can be reached from it (but
for the settings themselves, which any part may hold without reading) is compared. What differs was read, and is somewhere in a real part.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from relay.atproto.nsid_filter import NsidFilter
from relay.config import keys
from relay.config.keys import KEYS
from relay.config.schema import KIB, Settings
from relay.deliver.channel import Connector
from relay.discovery.pages import PagePolicy
from relay.identity.resolver import Resolver
from relay.model import Identity
from relay.net.http import user_agent
from relay.net.xrpc import document_limits, repo_limits
from relay.observe.metrics import Metrics
from relay.runtime.clock import SystemClock
from relay.store.partitions import partition_of
from relay.store.pool import Database
from relay.supervisor.live import Follow
from relay.supervisor.reconcile import scope_of
from relay.supervisor.wiring import Machine, operator_origins

ROOT = Path(__file__).parents[3]

# What differs from the default where one more, or the other of two, would be no value of its own.
OTHER: Mapping[str, Any] = {
    "relay.name": "other-relay",
    "relay.data_dir": "/other",
    "firehose.relay_host": "wss://other.example",
    "firehose.nsid_filter": ("com.example.",),
    "firehose.max_reconnect_attempts": 7,
    "discovery.collections": ("com.example.thing",),
    "discovery.collection_host": "https://lists.example",
    "backfiller.slots": 12,
    "backfiller.slot_bytes": 128 * KIB,
    "identity.plc_url": "https://plc.example",
    "http.contact": "ops@example.org",
    "database.path": "/other/pg",
    "database.dsn": "postgresql://other.example/relay",
}

# No part of the machine has these: the test that is named shows the effect, and has the name of the key or of its variable in it.
SHOWN: Mapping[str, str] = {
    "relay.shutdown_timeout_sec": "integration/service/test_run.py",
    "reconcile.interval_h": "integration/supervisor/test_reconcile.py",
    "ingesters": "integration/service/test_run.py",
    "delivery.tls_ca": "unit/deliver/test_channel.py",
    "delivery.tls_cert": "unit/deliver/test_channel.py",
    "delivery.tls_key": "unit/deliver/test_channel.py",
    "delivery.token_file": "integration/service/test_chained.py",
    "grpc.port": "integration/service/test_chained.py",
    "grpc.host": "integration/admin/test_access.py",
    "grpc.tls_cert": "integration/admin/test_access.py",
    "grpc.tls_key": "integration/admin/test_access.py",
    "grpc.tls_client_ca": "integration/admin/test_access.py",
    "grpc.token_file": "integration/admin/test_access.py",
    "database.max_open_conns": "integration/store/test_pool.py",
    "database.max_idle_conns": "integration/store/test_pool.py",
    "metrics.port": "integration/cli/test_health.py",
    "metrics.host": "integration/cli/test_health.py",
}

_SECTIONS = tuple(
    type(each.default_factory()) for each in dataclasses.fields(Settings) if callable(each.default_factory)
)
_PLAIN = (bool, int, float, str, bytes, type(None), enum.Enum)


@pytest.mark.parametrize("name", [name for name in KEYS if name not in SHOWN])
def test_another_value_makes_another_machine(name: str, default_machine: _Fingerprint) -> None:
    other = _fingerprint(_with(name, _other_value(name)))
    assert _differing(default_machine, other), f"{name} is read by nobody, or changes nothing"


@pytest.mark.parametrize("name", SHOWN)
def test_the_test_that_shows_a_key_is_there_and_sets_it(name: str) -> None:
    text = (ROOT / "tests" / SHOWN[name]).read_text()
    words = [*KEYS[name].variables, rf"{name.rpartition('.')[2]}="]
    assert re.search(r"\b(" + "|".join(words) + ")", text), f"{SHOWN[name]} says nothing of {name}"


def test_each_key_is_either_compared_or_shown_and_no_other_name_is_listed() -> None:
    assert set(SHOWN) | set(OTHER) <= set(KEYS)
    assert not set(SHOWN) & set(OTHER)


def test_each_key_is_read_by_name_outside_of_the_configuration() -> None:
    """The base line: somewhere in the program, and not in a stranger, stands the name behind a dot, or as a text for getattr."""
    sources = [
        path.read_text()
        for path in (ROOT / "relay").rglob("*.py")
        if path.relative_to(ROOT / "relay").parts[0] not in ("config", "simnet", "ingester")
    ]
    unread = [
        name
        for name in KEYS
        if not any(re.search(rf'[.]{name.rpartition(".")[2]}\b|"{name.rpartition(".")[2]}"', text) for text in sources)
    ]
    assert unread == []


def test_a_key_that_nobody_reads_makes_no_other_machine(default_machine: _Fingerprint) -> None:
    """The comparison can fail: the machine reads no grpc.port, and with it nothing differs but what is never the same."""
    assert _differing(default_machine, _fingerprint(_with("grpc.port", 1))) == set()


# --- the fingerprint of a machine ---------------------------------------------------------------------------------------------

_ABSENT = object()


@dataclasses.dataclass
class _Fingerprint:
    """Every plain value by its path, and the paths whose values are never the same: descriptors, times, random numbers."""

    values: dict[str, object]
    unstable: set[str]


@pytest.fixture(scope="module")
def default_machine() -> _Fingerprint:
    first, unstable = _fingerprint(Settings()), set()
    for _ in range(3):
        again = _fingerprint(Settings())
        unstable |= {
            path for path in first.keys() | again.keys() if first.get(path, _ABSENT) != again.get(path, _ABSENT)
        }
    return _Fingerprint(first, unstable)


def _differing(default: _Fingerprint, other: dict[str, object]) -> set[str]:
    paths = default.values.keys() | other.keys()
    return {path for path in paths if default.values.get(path, _ABSENT) != other.get(path, _ABSENT)} - default.unstable


def _with(name: str, value: object) -> Settings:
    section, _, key = name.rpartition(".")
    changes: dict[str, Any] = {key: value}
    if not section:
        return dataclasses.replace(Settings(), **changes)
    changes = {section: dataclasses.replace(getattr(Settings(), section), **changes)}
    return dataclasses.replace(Settings(), **changes)


def _other_value(name: str) -> object:
    key: keys.Key = KEYS[name]
    if name in OTHER:
        return OTHER[name]
    if key.choices:
        return next(choice for choice in key.choices if choice != key.default)
    if key.type is bool:
        return not key.default
    assert key.type in (int, float), f"{name}: give it another value in OTHER, or name the test that shows it in SHOWN"
    more = key.type(key.default * 2)
    return more if key.at_most is None or more <= key.at_most else key.type(key.default / 2)


def _fingerprint(settings: Settings) -> dict[str, object]:
    """Build what a service builds of these settings, without starting it, and return all that is in it."""
    database = Database(settings.database, Path(settings.relay.data_dir or "/nonexistent"))
    metrics = Metrics(version="0", runtime=settings.metrics.enable_runtime_metrics)
    origins = operator_origins(settings)
    follow = Follow(
        upstream=settings.firehose.relay_host, cursor=None, time_us=None, mode=settings.discovery.mode,
        collections=settings.discovery.collections, on_incident=_nothing, on_give_up=_nothing,
    )  # fmt: skip
    machine = Machine(
        settings, database, addresses=("127.0.0.1:9",), nsid_filter=NsidFilter.parse(settings.firehose.nsid_filter), batch=None,
        epoch=lambda: 1, spool_dir=Path("/nonexistent"), operator_origins=origins, metrics=metrics, on_death=_nothing,
        on_store=_nothing, follow=follow,
    )  # fmt: skip
    try:
        return _values(
            {
                "machine": machine,
                "database": database.place,
                "metrics": metrics.render().decode().count("# HELP"),
                "origins": origins,
                "scope": scope_of(settings).text,
                "repo": repo_limits(settings.backfiller, settings.http),
                "document": document_limits(settings.identity, settings.http),
                "pages": PagePolicy.from_settings(settings.relay),
                "agent": user_agent(settings.http.contact),
                "connector": Connector(settings.delivery, settings.grpc, settings.relay),
                "resolver": Resolver.from_settings(settings.identity, _nobody, SystemClock()),
                "partitions": [partition_of(f"did:plc:{number}", settings.relay.partitions) for number in range(50)],
            }
        )
    finally:
        machine.engine.close()
        machine.cars.close()
        machine.operations.close()
        assert machine.live is not None
        machine.live.close()


def _nothing(*_: object) -> None:
    pass


def _nobody(did: str) -> Identity:
    raise AssertionError(did)


def _values(root: object) -> dict[str, object]:
    """Return the plain values that can be reached from `root` through our own objects, containers and closures, by path."""
    found: dict[str, object] = {}
    seen: set[int] = set()
    kept: list[object] = []  # what was made on the way stays, so that no id comes twice
    todo: list[tuple[str, object]] = [("", root)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, _PLAIN):
            found[path] = value
        elif id(value) not in seen and not isinstance(value, (Settings, *_SECTIONS)):
            seen.add(id(value))
            kept.append(value)
            todo += [(path + step, each) for step, each in _parts(value)]
    return found


def _parts(value: Any) -> list[tuple[str, object]]:
    match value:
        case dict():
            return [(f"[{key}]", each) for key, each in value.items() if isinstance(key, str | int)]
        case list() | tuple():
            return [(f"[{number}]", each) for number, each in enumerate(value)]
        case functools.partial():
            return [(".args", value.args), (".keywords", value.keywords), (".func", value.func)]
        case types.MethodType():
            return [(".self", value.__self__)]
        case types.FunctionType():
            cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            return [(f"<{name}>", cell.cell_contents) for name, cell in cells if cell != types.CellType()]
        case type() | types.ModuleType() | threading.Thread():
            pass
    if isinstance(value, type) or not type(value).__module__.startswith("relay."):
        return []
    names = set(getattr(value, "__dict__", ()))
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        names |= {slots} if isinstance(slots, str) else set(slots)
    return [(f".{name}", getattr(value, name)) for name in sorted(names) if hasattr(value, name)]
