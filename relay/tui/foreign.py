"""Other people's text on our screen (pure)."""

from __future__ import annotations


def clean(text: str) -> str:
    """Return foreign text without what would move the cursor or colour the screen."""
    return (
        text
        if text.isprintable()
        else "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    )


def one_line(text: str, longest: int = 160) -> str:
    """Return foreign text as one line without control characters, cut at `longest`."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= longest else line[: longest - 3] + "..."
