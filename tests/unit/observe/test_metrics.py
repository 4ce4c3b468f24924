"""Metrics: the names that dashboards rely on, closed labels, right numbers."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import relay.repos
from relay.model import Lane, OpType, RepoState, Source
from relay.observe.histogram import WeightedHistogram
from relay.observe.metrics import (
    Arena,
    CacheResult,
    ChildRole,
    EventKind,
    FetchOutcome,
    HostState,
    Metrics,
    Queue,
    Reconciled,
)
from relay.observe.status import Phase
from relay.tail.envelope import KINDS


def _samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def _value(metrics: Metrics, name: str, **labels: str) -> float:
    return _samples(metrics)[name, frozenset(labels.items())]


@pytest.mark.parametrize(
    "name",
    [
        "relay_operations_total",
        "relay_operations_sent_total",
        "relay_operations_buffered_total",
        "relay_operation_duration_seconds",
        "relay_buffered_operations",
        "relay_healthy_ingesters",
        "relay_errors_total",
    ],
)
def test_the_names_that_dashboards_rely_on_exist_from_the_start(name: str) -> None:
    assert f"# TYPE {name} " in Metrics(version="1.2.3").render().decode()


def test_every_method_moves_its_series() -> None:
    metrics = Metrics(version="1.2.3")
    metrics.declare_ingesters(["a:1"])
    metrics.made(OpType.CREATE, Source.BACKFILL, 10)
    metrics.sent("a:1", 10)
    metrics.sent("a:1", 4, again=True)
    metrics.delivered("a:1", Lane.BACKFILL, 8, 4000, 0.02)
    metrics.ingester("a:1", in_flight_batches=3, oldest_unacked_s=1.5)
    metrics.dead_letter("rejected")
    metrics.repos({RepoState.SYNCED: 5})
    metrics.repo_finished(RepoState.SYNCED)
    metrics.repo_failed("host_down")
    metrics.count("account", "FIREHOSE", 2)
    metrics.count("identity", "BACKFILL")
    metrics.fetched(FetchOutcome.OK, 1000, 0.2)
    metrics.rate_limited(2.5)
    metrics.identity(CacheResult.HIT, 7)
    metrics.child_replaced(ChildRole.WORKER, "signal")
    metrics.event(EventKind.COMMIT, 2)
    metrics.ignored("replayed", 3)
    metrics.checked("proved", 5)
    metrics.invalid("bad_signature")
    metrics.count("dropped", "pending", 4)
    metrics.count("known", "known")
    metrics.count("desyncs", "chain")
    metrics.count("again", "overflow")
    metrics.reconciled(Reconciled.DIFFERED, 3)
    metrics.queue(Queue.STORE, 12)
    metrics.slots(Arena.CAR, 3, 24)
    metrics.error("host_down", 2)
    metrics.incident("hole", 2)
    expected = {
        ("relay_operations_total", "CREATE", "BACKFILL"): 10,
        ("relay_operations_sent_total", "a:1"): 14,
        ("relay_operations_redelivered_total", "a:1"): 4,
        ("relay_operations_delivered_total", "a:1"): 8,
        ("relay_delivered_bytes_total", "a:1"): 4000,
        ("relay_operation_duration_seconds_count", "backfill"): 8,
        ("relay_in_flight_batches", "a:1"): 3,
        ("relay_oldest_unacked_seconds", "a:1"): 1.5,
        ("relay_dead_letters_total", "rejected"): 1,
        ("relay_repos", "synced"): 5,
        ("relay_repos", "failed"): 0,
        ("relay_repos_finished_total", "synced"): 1,
        ("relay_repo_failures_total", "host_down"): 1,
        ("relay_operations_total", "ACCOUNT", "FIREHOSE"): 2,
        ("relay_operations_total", "IDENTITY", "BACKFILL"): 1,
        ("relay_fetch_bytes_total", "ok"): 1000,
        ("relay_fetch_seconds_count", "ok"): 1,
        ("relay_rate_limit_waits_total",): 1,
        ("relay_rate_limit_wait_seconds_total",): 2.5,
        ("relay_identity_cache_total", "hit"): 7,
        ("relay_worker_restarts_total", "worker", "signal"): 1,
        ("relay_events_total", "commit"): 2,
        ("relay_reconciled_repos_total", "differed"): 3,
        ("relay_queue_depth", "store"): 12,
        ("relay_slots_in_use", "car"): 3,
        ("relay_slots", "car"): 24,
        ("relay_errors_total", "host_down"): 2,
        ("relay_incidents_total", "hole"): 2,
        ("relay_frames_ignored_total", "replayed"): 3,
        ("relay_frames_total", "proved"): 5,
        ("relay_invalid_total", "bad_signature"): 1,
        ("relay_frames_dropped_total", "pending"): 4,
        ("relay_frames_dropped_total", "known"): 1,
        ("relay_frames_dropped_total", "failed"): 0,
        ("relay_desyncs_total", "chain"): 1,
        ("relay_refetches_total", "overflow"): 1,
    }
    found = {
        (name, frozenset(value for _, value in labels)): value for (name, labels), value in _samples(metrics).items()
    }
    for (name, *labels), value in expected.items():
        assert found[name, frozenset(labels)] == value, name


def test_every_count_of_a_repos_live_life_has_a_counter() -> None:
    metrics = Metrics(version="1")
    folder = Path(relay.repos.__file__).parent
    counted = {
        name for path in folder.glob("live*.py") for name in re.findall(r"_count\(\"(\w+)\"", path.read_text("utf-8"))
    }
    assert len(counted) >= 5
    for name in counted:
        metrics.count(name, "pending")
    with pytest.raises(KeyError):
        metrics.count("no_such_count", "pending")


def test_an_invalid_frame_is_counted_once() -> None:
    metrics = Metrics(version="1")
    metrics.invalid("bad_signature")  # where every frame is
    metrics.count("invalid", "bad_signature")  # and where its repo is
    assert _value(metrics, "relay_invalid_total", reason="bad_signature") == 1


def test_the_kinds_of_events_are_those_that_are_read() -> None:
    assert sorted(EventKind) == sorted(KINDS.values())


def test_the_runtime_metrics_have_a_switch() -> None:
    assert "process_resident_memory_bytes" in Metrics(version="1", runtime=True).render().decode()
    assert "process_resident_memory_bytes" not in Metrics(version="1").render().decode()
    assert "python_gc_objects_collected_total" in Metrics(version="1", runtime=True).render().decode()


def test_what_is_declared_is_what_the_page_has() -> None:
    metrics = Metrics(version="1", runtime=True)
    found = {
        (family.name if family.type != "counter" else f"{family.name}_total", family.type)
        for family in text_string_to_metric_families(metrics.render().decode())
        if family.name.startswith("relay_")
    }
    # The text format knows no info: it is a gauge there.
    assert found == {(each.name, "gauge" if each.kind == "info" else each.kind) for each in metrics.declared}
    assert len({each.name for each in metrics.declared}) == len(metrics.declared)


def test_names_carry_their_unit_and_counters_end_in_total() -> None:
    for each in Metrics(version="1", runtime=True).declared:
        assert each.name.endswith("_total") == (each.kind == "counter"), each.name
        if "seconds" in each.text or each.kind == "histogram":
            assert each.unit == "seconds", each.name


def test_the_labels_of_each_series_are_the_declared_ones() -> None:
    metrics = Metrics(version="1", runtime=True)
    metrics.declare_ingesters(["a:1"])
    declared = {each.name: set(each.labels) for each in metrics.declared}
    for (name, labels), _ in _samples(metrics).items():
        if not name.startswith("relay_"):
            continue
        stem = re.sub(r"_(bucket|sum|count)$", "", name)
        assert {label for label, _ in labels} - {"le"} == declared[name if name in declared else stem], name


def test_what_was_promised_of_the_slowest_is_a_bound_of_the_histogram() -> None:
    bounds = {
        float(dict(labels)["le"])
        for name, labels in _samples(Metrics(version="1"))
        if name == "relay_operation_duration_seconds_bucket"
    }
    assert {0.05, 0.1, 0.2, 0.5} <= bounds


def test_how_ingesters_hosts_and_the_instance_are_is_told_in_full() -> None:
    metrics = Metrics(version="1")
    metrics.ingester_health("a:1", healthy=True, window_batches=32, round_trip_s=None)
    metrics.hosts({HostState.DOWN: 2})
    metrics.phase(Phase.WAITING)
    metrics.phase(Phase.RUNNING)
    assert _value(metrics, "relay_ingester_healthy", ingester="a:1") == 1
    assert _value(metrics, "relay_window_batches", ingester="a:1") == 32
    assert _value(metrics, "relay_round_trip_seconds", ingester="a:1") == 0
    assert [_value(metrics, "relay_hosts", state=state) for state in HostState] == [0, 0, 2]
    assert [phase for phase in Phase if _value(metrics, "relay_phase", phase=phase)] == [Phase.RUNNING]


def test_an_ingester_that_was_removed_has_counters_and_no_gauges() -> None:
    metrics = Metrics(version="1")
    metrics.declare_ingesters(["a:1"])
    metrics.forget_ingester("a:1")
    kinds = {each.name: each.kind for each in metrics.declared}
    left = {kinds[name] for name, labels in _samples(metrics) if ("ingester", "a:1") in labels}
    assert left == {"counter"}


def test_two_instances_share_nothing() -> None:
    first, second = Metrics(version="1"), Metrics(version="1")
    first.error("only_here")
    assert "only_here" not in second.render().decode()


@pytest.mark.parametrize("reason", ["", "did:plc:abc", "Two Words", "x" * 41, "a\nb", "é"])
def test_foreign_text_never_becomes_a_label(reason: str) -> None:
    metrics = Metrics(version="1")
    metrics.error(reason)
    assert _value(metrics, "relay_errors_total", type="other") == 1


def test_the_number_of_reasons_is_bounded_and_what_was_known_before_keeps_its_own() -> None:
    metrics = Metrics(version="1")
    before = len(_samples(metrics))
    for number in range(500):
        metrics.error(f"reason_{number}")
        metrics.invalid(f"reason_{number}")
    metrics.dead_letter("rejected")
    series = [labels for (name, labels) in _samples(metrics) if name == "relay_errors_total"]
    assert len(series) <= Metrics.MOST_REASONS + 1
    assert len(_samples(metrics)) <= before + 2 * (Metrics.MOST_REASONS + 1)
    assert sum(_value(metrics, "relay_errors_total", **dict(labels)) for labels in series) == 500
    assert _value(metrics, "relay_errors_total", type="other") == 500 - (len(series) - 1)
    assert _value(metrics, "relay_dead_letters_total", reason="rejected") == 1


def test_no_label_can_carry_a_did() -> None:
    labels = {label for metric in Metrics(version="1", runtime=True).declared for label in metric.labels}
    allowed = {
        "type", "source", "ingester", "lane", "state", "reason", "outcome", "result", "role", "kind", "queue", "arena",
        "version", "phase", "number",
    }  # fmt: skip
    assert labels <= allowed


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 1000)), max_size=30))
def test_a_weighted_observation_is_that_many_observations(observations: list[tuple[float, int]]) -> None:
    bounds = (0.1, 1.0, 10.0)
    histogram = WeightedHistogram("h", "help", label="lane", values=("live",), buckets=bounds)
    for seconds, count in observations:
        histogram.observe("live", seconds, count)
    (family,) = histogram.collect()
    by_bound = {sample.labels["le"]: sample.value for sample in family.samples if sample.name == "h_bucket"}
    for bound in bounds:
        assert by_bound[str(bound)] == sum(count for seconds, count in observations if seconds <= bound)
    total = sum(count for _, count in observations)
    assert by_bound["+Inf"] == total
    (count_sample,) = [sample.value for sample in family.samples if sample.name == "h_count"]
    (sum_sample,) = [sample.value for sample in family.samples if sample.name == "h_sum"]
    assert count_sample == total
    assert sum_sample == pytest.approx(sum(seconds * count for seconds, count in observations))


def test_a_clock_that_went_back_counts_as_no_time() -> None:
    metrics = Metrics(version="1")
    metrics.delivered("a:1", Lane.LIVE, 1, 1, -5.0)
    assert _value(metrics, "relay_operation_duration_seconds_sum", lane="live") == 0


def test_counts_from_many_threads_are_exact() -> None:
    metrics = Metrics(version="1")

    def work() -> None:
        for _ in range(500):
            metrics.delivered("a:1", Lane.LIVE, 2, 10, 0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _value(metrics, "relay_operations_delivered_total", ingester="a:1") == 4000
    assert _value(metrics, "relay_operation_duration_seconds_count", lane="live") == 4000
