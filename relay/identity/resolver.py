"""Identities, from the nearest place that has a good one: memory, the identity table, the directory."""

from __future__ import annotations

import enum
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from relay.config.schema import IdentitySettings
from relay.errors import IdentityError, RelayError
from relay.identity.cache import LruCache
from relay.model import Identity
from relay.net.errors import DirectoryAway, Stopped
from relay.runtime.clock import Clock

# Failures are remembered for about this long (PROTOCOL 8).
NEGATIVE_S = 300.0
# One DID is asked about again at most so many times within the interval, however often somebody wants it fresh. More than once:
# a key that was read a moment before it was rotated would else be taken for the present one for a minute.
REFRESH_INTERVAL_S = 60.0
REFRESHES = 8
# A directory that is away is left alone for a moment by each DID that has a stale entry.
STALE_RETRY_S = 30.0


class Result(enum.StrEnum):
    """How a resolution was answered: the label of its metric."""

    HIT = "hit"
    TABLE = "table"
    LOOKUP = "lookup"
    REFRESH = "refresh"
    NEGATIVE = "negative"
    STALE = "stale"
    LIMITED = "limited"  # wanted fresh, and asked about too often of late
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What is known of a DID. `asked`: monotonic times of its last lookups, successful or not; none for one from the table."""

    identity: Identity | None
    failure: RelayError | None
    asked: tuple[float, ...]
    negative_until: float = 0.0  # monotonic
    stale_until: float = 0.0  # monotonic: the directory was away; serve what there is until then


class Resolver:
    """Fresh entries are served from memory, then from the table (`load`), then looked up; one lookup a DID at a time.

    * fresh: resolved less than `fresh_s` ago;
    * the directory is away: an entry that is too old serves (counted as `stale`), and the next question waits STALE_RETRY_S;
    * any other failure is remembered for NEGATIVE_S, and forgets the entry: a tombstone is not to be outlived by a cache;
    * `refresh=True` passes by memory, table and remembered failures, while a DID was asked about less than REFRESHES times within
      REFRESH_INTERVAL_S.

    `store` gets every new identity. Hooks and lookups run without the lock, in the caller's thread. Thread-safe; the lock guards
    `_known`, `_running` and `counts`. Memory: `max_entries`.
    """

    def __init__(
        self,
        lookup: Callable[[str], Identity],
        clock: Clock,
        *,
        fresh_s: float,
        max_entries: int,
        load: Callable[[str], Identity | None] | None = None,
        store: Callable[[Identity], None] | None = None,
    ) -> None:
        self.fresh_s = fresh_s
        self._lookup = lookup
        self._clock = clock
        self._load = load
        self._store = store
        self._lock = threading.Lock()
        self._known: LruCache[str, _Entry] = LruCache(max_entries)
        self._running: dict[str, Future[Identity]] = {}
        self.counts: Counter[Result] = Counter()

    @classmethod
    def from_settings(
        cls,
        settings: IdentitySettings,
        lookup: Callable[[str], Identity],
        clock: Clock,
        *,
        load: Callable[[str], Identity | None] | None = None,
        store: Callable[[Identity], None] | None = None,
    ) -> Resolver:
        return cls(
            lookup, clock, fresh_s=settings.fresh_sec, max_entries=settings.cache_entries, load=load, store=store
        )

    def resolve(self, did: str, *, refresh: bool = False) -> Identity:
        """Return the identity of `did`; `resolved_at` tells its age.

        `refresh`: not from a cache, unless the DID was asked about too often within the last minute. Raises IdentityError (DidNotFound,
        DidTombstoned, DidUnsupported, BadDocument, DirectoryAway), PrivateAddress, Stopped. Blocks for one lookup at most.
        """
        asked_at = self._clock.now()
        while True:
            with self._lock:
                known = self._answer_from_memory(did, refresh)
                if known is not None:
                    return known
                running = self._running.get(did)
                if running is None:
                    mine = self._running[did] = Future()
                    break
            identity = running.result()
            if not refresh or identity.resolved_at >= asked_at:
                return identity
            # The one that ran was content with the table, or served a stale entry: this caller is not.
        try:
            identity = self._find(did, refresh)
        except BaseException as exc:
            self._finish(did)
            mine.set_exception(exc)
            raise
        self._finish(did)
        mine.set_result(identity)
        return identity

    def take_counts(self) -> dict[Result, int]:
        """Return how resolutions were answered since the last call."""
        with self._lock:
            taken, self.counts = self.counts, Counter()
        return dict(taken)

    def forget(self, did: str) -> None:
        """Drop what is known of the DID: the next question goes to the table or the directory."""
        with self._lock:
            self._known.drop(did)

    def _answer_from_memory(self, did: str, refresh: bool) -> Identity | None:
        """The lock is held. Return an identity, raise a remembered failure, or return None: it has to be looked for."""
        entry = self._known.get(did)
        if entry is None:
            return None
        now = self._clock.monotonic()
        if refresh:
            if len(entry.asked) < REFRESHES or now - entry.asked[0] >= REFRESH_INTERVAL_S:
                return None
            self.counts[Result.LIMITED] += 1
            return self._give(entry)
        if entry.failure is not None and entry.identity is None:
            if now < entry.negative_until:
                self.counts[Result.NEGATIVE] += 1
                raise entry.failure
            return None
        assert entry.identity is not None
        if self._is_fresh(entry.identity):
            self.counts[Result.HIT] += 1
            return entry.identity
        if now < entry.stale_until:
            self.counts[Result.STALE] += 1
            return entry.identity
        return None

    def _give(self, entry: _Entry) -> Identity:
        if entry.identity is None:
            assert entry.failure is not None
            raise entry.failure
        return entry.identity

    def _find(self, did: str, refresh: bool) -> Identity:
        with self._lock:
            entry = self._known.get(did)
        older = entry.identity if entry is not None else None
        if older is None and self._load is not None:
            older = self._load(did)
            if older is not None and not refresh and self._is_fresh(older):
                self._remember(did, _Entry(identity=older, failure=None, asked=()), Result.TABLE)
                return older
        try:
            identity = self._lookup(did)
        except DirectoryAway as exc:
            return self._directory_away(did, older, exc)
        except Stopped:
            raise
        except RelayError as exc:
            self._remember_failure(did, exc)
            raise
        result = Result.REFRESH if refresh else Result.LOOKUP
        self._remember(did, _Entry(identity=identity, failure=None, asked=self._asked(did)), result)
        if self._store is not None:
            self._store(identity)
        return identity

    def _directory_away(self, did: str, older: Identity | None, exc: DirectoryAway) -> Identity:
        now = self._clock.monotonic()
        wait_s = max(STALE_RETRY_S, exc.retry_after_s or 0.0)
        if older is None:
            # Not remembered: the directory's silence says nothing of the DID. How soon to ask again is the caller's back-off.
            with self._lock:
                self.counts[Result.FAILED] += 1
            raise exc
        entry = _Entry(identity=older, failure=None, asked=self._asked(did), stale_until=now + wait_s)
        self._remember(did, entry, Result.STALE)
        return older

    def _remember_failure(self, did: str, exc: RelayError) -> None:
        now = self._clock.monotonic()
        if isinstance(exc, IdentityError) or exc.reason == "private_address":
            entry = _Entry(identity=None, failure=exc, asked=self._asked(did), negative_until=now + NEGATIVE_S)
            self._remember(did, entry, Result.FAILED)
        else:
            with self._lock:
                self.counts[Result.FAILED] += 1

    def _asked(self, did: str) -> tuple[float, ...]:
        """Return the times of the last lookups of a DID, this one included."""
        with self._lock:
            entry = self._known.get(did)
        before = entry.asked if entry is not None else ()
        return (*before, self._clock.monotonic())[-REFRESHES:]

    def _remember(self, did: str, entry: _Entry, result: Result) -> None:
        with self._lock:
            self._known.put(did, entry)
            self.counts[result] += 1

    def _finish(self, did: str) -> None:
        with self._lock:
            del self._running[did]

    def _is_fresh(self, identity: Identity) -> bool:
        return self._clock.now() - identity.resolved_at < self.fresh_s
