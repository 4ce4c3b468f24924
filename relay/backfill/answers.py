"""What the answers of fetch children and workers mean to a repo: its identity, its status, whose fault a failure is (pure)."""

from __future__ import annotations

from typing import Any

from relay.backfill import messages as m
from relay.errors import Blame
from relay.model import Identity
from relay.net.facts import NO_FACTS, HostFacts
from relay.observe.metrics import FetchOutcome
from relay.repos.failures import Failure

# By the reasons of net.errors.
_OUTCOMES = {
    "rate_limited": FetchOutcome.RATE_LIMITED,
    "repo_not_found": FetchOutcome.NOT_FOUND,
    "host_down": FetchOutcome.HOST_DOWN,
    "truncated": FetchOutcome.HOST_DOWN,
    "too_slow": FetchOutcome.TIMEOUT,
    "deadline": FetchOutcome.TIMEOUT,
    "too_large": FetchOutcome.TOO_LARGE,
    "bad_response": FetchOutcome.REFUSED,
    "private_address": FetchOutcome.REFUSED,
}


def identity_of(answer: m.Resolved) -> Identity | None:
    """Return what a document said, or None when there is none; its key or PDS may be missing."""
    if answer.reason is not None:
        return None
    return Identity(
        did=answer.did,
        signing_key=answer.signing_key,
        pds=answer.pds,
        handle=answer.handle,
        resolved_at=answer.resolved_at,
    )


def usable_identity(answer: m.Resolved) -> Identity | None:
    """Return what a document said if it names a PDS and a signing key."""
    identity = identity_of(answer)
    return identity if identity is not None and identity.pds and identity.signing_key else None


def identity_failure(did: str, answer: m.Resolved) -> Failure:
    """Return why nothing can be fetched with this answer: no document, or one without a PDS or a signing key."""
    if answer.reason is not None:
        blame = Blame(answer.blame) if answer.blame is not None else Blame.REPO
        if answer.reason == "directory_away":
            blame = Blame.US  # whoever is silent, it is not this repo
        return Failure(reason=answer.reason, blame=blame, text=answer.text or "", retry_after_s=answer.retry_after_s)
    missing = "PDS" if not answer.pds else "signing key"
    return Failure(
        reason="no_pds" if not answer.pds else "no_key", blame=Blame.REPO, text=f"{did}: no {missing} in its document"
    )


def status_of(message: m.FetchFailed) -> str | None:
    """Return the account status that a refusal of getRepo means, or None."""
    if message.account_status is not None:
        return message.account_status
    # When its own document names this host, and the host does not have it, the account was deleted there.
    return "deleted" if message.reason == "repo_not_found" else None


def fetch_outcome(message: m.FetchFailed) -> FetchOutcome:
    """Return the metric label of a download that failed."""
    if message.account_status is not None:
        return FetchOutcome.INACTIVE
    return _OUTCOMES.get(message.reason, FetchOutcome.OTHER)


def facts_of(wire: list[Any] | None) -> HostFacts:
    """Return what a host said of its limits; `wire` is the fields of messages.Facts."""
    if wire is None:
        return NO_FACTS
    limit, remaining, reset_after_s, retry_after_s = wire
    return HostFacts(limit=limit, remaining=remaining, reset_after_s=reset_after_s, retry_after_s=retry_after_s)


def blame_of_car(reason: str) -> Blame:
    """A CAR that is not good is its repo's fault, unless we could not read it."""
    return Blame.US if reason in ("out_of_memory", "spool_unreadable") else Blame.REPO
