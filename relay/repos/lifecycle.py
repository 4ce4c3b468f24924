"""The states of a repo and what moves it from one to another (pure; DESIGN section 3 as a table).

Every state answers every event: a new state or None, which means that the event changes nothing there. A pair that is not in
the table cannot happen; asking for it raises ImpossibleEvent, because then our own state is broken.
"""

from __future__ import annotations

import enum
from typing import Final

from relay.model import RepoState as S


class Event(enum.StrEnum):
    """What can happen to a repo, as far as its stored state is concerned."""

    RESOLVED = "resolved"  # its DID document names a PDS and a key
    CLAIMED = "claimed"  # handed out for fetching
    RELEASED = "released"  # handed out in vain: not the repo's fault (stopping, 429, host down, moved)
    SNAPSHOT_DELIVERED = "snapshot_delivered"  # REPO_END acknowledged, or there was nothing to send
    ATTEMPT_FAILED = "attempt_failed"  # the repo's fault, and attempts are left
    GAVE_UP = "gave_up"  # attempts used up, or hopeless
    NOT_ACTIVE = "not_active"  # its host says: deactivated, takendown, suspended, deleted
    ACTIVE_AGAIN = "active_again"
    OUTDATED = "outdated"  # newer rev, chain break, overflow, widened filter, operator
    RETRY_DUE = "retry_due"  # its back-off has passed


class ImpossibleEvent(RuntimeError):
    """An event that cannot happen in this state: the relay's own bookkeeping is broken."""

    def __init__(self, state: S, event: Event) -> None:
        super().__init__(f"a repo that is {state} cannot see {event}")
        self.state, self.event = state, event


_E = Event
TABLE: Final[dict[S, dict[Event, S | None]]] = {
    S.DISCOVERED: {
        _E.RESOLVED: S.PENDING,
        _E.RELEASED: None,
        _E.ATTEMPT_FAILED: None,  # waits, and is resolved again
        _E.GAVE_UP: S.QUARANTINED,
        _E.NOT_ACTIVE: S.INACTIVE,
        _E.ACTIVE_AGAIN: None,
        _E.OUTDATED: None,
        _E.RETRY_DUE: None,
    },
    S.PENDING: {
        _E.RESOLVED: None,
        _E.CLAIMED: S.ACTIVE,
        _E.RELEASED: None,
        _E.GAVE_UP: S.QUARANTINED,
        _E.NOT_ACTIVE: S.INACTIVE,
        _E.ACTIVE_AGAIN: None,
        _E.OUTDATED: None,
        _E.RETRY_DUE: None,
    },
    S.ACTIVE: {
        _E.RESOLVED: None,
        _E.RELEASED: S.PENDING,
        _E.SNAPSHOT_DELIVERED: S.SYNCED,
        _E.ATTEMPT_FAILED: S.FAILED,
        _E.GAVE_UP: S.QUARANTINED,
        _E.NOT_ACTIVE: S.INACTIVE,
        _E.ACTIVE_AGAIN: None,
        _E.OUTDATED: S.DESYNCED,
    },
    S.SYNCED: {
        _E.RESOLVED: None,
        _E.RELEASED: None,
        _E.GAVE_UP: S.QUARANTINED,  # an ingester refused what the repo's rows depend on
        _E.NOT_ACTIVE: S.INACTIVE,
        _E.ACTIVE_AGAIN: None,
        _E.OUTDATED: S.DESYNCED,
    },
    S.DESYNCED: {
        _E.RESOLVED: None,
        _E.RELEASED: None,
        _E.GAVE_UP: S.QUARANTINED,
        _E.NOT_ACTIVE: S.INACTIVE,
        _E.ACTIVE_AGAIN: None,
        _E.OUTDATED: None,
        _E.RETRY_DUE: S.PENDING,
    },
    S.FAILED: {
        _E.RESOLVED: None,
        _E.RELEASED: None,
        _E.GAVE_UP: S.QUARANTINED,
        _E.NOT_ACTIVE: S.INACTIVE,
        _E.ACTIVE_AGAIN: None,
        _E.OUTDATED: None,
        _E.RETRY_DUE: S.PENDING,
    },
    S.INACTIVE: {
        _E.RESOLVED: None,
        _E.RELEASED: None,
        _E.NOT_ACTIVE: None,
        _E.ACTIVE_AGAIN: S.PENDING,
        _E.OUTDATED: None,
        _E.GAVE_UP: S.QUARANTINED,
        _E.RETRY_DUE: None,
    },
    S.QUARANTINED: {
        _E.RESOLVED: None,
        _E.RELEASED: None,
        _E.GAVE_UP: None,
        _E.NOT_ACTIVE: S.INACTIVE,
        _E.ACTIVE_AGAIN: None,
        _E.OUTDATED: None,  # an operator's retry sets it pending by itself
        _E.RETRY_DUE: S.PENDING,
    },
}


def after(state: S, event: Event) -> S:
    """Return the state that `event` leads to from `state`. Raises ImpossibleEvent."""
    try:
        new = TABLE[state][event]
    except KeyError:
        raise ImpossibleEvent(state, event) from None
    return state if new is None else new


# A batch has nothing more to wait for.
FINISHED: Final = frozenset({S.SYNCED, S.INACTIVE, S.QUARANTINED})
