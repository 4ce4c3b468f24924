"""The CPU process: a CAR in a slot (or a spool file) becomes verified, encoded operations in operation slots.

Stateless: killed at any moment it loses nothing but its own work. It never talks to the network or the database and
never loads gRPC (a test asserts that). What it waits for: its pipe. Back pressure: no free operation slot.
"""

from __future__ import annotations

import gc
import mmap
import os
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from relay.atproto.errors import AtprotoError
from relay.atproto.limits import Limits
from relay.backfill import messages as m
from relay.backfill.snapshot import Snapshot, SnapshotSpec, take_snapshot
from relay.ipc.arena import Arena
from relay.ipc.child import Pipe, prepare_child
from relay.model import AccountStatus, RecordEncoding, Source
from relay.observe.log import configure

# The walk makes no cycles, so the collector only costs time (PERFORMANCE section 2: up to 2.8x on large repos).
COLLECT_EVERY_JOBS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What every job of a worker has in common. Sizes in bytes."""

    encoding: RecordEncoding
    chunk_bytes: int
    chunk_operations: int
    max_operation_bytes: int
    limits: Limits
    log_level: str
    log_format: str


class _Stopped(Exception):
    """The supervisor wants this worker to end, or is gone."""


class _Cancelled(Exception):
    """The supervisor has no more use for the job in hand."""


def worker_main(connection: Connection, cars: Arena, operations: Arena, settings: WorkerSettings) -> None:
    """Run until told to stop; the target of a child process."""
    prepare_child("relay-worker")
    configure(settings.log_level, settings.log_format, fields={"role": "worker"})
    gc.disable()
    gc.freeze()
    worker = Worker(Pipe(connection), cars, operations, settings)
    worker.run()


class Worker:
    """One job at a time; messages that arrive meanwhile (slots, further jobs, cancellations) are taken between chunks."""

    def __init__(self, pipe: Pipe, cars: Arena, operations: Arena, settings: WorkerSettings) -> None:
        self._pipe, self._cars, self._operations, self._settings = pipe, cars, operations, settings
        self._slots: deque[int] = deque()
        self._jobs: deque[m.VerifyRepo] = deque()
        self._cancelled: set[int] = set()

    def run(self) -> None:
        done = 0
        try:
            while True:
                while not self._jobs:
                    self._take_message()
                job = self._jobs.popleft()
                if job.job in self._cancelled:
                    self._cancelled.discard(job.job)
                    self._send(m.JobDone(job.job, 0.0))
                    continue
                self._do(job)
                done += 1
                if done % COLLECT_EVERY_JOBS == 0:
                    gc.collect()
        except (_Stopped, EOFError):
            return

    def _do(self, job: m.VerifyRepo) -> None:
        began = time.process_time()
        try:
            if job.spool is None:
                self._snapshot(job, self._cars.view(job.slot, job.size))
            else:
                self._snapshot_of_file(job, job.spool)
        except AtprotoError as exc:
            self._send(m.VerifyFailed(job.job, exc.reason, str(exc)))
        except MemoryError:
            self._send(m.VerifyFailed(job.job, "out_of_memory", f"{job.did}: not enough memory for {job.size:,} bytes"))
        except OSError as exc:
            self._send(m.VerifyFailed(job.job, "spool_unreadable", f"{job.did}: {job.spool}: {exc}"))
        except _Cancelled:
            pass
        self._cancelled.discard(job.job)
        self._send(m.JobDone(job.job, time.process_time() - began))

    def _snapshot_of_file(self, job: m.VerifyRepo, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mapped = mmap.mmap(fd, job.size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        view = memoryview(mapped)
        try:
            self._snapshot(job, view)
        finally:
            view.release()
            try:
                mapped.close()
            except BufferError:  # an exception's frame still looks at it: it goes with the frame
                pass
            gc.collect()

    def _snapshot(self, job: m.VerifyRepo, car: memoryview) -> None:
        settings = self._settings
        snapshot = take_snapshot(
            car,
            SnapshotSpec(
                did=job.did,
                key=job.key,
                patterns=tuple(job.patterns),
                encoding=settings.encoding,
                source=Source(job.source),
                time_us=job.time_us,
                status=None
                if job.active is None
                else AccountStatus(active=job.active, status=job.status, time_us=job.time_us),
                handle=job.handle,
                pds=job.pds,
                touched=job.touched,
                chunk_bytes=min(settings.chunk_bytes, self._operations.slot_bytes),
                chunk_operations=settings.chunk_operations,
                max_operation_bytes=settings.max_operation_bytes,
                limits=settings.limits,
            ),
        )
        # A small repo's messages all go with its JobDone, in one call.
        self._pipe.send_later(
            m.to_wire(m.Verified(job.job, snapshot.rev, bytes(snapshot.data), snapshot.records, _refused(snapshot)))
        )
        for chunk in snapshot.chunks():
            payload = b"".join(chunk.parts)
            slot = self._free_slot(job.job)
            if len(payload) > self._operations.slot_bytes:
                # One operation larger than a slot: rare, bounded by max_operation_bytes, so it may go by the pipe. The slot that it
                # holds meanwhile is the back pressure.
                self._send(m.OperationsReady(job.job, slot, len(payload), chunk.operations, payload))
                continue
            self._operations.view(slot, len(payload))[:] = payload
            self._pipe.send_later(m.to_wire(m.OperationsReady(job.job, slot, len(payload), chunk.operations, None)))
            if len(payload) > self._operations.slot_bytes // 2:
                self._flush()

    def _free_slot(self, job: int) -> int:
        self._check_cancelled(job)
        while not self._slots:
            self._flush()
            self._take_message()
            self._check_cancelled(job)
        return self._slots.popleft()

    def _check_cancelled(self, job: int) -> None:
        for message in self._pipe.receive_ready():
            self._take(message)
        if job in self._cancelled:
            raise _Cancelled

    def _take_message(self) -> None:
        self._take(self._pipe.receive())

    def _take(self, message: list[Any]) -> None:
        match m.from_wire(message):
            case m.VerifyRepo() as job:
                self._jobs.append(job)
            case m.FreeSlots(slots):
                self._slots.extend(slots)
            case m.CancelJob(job_number):
                self._cancelled.add(job_number)
            case m.Stop():
                raise _Stopped

    def _flush(self) -> None:
        if not self._pipe.flush():
            raise _Stopped

    def _send(self, message: Any) -> None:
        if not self._pipe.send(m.to_wire(message)):
            raise _Stopped


def _refused(snapshot: Snapshot) -> list[Any]:
    return [list(record) for record in snapshot.refused]
