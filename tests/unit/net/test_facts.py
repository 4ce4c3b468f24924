"""Rate-limit headers."""

from __future__ import annotations

from email.message import Message
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.net.facts import MAX_RESET_S, MAX_RETRY_AFTER_S, NO_FACTS, HostFacts, parse_facts

NOW = 1_790_000_000.0


def headers(**values: str) -> Message:
    message = Message()
    for name, value in values.items():
        message[name.replace("_", "-")] = value
    return message


def test_the_reset_is_unix_seconds() -> None:
    facts = parse_facts(
        headers(
            ratelimit_limit="3000",
            ratelimit_remaining="2999",
            ratelimit_reset=str(int(NOW) + 250),
            RateLimit_Policy="3000;w=300",
        ),
        NOW,
    )
    assert facts == HostFacts(
        limit=3000, remaining=2999, reset_at=NOW + 250, reset_after_s=250, policy=(3000, 300.0), retry_after_s=None
    )


def test_a_small_reset_is_a_delta() -> None:
    assert parse_facts(headers(RateLimit_Reset="30"), NOW).reset_after_s == 30


def test_a_far_future_reset_is_clamped_and_a_past_one_is_now() -> None:
    assert parse_facts(headers(RateLimit_Reset="99999999999"), NOW).reset_after_s == MAX_RESET_S
    assert parse_facts(headers(RateLimit_Reset=str(int(NOW) - 500)), NOW).reset_after_s == 0


def test_retry_after_is_seconds_or_a_date() -> None:
    assert parse_facts(headers(Retry_After="7"), NOW).retry_after_s == 7
    assert parse_facts(headers(Retry_After=formatdate(NOW + 60, usegmt=True)), NOW).retry_after_s == pytest.approx(60)
    assert parse_facts(headers(Retry_After=formatdate(NOW - 60, usegmt=True)), NOW).retry_after_s == 0
    assert parse_facts(headers(Retry_After="999999999"), NOW).retry_after_s == MAX_RETRY_AFTER_S


def test_no_header_is_no_facts() -> None:
    assert parse_facts(headers(Content_Type="x"), NOW) is NO_FACTS


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_garbage_in_the_headers_never_raises_and_never_leaves_the_bounds(
    limit: str, remaining: str, reset: str, retry: str, policy: str
) -> None:
    raw = {
        "RateLimit-Limit": limit,
        "RateLimit-Remaining": remaining,
        "RateLimit-Reset": reset,
        "Retry-After": retry,
        "RateLimit-Policy": policy,
    }
    facts = parse_facts(raw, NOW)
    assert facts.retry_after_s is None or 0 <= facts.retry_after_s <= MAX_RETRY_AFTER_S
    assert facts.reset_after_s is None or 0 <= facts.reset_after_s <= MAX_RESET_S
    assert HostFacts.from_wire(facts.to_wire()) == facts


def test_facts_survive_the_way_between_processes() -> None:
    assert HostFacts.from_wire(None) is NO_FACTS
    facts = HostFacts(limit=1, remaining=2, reset_at=3.5, reset_after_s=0.5, policy=(3000, 300.0), retry_after_s=9.0)
    assert HostFacts.from_wire(facts.to_wire()) == facts
