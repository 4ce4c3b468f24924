"""From an answer that is not 200 to a typed error: the JSON `error` first, then the status (pure)."""

from __future__ import annotations

import json
from http import HTTPStatus

from relay.net.errors import BadResponse, HostDown, NetError, RateLimited, RepoInactive, RepoNotFound
from relay.net.facts import HostFacts

# Error names that tell an account's status (PROTOCOL 7: a PDS sends them with 400, a relay with 403).
_INACTIVE = {
    "RepoTakendown": "takendown",
    "RepoSuspended": "suspended",
    "RepoDeactivated": "deactivated",
    "RepoDeleted": "deleted",
    "RepoInactive": "",
    "AccountTakedown": "takendown",
    "AccountSuspended": "suspended",
    "AccountDeactivated": "deactivated",
}
_NOT_FOUND = frozenset(("RepoNotFound", "NotFound"))
_LIMITED = frozenset(("RateLimitExceeded", "RateLimited"))
_SHOWN_CHARS = 200


def error_from_answer(*, host: str, status: int, body: bytes, facts: HostFacts) -> NetError:
    """Return the error that an answer with this status and (capped) body means. Never raises.

    Names come first because a PDS answers 400 where a relay answers 403 or 404. A name under a 5xx is not believed: that host
    is not well. 429 and any other refusal with Retry-After are RateLimited, unless a name says what is wrong with the repo.
    """
    name, message = _parse_error(body)
    shown = f": {name}" if name else ""
    if message:
        shown += f": {message}"
    text = f"{host}: {status}{_phrase(status)}{shown}"
    if status < 500 or status == HTTPStatus.NOT_IMPLEMENTED:
        if name in _NOT_FOUND:
            return RepoNotFound(text, host=host, status=status, error=name, facts=facts)
        if name in _INACTIVE:
            return RepoInactive(text, account_status=_INACTIVE[name], host=host, status=status, error=name, facts=facts)
    if (
        status == HTTPStatus.TOO_MANY_REQUESTS
        or name in _LIMITED
        or (status >= 400 and facts.retry_after_s is not None)
    ):
        return RateLimited(text, host=host, status=status, error=name, facts=facts)
    if (status >= 500 and status != HTTPStatus.NOT_IMPLEMENTED) or status == HTTPStatus.REQUEST_TIMEOUT:
        return HostDown(text, host=host, status=status, error=name, facts=facts)
    return BadResponse(text, host=host, status=status, error=name, facts=facts)


def _parse_error(body: bytes) -> tuple[str | None, str]:
    """Return (`error`, `message`) of an XRPC error body; HTML and anything else gives (None, "")."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None, ""
    if not isinstance(value, dict):
        return None, ""
    name, message = value.get("error"), value.get("message")
    return (
        _clean(name) if isinstance(name, str) and name else None,
        _clean(message) if isinstance(message, str) else "",
    )


def _clean(text: str) -> str:
    """Other people's text goes into logs and rows: printable, and short."""
    return "".join(char if char.isprintable() else " " for char in text[:_SHOWN_CHARS])


def _phrase(status: int) -> str:
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""
