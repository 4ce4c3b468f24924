"""What the writer needs of a sink, and the URL that names one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from relay.config.secrets import scrub
from relay.ingester.errors import BadSinkUrl
from relay.ingester.operations import Prepared, RefuseHook
from relay.pb import ingester_pb2 as pb


class Sink(Protocol):
    """A place that stores batches. One writer at a time; durable when `store` has returned."""

    name: str
    reads_operations: bool
    """False: bytes are enough, `prepare_raw` is called and operations are never looked at."""

    def open(self) -> None:
        """Connect, and create what is missing. Raises SinkAway (try later) or SinkFailed. Called again after SinkAway."""

    def prepare(self, operations: Iterable[pb.Operation | None], count: int, refuse: RefuseHook | None) -> Prepared:
        """Do what can be done without knowing what is stored. From any thread; raises nothing."""

    def prepare_raw(self, raw: bytes) -> tuple[int, Prepared]:
        """Return batch_id and what `store` needs, from the bytes of a whole OperationRequest. Raises BadBatch."""

    def store(self, batches: Sequence[Prepared]) -> None:
        """Store all of them in one transaction, in order, durably. Raises SinkAway or SinkFailed; then nothing counts."""

    def details(self) -> dict[str, str]:
        """Return what HealthCheck shows. From any thread."""

    def close(self) -> None: ...


class SinkUrl:
    """`kind:rest?option=value`: options are taken one by one, and what is left over at the end is a mistake."""

    def __init__(self, url: str) -> None:
        kind, separator, _ = url.partition(":")
        if not separator or not kind.isalpha():
            raise BadSinkUrl(f"{scrub(url)!r} is no sink: use postgresql://..., sqlite:///FILE, jsonl:DIR or null:")
        self.url = url
        self.kind = kind.lower()
        parts = urlsplit(url)
        if self.kind in ("sqlite", "jsonl", "null") and parts.netloc:
            raise BadSinkUrl(f"{url!r}: write {self.kind}:///absolute/path or {self.kind}:relative/path")
        # Both sqlite:///var/x.db and sqlite:////var/x.db are taken for /var/x.db.
        self.path = re.sub("^/+", "/", unquote(parts.path))
        try:
            query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else {}
        except ValueError as exc:
            raise BadSinkUrl(f"{url!r}: options are written ?name=value&name=value") from exc
        self._options = {name: values[-1] for name, values in query.items()}

    def number(self, name: str, default: int, *, at_least: int) -> int:
        """Take a whole number. Raises BadSinkUrl."""
        text = self._options.pop(name, None)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or int(text) < at_least:
            raise BadSinkUrl(f"{self.kind}: sink: {name}={text!r} is no number from {at_least}")
        return int(text)

    def no_more_options(self) -> None:
        if self._options:
            raise BadSinkUrl(f"{self.kind}: sink has no option {', '.join(sorted(self._options))}")
