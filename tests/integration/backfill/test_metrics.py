"""What /metrics says while a backfill runs, beside what the network, the database and the ingester counted."""

from __future__ import annotations

import os
import signal
import urllib.request
from collections import Counter, defaultdict

from prometheus_client.parser import text_string_to_metric_families

from relay.simnet.faults import Fault, FaultKind
from tests.integration.backfill.conftest import MakeScene
from tests.support.waiting import wait_until

ACCOUNTS = 12


class _Scrape:
    """One answer of /metrics."""

    def __init__(self, address: str) -> None:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        self._samples = [each for family in text_string_to_metric_families(text) for each in family.samples]

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the sum of a metric for each value of a label, without zeros."""
        found: defaultdict[str, float] = defaultdict(float)
        for each in self._samples:
            if each.name == name:
                found[each.labels[label]] += each.value
        return {value: count for value, count in found.items() if count}

    def total(self, name: str) -> float:
        return sum(each.value for each in self._samples if each.name == name)


def test_metrics_are_what_network_database_and_ingester_counted(make_scene: MakeScene) -> None:
    scene = make_scene(accounts=ACCOUNTS, hosts=1, sizes=(40,) * ACCOUNTS)
    hung, unsigned, gone, no_likes, *_ = scene.network.dids()
    scene.network.world.set_status(gone, "deactivated")
    scene.ingester(None, f"reject-match=CREATE {no_likes} app.bsky.feed.like/")
    plan = scene.network.set_faults(
        [
            Fault(kind=FaultKind.HANG, endpoint="getRepo", did=hung),  # the run does not end before it was looked at
            Fault(kind=FaultKind.BAD_SIGNATURE, endpoint="getRepo", did=unsigned),
            Fault(kind=FaultKind.TOO_MANY, endpoint="getRepo", seconds=1.0, times=1, after=6),
        ]
    )
    program = scene.start("backfill", "--all")
    address = program.wait_for_line(r"metrics: ([^\s,]+)")[1]
    ended = {"synced": 9, "inactive": 1, "quarantined": 1, "active": 1}
    wait_until(lambda: scene.counts() == ended, "only one is left")
    worker = next(info.pid for info in program.children() if info.name.startswith("relay-worker"))
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: _Scrape(address).by("relay_worker_restarts_total", "role"), "the killed worker is counted")
    wait_until(lambda: _Scrape(address).by("relay_repos", "state") == ended, "the metrics have looked at the end")

    seen = _Scrape(address)
    requests, sent = scene.network.traffic.requests(), scene.network.traffic.repos()
    letters, delivered = scene.letters(), scene.delivered()
    assert letters, "nothing was refused: this proves nothing"
    assert plan.fired() == {"hang": 1, "bad_signature": 2, "too_many": 1}

    assert seen.by("relay_repos_finished_total", "state") == {"synced": 9, "inactive": 1, "quarantined": 1}
    assert seen.by("relay_repo_failures_total", "reason") == {"bad_signature": 2, "rate_limited": 1}
    sent.pop(hung, None)
    assert seen.by("relay_fetch_seconds_count", "outcome") == {
        "ok": sum(sent.values()),
        "inactive": 1,
        "rate_limited": 1,
    }
    assert sum(sent.values()) == requests["pds0/getRepo"] - 3
    assert 0 < seen.by("relay_fetch_bytes_total", "outcome")["ok"] <= scene.network.traffic.repo_bytes()
    assert seen.total("relay_rate_limit_waits_total") == 1
    assert 0.9 < seen.total("relay_rate_limit_wait_seconds_total") <= 1
    lookups = sum(count for name, count in requests.items() if name.startswith("plc/"))
    # Each once; again the one whose signature was bad, after that and before its second attempt; and the inactive one, after its
    # host said so.
    assert seen.by("relay_identity_cache_total", "result")["miss"] == lookups == ACCOUNTS + 3
    assert seen.by("relay_worker_restarts_total", "role") == {"worker": 1}
    assert seen.by("relay_worker_restarts_total", "reason") == {"killed": 1}

    records = sum(len(repo.records) for repo in delivered.values())
    assert seen.total("relay_records_delivered_total") == records + len(letters)
    assert seen.by("relay_dead_letters_total", "reason") == Counter(letter.reason for letter in letters)
    assert seen.by("relay_operations_total", "type")["CREATE"] == records + len(letters)
    assert seen.total("relay_checkpoints_total") > 0
    assert seen.total("relay_checkpoint_age_seconds") >= 0
    assert seen.total("relay_healthy") == 1

    program.interrupt()
    assert program.wait(40) == 130, str(program)
