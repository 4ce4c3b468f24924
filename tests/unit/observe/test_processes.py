"""What processes cost: as the kernel says, by role and seat, and nothing of those that are gone."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.observe.metrics import Metrics
from relay.observe.processes import Process, cost_of
from tests.support.waiting import wait_until


def test_a_process_costs_what_the_kernel_says() -> None:
    work = "import threading; f = [open('/dev/null') for _ in range(20)]; x = sum(range(3_000_000)); \\\n"
    work += "threading.Thread(target=threading.Event().wait, args=(60,), daemon=True).start(); print('.', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        process = psutil.Process(child.pid)
        wait_until(lambda: process.status() == psutil.STATUS_SLEEPING, "it waits: nothing of it changes any more")
        cost = cost_of(child.pid)
        times, memory, files = process.cpu_times(), process.memory_full_info(), process.num_fds()
        child.communicate(b"\n")
    assert cost is not None
    assert cost.cpu_s == pytest.approx(times.user + times.system, abs=0.021)  # ticks of 10 ms, of two parts
    assert (cost.threads, cost.open_files) == (2, files)
    assert files >= 23
    assert cost.resident_bytes == pytest.approx(memory.rss, rel=0.1)
    assert 0 < cost.private_bytes <= cost.resident_bytes


def test_a_name_with_brackets_and_spaces_is_read_over() -> None:
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 (x 2'); print('.', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        cost = cost_of(child.pid)
        child.communicate(b"\n")
    assert cost is not None
    assert cost.threads == 1
    assert cost.cpu_s < 60


def test_one_that_has_ended_costs_nothing_waited_for_or_not() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # it has closed everything; the kernel keeps its number until we wait
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert cost_of(child.pid) is None
    child.wait()
    child.stdout.close()
    assert cost_of(child.pid) is None


def test_each_process_is_named_by_role_and_seat_and_those_that_are_gone_are_left_out() -> None:
    metrics = Metrics(version="1", runtime=True)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    metrics.watch_children(
        lambda: [Process(role="worker", number=3, pid=os.getpid()), Process(role="fetch", number=0, pid=gone.pid)]
    )
    seen = {
        (sample.name, sample.labels["role"], sample.labels["number"])
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.name.startswith("relay_process_")
    }
    assert {(role, number) for _, role, number in seen} == {("supervisor", "0"), ("worker", "3")}
    assert len(seen) == 10


def test_without_runtime_metrics_no_process_is_looked_at() -> None:
    metrics = Metrics(version="1")
    metrics.watch_children(lambda: pytest.fail("somebody looked"))
    assert "relay_process_" not in metrics.render().decode()
