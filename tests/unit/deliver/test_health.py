from __future__ import annotations

import pytest

from relay.deliver.health import SETTLE_S, Away, Health


def test_an_ingester_is_away_until_its_first_stream() -> None:
    health = Health()
    assert (health.is_healthy, health.reason) == (False, "starting")
    health.absent(Away.UNREACHABLE)
    assert (health.is_healthy, health.reason) == (False, "unreachable")
    health.opened(1.0)
    assert (health.is_healthy, health.reason) == (True, "")


@pytest.mark.parametrize("why", [Away.RETRY, Away.STREAM_BROKEN, Away.PROTOCOL_ERROR])
def test_an_ingester_that_had_acknowledged_is_back_with_its_next_stream(why: Away) -> None:
    health = Health()
    health.opened(1.0)
    health.closed(why, progressed=True)
    assert (health.is_healthy, health.reason) == (False, why.value)
    health.opened(2.0)
    assert health.is_healthy


@pytest.mark.parametrize(
    ("why", "progressed"), [(Away.RETRY, False), (Away.STREAM_BROKEN, False), (Away.ACK_TIMEOUT, True)]
)
def test_nothing_but_refusals_stays_away_until_an_acknowledgement(why: Away, progressed: bool) -> None:
    health = Health()
    for second in range(5):
        health.opened(second)
        health.settle(second + 100, in_flight=True)
        if second:
            assert (health.is_healthy, health.reason) == (False, why.value)
        health.closed(why, progressed=progressed)
    health.opened(10.0)
    health.acknowledged()
    assert health.is_healthy


def test_a_quiet_stream_with_nothing_in_flight_clears_doubts() -> None:
    health = Health()
    health.opened(1.0)
    health.closed(Away.STREAM_BROKEN, progressed=False)
    health.opened(10.0)
    health.settle(10.0 + SETTLE_S / 2, in_flight=False)
    assert not health.is_healthy
    health.settle(10.0 + SETTLE_S, in_flight=False)
    assert health.is_healthy


def test_not_serving_is_away_until_it_says_otherwise_or_acknowledges() -> None:
    health = Health()
    health.opened(1.0)
    health.told(is_serving=False)
    assert (health.is_healthy, health.reason) == (False, "not_serving")
    health.told(is_serving=True)
    assert health.is_healthy
    health.told(is_serving=False)
    health.acknowledged()
    assert health.is_healthy
    health.absent(Away.NOT_SERVING)
    assert (health.is_healthy, health.reason) == (False, "not_serving")
