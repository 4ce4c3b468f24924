"""From the URL of a sink to the sink."""

from __future__ import annotations

from relay.ingester.errors import BadSinkUrl
from relay.ingester.sinks.base import Sink, SinkUrl


def make_sink(url: str) -> Sink:
    """Return the sink that `url` names, not opened yet. Raises BadSinkUrl."""
    # Imported here: nobody should need psycopg2 for a null: sink.
    if url.startswith(("postgresql://", "postgres://")):
        from relay.ingester.sinks.postgresql import PostgresqlSink

        return PostgresqlSink(url)
    parsed = SinkUrl(url)
    if parsed.kind == "null":
        from relay.ingester.sinks.null import NullSink

        return NullSink(parsed)
    if parsed.kind == "sqlite":
        from relay.ingester.sinks.sqlite import SqliteSink

        return SqliteSink(parsed)
    if parsed.kind == "jsonl":
        from relay.ingester.sinks.jsonl import JsonlSink

        return JsonlSink(parsed)
    raise BadSinkUrl(f"no sink {parsed.kind!r}; there are postgresql://..., sqlite:///FILE, jsonl:DIR and null:")
