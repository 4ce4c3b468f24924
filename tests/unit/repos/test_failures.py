"""Who pays for a failure, rule by rule of what the documentation promises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.errors import Blame
from relay.repos.failures import RETRY_LIMIT_S, Failure, RetryPolicy, Verdict, judge
from relay.repos.lifecycle import Event

NOW = 1_700_000_000.0
POLICY = RetryPolicy(max_retries=5, first_delay_s=2.0, breaker_s=10.0, give_up_on_silent_hosts=True)
SERVICE = RetryPolicy(max_retries=5, first_delay_s=2.0, breaker_s=10.0, give_up_on_silent_hosts=False)


def verdict(
    reason: str,
    blame: Blame,
    *,
    attempts: int = 0,
    answers: bool = True,
    silent_s: float = 0.0,
    retry_after_s: float | None = None,
    policy: RetryPolicy = POLICY,
) -> Verdict:
    failure = Failure(reason=reason, blame=blame, text="", retry_after_s=retry_after_s)
    return judge(failure, attempts=attempts, host_answers=answers, host_silent_s=silent_s, policy=policy, now=NOW)


def test_the_repos_own_failure_costs_an_attempt_and_waits_twice_as_long_each_time() -> None:
    waits = []
    for attempts in range(POLICY.max_retries):
        got = verdict("invalid_car", Blame.REPO, attempts=attempts)
        assert (got.event, got.reason, got.attempts) == (Event.ATTEMPT_FAILED, "invalid_car", attempts + 1)
        waits.append(got.next_attempt_at - NOW)
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0]


def test_max_retries_are_attempts_after_the_first() -> None:
    assert verdict("invalid_car", Blame.REPO, attempts=4).event is Event.ATTEMPT_FAILED
    assert verdict("invalid_car", Blame.REPO, attempts=5).event is Event.GAVE_UP


@given(
    attempts=st.integers(0, 100),
    answers=st.booleans(),
    wait_s=st.none() | st.floats(0, 1e5),
    silent_s=st.floats(0, 1e6),
)
def test_a_429_never_costs_an_attempt_and_its_retry_after_is_obeyed(
    attempts: int, answers: bool, wait_s: float | None, silent_s: float
) -> None:
    got = verdict(
        "rate_limited", Blame.HOST, attempts=attempts, answers=answers, retry_after_s=wait_s, silent_s=silent_s
    )
    assert (got.event, got.attempts) == (Event.RELEASED, attempts)
    assert got.next_attempt_at >= NOW + (POLICY.breaker_s if wait_s is None else wait_s)


def test_a_failure_of_a_host_that_answers_others_is_the_repos() -> None:
    got = verdict("host_down", Blame.HOST, answers=True)
    assert (got.event, got.attempts) == (Event.ATTEMPT_FAILED, 1)


@given(attempts=st.integers(0, 100), silent_s=st.floats(0, 50.0))
def test_while_a_host_answers_nobody_it_is_the_hosts_failure_and_costs_none(attempts: int, silent_s: float) -> None:
    got = verdict("host_down", Blame.HOST, attempts=attempts, answers=False, silent_s=silent_s)
    assert (got.event, got.attempts) == (Event.RELEASED, attempts)
    assert got.next_attempt_at == NOW + POLICY.breaker_s


def test_in_a_batch_a_host_that_is_silent_for_max_retries_breaker_periods_is_given_up() -> None:
    assert verdict("host_down", Blame.HOST, answers=False, silent_s=50.0).event is Event.RELEASED
    got = verdict("too_slow", Blame.HOST, answers=False, silent_s=50.1)
    assert (got.event, got.reason) == (Event.GAVE_UP, "host_down")


def test_a_service_never_gives_a_silent_host_up() -> None:
    assert verdict("host_down", Blame.HOST, answers=False, silent_s=1e9, policy=SERVICE).event is Event.RELEASED


@given(attempts=st.integers(0, 100))
def test_what_is_our_fault_or_the_ingesters_costs_no_attempt(attempts: int) -> None:
    for blame in (Blame.US, Blame.INGESTER):
        got = verdict("spool_full", blame, attempts=attempts, answers=False, silent_s=1e9)
        assert (got.event, got.attempts) == (Event.RELEASED, attempts)
        assert got.next_attempt_at > NOW


@given(answers=st.booleans(), silent_s=st.floats(0, 1e6))
def test_what_an_operator_must_decide_quarantines_at_once(answers: bool, silent_s: float) -> None:
    got = verdict("private_address", Blame.OPERATOR, answers=answers, silent_s=silent_s)
    assert (got.event, got.reason) == (Event.GAVE_UP, "private_address")


@given(
    blame=st.sampled_from(Blame),
    attempts=st.integers(0, 1000),
    answers=st.booleans(),
    silent_s=st.floats(0, 1e6),
    retry_after_s=st.none() | st.floats(0, 86_400),
)
def test_no_failure_is_tried_again_in_the_past_or_after_more_than_it_was_asked_for(
    blame: Blame, attempts: int, answers: bool, silent_s: float, retry_after_s: float | None
) -> None:
    got = verdict("x", blame, attempts=attempts, answers=answers, silent_s=silent_s, retry_after_s=retry_after_s)
    assert NOW <= got.next_attempt_at <= NOW + max(RETRY_LIMIT_S, retry_after_s or 0.0)
    assert attempts <= got.attempts <= attempts + 1
