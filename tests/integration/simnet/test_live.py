"""The network in motion: writers, accounts that come and go, and every fault at once, followed to the same end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests

from relay.simnet.author import Mix
from relay.simnet.faults import EVENT_FAULTS, STREAM_FAULTS, Fault, FaultKind
from relay.simnet.network import SimNetwork
from relay.simnet.oracle import Difference, compare, report
from relay.simnet.process import SimProcess, SimProcessFailed
from relay.simnet.world import World, WorldSpec
from tests.integration.simnet.follower import Follower
from tests.support.simnet import StartNetwork
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")
_SPEC = WorldSpec(accounts=40, hosts=3, median_records=15, max_records=100, inactive_share=0.05, seed=21)
_LIVELY = Mix(status=30, rotate=10, migrate=10, handle=10, newcomer=10, imported=15)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _follower(stack: ExitStack, network: SimNetwork | SimProcess, cursor: int) -> Follower:
    follower = Follower(plc_url=network.plc_url, firehose_url=network.firehose_url, cursor=cursor)
    stack.callback(follower.close)
    follower.take_all(network.dids())
    for account in network.truth():
        follower.held[account.did].status = account.status
    return follower


def _wait_for(network: SimProcess | SimNetwork, actions: int) -> None:
    wait_until(lambda: sum(network.written().values()) >= actions, f"{actions} actions", deadline_s=60)


def _differences(network: SimProcess | SimNetwork, follower: Follower) -> list[Difference]:
    return compare(network.truth(), follower.delivered(), live=True)


def test_a_plain_consumer_follows_live_writers_to_the_same_end(stack: ExitStack) -> None:
    process = stack.enter_context(SimProcess(_SPEC))
    follower = _follower(stack, process, process.newest_seq())
    process.start_writers(400, threads=2, mix=_LIVELY, seed=5)
    _wait_for(process, 800)
    follower.follow(process.quiesce())
    differences = _differences(process, follower)
    assert differences == [], report(differences)
    # Only what a #sync or a return tells needs a fetch beyond the first one of each.
    assert follower.seen["break"] == 0
    assert follower.seen["commit"] > 500
    assert follower.seen["sync"] > 0
    done = process.stop_writers()
    assert all(done.get(name) for name in ("many", "empty", "same", "status", "rotate", "migrate", "newcomer"))


def test_with_every_fault_at_random_a_plain_consumer_still_ends_at_the_truth(stack: ExitStack) -> None:
    process = stack.enter_context(SimProcess(_SPEC))
    follower = _follower(stack, process, process.newest_seq())
    faults = [Fault(kind=kind, rate=0.01) for kind in sorted(EVENT_FAULTS - {FaultKind.OVERSIZE_FRAME})]
    faults.append(Fault(kind=FaultKind.OVERSIZE_FRAME, rate=0.01, times=3))
    stream = sorted(STREAM_FAULTS - {FaultKind.STREAM_SILENCE})
    faults += [Fault(kind=kind, rate=0.008, count=0 if kind is FaultKind.STREAM_CLOSE else 3) for kind in stream]
    faults.append(Fault(kind=FaultKind.STREAM_SILENCE, rate=0.01, times=1))
    process.set_faults(faults, seed=77)
    process.start_writers(400, threads=2, mix=_LIVELY, seed=6)
    _wait_for(process, 1600)
    process.stop_writers()
    follower.follow(process.newest_seq() - 50)  # through what is behind, with all that goes wrong
    fired = process.fault_counts()
    process.set_faults()
    follower.follow(process.quiesce(settle=True))
    differences = _differences(process, follower)
    assert differences == [], f"{report(differences)}\n{follower.seen}"
    assert [kind for kind, count in fired.items() if not count] == []
    assert follower.seen["break"] > 10
    assert follower.seen["unreadable"] > 3
    assert follower.seen["ConsumerTooSlow"] > 0
    assert follower.seen["old seq"] > 10


def test_without_settling_only_those_differ_of_whom_something_was_lost(stack: ExitStack, simnet: SimNetwork) -> None:
    follower = _follower(stack, simnet, simnet.log.newest_seq)
    lost, kept = simnet.dids()[:2]
    simnet.set_faults([Fault(kind=FaultKind.DROP_EVENT, did=lost)])
    for did in (lost, kept):
        simnet.world.write(did, {"com.example.note/1": {"$type": "com.example.note"}})
    follower.follow(simnet.quiesce())
    assert {difference.did for difference in _differences(simnet, follower)} == {lost}
    assert simnet.fault_counts() == {"drop_event": 1}
    follower.follow(simnet.quiesce(settle=True))
    assert _differences(simnet, follower) == []


def test_one_seed_and_one_thread_write_the_same_in_every_process(stack: ExitStack) -> None:
    def write() -> dict[str, Any]:
        with SimNetwork(_SPEC) as network:
            network.start_writers(2000, seed=3, mix=_LIVELY)
            _wait_for(network, 200)
            network.quiesce()
            events = [event for event in network.log.after(0, 10_000) if event.kind == "commit"]
            return {"dids": [event.did for event in events[:150]]}

    assert write() == write()


def test_listings_say_what_the_firehose_said(stack: ExitStack, start_simnet: StartNetwork) -> None:
    network = start_simnet(accounts=30, hosts=3, seed=8)
    network.start_writers(2000, mix=_LIVELY)
    _wait_for(network, 600)
    network.quiesce()
    truth = {account.did: account for account in network.truth()}
    listed: dict[str, dict[str, Any]] = {}
    for number, origin in enumerate(network.host_urls):
        cursor: dict[str, str] = {}
        while True:
            url = f"{origin}/xrpc/com.atproto.sync.listRepos"
            page = requests.get(url, params={"limit": "4", **cursor}, timeout=10).json()
            for entry in page["repos"]:
                assert entry["did"] not in listed
                assert network.world.account(entry["did"]).host == number
                listed[entry["did"]] = entry
            if "cursor" not in page:
                break
            cursor = {"cursor": page["cursor"]}
    assert listed.keys() == {did for did, account in truth.items() if account.status != "deleted"}
    for did, entry in listed.items():
        assert (entry["rev"], entry["active"]) == (truth[did].rev, not truth[did].status)
        assert entry.get("status", "") == truth[did].status
        origin = truth[did].pds
        status = requests.get(f"{origin}/xrpc/com.atproto.sync.getRepoStatus?did={did}", timeout=10).json()
        latest = requests.get(f"{origin}/xrpc/com.atproto.sync.getLatestCommit?did={did}", timeout=10)
        assert status["active"] == (not truth[did].status)
        if entry["active"]:
            assert status["rev"] == latest.json()["rev"] == truth[did].rev
            assert latest.json()["cid"] == entry["head"]
        else:
            assert status["status"] == truth[did].status
            assert latest.status_code == 400


def test_a_listing_skips_nobody_when_others_go_between_two_pages(start_simnet: StartNetwork) -> None:
    network = start_simnet(accounts=12, hosts=1)
    for origin in (network.host_urls[0], network.relay_url):
        url = f"{origin}/xrpc/com.atproto.sync.listRepos"
        before = requests.get(url, timeout=10).json()["repos"]
        first = requests.get(url, params={"limit": "5"}, timeout=10).json()
        # Two of the first page go, the one that the cursor names among them.
        for entry in (first["repos"][-1], first["repos"][0]):
            network.world.set_status(entry["did"], "deleted")
        rest = requests.get(url, params={"cursor": first["cursor"]}, timeout=10).json()["repos"]
        assert [entry["did"] for entry in first["repos"] + rest] == [entry["did"] for entry in before]


# Control


def test_the_window_and_the_numbers_of_a_process_can_be_lost() -> None:
    with SimProcess(_SPEC) as process:
        first = process.newest_seq()
        process.write(20)
        assert process.newest_seq() == first + 20
        assert process.lose_window(keep=5) == 15
        process.renumber(5_000_000)
        process.disconnect()
        assert process.quiesce() == 5_000_000
        assert process.newest_seq() == 5_000_000


def test_a_process_makes_accounts_and_commits() -> None:
    with SimProcess(_SPEC) as process:
        did = process.create_account(host=2, changes={"com.example.note/1": {"$type": "com.example.note"}})
        told = process.control(do="commit", did=did, changes={"com.example.note/1": None})
        assert told["seq"] == process.newest_seq()
        process.control(do="import_records", did=did, changes={"com.example.note/2": {"$type": "com.example.note"}})
        process.control(do="set_handle", did=did, handle="other.test")
        [account] = [account for account in process.truth() if account.did == did]
        assert (account.handle, account.pds) == ("other.test", process.host_urls[2])
        assert list(account.records) == ["com.example.note/2"]
        assert account.rev > told["rev"]


def test_writers_run_once_and_stop() -> None:
    with SimProcess(_SPEC) as process:
        process.start_writers(1000)
        with pytest.raises(SimProcessFailed, match="run already"):
            process.start_writers(1000)
        _wait_for(process, 50)
        done = process.stop_writers()
        seq = process.newest_seq()
        assert process.written() == process.stop_writers() == done
        assert process.newest_seq() == seq
        with pytest.raises(SimProcessFailed, match="no rain"):
            process.control(do="start_writers", rate=1, mix={"rain": 1})
        assert process.quiesce() == seq + 1


def test_writers_keep_their_rate_on_the_average() -> None:
    """As a share of what they could do at most: no time is asserted, only that they wait at all."""
    with SimNetwork(_SPEC) as network:
        network.start_writers(20)
        _wait_for(network, 3)
        assert sum(network.stop_writers().values()) < 200


def test_a_compact_network_cannot_be_written() -> None:
    with SimProcess(_SPEC, compact=True) as process, pytest.raises(SimProcessFailed, match="CompactRepo"):
        process.start_writers(10)


def test_a_writer_that_dies_is_told_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    network = SimNetwork(_SPEC)
    network.start()

    def fail(_world: World, _did: str, _changes: object) -> None:
        raise ArithmeticError("by the test")

    monkeypatch.setattr(World, "write", fail)
    try:
        network.start_writers(1000)
        with pytest.raises(RuntimeError, match="by the test"):
            wait_until(lambda: bool(network.written() and False), "the writer's death", deadline_s=10)
        with pytest.raises(RuntimeError, match="by the test"):
            network.stop_writers()
    finally:
        network.stop()
