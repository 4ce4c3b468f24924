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


def test_a_process_costs_what_the_kernel_says() -> None:
    process = psutil.Process()
    before, cost, after = process.cpu_times(), cost_of(os.getpid()), process.cpu_times()
    assert cost is not None
    # Both are counted in ticks of 10 ms, each of the two parts for itself.
    assert before.user + before.system - 0.02 <= cost.cpu_s <= after.user + after.system + 0.02
    assert cost.threads == process.num_threads()
    assert cost.open_files == process.num_fds()  # each counts the folder that it reads
    assert 0 < cost.private_bytes <= cost.resident_bytes
    assert cost.resident_bytes == pytest.approx(process.memory_info().rss, rel=0.1)


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
