"""A repo in memory, and whom its keeper needs: who has the frames, the live lane of delivery, and who fetches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from relay.model import Identity
from relay.repos import live_events as e
from relay.repos.live import LiveRepo
from relay.store.repos import RepoRow


class Resident:
    """A repo in memory. `row` is as it will be stored; `life` decides about the columns of `Facts`, others about the rest.

    `holds`: how many have it in hand: it stays while there is one.
    """

    __slots__ = ("counted", "holds", "identity", "is_stored", "life", "put_version", "rests_since", "row")

    def __init__(self, row: RepoRow, life: LiveRepo, *, is_stored: bool, identity: Identity | None) -> None:
        self.row, self.life, self.identity = row, life, identity
        self.is_stored = is_stored  # there is a row of it in the database
        self.counted = row.state if is_stored else None  # the state under which it is counted
        self.holds = 0
        self.put_version = 0  # of the newest row that was put
        self.rests_since = 0.0

    @property
    def did(self) -> str:
        return self.row.did


class Stream(Protocol):
    """Who has the frames."""

    def verify(self, did: str, seq: int, frame: Any) -> None: ...

    def done(self, seq: int) -> None: ...


class LiveOutlet(Protocol):
    """The live lane of delivery. What comes back of a token is fed to the keeper."""

    def offer(self, did: str, payload: Any, operations: int, token: e.LiveToken, received_at: float) -> bool:
        """Queue operations; False: they do not fit, and will not soon. `received_at`: of their frame, monotonic seconds."""

    def tell(self, did: str, payload: bytes, token: e.LiveToken) -> None:
        """Queue a telling, always."""

    def withdraw(self, did: str, tokens: Sequence[e.LiveToken]) -> list[e.LiveToken]:
        """Take back what is queued and was never written; return which."""


class Fetching(Protocol):
    """Who fetches, and looks identities up."""

    def send_snapshot(self, resident: Resident, fetch: int) -> None: ...

    def refuse_snapshot(self, resident: Resident, fetch: int, reason: str) -> None: ...

    def stop_snapshot(self, resident: Resident, fetch: int) -> None: ...

    def look_up(self, resident: Resident) -> None:
        """Read the document past every cache; `IdentityLearnt` or `IdentityFailed` is fed."""


class Unplugged:
    """Nobody is there: a backfill by itself has no frames, and a test not everything."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name}: nobody is plugged in")
