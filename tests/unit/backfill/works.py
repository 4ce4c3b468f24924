"""A work for tests that look at one part of the pipeline."""

from __future__ import annotations

from relay.atproto.nsid_filter import NsidFilter
from relay.backfill.work import Work
from relay.model import RepoState
from relay.repos.buffer import LiveBuffer
from relay.repos.facts import facts_of_row
from relay.repos.handover import LiveEvent
from relay.repos.live import LiveRepo
from relay.repos.resident import Resident
from relay.store.repos import RepoRow


def a_work(number: int, *, host: str = "h", size: int = 0) -> Work:
    """Return a work of a claimed repo."""
    row = RepoRow(did=f"did:plc:{number}", state=RepoState.ACTIVE, host=host)
    buffer: LiveBuffer[LiveEvent] = LiveBuffer(max_operations=10)
    wanted = NsidFilter.parse(())
    resident = Resident(row, LiveRepo(row.did, buffer, wanted, facts_of_row(row)), is_stored=True, identity=None)
    return Work(number=number, resident=resident, host=host, wanted=wanted, claimed_at=0.0, size=size)
