"""The fetch process: threads that download CARs into slots, resolve DID documents, and ask hosts for a rev or a status.

Apart from the workers, so that a verifying process never hands its GIL to a download. Stateless; limits per host are the
supervisor's: what arrives here may be sent at once.
"""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from relay.atproto.did_doc import parse_did_document
from relay.atproto.errors import AtprotoError
from relay.backfill import messages as m
from relay.backfill.spool import CarSink, spool_name
from relay.config.schema import BackfillerSettings, HttpSettings, IdentitySettings
from relay.errors import FetchError, IdentityError
from relay.identity.resolver import Resolver
from relay.ipc.arena import Arena
from relay.ipc.child import Pipe, prepare_child, run_as_batch
from relay.model import Identity
from relay.net.errors import NetError, RepoInactive
from relay.net.facts import NO_FACTS, HostFacts
from relay.net.guard import Guard
from relay.net.hosts import outcome_of
from relay.net.http import Fetcher, user_agent
from relay.net.xrpc import DidDirectory, Xrpc, document_limits, repo_limits
from relay.observe.log import configure
from relay.runtime.clock import SystemClock

RESOLVER_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FetcherSettings:
    """What a fetch process needs to know. `operator_origins` are exempt from the rule of public addresses."""

    backfiller: BackfillerSettings
    http: HttpSettings
    identity: IdentitySettings
    allow_private_hosts: bool
    operator_origins: tuple[str, ...]
    spool_dir: str
    downloads: int
    log_level: str
    log_format: str


def fetcher_main(connection: Connection, cars: Arena, settings: FetcherSettings) -> None:
    """Run until told to stop; the target of a child process."""
    prepare_child("relay-fetch")
    configure(settings.log_level, settings.log_format, fields={"role": "fetch"})
    gc.freeze()
    # 32 threads wake up 50 times for each repo, and each time would take the core from a verifying worker, and its cache with it. On two
    # busy cores: 10 % less CPU here.
    run_as_batch()
    FetchProcess(Pipe(connection), cars, settings).run()


