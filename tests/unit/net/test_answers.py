"""From status and body to a typed error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import Blame
from relay.net.answers import error_from_answer
from relay.net.errors import BadResponse, HostDown, NetError, RateLimited, RepoInactive, RepoNotFound
from relay.net.facts import NO_FACTS, HostFacts

HOST = "https://pds.example.com"


def error(status: int, body: bytes | dict[str, object] = b"", retry_after_s: float | None = None) -> NetError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    facts = NO_FACTS if retry_after_s is None else HostFacts(retry_after_s=retry_after_s)
    return error_from_answer(host=HOST, status=status, body=raw, facts=facts)


@pytest.mark.parametrize("status", [400, 403, 404])
@pytest.mark.parametrize(
    ("name", "account_status"),
    [
        ("RepoTakendown", "takendown"),
        ("RepoSuspended", "suspended"),
        ("RepoDeactivated", "deactivated"),
        ("RepoDeleted", "deleted"),
        ("RepoInactive", ""),
    ],
)
def test_the_error_name_tells_the_account_status_whatever_the_status(
    status: int, name: str, account_status: str
) -> None:
    found = error(status, {"error": name, "message": "x"})
    assert isinstance(found, RepoInactive)
    assert found.account_status == account_status
    assert found.reason == account_status or (not account_status and found.reason == "inactive")
    assert found.answered


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize("name", ["RepoNotFound", "NotFound"])
def test_not_found_is_told_by_name_with_400_and_404(status: int, name: str) -> None:
    assert isinstance(error(status, {"error": name}), RepoNotFound)


@pytest.mark.parametrize(
    ("status", "kind", "answered"),
    [
        (400, BadResponse, True), (401, BadResponse, True), (403, BadResponse, True), (404, BadResponse, True), (408, HostDown, False),
        (410, BadResponse, True), (413, BadResponse, True), (451, BadResponse, True), (500, HostDown, False), (501, BadResponse, True),
        (502, HostDown, False), (503, HostDown, False), (504, HostDown, False), (522, HostDown, False), (429, RateLimited, True),
        (204, BadResponse, False), (206, BadResponse, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [b"", b"<html>Bad gateway</html>", b"[1]", b"{", b'{"error": 5}'])
def test_without_a_name_the_status_decides(status: int, kind: type[NetError], answered: bool, body: bytes) -> None:
    found = error(status, body)
    assert type(found) is kind
    assert found.status == status
    assert found.answered is answered
    assert found.host == HOST


def test_html_under_429_is_a_rate_limit() -> None:
    found = error(429, b"<html>slow down</html>")
    assert isinstance(found, RateLimited)
    assert found.retry_after_s is None
    assert found.blame is not Blame.REPO


@pytest.mark.parametrize("status", [403, 503])
def test_retry_after_makes_any_refusal_a_rate_limit(status: int) -> None:
    found = error(status, b"", retry_after_s=12)
    assert isinstance(found, RateLimited)
    assert found.retry_after_s == 12


def test_what_is_wrong_with_the_repo_outweighs_retry_after() -> None:
    assert isinstance(error(400, {"error": "RepoTakendown"}, retry_after_s=5), RepoInactive)


def test_a_name_under_a_5xx_is_not_believed() -> None:
    assert isinstance(error(502, {"error": "RepoNotFound"}), HostDown)


@given(st.integers(100, 999), st.binary(max_size=300))
def test_any_answer_becomes_an_error_with_a_short_printable_message(status: int, body: bytes) -> None:
    found = error(status, body)
    assert str(found).isprintable()
    assert len(str(found)) < 600


@given(st.text(max_size=2000), st.text(max_size=2000))
def test_other_peoples_text_cannot_forge_a_log_line(name: str, message: str) -> None:
    found = error(400, {"error": name, "message": message})
    assert str(found).isprintable()
    assert len(str(found)) < 600
