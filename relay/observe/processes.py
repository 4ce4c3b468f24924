"""What the processes of an instance cost, read from /proc when somebody asks: the supervisor, and every child in its seat.

A child is named by its role and the number of its seat, never by its pid: a replacement goes on in the same series, and a counter
that begins again at 0 is what Prometheus expects of a restart. Nothing is read between two scrapes.
Source of the fields: Linux, proc(5), /proc/pid/stat and /proc/pid/status.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LABELS = ("role", "number")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Fields of /proc/pid/stat behind the name, which may have spaces and brackets itself.
_USER_TICKS, _SYSTEM_TICKS = 11, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process of ours. `role` is a word of ours, `number` its seat, from 0."""

    role: str
    number: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a process costs. `resident_bytes` counts shared memory in each process that has touched it; `private_bytes` does not."""

    cpu_s: float
    resident_bytes: int
    private_bytes: int
    threads: int
    open_files: int


def cost_of(pid: int) -> Cost | None:
    """Return what a process costs now; None when it has ended, or may not be looked at."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            stat = file.read().rpartition(")")[2].split()
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            status = dict(line.rstrip("\n").partition(":\t")[::2] for line in file)
        open_files = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    if "VmRSS" not in status:  # it has ended, and nobody has waited for it yet
        return None
    return Cost(
        cpu_s=(int(stat[_USER_TICKS]) + int(stat[_SYSTEM_TICKS])) / _TICKS_PER_S,
        resident_bytes=_kilobytes(status["VmRSS"]),
        private_bytes=_kilobytes(status["RssAnon"]),
        threads=int(status["Threads"]),
        open_files=open_files,
    )


def _kilobytes(text: str) -> int:
    return int(text.split()[0]) * 1024


class ProcessCosts(Collector):
    """The metrics `relay_process_*`. `find` says which processes there are; it may be called from any thread."""

    FAMILIES = (
        ("relay_process_cpu_seconds_total", "counter", "CPU time of a process, user and system"),
        ("relay_process_resident_memory_bytes", "gauge", "resident memory, shared memory that it has touched included"),
        ("relay_process_private_memory_bytes", "gauge", "resident memory that no other process shares"),
        ("relay_process_open_fds", "gauge", "open file descriptors"),
        ("relay_process_threads", "gauge", "threads"),
    )

    def __init__(self, find: Callable[[], Iterable[Process]]) -> None:
        self._find = find

    def collect(self) -> Iterator[Metric]:
        families = [
            (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, text, labels=LABELS)
            for name, kind, text in self.FAMILIES
        ]
        for process in self._find():
            cost = cost_of(process.pid)
            if cost is None:
                continue
            values = (cost.cpu_s, cost.resident_bytes, cost.private_bytes, cost.open_files, cost.threads)
            for family, value in zip(families, values, strict=True):
                family.add_metric([process.role, str(process.number)], value)
        yield from families