class FetchProcess:
    """The main thread reads the pipe; `downloads` threads take CARs and checks, others DID documents."""

    def __init__(self, pipe: Pipe, cars: Arena, settings: FetcherSettings) -> None:
        self._pipe, self._cars, self._settings = pipe, cars, settings
        guard = Guard(allow_private=settings.allow_private_hosts, exempt=settings.operator_origins)
        self._fetcher = Fetcher(
            guard,
            user_agent=user_agent(settings.http.contact),
            max_idle=settings.downloads + RESOLVER_THREADS + 16,
            idle_per_origin=max(settings.downloads, RESOLVER_THREADS),
        )
        self._xrpc = Xrpc(self._fetcher)
        self._directory = DidDirectory(
            self._fetcher,
            plc_url=settings.identity.plc_url,
            limits=document_limits(settings.identity, settings.http),
        )
        # Coalescing and the table are the supervisor's; memory, refreshing at most once a minute and remembered failures are here.
        self._resolver = Resolver.from_settings(settings.identity, self._lookup, SystemClock())
        self._limits = repo_limits(settings.backfiller, settings.http)
        self._spool_dir = Path(settings.spool_dir)
        self._downloads: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._resolves: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self) -> None:
        for number in range(self._settings.downloads):
            self._start(f"download-{number}", self._downloads)
        for number in range(RESOLVER_THREADS):
            self._start(f"resolve-{number}", self._resolves)
        try:
            while True:
                message = m.from_wire(self._pipe.receive())
                match message:
                    case m.Resolve():
                        self._resolves.put(message)
                    case m.Stop():
                        break
                    case _:
                        self._downloads.put(message)
        except EOFError:
            pass
        self._fetcher.abort()
        # The threads are daemons in the middle of foreign reads: nothing of theirs is worth waiting for.
        os._exit(0)

    def _start(self, name: str, jobs: queue.SimpleQueue[Any]) -> None:
        threading.Thread(target=self._work, args=(jobs,), name=name, daemon=True).start()

    def _work(self, jobs: queue.SimpleQueue[Any]) -> None:
        handlers: dict[type[Any], Callable[[Any], Any]] = {
            m.FetchRepo: self._fetch,
            m.FetchCheck: self._check,
            m.Resolve: self._resolve,
        }
        while True:
            job = jobs.get()
            try:
                answer = handlers[type(job)](job)
            except BaseException:  # noqa: BLE001 - the top of a thread
                # A bug, not a bad host: the process ends with its traceback, and the supervisor starts another.
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
                os._exit(1)
            if not self._pipe.send(m.to_wire(answer)):
                return

    # --- jobs -----------------------------------------------------------------------------------------------------------

    def _fetch(self, job: m.FetchRepo) -> m.Fetched | m.FetchFailed:
        sink = CarSink(self._cars.view(job.slot), self._spool_dir / spool_name(job.job))
        keep = False
        began = time.monotonic()
        try:
            answer = self._xrpc.get_repo(job.pds, job.did, sink, limits=self._limits)
            keep = True
        except FetchError as exc:
            return _failed(job.job, job.did, exc, size=sink.size, took_s=time.monotonic() - began)
        finally:
            spool = sink.spool
            sink.close(keep=keep)
        return m.Fetched(job.job, sink.size, None if spool is None else str(spool), answer.took_s, _facts(answer.facts))

    def _check(self, job: m.FetchCheck) -> m.Checked | m.FetchFailed:
        try:
            if job.what == "commit":
                commit = self._xrpc.get_latest_commit(job.host, job.did)
                return m.Checked(job.job, commit.rev, None, None, _facts(commit.facts))
            status = self._xrpc.get_repo_status(job.host, job.did)
            return m.Checked(job.job, status.rev, status.active, status.status, _facts(status.facts))
        except FetchError as exc:
            return _failed(job.job, job.did, exc)

    def _resolve(self, job: m.Resolve) -> m.Resolved:
        answer = self._identity(job)
        return answer._replace(cache={result.value: count for result, count in self._resolver.take_counts().items()})

    def _identity(self, job: m.Resolve) -> m.Resolved:
        began = time.monotonic()
        try:
            identity = self._resolver.resolve(job.did, refresh=job.force)
        except IdentityError as exc:
            retry_after = getattr(exc, "retry_after_s", None)
            return _unresolved(job.did, exc.reason, exc.blame.value, str(exc), began, retry_after)
        except FetchError as exc:
            retry_after = exc.retry_after_s if isinstance(exc, NetError) else None
            return _unresolved(job.did, exc.reason, exc.blame.value, str(exc), began, retry_after)
        except AtprotoError as exc:
            return _unresolved(job.did, exc.reason, "repo", str(exc), began, None)
        return m.Resolved(
            job.did, identity.signing_key, identity.pds, identity.handle, identity.resolved_at, None, None, None,
            time.monotonic() - began, None,
        )  # fmt: skip

    def _lookup(self, did: str) -> Identity:
        document = parse_did_document(self._directory.fetch_did_document(did), did)
        return Identity(
            did=did,
            signing_key=document.signing_key,
            pds=document.pds,
            handle=document.handle,
            resolved_at=time.time(),
        )


def _failed(job: int, did: str, exc: FetchError, *, size: int = 0, took_s: float = 0.0) -> m.FetchFailed:
    status = exc.account_status if isinstance(exc, RepoInactive) else None
    facts = exc.facts if isinstance(exc, NetError) else NO_FACTS
    return m.FetchFailed(
        job, exc.reason, exc.blame.value, f"{did}: {exc}", status, outcome_of(exc).value, _facts(facts), size, took_s
    )


def _unresolved(did: str, reason: str, blame: str, text: str, began: float, retry_after_s: float | None) -> m.Resolved:
    took_s = time.monotonic() - began
    return m.Resolved(did, None, None, None, time.time(), reason, blame, text, took_s, retry_after_s)


def _facts(facts: HostFacts) -> list[Any] | None:
    if facts is NO_FACTS:
        return None
    return [facts.limit, facts.remaining, facts.reset_after_s, facts.retry_after_s]
