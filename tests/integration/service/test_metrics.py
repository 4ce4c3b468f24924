"""What /metrics says of a service that backfills and follows, beside what the network, the ingester and the kernel counted."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

import relay
from relay.simnet.faults import Fault, FaultKind
from tests.integration.backfill.conftest import MakeScene
from tests.integration.backfill.scene import Scene
from tests.integration.service.conftest import address_of, end, get, status, until_equal
from tests.support.processes import Program
from tests.support.waiting import wait_until

WORDS = ("reason", "type", "kind", "outcome", "state", "result", "role", "queue", "arena", "lane", "phase", "source")
FOREIGN = "SomebodyElsesWord"


class _Page:
    """One answer of /metrics."""

    def __init__(self, address: str) -> None:
        self.text = get(address, "/metrics")[1]
        self.samples = [each for family in text_string_to_metric_families(self.text) for each in family.samples]

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the sum of a metric for each value of a label, without zeros."""
        found: defaultdict[str, float] = defaultdict(float)
        for each in self.samples:
            if each.name == name:
                found[each.labels[label]] += each.value
        return {value: count for value, count in found.items() if count}

    def total(self, name: str) -> float:
        values = [each.value for each in self.samples if each.name == name]
        assert values, f"there is no {name}"
        return sum(values)


def _at_rest(scene: Scene, program: Program, what: str) -> None:
    newest = scene.network.log.newest_seq
    until_equal(scene, program, what)
    wait_until(lambda: (status(scene)["firehose"]["cursor"] or 0) >= newest, f"the cursor behind {what}")


def test_metrics_of_a_run_are_what_network_ingester_and_kernel_counted(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=10, hosts=2, inactive_share=0.0)
    ingester = scene.ingester()
    program = scene.start("run")
    wait_until(lambda: scene.counts() == {"synced": 10}, f"all at rest: {program}")
    fetched = sum(len(account.records) for account in scene.network.truth())
    before = status(scene)["firehose"]["seq"] or 0
    written = scene.network.write(40)
    scene.network.world.set_handle(scene.network.dids()[0], "renamed.example.com")
    newest = scene.network.log.newest_seq
    _at_rest(scene, program, "what was written")
    address = address_of(program, scene)
    records = fetched + written.creates + written.updates
    wait_until(lambda: _Page(address).total("relay_records_delivered_total") == records, "the last record")
    wait_until(lambda: not _Page(address).by("relay_queue_depth", "queue"), "empty queues")
    # Counts by state are kept in memory, and corrected every half a minute.
    wait_until(lambda: _Page(address).by("relay_repos", "state") == {"synced": 10}, "the right counts", deadline_s=60)
    seen = _Page(address)

    # What went through.
    changes = written.creates + written.updates + written.deletes
    telling = 1  # of the new handle
    assert seen.by("relay_operations_total", "type") == {
        "REPO_BEGIN": 10,
        "REPO_END": 10,
        "CREATE": fetched + written.creates,
        "UPDATE": written.updates,
        "DELETE": written.deletes,
        "IDENTITY": telling,
    }
    assert seen.by("relay_operation_duration_seconds_count", "lane") == {
        "live": changes + telling,
        "backfill": fetched + 20,
    }
    assert seen.by("relay_operations_delivered_total", "ingester") == {ingester: fetched + 20 + changes + telling}
    assert seen.by("relay_operations_sent_total", "ingester") == {ingester: fetched + 20 + changes + telling}
    assert seen.total("relay_operations_redelivered_total") == 0
    assert seen.total("relay_delivered_bytes_total") > 0
    assert status(scene)["records_delivered"] == records
    # Repos and downloads.
    assert seen.by("relay_repos_finished_total", "state") == {"synced": 10}
    assert seen.by("relay_fetch_seconds_count", "outcome") == {"ok": sum(scene.network.traffic.repos().values())}
    assert seen.by("relay_fetch_bytes_total", "outcome") == {"ok": scene.network.traffic.repo_bytes()}
    assert seen.by("relay_hosts", "state") == {"ok": 3}  # two PDSes, and the upstream that lists them
    # The stream.
    assert seen.total("relay_firehose_followed") == seen.total("relay_firehose_connected") == 1
    assert seen.total("relay_firehose_connections_total") == 1
    assert seen.total("relay_firehose_seq") >= seen.total("relay_firehose_cursor") >= newest
    read = seen.total("relay_firehose_seq") - before
    assert (
        sum(seen.by("relay_events_total", "kind").values())
        == read
        == sum(seen.by("relay_frames_total", "outcome").values())
    )
    assert seen.by("relay_events_total", "kind")["identity"] == telling
    # Nothing waits, and nothing went wrong.
    assert seen.by("relay_slots_in_use", "arena") == {}
    assert set(seen.by("relay_slots", "arena")) == {"car", "operations", "frames"}
    for name in (
        "relay_buffered_operations", "relay_in_flight_batches", "relay_oldest_unacked_seconds", "relay_open_frames",
        "relay_open_incidents", "relay_incidents_total", "relay_dead_letters_total", "relay_worker_restarts_total",
    ):  # fmt: skip
        assert seen.total(name) == 0, name
    for name in ("relay_errors_total", "relay_invalid_total", "relay_desyncs_total", "relay_repo_failures_total"):
        assert seen.by(name, "type" if name == "relay_errors_total" else "reason") == {}, name
    assert seen.by("relay_phase", "phase") == {"running": 1}
    assert seen.total("relay_healthy") == seen.total("relay_ready") == seen.total("relay_ingester_healthy") == 1
    assert 0 < seen.total("relay_round_trip_seconds") < 60
    assert seen.total("relay_window_batches") >= 1
    assert seen.total("relay_checkpoints_total") > 0
    _costs_are_the_kernels(program, address)
    end(program)


