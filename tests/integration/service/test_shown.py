"""What a running service shows of the stream: the same numbers in `status --json`, at /metrics and on the page, and they are right."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.backfill.conftest import MakeScene
from tests.integration.service.conftest import address_of, end, get, status, until_equal
from tests.support.waiting import wait_until


def _metrics(address: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(get(address, "/metrics")[1])
        for sample in family.samples
    }


def test_status_metrics_and_page_say_what_the_stream_brought(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=10, inactive_share=0.0)
    program = scene.start("run")
    wait_until(lambda: scene.counts() == {"synced": 10}, f"all at rest: {program}")
    before = status(scene)["firehose"]["seq"] or 0
    written = scene.network.write(40)
    scene.network.world.set_handle(scene.network.dids()[0], "renamed.example.com")
    newest = scene.network.log.newest_seq
    until_equal(scene, program, "what was written")
    wait_until(lambda: status(scene)["firehose"]["cursor"] == newest, "the cursor at the newest event")

    shown = status(scene)
    firehose = shown["firehose"]
    assert firehose["connected"] is True
    assert firehose["seq"] == newest
    assert firehose["upstream"] == scene.network.firehose_url
    assert firehose["lag_s"] >= 0
    assert sum(firehose["events"].values()) == sum(firehose["outcomes"].values()) == newest - before
    assert firehose["events"]["identity"] == firehose["outcomes"]["identity"] == 1
    assert (firehose["open_frames"], firehose["distance"], firehose["verifying"]) == (0, 0, 0)
    assert firehose["buffered_operations"] == 0
    assert firehose["invalid"] == {}
    assert shown["backlog"] == {"repos": 0, "eta_s": 0.0, "bytes_left": 0}
    assert shown["incidents"] == []

    address = address_of(program, scene)
    metrics = _metrics(address)
    assert metrics["relay_firehose_connected",] == 1
    assert metrics["relay_firehose_seq",] == metrics["relay_firehose_cursor",] == newest
    assert metrics["relay_events_total", "commit"] == firehose["events"]["commit"]
    assert metrics["relay_operations_total", "FIREHOSE", "CREATE"] == written.creates
    assert metrics["relay_operations_total", "FIREHOSE", "UPDATE"] == written.updates
    assert metrics["relay_operations_total", "FIREHOSE", "DELETE"] == written.deletes
    tellings = (
        metrics["relay_operations_total", "FIREHOSE", "IDENTITY"]
        + metrics["relay_operations_total", "BACKFILL", "IDENTITY"]
    )
    assert tellings == 1
    operations = written.creates + written.updates + written.deletes
    assert metrics["relay_operation_duration_seconds_count", "live"] == operations + tellings
    assert metrics["relay_open_incidents",] == 0
    page = get(address, "/")[1]
    assert scene.network.firehose_url in page
    assert f"{newest:,}" in page
    end(program)

    stopped = status(scene)
    assert stopped["phase"] == "stopped"
    assert (stopped["firehose"]["cursor"], stopped["firehose"]["connected"]) == (newest, False)
    assert stopped["firehose"]["seq"] is None


def test_an_incident_is_shown_until_its_reconcile_is_complete_and_then_as_over(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=6, inactive_share=0.0)
    program = scene.start("run", env={"FIREHOSE_RECONNECT_DELAY_MS": "100"})
    wait_until(lambda: scene.counts() == {"synced": 6}, f"all at rest: {program}")
    scene.network.write(5)
    until_equal(scene, program, "what was written")
    scene.network.renumber(1)
    scene.network.disconnect()
    wait_until(lambda: [each["kind"] for each in status(scene)["incidents"]] == ["future_cursor"], "the incident")
    wait_until(lambda: status(scene)["incidents"][0]["closed_at"] is not None, "the reconcile", deadline_s=60)
    shown = status(scene)
    assert shown["reconcile"]["completed_at"] is not None
    assert shown["reconcile"]["compared"] == 6
    metrics = _metrics(address_of(program, scene))
    assert metrics["relay_incidents_total", "future_cursor"] == 1
    assert metrics["relay_open_incidents",] == 0
    assert metrics["relay_reconciled_repos_total", "compared"] == 6
    until_equal(scene, program, "all of it, after the fresh start")
    end(program)
