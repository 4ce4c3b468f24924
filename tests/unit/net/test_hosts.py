"""The host table: what each host may be asked, and when."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.config.schema import BackfillerSettings
from relay.errors import FetchError
from relay.net.errors import BadResponse, HostDown, RateLimited, RepoNotFound, Stopped, TooLarge, Truncated
from relay.net.facts import NO_FACTS, HostFacts
from relay.net.hosts import HostPolicy, HostTable, Outcome, outcome_of

HOST = "https://pds.example.com"
POLICY = HostPolicy(requests_per_s=10, burst=30, connections=4, breaker_s=10)


def table(**changes: float) -> HostTable:
    values = {"requests_per_s": 10.0, "burst": 30.0, "connections": 4, "breaker_s": 10.0, **changes}
    return HostTable(HostPolicy(**values))  # type: ignore[arg-type]


def ask(hosts: HostTable, now: float, outcome: Outcome, facts: HostFacts = NO_FACTS) -> None:
    assert hosts.try_start(HOST, now)
    hosts.finished(HOST, now, outcome, facts)


def test_the_default_burst_is_at_most_thirty() -> None:
    assert HostPolicy.from_settings(BackfillerSettings()).burst == 30
    assert HostPolicy.from_settings(BackfillerSettings(host_requests_per_sec=1000)).burst == 30
    assert HostPolicy.from_settings(BackfillerSettings(host_requests_per_sec=0.1)).burst == 1


def test_connections_to_one_host_are_bounded_and_other_hosts_do_not_care() -> None:
    hosts = table()
    assert [hosts.try_start(HOST, 0.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert hosts.ready_at(HOST, 0.0) == 0.0
    assert hosts.try_start("https://other.example.com", 0.0)
    hosts.finished(HOST, 0.0, Outcome.SUCCESS)
    assert hosts.try_start(HOST, 0.0)


def test_the_rate_holds_over_time() -> None:
    hosts = table()
    started = 0
    for tick in range(1000):
        now = tick / 100
        while hosts.try_start(HOST, now):
            hosts.finished(HOST, now, Outcome.SUCCESS)
            started += 1
    assert started == pytest.approx(30 + 10 * 10, abs=1)


def test_a_hosts_own_limits_hold_for_it_alone_from_now_on_until_they_are_taken_back() -> None:
    hosts = table()
    ask(hosts, 0.0, Outcome.SUCCESS)
    hosts.limit(HOST, HostPolicy(requests_per_s=1, burst=1, connections=1, breaker_s=10), 0.0)
    assert hosts.try_start(HOST, 0.0)
    assert not hosts.try_start(HOST, 5.0), "one connection"
    hosts.finished(HOST, 5.0, Outcome.SUCCESS)
    assert hosts.try_start(HOST, 5.0)
    hosts.finished(HOST, 5.0, Outcome.SUCCESS)
    assert not hosts.try_start(HOST, 5.5), "one a second"
    assert all(hosts.try_start("https://other.example", 5.5) for _ in range(4))
    hosts.limit(HOST, None, 5.5)
    assert all(hosts.try_start(HOST, 5.5) for _ in range(4))


def test_retry_after_is_obeyed_to_the_letter() -> None:
    hosts = table()
    ask(hosts, 0.0, Outcome.LIMITED, HostFacts(retry_after_s=120))
    assert hosts.ready_at(HOST, 1.0) == 120.0
    assert not hosts.try_start(HOST, 119.999)
    assert hosts.try_start(HOST, 120.0)


def test_retry_after_is_obeyed_with_any_answer() -> None:
    hosts = table()
    ask(hosts, 0.0, Outcome.SUCCESS, HostFacts(retry_after_s=5))
    assert not hosts.try_start(HOST, 4.9)


def test_a_429_without_headers_pauses_longer_each_time_and_a_success_forgives() -> None:
    hosts = table()
    now, pauses = 0.0, []
    for _ in range(8):
        ask(hosts, now, Outcome.LIMITED)
        pauses.append(hosts.ready_at(HOST, now) - now)
        now += pauses[-1]
    assert pauses == [10, 20, 40, 80, 160, 300, 300, 300]
    ask(hosts, now, Outcome.SUCCESS)
    ask(hosts, now, Outcome.LIMITED)
    assert hosts.ready_at(HOST, now) - now == 10


def test_requests_that_were_on_their_way_count_as_one_429() -> None:
    hosts = table()
    for _ in range(4):
        assert hosts.try_start(HOST, 0.0)
    for _ in range(4):
        hosts.finished(HOST, 0.1, Outcome.LIMITED)
    assert hosts.ready_at(HOST, 0.1) == pytest.approx(10.1)


def test_the_seconds_that_hosts_made_us_wait_are_counted_once_however_many_answers_say_so() -> None:
    hosts = table()
    for _ in range(3):
        assert hosts.try_start(HOST, 0.0)
    hosts.finished(HOST, 1.0, Outcome.LIMITED, HostFacts(retry_after_s=20))
    hosts.finished(HOST, 2.0, Outcome.LIMITED, HostFacts(retry_after_s=20))
    hosts.finished(HOST, 3.0, Outcome.FAILED)
    assert (hosts.limited_total, hosts.limited_s) == (2, 21.0)


def test_an_exhausted_window_in_the_headers_waits_for_its_reset() -> None:
    hosts = table()
    ask(hosts, 0.0, Outcome.LIMITED, HostFacts(limit=3000, remaining=0, reset_after_s=90))
    assert not hosts.try_start(HOST, 89.0)
    assert hosts.try_start(HOST, 90.2)


def test_remaining_counts_what_is_on_its_way() -> None:
    hosts = table()
    for _ in range(3):
        assert hosts.try_start(HOST, 0.0)
    hosts.finished(HOST, 0.0, Outcome.SUCCESS, HostFacts(remaining=2, reset_after_s=60))
    assert not hosts.try_start(HOST, 1.0)


def test_a_failure_of_a_host_that_answers_nobody_opens_the_breaker() -> None:
    hosts = table()
    ask(hosts, 0.0, Outcome.FAILED)
    assert not hosts.answered_recently(HOST, 0.0)
    assert not hosts.try_start(HOST, 9.9)
    assert hosts.ready_at(HOST, 1.0) == 10.0


def test_half_open_lets_one_probe_through_and_an_answer_closes_the_breaker() -> None:
    hosts = table()
    ask(hosts, 0.0, Outcome.FAILED)
    assert hosts.try_start(HOST, 10.0)
    assert not hosts.try_start(HOST, 10.0)
    hosts.finished(HOST, 11.0, Outcome.ANSWERED)
    assert hosts.silent_s(HOST, 11.0) == 0.0
    assert [hosts.try_start(HOST, 11.0) for _ in range(5)] == [True] * 4 + [False]


def test_a_failed_probe_opens_the_breaker_again_and_the_silence_goes_on() -> None:
    hosts = table()
    ask(hosts, 5.0, Outcome.FAILED)
    assert hosts.try_start(HOST, 15.0)
    hosts.finished(HOST, 20.0, Outcome.FAILED)
    assert not hosts.try_start(HOST, 29.0)
    assert hosts.silent_s(HOST, 30.0) == 25.0


def test_failures_that_were_on_their_way_do_not_prolong_the_opening() -> None:
    hosts = table()
    for _ in range(4):
        assert hosts.try_start(HOST, 0.0)
    for delay in range(4):
        hosts.finished(HOST, float(delay), Outcome.FAILED)
    assert hosts.try_start(HOST, 10.0)


def test_a_failure_beside_answers_is_the_repos_and_opens_nothing() -> None:
    hosts = table()
    ask(hosts, 0.0, Outcome.SUCCESS)
    ask(hosts, 5.0, Outcome.FAILED)
    assert hosts.answered_recently(HOST, 5.0)
    assert hosts.try_start(HOST, 5.0)


def test_an_answer_of_long_ago_excuses_nobody() -> None:
    hosts = table()
    ask(hosts, 0.0, Outcome.SUCCESS)
    assert hosts.answered_recently(HOST, 10.0)
    assert not hosts.answered_recently(HOST, 10.1)


def test_what_we_ended_ourselves_says_nothing_of_the_host() -> None:
    hosts = table()
    ask(hosts, 0.0, Outcome.ABANDONED)
    assert not hosts.answered_recently(HOST, 0.0)
    assert hosts.silent_s(HOST, 5.0) == 0.0


def test_a_request_that_was_never_sent_costs_no_token() -> None:
    hosts = table(burst=1.0)
    assert hosts.try_start(HOST, 0.0)
    hosts.not_started(HOST, 0.0)
    assert hosts.try_start(HOST, 0.0)


def test_an_end_without_a_start_is_our_mistake_and_loud() -> None:
    hosts = table()
    with pytest.raises(RuntimeError, match="never started"):
        hosts.finished(HOST, 0.0, Outcome.SUCCESS)


def test_memory_is_bounded_and_the_paused_are_remembered() -> None:
    hosts = HostTable(POLICY, max_hosts=50)
    ask(hosts, 0.0, Outcome.LIMITED, HostFacts(retry_after_s=10_000))
    for number in range(1000):
        host = f"https://h{number}.example.com"
        assert hosts.try_start(host, float(number))
        hosts.finished(host, float(number), Outcome.SUCCESS)
    assert len(hosts) <= 50
    assert not hosts.try_start(HOST, 1000.0)


def test_the_snapshot_shows_the_sick_first() -> None:
    hosts = table()
    ask(hosts, 0.0, Outcome.FAILED)
    for name in ("https://a.io", "https://b.io"):
        assert hosts.try_start(name, 0.0)
    hosts.finished("https://b.io", 0.0, Outcome.LIMITED, HostFacts(retry_after_s=7))
    views = hosts.snapshot(2.0)
    assert [view.host for view in views] == [HOST, "https://b.io", "https://a.io"]
    assert views[0].is_open
    assert views[0].silent_for_s == 2.0
    assert views[1].paused_for_s == 5.0
    assert views[2].in_flight == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.SUCCESS),
        (RepoNotFound("x", host=HOST, status=400), Outcome.ANSWERED),
        (BadResponse("x", host=HOST, status=404), Outcome.ANSWERED),
        (BadResponse("x", host=HOST, status=200), Outcome.FAILED),
        (TooLarge("x", host=HOST), Outcome.ANSWERED),
        (HostDown("x", host=HOST), Outcome.FAILED),
        (Truncated("x", host=HOST), Outcome.FAILED),
        (RateLimited("x", host=HOST, status=429), Outcome.LIMITED),
        (Stopped("x", host=HOST), Outcome.ABANDONED),
        (FetchError("the sink's own"), Outcome.ABANDONED),
        (KeyError("a bug"), Outcome.ABANDONED),
    ],
)
def test_each_error_has_its_outcome(error: BaseException | None, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


class HostTableRules(RuleBasedStateMachine):
    """Any history: the limits of the docstring hold, and `ready_at` tells the truth."""

    @initialize(connections=st.integers(1, 5), rate=st.floats(0.5, 20), breaker=st.floats(0, 20))
    def begin(self, connections: int, rate: float, breaker: float) -> None:
        self.policy = HostPolicy(requests_per_s=rate, burst=5, connections=connections, breaker_s=breaker)
        self.hosts = HostTable(self.policy)
        self.now = 1000.0
        self.in_flight = 0
        self.not_before = 0.0
        self.starts: list[float] = []

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def start(self) -> None:
        ready = self.hosts.ready_at(HOST, self.now)
        if self.hosts.try_start(HOST, self.now):
            assert ready == self.now
            assert self.now >= self.not_before
            self.in_flight += 1
            self.starts.append(self.now)

    @rule()
    def start_when_ready(self) -> None:
        self.now = max(self.now, self.hosts.ready_at(HOST, self.now)) + 1e-6
        if self.in_flight == 0:
            assert self.hosts.try_start(HOST, self.now)
            self.in_flight += 1
            self.starts.append(self.now)

    @precondition(lambda self: self.in_flight)
    @rule(outcome=st.sampled_from(Outcome), retry_after=st.none() | st.floats(0, 60))
    def finish(self, outcome: Outcome, retry_after: float | None) -> None:
        facts = NO_FACTS if retry_after is None else HostFacts(retry_after_s=retry_after)
        self.hosts.finished(HOST, self.now, outcome, facts)
        self.in_flight -= 1
        if retry_after is not None:
            self.not_before = max(self.not_before, self.now + retry_after)

    @invariant()
    def never_more_than_allowed(self) -> None:
        assert self.in_flight <= self.policy.connections
        first = self.starts[0] if self.starts else 0.0
        assert len(self.starts) <= self.policy.burst + self.policy.requests_per_s * (self.now - first) + 1e-3


TestHostTableRules = HostTableRules.TestCase
