"""What a type and a range cannot say: addresses, name patterns, and settings that do not go together (pure).

Both functions speak of mistakes as (key, text); `load.py` adds the place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from relay.atproto.errors import AtprotoError
from relay.atproto.nsid_filter import NsidFilter
from relay.config.addresses import format_host_port, http_form, http_url, is_loopback, parse_host_port, ws_form
from relay.config.keys import KEYS
from relay.config.values import show_value

_DSN = re.compile(r"\s*(postgres(ql)?://|[a-z_]+\s*=)")


def normalise(values: MutableMapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Bring addresses and patterns into their one form, in place; one that has none is told, and keeps its default."""
    forms: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("firehose.relay_host", ws_form),
        ("firehose.nsid_filter", _patterns),
        ("discovery.collections", _collections),
        ("discovery.collection_host", http_form),
        ("identity.plc_url", http_url),
        ("ingesters", ingester_addresses),
        ("database.dsn", _dsn),
        ("relay.name", _relay_name),
        ("http.contact", _header_text),
    )
    for name, form in forms:
        try:
            values[name] = form(values[name])
        except (ValueError, AtprotoError) as exc:
            shown = show_value(KEYS[name], values[name])
            values[name] = KEYS[name].default
            yield name, f"{shown}: {exc}"


def check_settings(values: MutableMapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Tell of settings that contradict one another."""
    if values["discovery.mode"] == "collection" and not values["discovery.collections"]:
        yield "discovery.mode", "collection needs discovery.collections: the NSIDs that a tracked repo holds one of"
    if values["database.max_idle_conns"] > values["database.max_open_conns"]:
        limit = values["database.max_open_conns"]
        yield "database.max_idle_conns", f"more idle connections than database.max_open_conns allows ({limit})"
    if values["delivery.batch_bytes"] > values["grpc.max_message_size"]:
        limit = values["grpc.max_message_size"]
        yield "delivery.batch_bytes", f"a batch has to fit into grpc.max_message_size ({limit})"
    if values["verify.max_record_bytes"] > values["verify.max_block_bytes"]:
        limit = values["verify.max_block_bytes"]
        yield "verify.max_record_bytes", f"a record is a block, and those end at verify.max_block_bytes ({limit})"
    if values["metrics.port"] and values["metrics.port"] == values["grpc.port"]:
        yield "metrics.port", f"{values['metrics.port']} is grpc.port already"
    for section in ("delivery", "grpc"):
        certificate, private_key = f"{section}.tls_cert", f"{section}.tls_key"
        if bool(values[certificate]) != bool(values[private_key]):
            missing, given = (private_key, certificate) if values[certificate] else (certificate, private_key)
            yield given, f"needs {missing} beside it"
    if values["delivery.tls_cert"] and not values["delivery.tls_ca"]:
        yield "delivery.tls_cert", "needs delivery.tls_ca: without it ingesters are spoken to in plain text"
    if values["grpc.tls_client_ca"] and not values["grpc.tls_cert"]:
        yield "grpc.tls_client_ca", "needs grpc.tls_cert and grpc.tls_key: mutual TLS is TLS"
    if values["grpc.host"] and not is_loopback(values["grpc.host"]) and not values["grpc.token_file"]:
        yield "grpc.host", f"{values['grpc.host']} can be reached from other machines: calls need grpc.token_file then"
    for name in ("grpc.host", "metrics.host"):
        if not values[name] or "/" in values[name] or any(char.isspace() for char in values[name]):
            yield name, f"'{values[name]}' is not an address to listen on, as 127.0.0.1 or 0.0.0.0"


def _dsn(text: str) -> str:
    if text and not _DSN.match(text):
        raise ValueError("expected postgresql://user:password@host:5432/name, or key=value pairs as libpq reads them")
    return text


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    parsed = NsidFilter.parse(patterns)
    if parsed.is_nothing:
        raise ValueError("wants no collection at all")
    return parsed.patterns


def _collections(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name.endswith((".", "*")):
            raise ValueError(f"{name} is a prefix; collections are listed by whole NSIDs")
    return _patterns(names)


def ingester_addresses(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Return addresses in their one form. Raises ValueError for one that is none, or that is listed twice."""
    found: list[str] = []
    for address in addresses:
        try:
            form = format_host_port(*parse_host_port(address))
        except ValueError as exc:
            raise ValueError(f"{address}: {exc}") from exc
        if form in found:
            raise ValueError(f"{form} is listed twice; one address is one ingester")
        found.append(form)
    return tuple(found)


def _relay_name(name: str) -> str:
    """The name travels in gRPC metadata and in headers: printable ASCII."""
    if not name or len(name) > 64 or not (name.isascii() and name.isprintable()) or name != name.strip():
        raise ValueError("expected 1 to 64 printable ASCII characters")
    return name


def _header_text(text: str) -> str:
    if not (text.isascii() and text.isprintable()) or any(char in text for char in "()"):
        raise ValueError("expected a mail address or a URL: it becomes part of the User-Agent")
    return text
