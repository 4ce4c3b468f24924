"""One page of a listing, asked for until it comes: back-off, the host's limits, and when to give up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from relay.config.schema import RelaySettings
from relay.errors import Blame
from relay.net.errors import BadResponse, NetError, PrivateAddress, RateLimited, Stopped, TooLarge
from relay.net.gate import HostGate
from relay.net.xrpc import HostPage, RepoPage, RepoStatus
from relay.observe.log import get_logger
from relay.runtime.backoff import Backoff
from relay.runtime.clock import Clock

log = get_logger(__name__)

Page = TypeVar("Page", RepoPage, HostPage, RepoStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePolicy:
    """`max_retries` failures in a row after the first; seconds. A host that only limits us is given up after `limited_for_s`."""

    max_retries: int = 5
    first_delay_s: float = 2.0
    longest_delay_s: float = 60.0
    limited_for_s: float = 3600.0

    @classmethod
    def from_settings(cls, relay: RelaySettings) -> PagePolicy:
        return cls(max_retries=relay.max_retries, first_delay_s=relay.retry_backoff_ms / 1000)


class PageReader:
    """Reads pages politely. Thread-safe: it keeps nothing between calls."""

    def __init__(self, gate: HostGate, policy: PagePolicy, stopping: threading.Event, clock: Clock) -> None:
        self._gate = gate
        self._policy = policy
        self._stopping = stopping
        self._clock = clock

    def read(self, host: str, ask: Callable[[], Page]) -> Page:
        """Return the page that `ask` gets from `host`.

        Failures of the host are tried again with back-off; 429 and Retry-After only wait, as the gate tells. Raises the last NetError
        when the retries are used up, at once when trying again cannot help (4xx, 501, refused address, too large), and Stopped.
        """
        backoff = Backoff(self._policy.first_delay_s, self._policy.longest_delay_s)
        limited_since: float | None = None
        while True:
            try:
                with self._gate.passage(host, self._stopping) as passage:
                    page = ask()
                    passage.facts = page.facts
                return page
            except RateLimited as exc:
                now = self._clock.monotonic()
                limited_since = now if limited_since is None else limited_since
                if now - limited_since > self._policy.limited_for_s:
                    raise
                log.info("listing_limited", host=host, wait_s=round(self._gate.ready_in_s(host), 1), error=str(exc))
            except Stopped:
                raise
            except NetError as exc:
                if not _is_worth_a_retry(exc) or backoff.failures >= self._policy.max_retries:
                    raise
                limited_since = None
                delay_s = backoff.next_delay_s()
                log.warning(
                    "listing_retry", host=host, attempt=backoff.failures, wait_s=round(delay_s, 1), error=str(exc)
                )
                if self._stopping.wait(delay_s):
                    raise Stopped(f"{host}: stopping", host=host) from exc


def _is_worth_a_retry(exc: NetError) -> bool:
    if isinstance(exc, PrivateAddress | TooLarge):
        return False
    return not (isinstance(exc, BadResponse) and exc.answered) and exc.blame is not Blame.REPO
