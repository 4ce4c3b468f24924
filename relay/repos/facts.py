"""What of a repo's live life is stored: the columns of its row that the machine owns (values only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relay.model import AccountStatus, RepoState
from relay.store.repos import RepoRow

Check = Literal["status", "commit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TellIdentity:
    """An identity as the ingesters are to know it. `time_us` orders the tellings of one DID."""

    handle: str | None
    pds: str | None
    time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The columns of a repo's row that its live life owns. `rev` and `data` are the acknowledged ones, never newer.

    `told` and `tell`: the last ACCOUNT that was acknowledged, and the newest to be told (the same when nothing waits).
    `covers`: canonical comma-joined patterns, None before the first complete snapshot.
    """

    state: RepoState = RepoState.DISCOVERED
    reason: str | None = None
    rev: str | None = None
    data: bytes | None = None
    rev_begun: str | None = None
    rev_heard: str | None = None
    covers: str | None = None
    told: AccountStatus | None = None
    tell: AccountStatus | None = None
    told_identity_us: int | None = None
    tell_identity: TellIdentity | None = None
    check_due: Check | None = None
    touched: bool = False


def facts_of_row(row: RepoRow) -> Facts:
    """Return what the live life of a repo starts from."""
    told = tell = None
    if row.told_time_us is not None:
        active = True if row.told_active is None else row.told_active
        told = AccountStatus(active=active, status=row.told_status or "", time_us=row.told_time_us)
    if row.tell_time_us is not None:
        active = True if row.tell_active is None else row.tell_active
        tell = AccountStatus(active=active, status=row.tell_status or "", time_us=row.tell_time_us)
    identity = None
    if row.tell_identity_us is not None:
        identity = TellIdentity(handle=row.tell_handle, pds=row.tell_pds, time_us=row.tell_identity_us)
    return Facts(
        state=row.state,
        reason=row.reason,
        rev=row.rev,
        data=row.data,
        rev_begun=row.rev_begun,
        rev_heard=row.rev_heard,
        covers=row.covers,
        told=told,
        tell=tell if tell is not None else told,
        told_identity_us=row.told_identity_us,
        tell_identity=identity,
        check_due="status" if row.check_due == "status" else "commit" if row.check_due else None,
        touched=row.touched,
    )


def put_facts(facts: Facts, row: RepoRow) -> None:
    """Write `facts` into their columns of `row`; the others are left alone."""
    row.state, row.reason = facts.state, facts.reason
    row.rev, row.data = facts.rev, facts.data
    row.rev_begun, row.rev_heard, row.covers = facts.rev_begun, facts.rev_heard, facts.covers
    if facts.told is not None:
        row.told_active, row.told_status, row.told_time_us = facts.told.active, facts.told.status, facts.told.time_us
    else:
        row.told_active = row.told_status = row.told_time_us = None
    if facts.tell is not None:
        row.tell_active, row.tell_status, row.tell_time_us = facts.tell.active, facts.tell.status, facts.tell.time_us
    row.told_identity_us = facts.told_identity_us
    if facts.tell_identity is not None:
        identity = facts.tell_identity
        row.tell_handle, row.tell_pds, row.tell_identity_us = identity.handle, identity.pds, identity.time_us
    row.check_due, row.touched = facts.check_due, facts.touched
