"""Free text from elsewhere (errors of other servers, names) as PostgreSQL can store it."""

from __future__ import annotations

LIMIT = 2000


def printable(text: str, limit: int = LIMIT) -> str:
    """Return `text` without what a text column refuses (NUL, lone surrogates), at most `limit` characters."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if "\0" in text:
        text = text.replace("\0", "�")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text
