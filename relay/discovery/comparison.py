"""What a listing says of a repo against what is stored of it (pure; DESIGN 4), and when a difference is one for good."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, assert_never

from relay.atproto.syntax import make_tid, parse_tid, tid_time_us
from relay.model import RepoState
from relay.net.xrpc import ListedRepo
from relay.store.reconcile import Candidate, StoredRepo, Stream

# A rev that claims a later time than this from now is a lie or a broken clock (PROTOCOL 5.2), and says nothing.
FUTURE_US: Final = 300_000_000

# Beyond the time of the cursor's event: an event reaches upstream a moment after its repo shows it, and clocks differ.
MARGIN_S: Final = 5.0
# A cursor that stands still for so long will not bring what is missing.
STILL_S: Final = 60.0
# ... and one that moves, far behind the present, is not waited for longer than this.
LONGEST_WAIT_S: Final = 3600.0


class Verdict(enum.StrEnum):
    """What is to be done about a repo. The words are those of the statement `mark`."""

    SAME = "same"
    NEWER = "newer"  # synced, and its host has a newer rev: fetched again
    STATUS = "status"  # another status, or missing: getRepoStatus
    COMMIT = "commit"  # its rev is not said: getLatestCommit
    HEARD = "heard"  # it is fetched anyway, or not of use now: the rev is remembered
    UNKNOWN = "unknown"  # no row


MARKS: Final = frozenset({Verdict.NEWER, Verdict.STATUS, Verdict.COMMIT, Verdict.HEARD})
DIFFERENCES: Final = frozenset({Verdict.NEWER, Verdict.STATUS})


def compare(stored: StoredRepo | None, listed: Candidate) -> Verdict:
    """Return what a listing's entry means for the row that there is (None: none).

    Only the host that the repo's identity names says anything of it: another one that lists it is believed in nothing.
    `rev_heard` of a synced repo does not count: what was heard and never came is what a reconcile is for.
    """
    if stored is None:
        return Verdict.SAME if listed.missing else Verdict.UNKNOWN
    if not stored.tracked or stored.host != listed.host:
        return Verdict.SAME
    match stored.state:
        case RepoState.SYNCED:
            return _compare_synced(stored, listed)
        case RepoState.INACTIVE:
            return Verdict.STATUS if _differs_inactive(stored, listed) else Verdict.SAME
        case RepoState.DISCOVERED | RepoState.PENDING | RepoState.ACTIVE | RepoState.DESYNCED:
            return _heard(stored, listed)
        case RepoState.FAILED | RepoState.QUARANTINED:
            return _heard(stored, listed)
        case _:
            assert_never(stored.state)


def _compare_synced(stored: StoredRepo, listed: Candidate) -> Verdict:
    if listed.missing or listed.active is False or stored.active is False:
        return Verdict.STATUS
    if listed.rev is None:
        return Verdict.COMMIT
    return Verdict.NEWER if listed.rev > (stored.rev or "") else Verdict.SAME


def _differs_inactive(stored: StoredRepo, listed: Candidate) -> bool:
    status = stored.status if stored.active is False else stored.reason or ""
    if listed.missing:
        return status != "deleted"
    # A listing that does not say `active` at all has never heard of accounts that are not.
    return listed.active is not False or (listed.status is not None and listed.status != status)


def _heard(stored: StoredRepo, listed: Candidate) -> Verdict:
    return Verdict.HEARD if listed.rev is not None and listed.rev > (stored.rev_heard or "") else Verdict.SAME


def latest_rev(now: float) -> str:
    """Return the greatest rev that may be true at wall time `now` (seconds)."""
    return make_tid(int(now * 1_000_000) + FUTURE_US, 1023)


def believed(rev: str | None, latest: str) -> str | None:
    """Return a listed rev, or None for one above `latest`: remembered as heard, every copy of its repo would be older."""
    return None if rev is not None and rev > latest else rev


def listed_by(host: str, entries: Collection[ListedRepo], now: float) -> tuple[list[Candidate], int]:
    """Return what a page of `host` says, a DID once (its last entry), and how many entries were left out: revs from the future."""
    latest_us = int(now * 1_000_000) + FUTURE_US
    said: dict[str, Candidate] = {}
    refused = 0
    for entry in entries:
        if entry.rev is not None and tid_time_us(parse_tid(entry.rev)) > latest_us:
            refused += 1
            continue
        said[entry.did] = Candidate(did=entry.did, host=host, rev=entry.rev, active=entry.active, status=entry.status)
    return list(said.values()), refused


@dataclass(slots=True)
class SecondLook:
    """Until which time of finding candidates are decided now.

    While a stream is followed, what a listing shows at a time may still be on its way: it is looked at again once the stored cursor has
    passed that time, so a reconcile beside a healthy stream finds no difference. A cursor that stands still is not waited for.
    """

    _cursor_us: int | None = None
    _still_since: float | None = None

    def until(self, stream: Stream, monotonic: float) -> float:
        """Return that time (of the server's clock), at `monotonic` seconds."""
        if not stream.is_followed:
            return stream.now
        if self._still_since is None or stream.cursor_time_us != self._cursor_us:
            self._cursor_us, self._still_since = stream.cursor_time_us, monotonic
        until = stream.now - LONGEST_WAIT_S
        if stream.cursor_time_us is not None:
            until = max(until, stream.cursor_time_us / 1_000_000 - MARGIN_S)
        if monotonic - self._still_since >= STILL_S:
            until = max(until, stream.now - STILL_S)
        return min(until, stream.now)
