"""What is shipped for Prometheus and Grafana: every expression parses, and asks only for what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from relay.config.schema import Settings
from relay.model import Lane, RepoState, Source
from relay.observe.labels import Arena, ChildRole, EventKind, FetchOutcome, HostState, Queue
from relay.observe.metrics import Metrics
from relay.observe.status import Phase
from tests.support import metrics_table

ROOT = Path(__file__).resolve().parents[3]
ALERTS = ROOT / "config" / "prometheus" / "alerts.yml"
EXAMPLES = ROOT / "config" / "prometheus" / "alerts_test.yml"
PROMETHEUS = ROOT / "config" / "prometheus" / "prometheus.yml"
DASHBOARD = ROOT / "config" / "grafana" / "dashboard.json"
JOB = "tradr-relay"

DECLARED = {each.name: each for each in Metrics(version="1", runtime=True).declared}
# What every target has, whoever it is.
FROM_PROMETHEUS = {"job", "instance"}
VALUES: dict[tuple[str, str], set[str]] = {
    ("relay_phase", "phase"): set(Phase),
    ("relay_repos", "state"): set(RepoState),
    ("relay_repos_finished_total", "state"): set(RepoState),
    ("relay_hosts", "state"): set(HostState),
    ("relay_events_total", "kind"): set(EventKind),
    ("relay_fetch_seconds", "outcome"): set(FetchOutcome),
    ("relay_fetch_bytes_total", "outcome"): set(FetchOutcome),
    ("relay_operation_duration_seconds", "lane"): set(Lane),
    ("relay_queue_depth", "queue"): set(Queue),
    ("relay_slots", "arena"): set(Arena),
    ("relay_slots_in_use", "arena"): set(Arena),
    ("relay_operations_total", "source"): {source.name for source in Source},
    ("relay_process_cpu_seconds_total", "role"): {"supervisor", *ChildRole},
}


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]


def _dashboard() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return value


def _panels() -> list[dict[str, Any]]:
    return list(_dashboard()["panels"])


def _drawn() -> list[dict[str, Any]]:
    return [panel for panel in _panels() if panel["type"] != "row"]


def _documented() -> list[str]:
    (block,) = re.findall(r"<!-- promql -->\n```promql\n(.*?)```", metrics_table.PAGE.read_text("utf-8"), re.DOTALL)
    return [line for line in block.splitlines() if line and not line.startswith("#")]


def _expressions() -> Iterator[tuple[str, str]]:
    for rule in _rules():
        yield rule["alert"], rule["expr"]
    for panel in _drawn():
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]
    for expression in _documented():
        yield "docs/metrics.md", expression


def _resolved(expression: str) -> str:
    """Return it as Grafana would send it."""
    return expression.replace("$__rate_interval", "5m").replace("$instance", "a:1").replace("$job", JOB)


def _nodes(node: Any) -> Iterator[Any]:
    """Yield a parsed expression and everything in it."""
    yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        if (inner := getattr(node, name, None)) is not None:
            yield from _nodes(inner)
    for inner in getattr(node, "args", None) or ():
        yield from _nodes(inner)


def _selectors(expression: str) -> list[promql.VectorSelector]:
    found = [each for each in _nodes(promql.parse(_resolved(expression))) if isinstance(each, promql.VectorSelector)]
    assert found, f"{expression}: asks for nothing"
    return found


def _problems(expression: str) -> Iterator[str]:
    """Yield what of an expression is not there: metrics, labels, values of labels."""
    known = set(FROM_PROMETHEUS)
    for selector in _selectors(expression):
        name = str(selector.name)
        if name == "up":
            continue
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        metric = DECLARED.get(name) or (DECLARED.get(base) if base != name else None)
        if metric is None or (metric.kind == "histogram") != (name != metric.name):
            yield f"no metric {name}"
            continue
        labels = {*metric.labels, *FROM_PROMETHEUS, *(("le",) if name.endswith("_bucket") else ())}
        known |= labels
        for matcher in selector.matchers.matchers:
            if matcher.name not in labels:
                yield f"{name} has no label {matcher.name}"
            values = VALUES.get((metric.name, matcher.name))
            if values is not None:
                yield from (f"{name}: no {matcher.name} {each}" for each in set(matcher.value.split("|")) - values)
    for node in _nodes(promql.parse(_resolved(expression))):
        modifier = getattr(node, "modifier", None)
        for name in _labels_of(modifier):
            if name not in known:
                yield f"groups by {name}, which none of its metrics has"


def _labels_of(modifier: Any) -> Sequence[str]:
    """Return the labels of `by (…)` and `on (…)`."""
    inner = getattr(modifier, "matching", modifier)
    return tuple(getattr(inner, "labels", None) or ())


@pytest.mark.parametrize(("where", "expression"), list(_expressions()))
def test_every_expression_parses_and_asks_for_what_there_is(where: str, expression: str) -> None:
    assert list(_problems(expression)) == [], where


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("relay_no_such_thing > 0", "no metric relay_no_such_thing"),
        ("relay_operations_total_bucket", "no metric relay_operations_total_bucket"),
        ("relay_operation_duration_seconds > 1", "no metric relay_operation_duration_seconds"),
        ('rate(relay_events_total{did="a"}[5m])', "relay_events_total has no label did"),
        ('relay_repos{state=~"synced|lost"}', "relay_repos: no state lost"),
        ("sum by (host) (relay_hosts)", "groups by host, which none of its metrics has"),
        ("relay_ready and on (host) relay_healthy", "groups by host, which none of its metrics has"),
    ],
)
def test_what_is_not_there_is_found(expression: str, problem: str) -> None:
    assert list(_problems(expression)) == [problem]


@pytest.mark.parametrize(("where", "expression"), list(_expressions()))
def test_counters_are_asked_for_their_rate_and_gauges_are_not(where: str, expression: str) -> None:
    rated = {
        str(node.vector_selector.name)
        for call in _nodes(promql.parse(_resolved(expression)))
        if isinstance(call, promql.Call) and call.func.name in ("rate", "increase", "irate")
        for node in _nodes(call)
        if isinstance(node, promql.MatrixSelector)
    }
    for selector in _selectors(expression):
        name = str(selector.name)
        if name in DECLARED:
            assert (DECLARED[name].kind == "counter") == (name in rated), f"{where}: {name}"


def test_the_table_of_metrics_is_the_one_of_now() -> None:
    assert metrics_table.PAGE.read_text("utf-8") == metrics_table.written(), (
        "python -m tests.support.metrics_table --write"
    )


def test_every_label_is_explained() -> None:
    text = metrics_table.PAGE.read_text("utf-8").split("## Labels")[1]
    explained = {
        name for row in re.findall(r"^\| (`\w+`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert explained == {label for metric in DECLARED.values() for label in metric.labels}


# --- alerts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", _rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_what_to_do_and_where_more_stands(rule: dict[str, Any]) -> None:
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    # $labels of what the expression leaves: all of a metric, or those that it groups by.
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    first = _nodes(promql.parse(rule["expr"]))
    grouped = {name for node in first for name in _labels_of(getattr(node, "modifier", None))}
    plain = {
        label for each in _selectors(rule["expr"]) if each.name in DECLARED for label in DECLARED[str(each.name)].labels
    }
    assert named <= FROM_PROMETHEUS | grouped | plain


def test_alerts_have_names_of_their_own_and_each_has_an_example() -> None:
    names = [rule["alert"] for rule in _rules()]
    assert len(set(names)) == len(names)
    fired = {
        check["alertname"]
        for test in yaml.safe_load(EXAMPLES.read_text("utf-8"))["tests"]
        for check in test["alert_rule_test"]
        if check.get("exp_alerts")
    }
    assert fired == set(names)


def test_what_is_scraped_is_where_the_relay_listens_by_default() -> None:
    config = yaml.safe_load(PROMETHEUS.read_text("utf-8"))
    (job,) = config["scrape_configs"]
    metrics = Settings().metrics
    assert job["job_name"] == JOB
    assert job["static_configs"] == [{"targets": [f"{metrics.host}:{metrics.port}"]}]
    assert config["rule_files"] == [ALERTS.name]
    assert f'job="{JOB}"' in ALERTS.read_text("utf-8")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
@pytest.mark.parametrize(
    "arguments", [("check", "config", PROMETHEUS), ("test", "rules", EXAMPLES)], ids=["configuration", "examples"]
)
def test_prometheus_itself_agrees(arguments: tuple[str, ...]) -> None:
    ended = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


# --- the dashboard --------------------------------------------------------------------------------------------------------


def test_panels_have_numbers_and_titles_of_their_own() -> None:
    panels = _panels()
    for name in ("id", "title"):
        values = [panel[name] for panel in panels]
        assert len(set(values)) == len(values), name


def test_every_panel_draws_from_the_chosen_data_source_with_a_unit_and_a_word_about_it() -> None:
    for panel in _drawn():
        source = {"type": "prometheus", "uid": "${datasource}"}
        assert panel["datasource"] == source, panel["title"]
        assert all(target["datasource"] == source for target in panel["targets"]), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len(panel["description"]) > 10, panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters) > 0, panel["title"]
        for target in panel["targets"]:
            assert 'job="$job"' in target["expr"], panel["title"]
            assert 'instance=~"$instance"' in target["expr"], panel["title"]


def test_panels_do_not_overlap_and_fit_the_width() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in _panels():
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_it_can_be_provisioned_as_it_is() -> None:
    board = _dashboard()
    assert board["uid"] == JOB
    assert board["id"] is None
    assert "__inputs" not in board
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert "relay_build_info" in variables["job"]["query"]["query"]
    assert variables["job"]["current"]["value"] == JOB


@pytest.mark.parametrize(
    "wanted",
    [
        "relay_operations_delivered_total", "relay_errors_total", "relay_buffered_operations", "relay_firehose_connected",
        "relay_firehose_lag_seconds", "relay_ingester_healthy", "relay_operation_duration_seconds_bucket", "relay_repos",
        "relay_rate_limit_wait_seconds_total", "relay_hosts", "relay_process_cpu_seconds_total",
        "relay_process_resident_memory_bytes", "relay_incidents_total", "relay_open_incidents", "relay_checkpoint_age_seconds",
    ],
)  # fmt: skip
def test_the_dashboard_shows(wanted: str) -> None:
    shown = {str(each.name) for panel in _drawn() for target in panel["targets"] for each in _selectors(target["expr"])}
    assert wanted in shown
