"""What children's answers mean: every reason has a metric's label, a status is no failure of the host."""

from __future__ import annotations

import pytest

from relay.backfill import messages as m
from relay.backfill.answers import blame_of_car, fetch_outcome, status_of
from relay.errors import Blame
from relay.observe.metrics import FetchOutcome


def _failed(reason: str, status: str | None = None) -> m.FetchFailed:
    return m.FetchFailed(1, reason, "repo", "text", status, "answered", None)


@pytest.mark.parametrize(
    ("reason", "status", "outcome"),
    [
        ("rate_limited", None, FetchOutcome.RATE_LIMITED),
        ("repo_not_found", None, FetchOutcome.NOT_FOUND),
        ("takendown", "takendown", FetchOutcome.INACTIVE),
        ("a_status_of_tomorrow", "a_status_of_tomorrow", FetchOutcome.INACTIVE),
        ("host_down", None, FetchOutcome.HOST_DOWN),
        ("truncated", None, FetchOutcome.HOST_DOWN),
        ("too_slow", None, FetchOutcome.TIMEOUT),
        ("deadline", None, FetchOutcome.TIMEOUT),
        ("too_large", None, FetchOutcome.TOO_LARGE),
        ("private_address", None, FetchOutcome.REFUSED),
        ("spool_full", None, FetchOutcome.OTHER),
    ],
)
def test_a_failed_download_has_one_outcome(reason: str, status: str | None, outcome: FetchOutcome) -> None:
    assert fetch_outcome(_failed(reason, status)) is outcome


def test_a_host_without_the_repo_means_deleted_and_its_own_word_goes_before() -> None:
    assert status_of(_failed("repo_not_found")) == "deleted"
    assert status_of(_failed("suspended", "suspended")) == "suspended"
    assert status_of(_failed("host_down")) is None


def test_a_car_that_we_could_not_read_is_our_fault() -> None:
    assert blame_of_car("out_of_memory") is blame_of_car("spool_unreadable") is Blame.US
    assert blame_of_car("bad_signature") is Blame.REPO
