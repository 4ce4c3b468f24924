"""The first thing that a command does which needs children: nothing here, or imported by this, has threads or gRPC."""

from __future__ import annotations

import os

from relay.ipc.child import start_forkserver
from relay.runtime.interpreter import tune_interpreter

PRELOAD = ["relay.ipc.preload", "relay.backfill.worker", "relay.backfill.fetcher", "relay.tail.verifier"]

# PERFORMANCE of large repos: 5-20 % when the C library keeps large freed blocks. It reads these at exec, so they must be in the
# environment when the forkserver starts, and only then.
_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(64 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 1024 * 1024),
    "MALLOC_TOP_PAD_": str(16 * 1024 * 1024),
}


def launch() -> None:
    """Start the forkserver that every child, also each replacement, will come from, and tune our own interpreter."""
    added = [name for name in _MEMORY if name not in os.environ]
    os.environ.update({name: _MEMORY[name] for name in added})
    try:
        start_forkserver(PRELOAD)
    finally:
        for name in added:
            del os.environ[name]
    tune_interpreter()
