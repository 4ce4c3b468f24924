"""What the servers were asked: counted by server and endpoint, so that a test can say "only these were fetched"."""

from __future__ import annotations

import threading
from collections import Counter


class Traffic:
    """Counters. May be read from any thread while the servers count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the counters
        self._requests: Counter[str] = Counter()
        self._bytes = 0
        self._repos: Counter[str] = Counter()

    def count(self, server: str, endpoint: str) -> None:
        with self._lock:
            self._requests[f"{server}/{endpoint}"] += 1

    def sent_repo(self, did: str, size_bytes: int) -> None:
        """Count an export that is about to be sent."""
        with self._lock:
            self._repos[did] += 1
            self._bytes += size_bytes

    def requests(self) -> dict[str, int]:
        """Return requests by `server/endpoint`; servers are `plc`, `relay`, `pds0`, `pds1`, ..."""
        with self._lock:
            return dict(self._requests)

    def repos(self) -> dict[str, int]:
        """Return how often each DID's repo was sent."""
        with self._lock:
            return dict(self._repos)

    def repo_bytes(self) -> int:
        with self._lock:
            return self._bytes

    def reset(self) -> None:
        with self._lock:
            self._requests.clear()
            self._repos.clear()
            self._bytes = 0
