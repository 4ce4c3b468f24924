"""One event a line, `key=value` or JSON, with stable snake_case event names and the same field words everywhere.

    2026-11-23T10:00:00.123Z info    repo_synced did=did:plc:abc records=12 took_s=0.83

Levels: debug is a decision, info a change of state, warning something that we cope with, error something that somebody must act on.
Repeats are limited (`relay.observe.repeats`), passwords are masked, and foreign text cannot start a line or colour a terminal.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import orjson

from relay.config.secrets import MASK, scrub
from relay.observe.repeats import Repeats
from relay.observe.status import rfc3339

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_LONGEST_VALUE = 2000
_PLAIN = re.compile(r"[!-~]+\Z")
_SECRET_FIELDS = frozenset({"password", "token", "secret", "authorization"})
# What tells one source of an event from another: repeats are counted for each of them, not for each DID.
_KEY_FIELDS = ("host", "ingester", "address", "kind", "reason", "thread")


class Logger:
    """`log.info("repo_synced", did=did, records=12)`: an event name and its fields; `exc_info=True` adds the traceback."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            exc_info = fields.pop("exc_info", None)
            self._logger.log(level, event, exc_info=exc_info, extra={"fields": fields})


def get_logger(name: str) -> Logger:
    """Return the logger of a module."""
    return Logger(name)


def configure(
    level: str = "info",
    log_format: str = "text",
    stream: TextIO | None = None,
    *,
    fields: Mapping[str, Any] | None = None,
    repeats: Repeats | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Send all logs of this process to `stream` (stderr), replacing what an earlier call set up.

    `level` is a key of LEVELS, `log_format` is `text` or `json`; `fields` go into every line (the role of a child). Other
    people's loggers speak from warning on, unless we are at debug.
    """
    write_line = _json_line if log_format == "json" else _text_line
    handler = _Handler(
        sys.stderr if stream is None else stream,
        write_line,
        dict(fields or {}),
        # At debug somebody looks for one thing among many: there nothing is held back.
        None if level == "debug" else (repeats or Repeats()),
        monotonic,
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, _Handler):
            root.removeHandler(old)
            old.close()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.getLogger("relay").setLevel(LEVELS[level])


class _Handler(logging.Handler):
    """Writes each record as one line with one call, so that lines of several processes do not mix."""

    def __init__(
        self,
        stream: TextIO,
        write_line: Callable[[float, str, str, Mapping[str, Any]], str],
        fields: dict[str, Any],
        repeats: Repeats | None,
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__()
        self._stream, self._write_line, self._fields = stream, write_line, fields
        self._repeats, self._monotonic = repeats, monotonic

    def emit(self, record: logging.LogRecord) -> None:  # called with the handler's lock held
        try:
            event, fields = _event_and_fields(record)
            if self._repeats is not None:
                now = self._monotonic()
                self._tell_suppressed(self._repeats, record.created, now)
                key = (event, *(str(fields[name]) for name in _KEY_FIELDS if name in fields))
                passes, suppressed = self._repeats.admit(key, now)
                if not passes:
                    return
                if suppressed:
                    fields = {**fields, "suppressed": suppressed}
            self._write(record.created, record.levelname.lower(), event, fields)
        except Exception:  # noqa: BLE001 - the logging module's own way: tell it on stderr, go on
            self.handleError(record)

    def close(self) -> None:
        if self._repeats is not None and not self._stream.closed:
            self._tell_suppressed(self._repeats, time.time(), math.inf)
        super().close()

    def _tell_suppressed(self, repeats: Repeats, at: float, now: float) -> None:
        for key, count in repeats.sweep(now):
            self._write(at, "info", "repeats_suppressed", {"of": " ".join(key), "suppressed": count})

    def _write(self, at: float, level: str, event: str, fields: Mapping[str, Any]) -> None:
        self._stream.write(self._write_line(at, level, event, {**self._fields, **fields}) + "\n")
        self._stream.flush()


def _event_and_fields(record: logging.LogRecord) -> tuple[str, Mapping[str, Any]]:
    """Return event and fields of our own records; of another library's, `log` with its message."""
    fields = getattr(record, "fields", None)
    if isinstance(fields, dict):
        event = str(record.msg)
    else:
        event, fields = "log", {"logger": record.name, "message": record.getMessage()}
    if record.exc_info and record.exc_info[0] is not None:
        fields = {**fields, "traceback": logging.Formatter().formatException(record.exc_info)}
    return event, fields


def _text_line(at: float, level: str, event: str, fields: Mapping[str, Any]) -> str:
    parts = [f"{rfc3339(at)} {level:<7} {event}"]
    parts += [f"{name}={_text_value(name, value)}" for name, value in fields.items() if name != "traceback"]
    line = " ".join(parts)
    if "traceback" in fields:
        # The one thing that takes more lines: indented, so that an event still starts at the start of a line.
        trace = scrub(str(fields["traceback"]))
        line += "".join(f"\n    {_printable(each)}" for each in trace.splitlines())
    return line


def _text_value(name: str, value: Any) -> str:
    value = _simple(name, value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, int):
        return "null" if value is None else str(value)
    text = value if isinstance(value, str) else ",".join(str(each) for each in value)
    if _PLAIN.match(text) and '"' not in text and "=" not in text:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _json_line(at: float, level: str, event: str, fields: Mapping[str, Any]) -> str:
    values = {"at": rfc3339(at), "level": level, "event": event}
    values |= {name: _simple(name, value, longest=20_000) for name, value in fields.items()}
    line = orjson.dumps(values, option=orjson.OPT_NON_STR_KEYS).decode()
    # JSON escapes only the first 32 control characters; some terminals and line readers obey others.
    return line if line.isprintable() else json.dumps(orjson.loads(line))


def _simple(name: str, value: Any, longest: int = _LONGEST_VALUE) -> Any:
    """Return a value as text, number, bool, None or list of texts: no secrets in it, and not endless."""
    if name in _SECRET_FIELDS:
        return MASK
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        # Enums too; and what no 64 bits hold, as text, because JSON readers lose it.
        return int(value) if -(1 << 63) <= value < 1 << 63 else str(int(value))
    if isinstance(value, list | tuple | set | frozenset):
        return [_simple_text(str(each), longest) for each in list(value)[:100]]
    return _simple_text(value.hex() if isinstance(value, bytes | bytearray) else str(value), longest)


def _simple_text(text: str, longest: int) -> str:
    # A lone surrogate, from a file name for example, is no UTF-8 and would cost the whole line.
    text = scrub(text[: longest + 1]).encode(errors="backslashreplace").decode()
    return text if len(text) <= longest else text[:longest] + "..."


def _printable(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]
