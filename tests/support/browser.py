"""Headless Chromium, where there is one: what it makes of a page, what it complains about, and a picture."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_DEADLINE_S = 60.0
_CONSOLE = re.compile(r"CONSOLE[:(]\d+\)?\] (.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """`dom`: the document after its scripts ran; `console`: what the browser wrote there."""

    dom: str
    console: tuple[str, ...]


def chromium() -> str:
    """Return its path; without one the test is skipped."""
    for name in _NAMES:
        if (path := shutil.which(name)) is not None:
            return path
    pytest.skip("no Chromium found (Debian: apt-get install chromium): the page was not looked at in a browser")


def look_at(url: str, folder: Path, *, width: int = 1280, for_ms: int = 0) -> Seen:
    """Open the page, let its timers run for `for_ms` of the page's own time, and return what became of it."""
    more = [f"--virtual-time-budget={for_ms}"] if for_ms else []
    done = _run(url, folder, ["--dump-dom", f"--window-size={width},1000", "--enable-logging=stderr", *more])
    return Seen(dom=done.stdout, console=tuple(_CONSOLE.findall(done.stderr)))


def picture(url: str, folder: Path, *, width: int, height: int) -> Path:
    """Return a PNG of the page."""
    path = folder / f"page-{width}.png"
    _run(url, folder, [f"--screenshot={path}", f"--window-size={width},{height}", "--hide-scrollbars"])
    return path


def shades(path: Path) -> tuple[int, int, int]:
    """Return width, height, and how many different bytes the picture is made of: an empty page has a few."""
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    place, packed = 8, b""
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            packed += data[place + 8 : place + 8 + size]
        place += size + 12
    return width, height, len(set(zlib.decompress(packed)))


def _run(url: str, folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    # No sandbox: it needs rights that a container does not give, and the page is our own.
    command = [
        chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
        "--disable-background-networking", "--no-first-run", f"--user-data-dir={folder / 'profile'}", *arguments, url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done
