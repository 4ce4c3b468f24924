"""What a failure costs, and when to try again (pure; DESIGN section 8, "Identity, hosts, politeness")."""

from __future__ import annotations

from dataclasses import dataclass

from relay.errors import Blame
from relay.repos.lifecycle import Event
from relay.runtime.backoff import delay_s

RETRY_LIMIT_S = 3600.0
OUR_FAULT_DELAY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt came to nothing. `retry_after_s`: what the host asked for; `text` for people."""

    reason: str
    blame: Blame
    text: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`max_retries` attempts after the first; `first_delay_s` doubles up to an hour; `breaker_s` is a host's pause.

    `give_up_on_silent_hosts`: in a batch, so that it ends.
    """

    max_retries: int
    first_delay_s: float
    breaker_s: float
    give_up_on_silent_hosts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of the repo: the event for its life, its attempts so far, and the earliest time of the next one."""

    event: Event
    reason: str
    attempts: int
    next_attempt_at: float


def judge(
    failure: Failure,
    *,
    attempts: int,
    host_answers: bool,
    host_silent_s: float,
    policy: RetryPolicy,
    now: float,
) -> Verdict:
    """Decide who pays.

    `attempts`: failed ones before this. `host_answers`: the host answered any other request within the last `breaker_s`.
    `host_silent_s`: for how long it has not given one success. 429 and Retry-After never cost an attempt; a host that answers
    nobody is the host's failure, and costs none either; a refused address or a size limit quarantines at once.
    """
    if failure.blame is Blame.OPERATOR:
        return Verdict(event=Event.GAVE_UP, reason=failure.reason, attempts=attempts + 1, next_attempt_at=now)
    if failure.reason == "rate_limited":
        wait = failure.retry_after_s if failure.retry_after_s is not None else policy.breaker_s
        return Verdict(event=Event.RELEASED, reason=failure.reason, attempts=attempts, next_attempt_at=now + wait)
    if failure.blame in (Blame.US, Blame.INGESTER):
        return Verdict(
            event=Event.RELEASED, reason=failure.reason, attempts=attempts, next_attempt_at=now + OUR_FAULT_DELAY_S
        )
    if failure.blame is Blame.HOST and not host_answers:
        if policy.give_up_on_silent_hosts and host_silent_s > policy.max_retries * policy.breaker_s:
            return Verdict(event=Event.GAVE_UP, reason="host_down", attempts=attempts, next_attempt_at=now)
        return Verdict(
            event=Event.RELEASED, reason=failure.reason, attempts=attempts, next_attempt_at=now + policy.breaker_s
        )
    attempts += 1
    if attempts > policy.max_retries:
        return Verdict(event=Event.GAVE_UP, reason=failure.reason, attempts=attempts, next_attempt_at=now)
    wait = max(retry_delay_s(attempts, policy), failure.retry_after_s or 0.0)
    return Verdict(event=Event.ATTEMPT_FAILED, reason=failure.reason, attempts=attempts, next_attempt_at=now + wait)


def retry_delay_s(attempts: int, policy: RetryPolicy) -> float:
    """Return how long to wait after the failure number `attempts`, from 1: `first_delay_s`, doubling to an hour."""
    return delay_s(attempts - 1, policy.first_delay_s, RETRY_LIMIT_S)