def _costs_are_the_kernels(program: Program, address: str) -> None:
    """Every process of ours is there, in its seat, and each costs what the kernel says."""
    assert program.pid is not None
    supervisor = psutil.Process(program.pid)
    children = [each for each in supervisor.children(recursive=True) if each.name().startswith("relay-")]
    before = sum(sum(each.cpu_times()[:2]) for each in (supervisor, *children))
    page = _Page(address)
    after = sum(sum(each.cpu_times()[:2]) for each in (supervisor, *children))
    seats = Counter(
        (each.labels["role"]) for each in page.samples if each.name == "relay_process_resident_memory_bytes"
    )
    assert seats == Counter(["supervisor", *(each.name().removeprefix("relay-") for each in children)])
    assert {"supervisor", "fetch", "worker", "verify"} <= set(seats)
    ticks_s = 0.02 * (1 + len(children))
    assert before - ticks_s <= page.total("relay_process_cpu_seconds_total") <= after + ticks_s
    for each in page.samples:
        if each.name.startswith("relay_process_"):
            assert each.value > 0 or each.name.endswith("cpu_seconds_total"), each
    assert page.total("process_resident_memory_bytes") > 0
    assert page.total("python_gc_collections_total") > 0


def test_a_record_of_the_stream_that_was_refused_is_not_one_that_was_delivered(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=4, hosts=1, inactive_share=0.0)
    scene.backfill("--all")
    scene.ingester(None, "reject-match=^CREATE .* app.bsky.feed.(like|post)/")
    program = scene.start("tail")
    wait_until(lambda: status(scene)["firehose"]["connected"], f"the stream: {program}")
    address = address_of(program, scene)
    written = scene.network.write(30)
    newest = scene.network.log.newest_seq
    wait_until(lambda: (status(scene)["firehose"]["cursor"] or 0) >= newest, "the cursor behind what was written")
    letters = scene.letters()
    assert letters, "nothing was refused: this proves nothing"
    delivered = written.creates + written.updates - len(letters)
    wait_until(lambda: _Page(address).by("relay_dead_letters_total", "reason") == {"rejected": len(letters)}, "all")
    assert _Page(address).total("relay_records_delivered_total") == delivered
    end(program)


def test_a_hostile_network_adds_no_label(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=16, hosts=8, inactive_share=0.0)
    dids = scene.network.dids()
    plan = scene.network.set_faults(
        [
            Fault(kind=FaultKind.STATUS, endpoint="getRepo", did=dids[0], status=400, text=FOREIGN),
            Fault(kind=FaultKind.STATUS, endpoint="getRepo", did=dids[1], status=400, text=dids[1]),
            Fault(kind=FaultKind.STATUS, endpoint="getRepo", did=dids[2], status=418, text=FOREIGN.lower()),
            Fault(kind=FaultKind.GARBAGE, endpoint="getRepo", did=dids[3]),
            Fault(kind=FaultKind.WRONG_DID, endpoint="getRepo", did=dids[4]),
            Fault(kind=FaultKind.MISSING_NODE, endpoint="getRepo", did=dids[5]),
        ]
    )
    scene.env["FIREHOSE_RECONNECT_DELAY_MS"] = "100"
    program = scene.start("run")
    wait_until(lambda: scene.counts().get("synced", 0) == 10, f"those that can be had: {program}")
    address = address_of(program, scene)
    wait_until(lambda: len(_Page(address).by("relay_repo_failures_total", "reason")) >= 3, "failures of many kinds")
    bad = set(dids[:6])
    scene.network.set_faults(
        [
            Fault(kind=FaultKind.UNKNOWN_FRAME, text=f"#{FOREIGN.lower()}", times=3),
            Fault(kind=FaultKind.EVENT_BAD_SIGNATURE, times=2),
            Fault(kind=FaultKind.EVENT_CORRUPT_BLOCK, times=2),
            Fault(kind=FaultKind.GARBAGE_FRAME, times=1),
        ]
    )
    scene.network.world.set_status(dids[15], FOREIGN.lower())
    scene.network.write(40, [did for did in dids if did not in bad])
    wait_until(lambda: _Page(address).by("relay_frames_ignored_total", "reason"), "frames of no use")
    wait_until(lambda: _Page(address).by("relay_invalid_total", "reason"), "frames that prove nothing")
    page = _Page(address)

    assert sum(plan.fired().values()) >= 6
    assert FOREIGN.lower() not in page.text.lower()
    assert "did:" not in page.text
    for url in scene.network.host_urls:
        assert url.partition("//")[2] not in page.text, url
    said = {(label, value) for each in page.samples for label, value in each.labels.items() if label in WORDS}
    source = "\n".join(path.read_text("utf-8") for path in Path(relay.__file__).parent.rglob("*.py"))
    assert len(said) > 60
    assert [(label, value) for label, value in said if not re.search(rf"\b{value}\b", source, re.IGNORECASE)] == []
    program.process.kill()
    program.wait(20)
