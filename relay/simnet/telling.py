"""From what happened to what is told: events enter the log through here, right or wrong as the fault plan says.

Remembers who was not told of what really is, so that a world can come to rest: `unheard`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from relay.simnet.events import (
    Event,
    EventLog,
    Payload,
    account_payload,
    commit_payload,
    identity_payload,
    iso_time,
    sync_payload,
)
from relay.simnet.faults import Fault, FaultKind, FaultPlan, Place
from relay.simnet.lies import FAULTS_OF, FURTHER_EVENTS, false_commit, false_frame, false_sync, rollback
from relay.simnet.repo import Commit, Repo

# What of an account a listener is wrong about after an event of a kind went wrong.
_ASPECT = {"commit": "repo", "sync": "repo", "identity": "identity", "account": "status"}
_HARMLESS = FURTHER_EVENTS | {FaultKind.EVENT_NO_PREV_DATA}


class Teller:
    """Writes events into the log. The world's lock is held while anything of an account is told; `lost` may be called without."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.plan = FaultPlan()
        self._lock = threading.Lock()  # guards _unheard
        self._unheard: dict[str, set[str]] = {}

    def commit(self, repo: Repo, commit: Commit, host: int, time_us: int) -> None:
        """Tell a commit, the newest of this repo."""
        self._tell("commit", repo, repo.did, commit_payload(repo.did, commit), host, time_us, commit)

    def sync(self, repo: Repo, host: int, time_us: int, *, outer_rev: str | None = None) -> None:
        """Tell a repo's newest commit without its changes. `outer_rev`: what stands outside of it, if not the same rev."""
        payload = sync_payload(repo.did, repo.commit_cid, repo.commit_block, outer_rev or repo.rev)
        self._tell("sync", repo, repo.did, payload, host, time_us)

    def identity(self, did: str, handle: str | None, host: int, time_us: int) -> None:
        self._tell("identity", None, did, identity_payload(did, handle), host, time_us)

    def account(self, did: str, status: str, host: int, time_us: int) -> None:
        self._tell("account", None, did, account_payload(did, status), host, time_us)

    def honestly(self, kind: str, did: str, payload: Payload, time_us: int) -> Event:
        """Tell something that no fault strikes."""
        self._heard(did, kind)
        return self.log.append(kind, did, payload, time_us)

    def lost(self, events: Sequence[Event]) -> None:
        """Note that a subscriber will not take these events, because they came to it in the wrong order."""
        for event in events:
            if event.kind in _ASPECT:
                self._not_heard(event.did, event.kind)

    def unheard(self) -> dict[str, frozenset[str]]:
        """Return the DIDs of whose `repo`, `identity` or `status` the newest that was told is missing or wrong."""
        with self._lock:
            return {did: frozenset(aspects) for did, aspects in self._unheard.items()}

    def _tell(
        self,
        kind: str,
        repo: Repo | None,
        did: str,
        payload: Payload,
        host: int,
        time_us: int,
        commit: Commit | None = None,
    ) -> None:
        place = Place(endpoint=f"#{kind}", host=host, did=did)
        fault = self.plan.pick(FAULTS_OF[kind], place)
        if fault is None or fault.kind in FURTHER_EVENTS:
            self.honestly(kind, did, payload, time_us)
            if fault is not None:
                self._add_further(fault, kind, repo, did, payload, time_us)
            return
        if fault.kind is FaultKind.DROP_EVENT:
            self.log.skip()
            self._not_heard(did, kind)
            return
        assert repo is not None, "only what is signed goes wrong in these ways"
        outer_rev = payload["rev"]
        wrong = false_commit(fault, repo, commit) if commit is not None else false_sync(fault, repo, outer_rev)
        if wrong is None:
            self.plan.take_back(fault, place)
            self.honestly(kind, did, payload, time_us)
            return
        self.log.append(kind, did, wrong, time_us)
        if fault.kind in _HARMLESS:
            self._heard(did, kind)
        else:
            self._not_heard(did, kind)

    def _add_further(
        self, fault: Fault, kind: str, repo: Repo | None, did: str, payload: Payload, time_us: int
    ) -> None:
        match fault.kind:
            case FaultKind.EVENT_AGAIN:
                self.log.append(kind, did, payload, time_us)
            case FaultKind.EVENT_ROLLBACK:
                assert repo is not None, "only what is signed can go back"
                self.log.append("sync", did, rollback(repo), time_us)
            case _:
                time = iso_time(time_us)
                self.log.append_frame("", did, lambda seq: false_frame(fault, seq, did, time), time_us)

    def _heard(self, did: str, kind: str) -> None:
        with self._lock:
            aspects = self._unheard.get(did)
            if aspects is not None:
                aspects.discard(_ASPECT[kind])
                if not aspects:
                    del self._unheard[did]

    def _not_heard(self, did: str, kind: str) -> None:
        with self._lock:
            self._unheard.setdefault(did, set()).add(_ASPECT[kind])
