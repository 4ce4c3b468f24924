"""The DIDs that the operator names: `--did` and `--dids-file`. Every mistake is reported, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from relay.atproto.syntax import is_resolvable_did
from relay.errors import ConfigError

# A line that is longer than any DID can be is not worth quoting in full.
_SHOWN_CHARS = 80
_SHOWN_MISTAKES = 20


def parse_dids(values: Iterable[str], where: str = "--did") -> list[str]:
    """Return the DIDs of a command line, without duplicates, in order. Raises ConfigError that quotes every bad one."""
    dids: dict[str, None] = {}
    mistakes: list[str] = []
    for value in values:
        text = value.strip()
        if is_resolvable_did(text):
            dids[text] = None
        else:
            mistakes.append(f"{where}: {_shown(text)}")
    _raise_mistakes(mistakes)
    return list(dids)


def load_dids_file(path: Path) -> list[str]:
    """Return the DIDs of a file, one a line, without duplicates, in order; blank lines and `# comments` are skipped.

    A comment may follow a DID after white space. Reads line by line: memory is that of the DIDs. Raises ConfigError: the file cannot
    be read, is not UTF-8, names no DID, or has bad lines (each with its number).
    """
    dids: dict[str, None] = {}
    mistakes: list[str] = []
    bad_lines = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    text = raw.decode("latin-1")
                fields = text.split(None, 1)
                if not fields or fields[0].startswith("#"):
                    continue
                if is_resolvable_did(fields[0]) and (len(fields) == 1 or fields[1].startswith("#")):
                    dids[fields[0]] = None
                    continue
                bad_lines += 1
                if len(mistakes) < _SHOWN_MISTAKES:
                    mistakes.append(f"{path}:{number}: {_shown(text.strip())}")
    except OSError as exc:
        raise ConfigError(f"--dids-file {path}: cannot be read: {exc.strerror or exc}") from exc
    _raise_mistakes(mistakes, bad_lines)
    if not dids:
        raise ConfigError(f"--dids-file {path}: names no DID")
    return list(dids)


def _shown(text: str) -> str:
    shown = text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
    return f"not a did:plc or did:web: {shown!r}"


def _raise_mistakes(mistakes: list[str], total: int | None = None) -> None:
    if not mistakes:
        return
    count = len(mistakes) if total is None else total
    shown = mistakes[:_SHOWN_MISTAKES]
    if count > len(shown):
        shown.append(f"and {count - len(shown)} more")
    raise ConfigError("\n".join(shown))
