"""The tailer on the simulated network's firehose."""

from __future__ import annotations

import pytest

from relay.simnet.upstream import UPSTREAM
from tests.integration.tail.hostile import watched
from tests.support.simnet import StartNetwork
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_every_frame_of_the_log_arrives_in_order(start_simnet: StartNetwork) -> None:
    network = start_simnet()
    first = network.log.newest_seq
    network.write(200)
    with watched(network.firehose_url, cursor=first) as seen:
        network.write(100)
        newest = network.log.newest_seq
        seen.wait_for(newest)
        assert seen.seqs == list(range(first + 1, newest + 1))
        kept = {each.seq: each for start in range(first, newest, 64) for each in network.log.after(start)}
        for envelope, frame in seen.events:
            truth = kept[envelope.seq]
            assert frame == truth.frame
            assert (envelope.kind, envelope.did) == (truth.kind, truth.did)
            assert envelope.time_us == truth.time_us // 1000 * 1000
        assert seen.told == []
        lag_s = seen.tailer.status.lag_s(truth.time_us / 1_000_000 + 2)
        assert lag_s is not None
        assert 1.9 < lag_s < 2.1


def test_a_relay_that_goes_away_and_comes_back_costs_no_event(start_simnet: StartNetwork) -> None:
    network = start_simnet()
    first = network.log.newest_seq
    with watched(network.firehose_url, cursor=first) as seen:
        for _ in range(3):
            network.write(20)
            seen.wait_for(network.log.newest_seq)
            network.silence(UPSTREAM)
            network.write(20)
            wait_until(lambda: seen.tailer.status.failures, "a refused connection")
            network.restore(UPSTREAM)
        seen.wait_for(network.log.newest_seq)
        assert seen.seqs == list(range(first + 1, network.log.newest_seq + 1))
        assert seen.told == []
        assert seen.tailer.status.connections == 4


def test_a_cursor_older_than_the_window_is_an_incident_and_the_window_is_read(start_simnet: StartNetwork) -> None:
    network = start_simnet(replay_window=50)
    cursor = network.log.newest_seq + 1
    network.write(200)
    with watched(network.firehose_url, cursor=cursor) as seen:
        seen.wait_for(network.log.newest_seq)
        assert seen.incidents() == ["outdated_cursor"]
        assert len(seen.seqs) == 50


def test_a_cursor_from_the_future_is_an_incident_and_live_events_follow(start_simnet: StartNetwork) -> None:
    network = start_simnet()
    network.write(10)
    with watched(network.firehose_url, cursor=network.log.newest_seq + 1000) as seen:
        wait_until(lambda: seen.tailer.status.connections == 2 and seen.tailer.status.is_connected, "a fresh start")
        assert seen.incidents() == ["future_cursor"]
        network.write(5)
        seen.wait_for(network.log.newest_seq)


def test_without_a_cursor_only_what_happens_from_now_on_is_read(start_simnet: StartNetwork) -> None:
    network = start_simnet()
    network.write(10)
    before = network.log.newest_seq
    with watched(network.firehose_url) as seen:
        wait_until(lambda: seen.tailer.status.is_connected, "a connection")
        network.write(5)
        seen.wait_for(network.log.newest_seq)
        assert min(seen.seqs) > before
